"""The Python client against a real API: what it returns, what it raises, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

import app.client
from app.client import (
    AsyncLongtakeClient,
    Conflict,
    EventParser,
    IdempotencyMismatch,
    InvalidRequest,
    LongtakeClient,
    NotFound,
    NotReady,
    ServiceError,
    ServiceUnavailable,
    ServiceUnreachable,
    TooManyRequests,
    VideoEnded,
    VideoEnding,
    VideoEvent,
    WaitTimeout,
)
from app.embedded import EmbeddedRedis
from app.jobs.job import JobError, Status
from app.settings import Settings
from tests.app.conftest import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, Api, running_api
from tests.conftest import Eventually
from tests.receiver import Answer, receiving, status

FRAMES = FIRST_CHUNK_FRAMES + 2 * CHUNK_FRAMES


@pytest.fixture
def client(api: Api) -> Iterator[LongtakeClient]:
    with LongtakeClient(api.url) as client:
        yield client


class FlakyProxy:
    """A TCP proxy before a server that cuts each answer after a number of bytes, or takes no connections."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        """Bytes after which the next connections are cut; connections beyond the list are left whole."""
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                cut = self.cuts.pop(0) if self.cuts else None
                threading.Thread(target=self._pump, args=(near, far, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, cut), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                if data.split(b" ", 1)[0] in (b"GET", b"POST", b"PATCH", b"DELETE"):
                    self.requests.append(data.decode(errors="replace"))
                if left is not None:
                    data, left = data[:left], left - len(data)
                sink.sendall(data)
                if left is not None and left <= 0:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(api: Api) -> Iterator[FlakyProxy]:
    proxy = FlakyProxy(api.url)
    yield proxy
    proxy.close()


def told(code: int, body: Any) -> Answer:
    """Answers with JSON."""
    return status(code, json.dumps(body).encode(), Content_Type="application/json")


# -- asking and reading -------------------------------------------------------------------------------------


def test_create_gives_the_video_that_was_asked_for(client: LongtakeClient) -> None:
    video = client.create("A red ball", seconds=2, size="128x128", seed=5, metadata={"scene": "1"})
    assert (video.prompt, video.seconds, video.size, video.seed) == ("A red ball", "2", "128x128", 5)
    assert video.status is Status.QUEUED
    assert video.metadata == {"scene": "1"}
    assert client.retrieve(video.id) == video


def test_create_takes_a_timeline_of_prompts(client: LongtakeClient) -> None:
    video = client.create(
        prompts=[{"at": 0, "text": "A red ball"}, {"at": 1, "text": "a blue one"}], seconds=2
    )
    assert video.prompt == "A red ball"


def test_list_walks_over_all_pages(client: LongtakeClient) -> None:
    made = [client.create(f"Ball {number}").id for number in range(7)]
    assert [video.id for video in client.list(page_size=3)] == made[::-1]
    assert [video.id for video in client.list(page_size=3, order="asc")] == made
    assert [video.id for video in client.list(after=made[3])] == made[2::-1]
    client.cancel(made[2])
    assert [video.id for video in client.list(status=Status.CANCELLED)] == [made[2]]


def test_all_videos_can_be_deleted_while_their_list_is_walked_over(client: LongtakeClient) -> None:
    for number in range(7):
        client.create(f"Ball {number}")
    for video in client.list(page_size=3):
        client.delete(video.id)
    assert list(client.list()) == []


def test_cancel_and_delete(client: LongtakeClient) -> None:
    video = client.create("A red ball")
    assert client.pause(video.id).status is Status.PAUSED
    assert client.resume(video.id).status is Status.QUEUED
    with pytest.raises(Conflict):
        client.resume(video.id)
    assert client.cancel(video.id).status is Status.CANCELLED
    assert client.cancel(video.id).status is Status.CANCELLED
    assert client.delete(video.id) is True
    with pytest.raises(NotFound):
        client.retrieve(video.id)


def test_models_are_described(client: LongtakeClient) -> None:
    [model] = client.models()
    assert (model.id, model.fps, model.sizes) == ("builtin", 24, ["64x64", "128x128"])


def test_wait_polls_until_the_end(client: LongtakeClient, api: Api) -> None:
    video = client.create("A red ball", seconds=2)
    thread = threading.Timer(0.3, api.worker.make, [video.id])
    thread.start()
    assert client.wait(video.id, timeout_seconds=60).status is Status.COMPLETED
    thread.join()


def test_wait_gives_up_in_time_and_tells_how_far_the_video_is(client: LongtakeClient) -> None:
    video = client.create("A red ball", seconds=2)
    with pytest.raises(WaitTimeout, match="still queued at 0 %") as caught:
        client.wait(video.id, timeout_seconds=0.1)
    assert caught.value.video.id == video.id


def test_wait_gives_up_in_time_although_the_service_has_gone(api: Api) -> None:
    video = api.create()
    began = time.monotonic()
    with (
        receiving(told(200, video), *[status(503)] * 50) as service,
        LongtakeClient(service.origin) as client,
    ):
        with pytest.raises(WaitTimeout) as caught:
            client.wait(video["id"], timeout_seconds=1.5)
        assert caught.value.video.id == video["id"]
        assert len(service.calls) > 2
        # Of one that was gone from the beginning there is nothing else to tell.
        with pytest.raises(ServiceUnavailable):
            client.wait(video["id"], timeout_seconds=0.1)
    assert 1.5 <= time.monotonic() - began < 8


def test_a_failed_video_is_returned_with_its_reason(client: LongtakeClient, api: Api) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.claim(video.id)
    api.worker.finish(video.id, "failed", error=JobError(code="out_of_memory", message="Too big."))
    failed = client.wait(video.id)
    assert failed.status is Status.FAILED
    assert failed.error == JobError(code="out_of_memory", message="Too big.")


# -- running videos -----------------------------------------------------------------------------------------


def test_a_running_video_is_steered_changed_paused_and_finished(client: LongtakeClient, api: Api) -> None:
    video = client.create("A calm lake", seconds="endless")
    assert (video.seconds, video.frames) == ("endless", None)
    api.worker.claim(video.id)
    api.worker.commit(video.id, 0)
    steered = client.steer(video.id, "A storm", at=9)
    assert [(prompt.at, prompt.text) for prompt in steered.pending_prompts] == [(9, "A storm")]
    assert client.update(video.id, seconds=12, metadata={"scene": "2"}).seconds == "12"
    assert client.retrieve(video.id).metadata == {"scene": "2"}
    assert client.pause(video.id).pause_requested
    assert not client.resume(video.id).pause_requested
    with pytest.raises(Conflict) as caught:
        client.resume(video.id)
    assert caught.value.code == "video_not_paused"
    client.finish(video.id)
    with pytest.raises(VideoEnding):
        client.steer(video.id, "Too late")
    api.worker.finish(video.id)
    client.finish(video.id)  # once more changes nothing
    for operation in (client.cancel, client.pause):
        with pytest.raises(VideoEnded):
            operation(video.id)


def test_extend_and_remix_make_new_videos(client: LongtakeClient, api: Api) -> None:
    source = client.create("A red ball", seconds=2, seed=7)
    api.worker.make(source.id)
    longer = client.extend(source.id, "A blue ball", seconds=4, metadata={"take": "2"})
    assert (longer.extended_from_video_id, longer.seconds, longer.metadata) == (source.id, "4", {"take": "2"})
    remix = client.remix(source.id, "A green ball", priority="low", idempotency_key="once")
    assert (remix.remixed_from_video_id, remix.seed, remix.priority) == (source.id, 7, "low")
    assert client.remix(source.id, "A green ball", priority="low", idempotency_key="once").id == remix.id
    with pytest.raises(IdempotencyMismatch):
        client.remix(source.id, "A blue ball", idempotency_key="once")


@pytest.mark.parametrize("form", ["path", "text", "bytes", "open file"])
def test_create_uploads_what_the_video_begins_with(
    client: LongtakeClient, proxy: FlakyProxy, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (200, 100), "red").save(path)
    proxy.cuts = [10]  # the answer is lost, so all of it is sent again
    with path.open("rb") as file, LongtakeClient(proxy.url) as over_proxy:
        given: dict[str, Any] = {
            "path": path,
            "text": str(path),
            "bytes": path.read_bytes(),
            "open file": file,
        }
        video = over_proxy.create(
            "A red ball",
            seconds=2,
            seed=3,
            metadata={"a": "b"},
            prompts=[{"at": 1, "text": "A blue ball"}],
            input_reference=given[form],
        )
    assert video.input_reference is not None
    assert (video.input_reference.kind, video.input_reference.width) == ("image", 200)
    assert (video.seed, video.metadata) == (3, {"a": "b"})
    assert [prompt.text for prompt in video.prompts] == ["A red ball", "A blue ball"]
    assert [one.id for one in client.list()] == [video.id]


@pytest.mark.parametrize(("timeout", "waited"), [(5.0, 180.0), (60.0, 180.0), (600.0, 600.0)])
def test_an_upload_is_waited_for_as_long_as_it_may_take(timeout: float, waited: float) -> None:
    seen: list[dict[str, float]] = []
    with (
        receiving(*[told(400, {"error": {"message": "no"}})] * 2) as service,
        LongtakeClient(service.origin, timeout_seconds=timeout) as client,
    ):
        client._http.event_hooks = {"request": [lambda asked: seen.append(asked.extensions["timeout"])]}
        for given in ({"input_reference": b"a picture"}, {"seconds": 2}):
            with pytest.raises(InvalidRequest):
                client.create("A red ball", **given)
    assert [one["read"] for one in seen] == [waited, timeout]
    assert seen[0] == {**seen[1], "read": waited}


def test_create_and_poll_waits(client: LongtakeClient, api: Api) -> None:
    def work() -> None:
        while (taken := api.worker.videos.take("builtin", "double", 60)) is None:
            time.sleep(0.02)
        api.worker.make(taken.video_id)

    thread = threading.Thread(target=work)
    thread.start()
    assert client.create_and_poll("A red ball", seconds=2, timeout_seconds=60).status is Status.COMPLETED
    thread.join()


def test_what_was_done_although_its_answer_was_lost_is_no_error(
    client: LongtakeClient, api: Api, proxy: FlakyProxy
) -> None:
    video = client.create("A red ball", seconds=2)
    client.pause(video.id)
    with LongtakeClient(proxy.url) as over_proxy:
        proxy.cuts = [10]
        assert over_proxy.resume(video.id).status is Status.QUEUED
        proxy.cuts = [10]
    with LongtakeClient(proxy.url) as over_proxy:
        assert over_proxy.delete(video.id)
    with pytest.raises(NotFound):
        client.delete(video.id)


def test_what_a_gateway_gave_up_on_may_have_been_done(api: Api) -> None:
    video = api.create()
    refusal = told(409, {"error": {"message": "It is not paused.", "code": "video_not_paused"}})
    for passing in (408, 502, 503, 504):
        with (
            receiving(status(passing), refusal, told(200, video)) as service,
            LongtakeClient(service.origin) as client,
        ):
            assert client.resume(video["id"]).id == video["id"]
    with receiving(status(429), refusal) as service, LongtakeClient(service.origin) as client:
        with pytest.raises(Conflict) as caught:
            client.resume(video["id"])
        assert not caught.value.repeated


def test_every_operation_of_the_document_is_in_the_client(
    client: LongtakeClient, api: Api, proxy: FlakyProxy, tmp_path: Path
) -> None:
    """Each address is reached by some method; those for operators and browsers are not its business."""
    source = client.create("A red ball", seconds=2, webhook_url="https://example.com/hook")
    api.worker.make(source.id)
    other = client.create("A red ball", seconds=2)
    with LongtakeClient(proxy.url) as one:
        operations: list[Callable[[], Any]] = [
            lambda: one.create("A ball"),
            lambda: one.retrieve(source.id),
            lambda: list(one.list()),
            lambda: one.update(other.id, seconds=3),
            lambda: one.steer(other.id, "A blue ball"),
            lambda: one.finish(source.id),
            lambda: one.pause(other.id),
            lambda: one.resume(other.id),
            lambda: one.cancel(other.id),
            lambda: one.extend(source.id, "x", seconds=4),
            lambda: one.remix(source.id, "x"),
            lambda: list(one.events(source.id)),
            lambda: list(one.chunks(source.id, start=9)),
            lambda: one.retrieve_chunk(source.id, 0),
            lambda: one.read_chunk(source.id, 0, form="m4s"),
            lambda: one.read_init(source.id),
            lambda: one.read_playlist(source.id),
            lambda: one.download(source.id, tmp_path / "x.mp4"),
            one.models,
            lambda: one.model("builtin"),
            lambda: list(one.webhook_deliveries(source.id)),
            lambda: one.retry_webhook(source.id, next(iter(client.webhook_deliveries(source.id))).id),
            one.webhook_secret,
            one.rotate_webhook_secret,
            lambda: one.delete(other.id),
        ]
        for operation in operations:
            with suppress(VideoEnded):
                operation()
    asked = {tuple(request.split(" ", 2)[:2]) for request in proxy.requests}
    missing = []
    for path, methods in api.http.get("/openapi.json").json()["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/?]+", path) + r"(\?.*)?")
        for method in methods:
            if not any(verb == method.upper() and pattern.fullmatch(target) for verb, target in asked):
                missing.append(f"{method.upper()} {path}")
    assert missing == [
        "GET /v1/videos/{video_id}/chunks/{index}.m4s",  # read_chunk has it as a format
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    ]


# -- events and chunks --------------------------------------------------------------------------------------


def test_events_come_in_order_and_end_with_the_video(client: LongtakeClient, api: Api) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    events = list(client.events(video.id))
    assert [event.type for event in events] == ["status", "status", "chunk", "chunk", "chunk", "completed"]
    assert events[-1].video is not None
    assert events[-1].video.status is Status.COMPLETED
    assert [event.chunk.frames for event in events if event.chunk] == [17, 20, 20]
    after = list(client.events(video.id, after=events[2].id))
    assert after == events[3:]
    assert list(client.events(video.id, after=events[-1].id)) == []


def test_events_survive_cut_connections_without_gap_or_repeat(
    client: LongtakeClient, api: Api, proxy: FlakyProxy
) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    whole = list(client.events(video.id))
    proxy.cuts = [900, 1500, 40, 1300]
    with LongtakeClient(proxy.url, patience_seconds=60) as over_proxy:
        assert list(over_proxy.events(video.id)) == whole
    assert len(proxy.requests) >= 3
    assert any(f"last-event-id: {whole[0].id}" in request.lower() for request in proxy.requests)


def test_events_wait_as_long_as_the_server_asks_before_they_reconnect() -> None:
    parser = EventParser()
    assert list(parser.feed(b"retry: 250\n\nevent: status\n")) == []
    assert parser.retry_seconds == 0.25


def test_what_the_caller_does_between_two_events_is_no_silence_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(app.client, "time", clock)
    types = ["status", "progress", "completed"]
    answers = [
        status(200, f"event: {one}\ndata: {{}}\n\n".encode(), Content_Type="text/event-stream")
        for one in types  # each over a connection of its own
    ]
    told = []
    with receiving(*answers) as service, LongtakeClient(service.origin) as client:
        for event in client.events("video_1"):
            told.append(event.type)
            now += 3600
    assert told == types


def test_leaving_an_event_stream_closes_its_connection(client: LongtakeClient, api: Api) -> None:
    video = client.create("A red ball", seconds=2)
    events = client.events(video.id)
    assert next(events).type == "status"
    events.close()
    pool = client._http._transport._pool  # type: ignore[attr-defined]
    assert all(not connection.is_available() or connection.is_idle() for connection in pool.connections)


def test_chunks_come_as_they_become_ready(client: LongtakeClient, api: Api) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.claim(video.id)
    api.worker.commit(video.id, 0)
    chunks = client.chunks(video.id)
    assert next(chunks).index == 0
    record = api.worker.commit(video.id, 1)
    chunk = next(chunks)
    assert (chunk.index, chunk.sha256) == (1, record.sha256)
    api.worker.commit(video.id, 2)
    api.worker.finish(video.id)
    assert [chunk.index for chunk in chunks] == [2]


def test_chunks_whose_events_were_dropped_come_from_the_list(
    api: Api, client: LongtakeClient, redis_url: str
) -> None:
    from app.jobs.store import events_key

    video = client.create("A red ball", seconds=4)
    api.worker.claim(video.id)
    for index in range(3):
        api.worker.commit(video.id, index)
    api.worker.videos.redis.xtrim(events_key(video.id), maxlen=1, approximate=False)
    api.worker.commit(video.id, 3)
    api.worker.finish(video.id)
    assert [chunk.index for chunk in client.chunks(video.id)] == [0, 1, 2, 3]
    assert [chunk.index for chunk in client.chunks(video.id, start=2)] == [2, 3]


# -- downloads ----------------------------------------------------------------------------------------------


def test_download_writes_the_file_and_nothing_else(client: LongtakeClient, api: Api, tmp_path: Path) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    data = client.read(video.id)
    target = tmp_path / "ball.mp4"
    target.write_bytes(b"an older file")
    assert client.download(video.id, target) == target
    assert target.read_bytes() == data
    assert list(tmp_path.iterdir()) == [target]
    assert client.read(video.id, variant="thumbnail").startswith(b"\xff\xd8")
    assert client.read_chunk(video.id, 1)[4:8] == b"ftyp"


def test_download_of_the_part_made_so_far_is_never_mixed_with_an_earlier_part(
    client: LongtakeClient, api: Api, proxy: FlakyProxy, tmp_path: Path
) -> None:
    video = client.create("A red ball", seconds=4)
    api.worker.claim(video.id)
    api.worker.commit(video.id, 0)
    with pytest.raises(NotReady):
        client.download(video.id, tmp_path / "ball.mp4")
    first = client.download(video.id, tmp_path / "ball.mp4", so_far=True).read_bytes()
    api.worker.commit(video.id, 1)
    (tmp_path / f".{video.id}.video.so-far.part").write_bytes(first[:1500])
    second = client.download(video.id, tmp_path / "ball.mp4", so_far=True).read_bytes()
    assert second == client.read(video.id, so_far=True)
    assert len(second) > len(first)
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]


def test_download_continues_where_a_connection_broke(
    client: LongtakeClient, api: Api, proxy: FlakyProxy, tmp_path: Path
) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    data = client.read(video.id)
    proxy.cuts = [2000, 1500, 300, 2500]
    with LongtakeClient(proxy.url, patience_seconds=60) as over_proxy:
        assert over_proxy.download(video.id, tmp_path / "ball.mp4").read_bytes() == data
        ranges = [
            line for request in proxy.requests for line in request.lower().splitlines() if "range:" in line
        ]
        assert len([line for line in ranges if line.startswith("range: bytes=")]) >= 2
        proxy.cuts = [2000]
        assert over_proxy.read(video.id) == data


def test_download_continues_what_an_earlier_call_left(
    client: LongtakeClient, api: Api, proxy: FlakyProxy, tmp_path: Path
) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    data = client.read(video.id)
    (tmp_path / f".{video.id}.video.part").write_bytes(data[:1000])
    with LongtakeClient(proxy.url) as over_proxy:
        assert over_proxy.download(video.id, tmp_path / "ball.mp4").read_bytes() == data
    assert "range: bytes=1000-" in proxy.requests[0].lower()
    (tmp_path / f".{video.id}.video.part").write_bytes(b"x" * (len(data) + 1))
    assert client.download(video.id, tmp_path / "ball.mp4").read_bytes() == data


def sent(data: bytes, halfway: Callable[[], object] = lambda: None) -> Answer:
    """Answers with data, or the range of it that is asked for; calls `halfway` in the middle."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1])
        request.send_response(206 if begin else 200)
        request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        middle = max(begin, len(data) // 2)
        request.wfile.write(data[begin:middle])
        halfway()
        request.wfile.write(data[middle:])

    return answer


@pytest.mark.parametrize("so_far", [False, True])
def test_two_downloads_to_one_file_at_once_do_not_mix(
    so_far: bool, tmp_path: Path, eventually: Eventually
) -> None:
    target, data = tmp_path / "ball.mp4", bytes(range(256)) * 4096
    overtaken = threading.Event()
    answers = sent(data, lambda: overtaken.wait(60)), sent(data), status(500)
    with receiving(*answers) as service, LongtakeClient(service.origin) as client:
        written: list[Path] = []
        first = threading.Thread(
            target=lambda: written.append(client.download("video_1", target, so_far=so_far))
        )
        first.start()
        eventually(lambda: any(part.stat().st_size >= 500_000 for part in tmp_path.iterdir()))
        client.download("video_1", target, so_far=so_far)
        assert target.read_bytes() == data
        overtaken.set()
        first.join(60)
        assert written == [target]
        assert target.read_bytes() == data
        assert len(service.calls) == 2
        assert list(tmp_path.iterdir()) == [target]


def test_a_body_without_a_length_that_breaks_is_not_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.close_connection = True
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"4\r\nhalf\r\n")

    monkeypatch.setattr("app.client._FIRST_PAUSE_SECONDS", 0.001)
    with receiving(breaking, sent(b"half and half")) as service, LongtakeClient(service.origin) as client:
        assert client.read("video_1") == b"half and half"
    with receiving(*[breaking] * 50) as service, LongtakeClient(service.origin) as client:
        with pytest.raises(ServiceUnreachable, match="ends every download too early"):
            client.read("video_1")
        assert len(service.calls) < 20


def test_download_goes_through_links_and_pipes_and_leaves_them(
    client: LongtakeClient, api: Api, tmp_path: Path
) -> None:
    video = client.create("A red ball", seconds=2)
    api.worker.make(video.id)
    data = client.read(video.id)
    (tmp_path / "films").mkdir()
    link, pipe = tmp_path / "ball.mp4", tmp_path / "pipe"
    link.symlink_to(tmp_path / "films" / "ball.mp4")
    for _ in range(2):  # to a file that is not there, and to one that is
        client.download(video.id, link)
        assert link.is_symlink()
        assert [path.name for path in (tmp_path / "films").iterdir()] == ["ball.mp4"]
        assert link.read_bytes() == data
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    client.download(video.id, pipe)
    assert pipe.is_fifo()
    reader.join(60)
    assert read == [data]


def test_the_client_can_be_imported_on_windows() -> None:
    """What Python has on Unix only is not there."""
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'termios', 'resource', 'pwd', 'grp')))\n"
        "from app.client import LongtakeClient"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(app.__file__).parents[1])


def test_download_moves_and_removes_no_open_file_where_there_are_no_locks(
    client: LongtakeClient, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which refuses both."""

    def closed(change: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Path, *others: Path, **options: bool) -> Any:
            opened = [number.resolve() for number in Path("/proc/self/fd").iterdir()]
            assert path.suffix != ".part" or path not in opened
            return change(path, *others, **options)

        return checked

    monkeypatch.setattr(app.client, "_LOCKS", False)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, closed(getattr(Path, name)))
    video = client.create("A red ball", seconds=2)
    with pytest.raises(NotReady):
        client.download(video.id, tmp_path / "video.mp4")
    assert list(tmp_path.glob(".*.part")) == []
    api.worker.make(video.id)
    client.download(video.id, tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").read_bytes() == client.read(video.id)
    assert list(tmp_path.glob(".*.part")) == []


def test_download_of_an_unfinished_video_leaves_no_file(client: LongtakeClient, tmp_path: Path) -> None:
    video = client.create("A red ball", seconds=2)
    with pytest.raises(NotFound) as caught:
        client.download(video.id, tmp_path / "ball.mp4")
    assert caught.value.code == "video_not_ready"
    assert list(tmp_path.iterdir()) == []


# -- errors -------------------------------------------------------------------------------------------------


def test_errors_tell_status_code_field_and_request(client: LongtakeClient) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.create("A red ball", seconds=-1)
    error = caught.value
    assert (error.status, error.param) == (400, "seconds")
    assert error.code
    assert error.request_id
    assert "seconds" in str(error)


def test_an_unknown_video_is_not_found_in_every_operation(client: LongtakeClient, tmp_path: Path) -> None:
    unknown = "video_" + 32 * "0"
    operations: list[Callable[[], object]] = [
        lambda: client.retrieve(unknown),
        lambda: client.cancel(unknown),
        lambda: client.delete(unknown),
        lambda: client.wait(unknown),
        lambda: list(client.events(unknown)),
        lambda: list(client.chunks(unknown)),
        lambda: client.read(unknown),
        lambda: client.retrieve("../../etc/passwd?x#y"),
    ]
    for operation in operations:
        with pytest.raises(NotFound):
            operation()


def test_the_same_idempotency_key_gives_the_same_video(client: LongtakeClient) -> None:
    first = client.create("A red ball", idempotency_key="once")
    assert client.create("A red ball", idempotency_key="once").id == first.id
    with pytest.raises((InvalidRequest, Conflict)):
        client.create("Another ball", idempotency_key="once")


def test_a_lost_answer_makes_no_second_video(client: LongtakeClient, proxy: FlakyProxy) -> None:
    proxy.cuts = [10, 10]
    with LongtakeClient(proxy.url) as over_proxy:
        video = over_proxy.create("A red ball")
    assert len(proxy.requests) >= 2
    assert [one.id for one in client.list()] == [video.id]


def test_nobody_there_is_told_in_one_line(free_port: Callable[[], int]) -> None:
    with LongtakeClient(f"http://127.0.0.1:{free_port()}", patience_seconds=0.5) as nobody:
        began = time.monotonic()
        for operation in (nobody.models, lambda: next(nobody.events("video_1"))):
            with pytest.raises(
                ServiceUnreachable, match=r"no answer from http://127.0.0.1:\d+: cannot connect"
            ):
                operation()
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://", "http://host:80a"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        LongtakeClient(url)


@pytest.mark.parametrize(
    "url", ["http://me:s3cret@host", "ftp://me:s3cret@host", "http://me:s3cret@host:80a"]
)
def test_a_url_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        LongtakeClient(url)
    assert "s3cret" not in str(caught.value)


def test_a_key_may_end_with_a_line_break_and_is_never_repeated() -> None:
    with (
        receiving(told(200, {"object": "list", "data": []})) as service,
        LongtakeClient(service.origin, api_key=" lt_s3cret\r\n") as client,
    ):
        assert client.models() == []
    assert service.calls[0].headers["authorization"] == "Bearer lt_s3cret"
    for wrong in ("lt_s3cret\nlt_s3cret", "lt_s3crét", "lt_s3cret\0", "lt_s3cret\udc80"):
        with pytest.raises(ValueError, match="API key") as caught:
            LongtakeClient(service.origin, api_key=wrong)
        assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303])
def test_a_redirect_that_would_only_look_is_told_with_the_address_to_use(code: int) -> None:
    with receiving(*[told(200, {"object": "list", "data": [], "has_more": False})] * 2) as there:
        moved = status(code, Location=f"{there.origin}/v1/videos?from=old")
        with receiving(moved) as here, LongtakeClient(here.origin) as client:
            with pytest.raises(
                ServiceError, match=f"{here.origin} redirects to {there.origin}, which"
            ) as caught:
                client.create("A red ball")
            assert caught.value.status == code


def test_a_redirect_that_keeps_the_request_is_followed(api: Api, client: LongtakeClient) -> None:
    with (
        receiving(status(308, Location=f"{api.url}/v1/videos")) as here,
        LongtakeClient(here.origin) as elsewhere,
    ):
        video = elsewhere.create("A red ball")
    assert client.retrieve(video.id).prompt == "A red ball"


def test_another_service_is_recognised(free_port: Callable[[], int]) -> None:
    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        other = LongtakeClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with other, pytest.raises(ServiceError, match="is no longtake service"):
            other.models()


def test_a_full_queue_is_told(settings: Callable[..., Settings]) -> None:
    with running_api(settings(max_queued=1)) as api, LongtakeClient(api.url, patience_seconds=0.2) as client:
        api.worker.register()
        client.create("A red ball")
        with pytest.raises(TooManyRequests) as caught:
            client.create("A blue ball")
        assert caught.value.status == 429
        assert caught.value.retry_after_seconds


def test_the_client_waits_as_long_as_the_service_asks() -> None:
    asked_at: list[float] = []

    def answer(listener: socket.socket) -> None:
        for head in ("429 Too Many Requests\r\nRetry-After: 1", "200 OK"):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                asked_at.append(time.monotonic())
                body = b'{"object": "list", "data": []}'
                reply = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(reply.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        with LongtakeClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            assert client.models() == []
    assert 1 <= asked_at[1] - asked_at[0] < 3


def test_redis_being_away_for_a_moment_is_waited_out(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings]
) -> None:
    with running_api(settings(redis_url=SecretStr(own_redis.url))) as api, LongtakeClient(api.url) as client:
        api.worker.register()
        video = client.create("A red ball")
        own_redis.stop()
        with (
            pytest.raises(ServiceUnavailable) as caught,
            LongtakeClient(api.url, patience_seconds=0) as hasty,
        ):
            hasty.retrieve(video.id)
        assert caught.value.status == 503
        waiting = threading.Thread(target=lambda: found.append(client.retrieve(video.id).id))
        found: list[str] = []
        waiting.start()
        time.sleep(0.5)
        own_redis.start()
        waiting.join(60)
        assert found == [video.id]


# -- asynchronous -------------------------------------------------------------------------------------------


def test_the_asynchronous_client_does_the_same(api: Api, proxy: FlakyProxy, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncLongtakeClient(api.url) as client:
            video = await client.create("A red ball", seconds=2)
            assert await client.retrieve(video.id) == video
            await asyncio.to_thread(api.worker.make, video.id)
            assert (await client.wait(video.id)).status is Status.COMPLETED
            assert [one.id async for one in client.list()] == [video.id]
            chunks = [chunk async for chunk in client.chunks(video.id)]
            assert sum(chunk.frames for chunk in chunks) == FRAMES
            whole = [event async for event in client.events(video.id)]
            data = await client.read(video.id)
            proxy.cuts = [900, 1500, 2000]
            async with AsyncLongtakeClient(proxy.url) as over_proxy:
                assert [event async for event in over_proxy.events(video.id)] == whole
                path = await over_proxy.download(video.id, tmp_path / "ball.mp4")
                assert path.read_bytes() == data
            segment = await client.read_chunk(video.id, 0)
            assert segment[4:8] == b"ftyp"
            assert [model.id for model in await client.models()] == ["builtin"]
            with pytest.raises(InvalidRequest):
                await client.create("")
            with pytest.raises(Conflict):
                await client.cancel(video.id)
            assert await client.delete(video.id)
            with pytest.raises(NotFound):
                await client.retrieve(video.id)

    asyncio.run(story())


def test_the_asynchronous_client_follows_many_videos_at_once(api: Api) -> None:
    async def story() -> None:
        async with AsyncLongtakeClient(api.url) as client:
            videos = [await client.create(f"Ball {number}", seconds=2) for number in range(8)]

            async def follow(video_id: str) -> list[str]:
                return [event.type async for event in client.events(video_id)]

            following = [asyncio.create_task(follow(video.id)) for video in videos]
            for video in videos:
                await asyncio.to_thread(api.worker.make, video.id)
            async with asyncio.timeout(60):
                for types in await asyncio.gather(*following):
                    assert types[-1] == "completed"

    asyncio.run(story())


# -- server-sent events -------------------------------------------------------------------------------------

STREAM = (
    b": hello\n"
    b"retry: 2000\n"
    b"\n"
    b"id: 1-0\n"
    b"event: status\n"
    b'data: {"object": "video",\n'
    b'data: "prompt": "a ball \xe2\x9a\xbd"}\n'
    b"\n"
    b": ping\n\n"
    b"event:chunk\r\n"
    b'data:{"index": 0}\r\n'
    b"id:2-0\r\n"
    b"\r\n"
    b"id: 3-0\r"
    b'data: {"index": 1}\r'
    b"\r"
    b"event: left unfinished\n"
)
EVENTS = [
    VideoEvent("status", "1-0", {"object": "video", "prompt": "a ball ⚽"}),
    VideoEvent("chunk", "2-0", {"index": 0}),
    VideoEvent("message", "3-0", {"index": 1}),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_parsed_however_the_bytes_arrive(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS
    assert parser.retry_seconds == 2.0


def test_events_keep_the_last_id_and_skip_what_is_no_json() -> None:
    parser = EventParser()
    stream = b'id: 5-0\ndata: {}\n\nevent: status\ndata: {"a": 1}\n\n'
    stream += b"id: 6-0\ndata: {broken\n\nid: bad\0id\ndata: {}\n\n"
    assert [event.id for event in parser.feed(stream)] == ["5-0", "5-0", "6-0"]


def test_a_long_event_takes_time_in_proportion_to_its_length() -> None:
    body = json.dumps({"text": "x" * 2_000_000}).encode()
    parser = EventParser()
    began = time.monotonic()
    pieces = [
        b"data: " + body[:1000],
        *(body[at : at + 1000] for at in range(1000, len(body), 1000)),
        b"\n\n",
    ]
    [event] = [event for piece in pieces for event in parser.feed(piece)]
    assert sha256(event.data["text"].encode()).hexdigest() == sha256(b"x" * 2_000_000).hexdigest()
    assert time.monotonic() - began < 5
