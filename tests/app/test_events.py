from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError

from app.embedded import EmbeddedRedis
from app.jobs.events import InvalidEventId, parse_event_id
from app.jobs.job import ChunkRecord
from app.jobs.manifest import Manifest
from app.jobs.store import (
    ENDED_FOUND_KEY,
    ENDED_KEY,
    HISTORY_SECONDS,
    Event,
    VideoStore,
    events_key,
    video_key,
)
from app.settings import Settings
from tests.app.conftest import Api, chunk_bounds, running_api
from tests.conftest import Eventually


@dataclass(frozen=True)
class Received:
    id: str
    type: str
    data: dict[str, Any]


def parse(block: str) -> Received | None:
    """One event of the stream, by the rules of the HTML Standard as far as they matter here."""
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    if "data" not in fields:
        return None
    return Received(fields["id"], fields["event"], json.loads(fields["data"]))


async def follow(
    client: httpx.AsyncClient, url: str, last: str | None = None, opened: Callable[[], object] = lambda: None
) -> AsyncIterator[Received]:
    """The events of one connection until it ends, whole ones only. Calls `opened` once the service has answered."""
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        opened()
        text = ""
        async for piece in answer.aiter_text():
            *blocks, text = (text + piece).split("\n\n")
            for block in blocks:
                if event := parse(block):
                    yield event


def read(api: Api, video_id: str, **headers: str) -> list[Received]:
    """All events of a video that has ended."""
    answer = api.http.get(f"/v1/videos/{video_id}/events", headers=headers)
    assert answer.status_code == 200, answer.text
    return [event for block in answer.text.split("\n\n") if block and (event := parse(block))]


def recorded(api: Api, video_id: str) -> list[str]:
    return [entry_id.decode() for entry_id, _ in api.worker.videos.redis.xrange(events_key(video_id))]


def write_a_life(api: Api, video_id: str, chunks: int = 5, pause: float = 0.005) -> None:
    """Progress and chunks, then completed; about 7 events a chunk."""
    api.worker.claim(video_id)
    for index in range(chunks):
        for step in range(6):
            api.worker.progress(video_id, index * 6 + step)
            time.sleep(pause)
        api.worker.commit(video_id, index)
    api.worker.finish(video_id)


def test_a_finished_video_s_events_tell_its_whole_life_and_end(api: Api) -> None:
    video_id = api.create()["id"]
    write_a_life(api, video_id, chunks=2, pause=0)
    answer = api.http.get(f"/v1/videos/{video_id}/events")
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("retry: 2000\n\n")
    events = read(api, video_id)
    assert [e.type for e in events] == [
        "status", "status", *["progress"] * 6, "chunk", *["progress"] * 6, "chunk", "completed"
    ]  # fmt: skip
    assert [e.id for e in events] == recorded(api, video_id)
    chunk = next(e.data for e in events if e.type == "chunk")
    assert chunk == api.http.get(f"/v1/videos/{video_id}/chunks/0").json()
    assert api.http.get(chunk["url"]).status_code == 200
    assert events[-1].data["status"] == "completed"


def test_resuming_after_any_event_gives_exactly_the_rest(api: Api) -> None:
    video_id = api.create()["id"]
    write_a_life(api, video_id, chunks=1, pause=0)
    events = read(api, video_id)
    for at, event in enumerate(events[:-1]):
        assert read(api, video_id, **{"Last-Event-ID": event.id}) == events[at + 1 :]
        answer = api.http.get(f"/v1/videos/{video_id}/events?last_event_id={event.id}")
        assert answer.text.count("\nevent: ") == len(events) - at - 1
    # The header of a browser that reconnects is newer than its address.
    url = f"/v1/videos/{video_id}/events?last_event_id={events[0].id}"
    assert api.http.get(url, headers={"Last-Event-ID": events[-2].id}).text.count("\nevent: ") == 1


def test_after_the_last_event_the_answer_is_204(api: Api) -> None:
    video_id = api.create()["id"]
    api.http.post(f"/v1/videos/{video_id}/cancel")
    last = read(api, video_id)[-1]
    assert last.type == "cancelled"
    answer = api.http.get(f"/v1/videos/{video_id}/events", headers={"Last-Event-ID": last.id})
    assert (answer.status_code, answer.content) == (204, b"")
    after = f"{int(last.id.split('-')[0]) + 10**9}-0"
    answer = api.http.get(f"/v1/videos/{video_id}/events?last_event_id={after}")
    assert answer.status_code == 204


@pytest.mark.parametrize(
    "garbage", ["x", "-", "1-", "-1", "1-2-3", "1.5", "9" * 30, "١-١", "1-0 ", "'; DROP"]
)
def test_a_garbage_event_id_is_a_clear_error_and_loses_nothing(api: Api, garbage: str) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/events"
    api.error(api.http.get(url, params={"last_event_id": garbage}), 400, "invalid_event_id", "last_event_id")
    if garbage.isascii() and garbage.strip() == garbage:
        answer = api.http.get(url, headers={"Last-Event-ID": garbage})
        api.error(answer, 400, "invalid_event_id", "Last-Event-ID")
    api.http.post(f"/v1/videos/{video_id}/cancel")
    assert [e.type for e in read(api, video_id)] == ["status", "cancelled"]


def test_event_ids_compare_as_numbers() -> None:
    assert parse_event_id("9-10") > parse_event_id("9-9") > parse_event_id("9")
    for bad in ("", "a", "18446744073709551616", "0-18446744073709551616"):
        with pytest.raises(InvalidEventId):
            parse_event_id(bad)


def test_an_id_from_the_future_misses_nothing_that_comes_later(api: Api) -> None:
    video_id = api.create()["id"]

    async def scenario() -> list[str]:
        async with httpx.AsyncClient(base_url=api.url, timeout=60) as client:
            url = f"/v1/videos/{video_id}/events"
            writer = threading.Thread(target=write_a_life, args=(api, video_id, 1))
            async with aclosing(follow(client, url, "9999999999999-0", writer.start)) as events:
                return [event.type async for event in events]

    assert asyncio.run(scenario()) == ["status", *["progress"] * 6, "chunk", "completed"]


def test_many_watchers_of_many_videos_get_every_event_once_and_in_order(api: Api) -> None:
    ids = [api.create()["id"] for _ in range(4)]

    async def scenario() -> list[tuple[str, list[str]]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=api.url, timeout=30, limits=limits) as client:

            async def watch(video_id: str, delay: float) -> tuple[str, list[str]]:
                await asyncio.sleep(delay)
                return video_id, [e.id async for e in follow(client, f"/v1/videos/{video_id}/events")]

            writers = [asyncio.to_thread(write_a_life, api, video_id, 3, 0.02) for video_id in ids]
            watchers = [watch(video_id, 0.02 * n) for n in range(20) for video_id in ids]
            *_, seen = await asyncio.gather(*writers, asyncio.gather(*watchers))
            return seen  # type: ignore[no-any-return]

    seen = asyncio.run(scenario())
    assert len(seen) == 80
    for video_id, events in seen:
        assert events == recorded(api, video_id)


def test_clients_that_keep_reconnecting_get_no_gap_and_no_repeat_while_events_are_written(api: Api) -> None:
    video_id = api.create()["id"]

    async def watch(client: httpx.AsyncClient, patience: int) -> list[str]:
        ids: list[str] = []
        while True:
            last = ids[-1] if ids else None
            async with aclosing(follow(client, f"/v1/videos/{video_id}/events", last)) as events:
                count = 0
                async for event in events:
                    ids.append(event.id)
                    count += 1
                    if event.type == "completed":
                        return ids
                    if count == patience:
                        break  # leaves in the middle of whatever was being sent

    async def scenario() -> list[list[str]]:
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            writer = asyncio.create_task(asyncio.to_thread(write_a_life, api, video_id, 5, 0.01))
            seen = await asyncio.gather(*(watch(client, patience) for patience in (1, 2, 3, 5, 8, 13)))
            await writer
            return seen

    for ids in asyncio.run(scenario()):
        assert ids == recorded(api, video_id)


def test_a_long_history_is_replayed_whole(api: Api) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    fence = api.worker.fences[video_id]
    for block in range(13):
        events = [Event("progress", {"n": 100 * block + n}) for n in range(100)]
        api.worker.videos.update(video_id, fence, events=events)
    api.worker.commit(video_id, 0)
    api.worker.finish(video_id)
    events = read(api, video_id)
    assert [e.data["n"] for e in events if e.type == "progress"] == list(range(1300))
    assert events[-1].type == "completed"


@pytest.fixture
def forgetful(settings: Callable[..., Settings]) -> Iterator[Api]:
    """An API that keeps about a hundred events of a video."""
    with running_api(settings(max_events=100)) as api:
        api.worker.register()
        api.worker.videos = VideoStore(api.worker.videos.redis, max_events=100)
        yield api


def announce(api: Api, video_id: str, indices: range) -> None:
    """Commits chunks whose files nobody will ask for."""
    video = api.worker.videos.get(video_id)
    assert video is not None
    for index in indices:
        first, frames = chunk_bounds(index)
        chunk = ChunkRecord(
            index=index, first_frame=first, frames=frames, bytes=1, sha256="0" * 64, created_at=time.time()
        )
        api.worker.videos.commit_chunk(video.spec, api.worker.fences[video_id], chunk)


def read_up_to(api: Api, video_id: str, index: int, last: str | None = None) -> list[Received]:
    """The events of a running video up to the one of this chunk."""

    async def scenario() -> list[Received]:
        seen: list[Received] = []
        async with (
            httpx.AsyncClient(base_url=api.url, timeout=30) as client,
            aclosing(follow(client, f"/v1/videos/{video_id}/events", last)) as events,
        ):
            async for event in events:
                seen.append(event)
                if event.type == "chunk" and event.data["index"] >= index:
                    break
        return seen

    return asyncio.run(scenario())


def told_chunks(events: list[Received]) -> list[int]:
    return [event.data["index"] for event in events if event.type == "chunk"]


@pytest.mark.parametrize("page", [500, 64])
def test_each_watcher_is_told_every_chunk_once_and_in_order_when_events_were_trimmed(
    forgetful: Api, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.events._PAGE", page)
    api = forgetful
    video_id = api.create(seconds=400)["id"]
    api.worker.claim(video_id)
    announce(api, video_id, range(10))
    api.worker.progress(video_id, 1)
    whole = read_up_to(api, video_id, 9)
    early = recorded(api, video_id)[-1]  # the progress
    announce(api, video_id, range(10, 400))
    kept = recorded(api, video_id)
    assert early not in kept
    assert len(kept) < 300

    events = read_up_to(api, video_id, 399)
    assert told_chunks(events) == list(range(400))
    assert [event for event in events if event.type == "chunk"][:10] == whole[2:], "just as they were"
    (status,) = (event for event in events if event.type == "status")
    assert status.data == api.http.get(f"/v1/videos/{video_id}").json()
    assert status.data["chunks_ready"] == 400
    at = events.index(status)
    assert [event.id for event in events[at + 1 :]] == kept

    # From any event on, also one that is told from the list.
    for number, last in enumerate([early, events[37].id, events[at - 1].id, status.id, events[at + 1].id]):
        first = [10, 38, at, at, at + 1][number]
        assert told_chunks(read_up_to(api, video_id, 399, last)) == list(range(first, 400)), number

    video = api.worker.videos.get(video_id)
    assert video is not None
    api.worker.videos.finish(video, api.worker.fences[video_id], "completed")
    for last, first in ((None, 0), (early, 10), (events[37].id, 38)):
        rest = read(api, video_id, **({} if last is None else {"Last-Event-ID": last}))
        assert told_chunks(rest) == list(range(first, 400))
        assert {event.type for event in rest[:-1]} == {"chunk"}, "the last event tells how it is"
        assert rest[-1].type == "completed"


def ended(api: Api, how: str) -> str:
    """A video of two chunks that has ended; without a chunk if it was cancelled while it waited."""
    video_id: str = api.create()["id"]
    if how == "cancelled in line":
        api.http.post(f"/v1/videos/{video_id}/cancel")
        return video_id
    api.worker.claim(video_id)
    for index in range(2):
        api.worker.commit(video_id, index)
        api.worker.progress(video_id, index)
    api.worker.finish(video_id, "completed" if how == "restored" else how)
    if how == "restored":
        store = api.worker.videos
        video = store.get(video_id)
        assert video is not None
        manifest = Manifest.of(video, store.chunks(video_id))
        store.redis.delete(video_key(video_id), ENDED_KEY)
        store.restore(manifest)
    return video_id


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled", "cancelled in line", "restored"])
def test_an_hour_after_the_end_only_the_last_event_is_kept_and_every_chunk_is_still_told(
    api: Api, how: str
) -> None:
    store = api.worker.videos
    old, young = ended(api, how), ended(api, "completed")
    running = api.create()["id"]
    whole, others = read(api, old), recorded(api, young)
    assert store.cut_histories() == 0
    at = store.redis.zscore(ENDED_KEY, old)
    store.redis.zadd(ENDED_KEY, {old: at - HISTORY_SECONDS})
    assert store.cut_histories() == 1
    assert store.cut_histories() == 0
    assert recorded(api, old) == [whole[-1].id]
    assert recorded(api, young) == others
    assert read(api, old) == [event for event in whole if event.type == "chunk"] + whole[-1:]
    assert api.http.delete(f"/v1/videos/{young}").is_success
    assert store.redis.zcard(ENDED_KEY) == 0
    assert len(recorded(api, running)) == 1


def test_videos_that_ended_before_there_was_a_list_of_them_are_found_once(api: Api) -> None:
    store = api.worker.videos
    video_id = ended(api, "completed")
    api.worker.claim(api.create()["id"])
    store.redis.delete(ENDED_KEY, ENDED_FOUND_KEY)
    store.find_ended()
    assert store.redis.zrange(ENDED_KEY, 0, -1) == [video_id.encode()]
    store.redis.delete(ENDED_KEY)
    store.find_ended()
    assert store.redis.zcard(ENDED_KEY) == 0


def test_who_missed_nothing_but_progress_is_told_how_the_video_is(forgetful: Api) -> None:
    api = forgetful
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.progress(video_id, 0)
    early = recorded(api, video_id)[-1]
    for step in range(1, 400):
        api.worker.progress(video_id, step)
    announce(api, video_id, range(1))
    for last in (None, early):
        status, *rest = read_up_to(api, video_id, 0, last)
        assert (status.type, status.data["status"]) == ("status", "in_progress")
        assert [event.id for event in rest] == recorded(api, video_id)


def test_a_watcher_who_misses_events_while_redis_is_away_is_cut_off_and_told_when_it_resumes(
    forgetful: Api, redis_url: str
) -> None:
    api = forgetful
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    announce(api, video_id, range(1))
    more = [Event("progress", {"progress": n}) for n in range(300)]

    def miss_some() -> None:
        with Redis.from_url(redis_url) as redis:
            redis.execute_command("ACL SETUSER", "default", "-xread")
            try:
                redis.client_kill_filter(_id=str(api.context.events._reader_id))
                announce(api, video_id, range(1, 2))
                api.worker.videos.update(video_id, api.worker.fences[video_id], events=more)
            finally:
                redis.execute_command("ACL SETUSER", "default", "+xread")

    async def watch() -> list[Received]:
        seen: list[Received] = []
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=api.url, timeout=30) as client:
            async for event in follow(client, f"/v1/videos/{video_id}/events"):
                seen.append(event)
                if event.type == "chunk":
                    await asyncio.to_thread(miss_some)
        return seen

    seen = asyncio.run(watch())
    assert told_chunks(seen) == [0]
    announce(api, video_id, range(2, 3))
    rest = read_up_to(api, video_id, 2, seen[-1].id)
    assert [event.type for event in rest[:3]] == ["chunk", "status", "progress"]
    assert told_chunks(rest) == [1, 2]


def test_a_restored_video_s_chunks_are_all_told_however_many(forgetful: Api) -> None:
    api = forgetful
    video_id = api.create(seconds=400)["id"]
    api.worker.claim(video_id)
    announce(api, video_id, range(300))
    video = api.worker.videos.get(video_id)
    assert video is not None
    done = api.worker.videos.finish(video, api.worker.fences[video_id], "completed")
    manifest = Manifest.of(done, api.worker.videos.chunks(video_id))
    last = recorded(api, video_id)[0]
    api.worker.videos.redis.delete(video_key(video_id))
    api.worker.videos.restore(manifest)
    assert len(recorded(api, video_id)) < 300
    for events in (read(api, video_id), read(api, video_id, **{"Last-Event-ID": last})):
        assert told_chunks(events) == list(range(300))
        assert events[-1].type == "completed"


def test_an_idle_stream_beats_and_a_live_event_comes_at_once(settings: Callable[..., Settings]) -> None:
    with running_api(settings(sse_heartbeat_seconds=0.2)) as api:
        api.worker.register()
        video_id = api.create()["id"]
        with api.http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            lines = answer.iter_lines()
            while next(lines) != ": ping":
                pass
            began = time.monotonic()
            for _ in range(10):  # several: one that is read late makes the next seem early
                while next(lines) != ": ping":
                    pass
            assert 0.1 < (time.monotonic() - began) / 10 < 2
            api.worker.claim(video_id)
            late = []
            for number in range(
                1, 6
            ):  # the best of some: how late it is sent, and not how busy the machine is
                began = time.monotonic()
                api.worker.progress(video_id, number)
                while next(lines) != "event: progress":
                    pass
                late.append(time.monotonic() - began)
            assert min(late) < 1


def test_a_client_that_lags_too_far_is_cut_off_and_resumes(
    settings: Callable[..., Settings], eventually: Eventually
) -> None:
    with running_api(settings(sse_client_queue=20, sse_heartbeat_seconds=60)) as api:
        api.worker.register()
        video_id = api.create()["id"]
        host, port = api.url.removeprefix("http://").split(":")
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.settimeout(60)
        slow.sendall(f"GET /v1/videos/{video_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while b"id: " not in received:
            received += slow.recv(1 << 10)
        (watch,) = api.context.events._watches[video_id]
        api.worker.claim(video_id)
        fence = api.worker.fences[video_id]
        for _ in range(120):  # 7 MB, more than any buffer between the two takes
            events = [Event("progress", {"padding": "x" * 30_000}) for _ in range(2)]
            api.worker.videos.update(video_id, fence, events=events)
        eventually(lambda: watch.ended)  # before that it would not lag any more once this reads
        while piece := slow.recv(1 << 20):
            received += piece
        slow.close()
        ids = [line[4:].decode() for line in received.split(b"\n") if line.startswith(b"id: ")]
        everything = recorded(api, video_id)
        assert 0 < len(ids) < len(everything)
        assert ids == everything[: len(ids)]
        api.worker.finish(video_id, "cancelled")
        rest = [e.id for e in read(api, video_id, **{"Last-Event-ID": ids[-1]})]
        assert ids + rest == recorded(api, video_id)


def test_watchers_of_a_deleted_video_are_sent_away(api: Api) -> None:
    video_id = api.create()["id"]
    with api.http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
        assert httpx.delete(f"{api.url}/v1/videos/{video_id}").status_code == 200
        began = time.monotonic()
        assert answer.read().count(b"event: ") == 1
        assert time.monotonic() - began < 5
    api.error(api.http.get(f"/v1/videos/{video_id}/events"), 404, "video_not_found", "video_id")


def test_clients_that_leave_leave_nothing_behind(api: Api, eventually: Eventually) -> None:
    video_id = api.create()["id"]
    for _ in range(30):
        with api.http.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            next(answer.iter_lines())
    eventually(lambda: api.context.events.watchers == 0)
    assert not api.context.events._positions


def test_a_restart_of_redis_in_the_middle_loses_and_repeats_nothing(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings], eventually: Eventually
) -> None:
    with running_api(settings(redis_url=own_redis.url)) as api:
        api.worker.register()
        video_id = api.create()["id"]
        api.worker.claim(video_id)
        seen: list[Received] = []

        async def watch() -> None:
            async with httpx.AsyncClient(base_url=api.url, timeout=30) as client:
                async for event in follow(client, f"/v1/videos/{video_id}/events"):
                    seen.append(event)

        thread = threading.Thread(target=lambda: asyncio.run(watch()), daemon=True)
        thread.start()
        api.worker.commit(video_id, 0)
        eventually(lambda: [e for e in seen if e.type == "chunk"])
        own_redis.stop()
        api.error(api.http.get(f"/v1/videos/{video_id}/events"), 503, "redis_unavailable")
        own_redis.start()
        for index in (1, 2):
            eventually(lambda index=index: committed(api, video_id, index))
        api.worker.finish(video_id)
        thread.join(60)
        assert not thread.is_alive()
        assert [e.id for e in seen] == recorded(api, video_id)
        assert [e.type for e in seen] == ["status", "status", "chunk", "chunk", "chunk", "completed"]


def committed(api: Api, video_id: str, index: int) -> bool:
    try:
        api.worker.commit(video_id, index)
    except RedisError:
        return False
    return True


def test_one_process_serves_all_watchers_with_one_reader(
    api: Api, redis_url: str, eventually: Eventually
) -> None:
    ids = [api.create()["id"] for _ in range(10)]

    def blocked_readers() -> int:
        with Redis.from_url(redis_url) as client:
            return sum(c["cmd"] == "xread" for c in client.client_list())

    with ExitStack() as streams:
        for video_id in ids * 5:
            streams.enter_context(api.http.stream("GET", f"/v1/videos/{video_id}/events"))
        eventually(lambda: blocked_readers() == 1)
        assert api.context.events.watchers == 50
