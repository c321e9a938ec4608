"""The built-in model goes on from what it is given: pictures and clips over HTTP, judged by measuring the pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import av
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.end_to_end.conftest import Up
from worker.evaluation.oracle import judge, measure, parse_prompt, to_uint8
from worker.models.registry import BUILTIN_FOLDER
from worker.training.scenes import render, sample_scenes

pytestmark = pytest.mark.skipif(
    not (BUILTIN_FOLDER / "model_index.json").is_file(), reason="this checkout has no built-in model"
)

PROMPT = "a green circle bouncing off the walls on a navy background"
SIZE = 128
OTHER = "a yellow square bouncing off the walls on a black background"


def scene(prompt: str, frames: int, seed: int = 3) -> np.ndarray:
    """A clip as the training renders it, uint8 (T, SIZE, SIZE, 3)."""
    attributes = parse_prompt(prompt)
    assert attributes is not None
    scenes = sample_scenes([attributes], np.random.default_rng(seed))
    return to_uint8(render(scenes, torch.arange(frames)[None], SIZE)[0])


def mp4(frames: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def closeness(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB."""
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / error))


class Service:
    def __init__(self, up: Up) -> None:
        self.up, self.http = up, httpx.Client(base_url=up.url, timeout=60, trust_env=False)

    def made(self, answer: httpx.Response) -> tuple[dict[str, Any], np.ndarray]:
        assert answer.status_code == 200, answer.text
        video = self.up.client.wait(answer.json()["id"], timeout_seconds=300)
        assert video.status == "completed", video.error
        content = self.http.get(f"/v1/videos/{video.id}/content")
        with av.open(io.BytesIO(content.content)) as container:
            stream = container.streams.video[0]
            shown = [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        assert [float(at) for at, _ in shown] == [n / 24 for n in range(video.frames)]
        return answer.json(), np.stack([picture for _, picture in shown])

    def begin(self, prompt: str, seconds: int, data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        form = {"prompt": prompt, "seconds": str(seconds), "seed": "1"}
        return self.made(self.http.post("/v1/videos", data=form, files={"input_reference": ("a", data)}))


def test_the_built_in_model_goes_on_from_a_picture_a_clip_and_a_video(up: Callable[..., Up]) -> None:
    service = Service(up("--model", "builtin"))
    attributes = parse_prompt(PROMPT)
    assert attributes is not None
    given = scene(PROMPT, 21)

    still = io.BytesIO()
    Image.fromarray(given[0]).save(still, "PNG")
    video, frames = service.begin(PROMPT, 2, still.getvalue())
    assert video["input_reference"] == {"kind": "image", "width": SIZE, "height": SIZE, "frames": 5}
    assert closeness(frames[:5], np.repeat(given[:1], 5, axis=0)) > 25
    verdict = judge(frames[5:], attributes)
    assert verdict.color, verdict
    assert verdict.background, verdict
    assert verdict.present > 0.9, verdict

    video, frames = service.begin(PROMPT, 3, mp4(given))
    assert (video["input_reference"]["kind"], video["input_reference"]["frames"]) == ("video", 21)
    assert closeness(frames[:21], given) > 25
    verdict = judge(frames[21:], attributes)
    assert verdict.color, verdict
    assert verdict.background, verdict
    # It goes on where the clip ends: the shape does not jump at the seam.
    track = measure(frames[14:34])
    steps = np.hypot(np.diff(track.x), np.diff(track.y))
    assert steps.max() < 0.06, steps

    # The end of that video leads on to another under another prompt.
    body = {"video": {"id": video["id"]}, "prompt": OTHER, "seconds": 7}
    longer, extended = service.made(service.http.post("/v1/videos/extensions", json=body))
    assert longer["extended_from_video_id"] == video["id"]
    whole = len(frames) - len(frames) % 8
    assert np.array_equal(extended[: whole - 8], frames[: whole - 8])
    wanted = parse_prompt(OTHER)
    assert wanted is not None
    assert judge(extended[5 * 24 :], wanted).color
