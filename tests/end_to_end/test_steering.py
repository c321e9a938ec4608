"""A video without an end, through the running product: steered, finished, and complete to the frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import httpx
import pytest

from app.client import VideoRequest
from tests.conftest import Eventually
from tests.end_to_end.conftest import Up, chunk_hashes, frame_times
from worker.models.registry import BUILTIN_FOLDER

pytestmark = pytest.mark.skipif(
    not (BUILTIN_FOLDER / "model_index.json").is_file(), reason="this checkout has no built-in model"
)


def test_an_endless_video_is_steered_and_finished(up: Callable[..., Up], eventually: Eventually) -> None:
    service = up("--model", "builtin")
    client = service.client
    fewest = client.models()[0].num_inference_steps_multiple_of
    wanted: VideoRequest = {"size": "128x128", "seed": 3, "num_inference_steps": fewest}  # quick, not pretty
    video = client.create("a red ball moving left on a black background", seconds="endless", **wanted)
    address = f"{service.url}/v1/videos/{video.id}"
    eventually(lambda: client.retrieve(video.id).chunks_ready >= 2, 120)
    running = client.retrieve(video.id)
    assert (running.seconds, running.frames, running.chunks_total) == ("endless", None, None)
    assert "ENDLIST" not in httpx.get(f"{address}/stream.m3u8").text

    text = "a blue square moving right on a black background"
    assert httpx.post(f"{address}/prompts", json={"text": text}).status_code == 200
    events = client.events(video.id)
    steered = next(event for event in events if event.type == "prompt")
    assert steered.data["text"] == text
    assert steered.data["at"] >= running.seconds_ready
    eventually(lambda: client.retrieve(video.id).seconds_ready > steered.data["at"], 120)
    assert httpx.post(f"{address}/finish").status_code == 200
    for event in events:  # the stream goes on to the end
        last = event
    assert last.type == "completed"

    done = client.retrieve(video.id)
    chunks = list(client.chunks(video.id))
    assert done.frames == sum(chunk.frames for chunk in chunks)
    assert float(done.seconds) == pytest.approx(done.frames / done.fps, abs=1e-6)
    assert [(p.at, p.text) for p in done.prompts] == [(0, video.prompt), (steered.data["at"], text)]
    assert any(chunk.start_seconds == pytest.approx(steered.data["at"], abs=1e-5) for chunk in chunks)
    times = frame_times(client.read(video.id))
    assert len(times) == done.frames
    assert all(abs(b - a - 1 / done.fps) < 1e-3 for a, b in pairwise(times))
    playlist = httpx.get(f"{address}/stream.m3u8").text
    assert playlist.count("#EXTINF") == len(chunks)
    assert playlist.endswith("#EXT-X-ENDLIST\n")

    timeline = [prompt.model_dump() for prompt in done.prompts]
    anew = client.create(prompts=timeline, seconds=done.seconds, **wanted)
    assert client.wait(anew.id, timeout_seconds=300).status == "completed"
    assert chunk_hashes(client, anew.id) == chunk_hashes(client, video.id)
