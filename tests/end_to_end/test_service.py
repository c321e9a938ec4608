"""From a prompt to a file through the running product, and what happens when parts of it die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from app.client import LongtakeClient
from app.jobs.job import Status
from app.schemas import VideoObject
from tests.conftest import Eventually
from tests.end_to_end.conftest import LONGTAKE, Up, alive, chunk_hashes, environment, frame_times, longtake
from tests.receiver import receiving

PROMPT = "a red circle"
LONG = {"seconds": 30, "seed": 7}
"""Long enough to be interrupted while it is made."""


def begun(client: LongtakeClient, eventually: Eventually, chunks: int = 3) -> VideoObject:
    """Asks for a long video and returns when some of it is ready and most is not."""
    video = client.create(PROMPT, **LONG)
    eventually(lambda: client.retrieve(video.id).chunks_ready >= chunks, 120)
    video = client.retrieve(video.id)
    assert video.status is Status.IN_PROGRESS
    return video


def finished(client: LongtakeClient, video_id: str) -> VideoObject:
    video = client.wait(video_id, timeout_seconds=180)
    assert video.status is Status.COMPLETED, video.error
    return video


@pytest.fixture(scope="session")
def undisturbed(service: Up) -> list[str]:
    """Hashes of the long video's chunks when nothing happens to it."""
    video = finished(service.client, service.client.create(PROMPT, **LONG).id)
    return chunk_hashes(service.client, video.id)


def test_a_prompt_becomes_a_video_that_can_be_watched_while_it_is_made(service: Up) -> None:
    client = service.client
    posted = time.monotonic()
    video = client.create(PROMPT, seconds=4, seed=1)
    assert video.status in (Status.QUEUED, Status.IN_PROGRESS)
    first_chunk_after = None
    types, chunks = [], []
    for event in client.events(video.id):
        types.append(event.type)
        if event.chunk is not None:
            first_chunk_after = first_chunk_after or time.monotonic() - posted
            chunks.append(event.chunk)
    assert first_chunk_after is not None
    assert first_chunk_after < 10
    assert types[-1] == "completed"
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk.frames for chunk in chunks) == 96

    video = finished(client, video.id)
    assert (video.progress, video.seconds, video.frames) == (100, "4", 96)
    times = frame_times(client.read(video.id))
    assert len(times) == 96
    assert times[0] == 0
    assert all(abs(b - a - 1 / 24) < 1e-3 for a, b in pairwise(times))

    for chunk in chunks:
        assert len(frame_times(client.read_chunk(video.id, chunk.index))) == chunk.frames
        segment = httpx.get(f"{service.url}/v1/videos/{video.id}/chunks/{chunk.index}/content?format=m4s")
        assert sha256(segment.content).hexdigest() == chunk.sha256


def test_the_owner_s_server_is_told_of_each_chunk_and_of_the_end(service: Up, eventually: Eventually) -> None:
    client = service.client
    with receiving() as receiver:
        events = ["video.chunk", "video.completed"]
        video = client.create(PROMPT, seconds=2, seed=1, webhook_url=receiver.url, webhook_events=events)
        chunks = finished(client, video.id).chunks_ready
        eventually(lambda: len(receiver.calls) == chunks + 1)
        assert sorted(receiver.types) == ["video.chunk"] * chunks + ["video.completed"]
        secret = Webhook(client.webhook_secret().secret)
        assert {secret.verify(call.body, call.headers)["data"]["id"] for call in receiver.calls} == {video.id}


def test_generate_writes_the_file_and_tells_its_path(service: Up, tmp_path: Path) -> None:
    out = tmp_path / "ball.mp4"
    done = longtake("generate", PROMPT, "--seconds", "2", "--seed", "3", "-o", str(out), "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "100 %" in done.stderr
    assert "48 frames at 24 fps" in done.stderr
    assert len(frame_times(out.read_bytes())) == 48
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]


def test_generate_without_a_service_brings_its_own_and_leaves_only_the_file(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    out = tmp_path / "ball.mp4"
    done = longtake("generate", PROMPT, "--seconds", "2", "--model", model_folder, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert len(frame_times(out.read_bytes())) == 48
    assert list((tmp_path / "temporary").iterdir()) == []


def test_watch_follows_a_finished_video_and_downloads_it(service: Up, tmp_path: Path) -> None:
    video = service.client.create(PROMPT, seconds=1)
    out = tmp_path / "seen.mp4"
    done = longtake("watch", video.id, "--url", service.url, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert len(frame_times(out.read_bytes())) == 24


def test_models_lists_what_the_service_makes(service: Up) -> None:
    done = longtake("models", "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tiny  64x32, 32x32  24 fps  up to 3600 s"]


def test_a_second_up_on_the_folder_says_who_has_it(service: Up) -> None:
    done = longtake("up", "--data", str(service.data), "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"longtake: the data folder {service.data} is in use by another longtake "
        f"(process {service.process.pid}, {service.url})\n"
    )
    assert httpx.get(f"{service.url}/readyz").status_code == 200


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = longtake("up", "--data", str(tmp_path / "data"), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"longtake: port {port} on 127.0.0.1 is in use; choose another with --port\n"
    assert not (tmp_path / "data" / "run" / "redis.pid").exists()


def test_a_model_folder_that_is_not_there_ends_up_in_one_line(tmp_path: Path, eventually: Eventually) -> None:
    done = longtake(
        "up", "--data", str(tmp_path / "data"), "--port", "0", "--model", str(tmp_path / "nowhere")
    )
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("longtake: model ")
    assert "nowhere" in line
    assert not list((tmp_path / "data" / "run").glob("*.pid"))


def test_a_broken_model_is_told_by_generate_too(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    done = longtake("generate", PROMPT, "--model", str(tmp_path / "broken"), "-o", str(tmp_path / "x.mp4"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("longtake: model ")
    assert "model_index.json is not JSON" in done.stderr


def test_sigterm_in_mid_video_loses_nothing(
    up: Callable[..., Up], eventually: Eventually, undisturbed: list[str]
) -> None:
    first = up()
    port = first.url.rpartition(":")[2]
    video = begun(first.client, eventually)
    pids = [process.pid for process in first.tree()]
    assert len(pids) == 3
    second: Up | None = None
    ids, seen = [], []
    with LongtakeClient(first.url) as watcher:  # one that stays while the whole service goes and comes back
        for event in watcher.events(video.id):
            ids.append(event.id)
            if event.chunk is not None:
                seen.append(event.chunk.sha256)
            if len(seen) == 5 and second is None:
                assert first.terminate() == 0
                assert [line for line in first.said().splitlines() if "still waiting" not in line] == []
                assert not any(alive(pid) for pid in pids)
                assert not list((first.data / "run").glob("*.pid"))
                second = up("--port", port)
                assert 5 <= second.client.retrieve(video.id).chunks_ready < len(undisturbed)
    assert seen == undisturbed
    assert len(ids) == len(set(ids))
    assert second is not None
    video = finished(second.client, video.id)
    assert video.attempts == 1
    assert chunk_hashes(second.client, video.id) == undisturbed
    assert len(frame_times(second.client.read(video.id))) == LONG["seconds"] * 24


def test_kill_9_leaves_no_orphans_and_the_next_up_continues_at_once(
    up: Callable[..., Up], eventually: Eventually, undisturbed: list[str]
) -> None:
    first = up()
    video = begun(first.client, eventually)
    pids = [process.pid for process in first.tree()]
    first.kill()
    eventually(lambda: not any(alive(pid) for pid in pids), 30)

    second = up()
    assert "continuing 1 interrupted video" in second.said()
    restarted = time.monotonic()
    eventually(lambda: second.client.retrieve(video.id).attempts == 2, 60)
    assert time.monotonic() - restarted < 10  # a lease lasts 15
    finished(second.client, video.id)
    assert chunk_hashes(second.client, video.id) == undisturbed


def test_a_redis_that_crashes_is_restarted_and_the_video_goes_on(
    service: Up, eventually: Eventually, undisturbed: list[str]
) -> None:
    video = begun(service.client, eventually)
    killed = service.pid("redis")
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: (service.data / "run" / "redis.pid").exists() and service.pid("redis") != killed, 60)
    finished(service.client, video.id)
    assert chunk_hashes(service.client, video.id) == undisturbed
    assert "redis ended (signal 9) and is started again" in service.said()


def test_a_worker_that_crashes_is_restarted_and_continues_the_video(
    up: Callable[..., Up], eventually: Eventually, undisturbed: list[str]
) -> None:
    running = up()
    video = begun(running.client, eventually)
    os.kill(running.pid("worker-0"), signal.SIGKILL)
    eventually(lambda: "continuing 1 interrupted video" in running.said(), 30)  # no lease has to run out
    video = finished(running.client, video.id)
    assert video.attempts == 2
    assert "worker-0 ended (signal 9) and is started again" in running.said()
    assert chunk_hashes(running.client, video.id) == undisturbed


def test_an_api_that_crashes_comes_back_on_its_port(service: Up, eventually: Eventually) -> None:
    killed = service.pid("api")
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not alive(killed))
    assert service.client.models()[0].id == "tiny"  # the client waits for it
    assert service.pid("api") != killed


def test_interrupted_generate_cancels_the_video(service: Up, tmp_path: Path, eventually: Eventually) -> None:
    out = tmp_path / "never.mp4"
    with subprocess.Popen(
        [*LONGTAKE, "generate", PROMPT, "--seconds", "600", "-o", str(out), "--url", service.url],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as generate:
        newest = eventually(lambda: next(iter(service.client.list(status="in_progress")), None), 60)
        eventually(lambda: service.client.retrieve(newest.id).chunks_ready, 60)
        generate.send_signal(signal.SIGINT)
        assert generate.wait(60) == 130
    video = service.client.retrieve(newest.id)
    assert video.status is Status.CANCELLED
    assert video.chunks_ready > 0
    assert not out.exists()


def test_logs_hold_no_password_and_no_prompt(service: Up) -> None:
    prompt = "a red circle nobody else asked for"
    finished(service.client, service.client.create(prompt, seconds=1).id)
    password = (service.data / "redis" / "server.conf").read_text().split("requirepass ")[1].split()[0]
    logs = "".join(path.read_text() for path in (service.data / "logs").iterdir())
    assert password not in logs
    assert prompt not in logs
    assert json.dumps(prompt) not in logs
