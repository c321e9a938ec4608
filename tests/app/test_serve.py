"""The server as a process of its own: its signals, its port, its log."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.jobs.connection import connect
from app.jobs.job import VideoSpec
from app.jobs.store import VideoStore
from app.schemas import CreateVideo
from app.settings import Settings
from app.specification import specify
from app.storage import open_store
from app.storage.objects import final_key
from tests.app.conftest import CARD

SCRIPT = """
import sys
from app.main import serve
from app.settings import Settings
sys.exit(serve(Settings(), ready=lambda host, port: print(host, port, flush=True)))
"""


@dataclass
class Serving:
    process: subprocess.Popen[str]
    host: str
    port: int
    videos: VideoStore

    def stop(self) -> float:
        """Ends it with SIGTERM; seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        return time.monotonic() - began


def start(folder: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGTAKE_")}
    environment |= {"LONGTAKE_DATA_DIR": str(folder), "LONGTAKE_PORT": "0", **settings}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def serving(redis_url: str, tmp_path: Path) -> Iterator[Serving]:
    process = start(tmp_path, LONGTAKE_REDIS_URL=redis_url, LONGTAKE_LOG_JSON="true")
    assert process.stdout is not None
    host, port = process.stdout.readline().split()
    videos = VideoStore(connect(redis_url))
    videos.register_model(CARD)
    yield Serving(process, host, int(port), videos)
    process.kill()
    process.communicate()


def a_video(videos: VideoStore, settings: Settings) -> VideoSpec:
    spec = specify(CreateVideo(prompt="x", seconds=2), videos.models(), settings)
    videos.create(spec)
    return spec


def test_sigterm_ends_open_streams_within_a_second_and_the_process_with_code_0(
    serving: Serving, settings: Callable[..., Settings]
) -> None:
    spec = a_video(serving.videos, settings())
    streams = []
    for _ in range(20):
        stream = socket.create_connection((serving.host, serving.port), 5)
        stream.sendall(f"GET /v1/videos/{spec.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 200 " in stream.recv(65536)
        streams.append(stream)
    began = time.monotonic()
    serving.process.send_signal(signal.SIGTERM)
    for stream in streams:
        received = b""
        while piece := stream.recv(65536):
            received += piece
        assert received.endswith(b"0\r\n\r\n")  # a proper end, after which browsers reconnect
        stream.close()
    assert time.monotonic() - began < 1
    assert serving.process.wait(5) == 0


def test_sigterm_lets_a_download_finish(
    serving: Serving, tmp_path: Path, settings: Callable[..., Settings]
) -> None:
    spec = a_video(serving.videos, settings())
    video, fence = serving.videos.claim(spec.id, "double")
    content = os.urandom(8 << 20)
    open_store((tmp_path / "objects").as_uri()).put(final_key(spec.id), content)
    serving.videos.finish(video, fence, "completed", final_bytes=len(content))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect((serving.host, serving.port))
        client.sendall(f"GET /v1/videos/{spec.id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = client.recv(65536)
        serving.process.send_signal(signal.SIGTERM)
        while piece := client.recv(1 << 20):
            received += piece
    assert received.split(b"\r\n\r\n", 1)[1] == content
    assert serving.process.wait(10) == 0


def test_sigint_is_as_good(serving: Serving) -> None:
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(10) == 0


def test_it_prints_nothing_and_logs_json_without_secrets(serving: Serving, redis_url: str) -> None:
    url = f"http://{serving.host}:{serving.port}"
    headers = {"Authorization": "Bearer hidden", "X-Request-Id": "r-1"}
    assert httpx.get(f"{url}/v1/models?key=hidden", headers=headers, trust_env=False).status_code == 200
    assert serving.stop() < 5
    assert serving.process.stdout is not None
    assert serving.process.stderr is not None
    assert serving.process.stdout.read() == ""
    text = serving.process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines()]
    access = next(line for line in lines if line["logger"] == "app.access")
    assert access["message"] == "GET /v1/models 200"
    assert (access["request_id"], access["client"]) == ("r-1", "127.0.0.1")
    assert "hidden" not in text
    assert redis_url.split("@")[0].split(":")[-1] not in text


def test_what_is_not_http_and_a_head_that_does_not_end_get_json_too(serving: Serving) -> None:
    def exchange(*pieces: bytes) -> bytes:
        with socket.create_connection((serving.host, serving.port), 5) as raw:
            for piece in pieces:
                raw.sendall(piece)
                time.sleep(0.05)
            answer = b""
            while piece := raw.recv(4096):
                answer += piece
        return answer

    answer = exchange(b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "malformed_request"' in answer
    answer = exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", *[b"x" * 30_000] * 3)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"too large" in answer
    # Many bytes in a body are fine.
    url = f"http://{serving.host}:{serving.port}/v1/videos"
    body = {"prompt": "x" * 200_000}
    assert httpx.post(url, json=body, trust_env=False).json()["error"]["code"] == "text_too_long"


def test_what_keeps_it_from_starting_is_one_line_and_a_code(redis_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        processes = [
            start(tmp_path),  # no Redis
            start(tmp_path, LONGTAKE_REDIS_URL=redis_url, LONGTAKE_PORT=str(taken.getsockname()[1])),
            start(tmp_path, LONGTAKE_REDIS_URL=redis_url, LONGTAKE_HOST="no-such-host.invalid"),
        ]
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 1
            assert out == ""
            assert len(err.splitlines()) == 1
            assert "cannot start" in err
