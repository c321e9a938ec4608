"""Stores that are slow, full, or busy: the sampler waits, nothing grows, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.storage import open_store
from tests.app.storage.conftest import S3Server, moto  # noqa: F401 - a fixture
from worker import main as worker_main


class Slow:
    """A store that puts a chunk when the sampler has come as far ahead as it can, and some time later.

    Everything else goes to a real one at once.
    """

    def __init__(self, inner: Any, model: Any, seconds: float, *, room: int, chunks: int) -> None:
        """`room` is for how many chunks there is at least between sampler and store, with that in the store's hands."""
        self.inner, self.model, self.seconds = inner, model, seconds
        self.room, self.chunks = room, chunks
        self.ahead: list[int] = []
        """At each put, by how many chunks the sampler was ahead of the store."""

    def put(self, key: str, data: Any, *args: Any, **options: Any) -> None:
        if "/chunks/" in key:
            chunk = int(key.rpartition("/")[2].partition(".")[0])
            deadline = time.monotonic() + 60
            while self.emitted < min(chunk + self.room, self.chunks) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(self.seconds)
            self.ahead.append(self.emitted - chunk)
        self.inner.put(key, data, *args, **options)

    @property
    def emitted(self) -> int:
        """Chunks that have left the window, or leave it with the forward that runs."""
        config = self.model.sampler
        return len(self.model.rows) // config.forwards_per_shift - (config.chunks_in_flight - 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("stage_queue", [1, 3])
def test_a_slow_store_slows_the_sampler_and_nothing_piles_up(
    work: Any, monkeypatch: pytest.MonkeyPatch, stage_queue: int
) -> None:
    model = work.model()
    # Three queues, and three stages with one chunk in their hands.
    room = 3 * stage_queue + 3
    slow = Slow(work.objects, model, 0.03, room=room, chunks=61)
    monkeypatch.setattr(worker_main, "store_of", lambda settings: slow)
    work.start(model, stage_queue=stage_queue)
    spec = work.spec(24 * 20)
    work.store.create(spec)
    video = work.wait(spec.id, "completed")
    assert video.state.chunks_ready == len(slow.ahead) == 61
    most = room + 1  # the one that the engine is about to give
    middle = slow.ahead[15:-15]
    assert max(slow.ahead) <= most
    assert min(middle) > stage_queue, "the store is what holds it up, not the model"
    assert sum(middle[15:]) / len(middle[15:]) <= sum(middle[:15]) / 15 + 1, "it does not grow with time"


def test_a_full_disk_is_waited_for_and_the_video_goes_on_when_there_is_space(
    work: Any, small_disk: Path
) -> None:
    work.objects = open_store(small_disk.as_uri())
    expected, spec = work.spec(200), work.spec(200)
    worker = work.start(work.model(), storage_url=small_disk.as_uri())
    work.store.create(expected)
    digests = work.digests(work.wait(expected.id, "completed").id)
    worker.stop()
    work.objects.delete_prefix(f"videos/{expected.id}/")
    work.start(work.model(step_seconds=0.01), storage_url=small_disk.as_uri())
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):  # no space
            while file.write(bytes(4096)):
                pass
        work.eventually(lambda: work.video(spec.id).state.stalled == "disk is full")
    ballast.unlink()
    video = work.wait(spec.id, "completed")
    assert (video.state.stalled, video.state.attempts) == (None, 1)
    assert work.digests(spec.id) == digests


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests on to an S3 server, unless it is told to refuse what is written."""

    protocol_version = "HTTP/1.1"
    server: ProxyServer

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "PUT" and self.server.refusal is not None:
            status, code = self.server.refusal
            self.server.refused += 1
            self._send(status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        url = self.server.target + self.path
        passed = self.server.client.request(self.command, url, headers=headers, content=body)
        kept = {k: v for k, v in passed.headers.items() if k in ("etag", "content-type", "last-modified")}
        self._send(passed.status_code, kept, passed.content)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


class ProxyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.target, self.client = target, httpx.Client(trust_env=False)
        self.refusal: tuple[int, str] | None = None
        self.refused = 0


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[ProxyServer]:  # noqa: F811
    server = ProxyServer(moto.endpoint_url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    server.client.close()


def test_a_bucket_that_is_busy_full_or_broken_is_asked_again_until_it_takes_the_chunk(
    work: Any,
    moto: S3Server,  # noqa: F811
    proxy: ProxyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret_access_key)
    work.objects = moto.open(prefix="busy")
    work.start(
        work.model(step_seconds=0.02),
        storage_url="s3://longtake/busy",
        s3_endpoint_url=f"http://127.0.0.1:{proxy.server_port}",
    )
    spec = work.spec(24 * 600)
    work.store.create(spec)
    for refusal, reason in (
        ((503, "SlowDown"), "storage is not reachable"),
        ((403, "QuotaExceeded"), "disk is full"),
        ((500, "InternalError"), "storage is not reachable"),
    ):
        ready = work.video(spec.id).state.chunks_ready
        work.wait(spec.id, chunks=ready + 2)
        proxy.refusal = refusal
        work.eventually(lambda reason=reason: work.video(spec.id).state.stalled == reason, 30)
        refused = proxy.refused
        work.eventually(lambda refused=refused: proxy.refused > refused, 30)
        proxy.refusal = None
        work.eventually(lambda: work.video(spec.id).state.stalled is None, 30)
    work.wait(spec.id, chunks=work.video(spec.id).state.chunks_ready + 1)
    work.store.request_cancel(spec.id)
    video = work.wait(spec.id, "cancelled")
    assert video.state.attempts == 1
    assert len(work.digests(spec.id)) == video.state.chunks_ready + 1
