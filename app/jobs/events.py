"""Watching videos: one reader of Redis Streams per process, whatever the number of watchers.

Events are written by `VideoStore`, in the transaction that changes the record; their ids are stream entry ids. A
watcher first gets what it has not seen, read from the stream, then what the shared reader hands on. The reader's
position in a stream is fixed before any replay is read, so nothing falls between the two, and whatever comes twice
is dropped by its id. While Redis is away positions are kept, so nothing is lost either.

A stream keeps its newest entries only. Of what was trimmed before a watcher had it the chunks are told from their list,
under the ids that their events had, and then how the video is now.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.jobs.connection import Connection
from app.jobs.migrations import RecordError
from app.jobs.store import Event, VideoGone, VideoStore, announced_key, events_key, video_key
from app.schemas import PRIVATE_FIELDS

log = logging.getLogger(__name__)

RETRY_MILLISECONDS = 2000

# Entries read at once, of a replay and of the live streams: what one watcher can hold in memory.
_PAGE = 500

# XREAD returns at least this often, so that a connection that died silently is noticed.
_BLOCK_SECONDS = 2.0

# How soon the watchers of a deleted video are sent away.
_SWEEP_SECONDS = 2.0

# Redis counts both parts of an entry id in 64 bits.
_EVENT_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_LARGEST = 2**64 - 1

# Longest wait for the hub's own tasks when it closes.
_CLOSE_SECONDS = 0.5

_READER = "events-read"

_TERMINAL = {b"completed", b"failed", b"cancelled"}

# What tells the whole video. The first event of each video is one of these.
_WHOLE = {b"status", *_TERMINAL}

# What tells nothing that is private, and what is private in the others: in a video, and in a `prompt` its text.
_OPEN = {b"progress", b"chunk"}
_PRIVATE = PRIVATE_FIELDS | {"text"}

EventId = tuple[int, int]
_Entry = tuple[bytes, Mapping[bytes, bytes]]


class InvalidEventId(ValueError):
    """The text is not an id that an event of this service can have."""


@dataclass(eq=False)
class _Item:
    """An event, ready to send; encoded once, shared by all its watchers."""

    id: EventId
    type: bytes
    frame: bytes

    @property
    def terminal(self) -> bool:
        return self.type in _TERMINAL

    @cached_property
    def open_frame(self) -> bytes:
        """The frame without what is private."""
        if self.type in _OPEN:
            return self.frame
        head, data = self.frame.split(b"\ndata: ", 1)
        told = {name: value for name, value in json.loads(data).items() if name not in _PRIVATE}
        return b"%b\ndata: %b\n\n" % (head, json.dumps(told).encode())


class Watch:
    """One client's view of one video's events. Made by `EventHub.watch`."""

    def __init__(self, video_id: str, last: EventId, signed: bool) -> None:
        self.video_id = video_id
        self.last = last
        self.signed = signed  # let in by a signed URL: what is private is left out
        self.queue: deque[_Item] = deque()
        self.wake = asyncio.Event()
        self.ended = False  # the client left, lags too far behind, or the video is gone
        self.finished = False  # the video has ended: the replay is all there is
        self.page: list[_Item] = []
        self.more = False

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing to send, now or ever."""
        return self.finished and not self.page

    def encoded(self, items: Iterable[_Item]) -> bytes:
        """The bytes of these events for this client."""
        return b"".join(item.open_frame if self.signed else item.frame for item in items)

    def end(self) -> None:
        """Ends the watch at the next opportunity."""
        self.ended = True
        self.wake.set()


def parse_event_id(text: str) -> EventId:
    """A `Last-Event-ID` as numbers that can be compared. Raises `InvalidEventId`."""
    match = _EVENT_ID.fullmatch(text)
    if not match:
        raise InvalidEventId(text)
    parsed = int(match[1]), int(match[2] or 0)
    if max(parsed) > _LARGEST:
        raise InvalidEventId(text)
    return parsed


class EventHub:
    """Hands the events of videos to any number of watchers. Lives on one event loop."""

    def __init__(
        self, url: str, videos: VideoStore, *, heartbeat_seconds: float = 15.0, queue_limit: int = 512
    ) -> None:
        """`videos` are the records in the Redis at `url`.

        Nothing is connected before `start`; Redis may be away then and at any time later.
        """
        self.heartbeat_seconds = heartbeat_seconds
        self.queue_limit = queue_limit
        self._url = url
        self._videos = videos
        self._watches: dict[str, set[Watch]] = {}
        self._positions: dict[str, str] = {}  # of the shared reader, by video
        self._placed: dict[str, asyncio.Future[None]] = {}
        self._closed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # The reader blocks in XREAD on the streams it knew when it began; `_wanted` runs ahead of `_known` while it
        # has to be interrupted to learn of another.
        self._wanted = 0
        self._known = 0
        self._changed = asyncio.Event()
        self._needed = asyncio.Event()  # there is a stream to read
        self._reader_id: int | None = None

    @property
    def watchers(self) -> int:
        """How many clients are being served."""
        return sum(map(len, self._watches.values()))

    async def start(self) -> None:
        """Starts the shared reader."""
        # Thousands of watchers may come at once after a restart: a few connections serve their replays in turn.
        self._redis: Connection = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                self._url,
                max_connections=16,
                timeout=10,
                socket_timeout=2,
                socket_connect_timeout=2,
                socket_keepalive=True,
                health_check_interval=15,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 1),
                retry_on_error=[RedisConnectionError, RedisTimeoutError],
            )
        )
        # No retries below our own loop: a new connection has a new client id to interrupt.
        self._reader: Connection = Redis.from_url(
            self._url,
            single_connection_client=True,
            socket_timeout=3 * _BLOCK_SECONDS,
            socket_connect_timeout=2,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
        for work in (self._read, self._interrupt, self._sweep):
            self._tasks.append(asyncio.create_task(work(), name=f"events-{work.__name__.strip('_')}"))

    async def close(self) -> None:
        """Ends every watch and the reader. May be called more than once."""
        for watches in self._watches.values():
            for watch in watches:
                watch.end()
        self._closed.set()
        self._changed.set()
        tasks, self._tasks = set(self._tasks), []
        if not tasks:
            return
        # All of them look at `_closed`; the reader may be deep in a blocking read and is cancelled too. A connection
        # that is just being made can swallow a cancellation, so that is repeated.
        deadline = time.monotonic() + _CLOSE_SECONDS
        while tasks and time.monotonic() < deadline:
            for task in tasks:
                if task.get_name() == _READER:
                    task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.1)
        with suppress(RedisError, OSError):
            await self._reader.aclose()

    async def disconnect(self) -> None:
        """Closes the connections that replays use, once the last response has ended."""
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def watch(self, video_id: str, last: EventId | None, *, signed: bool = False) -> Watch:
        """Begins to watch a video after event `last`, or from its first event. End it with `leave`.

        Whoever was let in by a signed URL is told no prompts, metadata and webhook URL. Raises `VideoGone` and
        `redis.exceptions.RedisError`; then nothing needs to be ended.
        """
        watch = Watch(video_id, last or (0, 0), signed)
        watch.ended = self._closed.is_set()
        self._watches.setdefault(video_id, set()).add(watch)
        try:
            await self._place(video_id)
            await self._first_page(watch)
        except BaseException:
            self.leave(watch)
            raise
        return watch

    def leave(self, watch: Watch) -> None:
        """Ends a watch; later calls do nothing."""
        watch.end()
        watches = self._watches.get(watch.video_id)
        if watches is None:
            return
        watches.discard(watch)
        if not watches:
            del self._watches[watch.video_id]
            self._positions.pop(watch.video_id, None)
            self._placed.pop(watch.video_id, None)

    async def frames(self, watch: Watch) -> AsyncGenerator[bytes, None]:
        """The bytes of the event stream: replay, live events, heartbeats. Ends after a terminal event."""
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        while not watch.ended:
            if frames := _take(watch, watch.page):
                yield watch.encoded(frames)
                if frames[-1].terminal:
                    return
            if not watch.more:
                break
            await self._next_page(watch)
        while not (watch.ended or watch.finished):
            if not watch.queue:
                watch.wake.clear()
                try:
                    # Not wait_for(), which can swallow a cancellation in Python 3.11.
                    async with asyncio.timeout(self.heartbeat_seconds):
                        await watch.wake.wait()
                except TimeoutError:
                    yield b": ping\n\n"
                continue
            items = [watch.queue.popleft() for _ in range(len(watch.queue))]
            if frames := _take(watch, (item for item in items if item.id > watch.last)):
                yield watch.encoded(frames)
                if frames[-1].terminal:
                    return

    async def first_chunk(self, video_id: str, seconds: float) -> None:
        """Returns once the video has a chunk or has ended, at the latest after `seconds`.

        Raises `VideoGone` and `redis.exceptions.RedisError`.
        """
        watch = await self.watch(video_id, None)
        try:
            async with asyncio.timeout(seconds), aclosing(self.frames(watch)) as frames:
                async for frame in frames:
                    if b"\nevent: chunk\n" in frame:
                        return
        except TimeoutError:
            pass
        finally:
            self.leave(watch)

    # -- replay -----------------------------------------------------------------------------------------

    async def _place(self, video_id: str) -> None:
        """Fixes where the reader goes on in a stream; the first watcher does it, the others wait for it."""
        placed = self._placed.get(video_id)
        if placed is not None:
            await asyncio.shield(placed)
            return
        placed = self._placed[video_id] = asyncio.get_running_loop().create_future()
        try:
            tip = await self._redis.xrevrange(events_key(video_id), count=1)
        except BaseException as error:
            if self._placed.get(video_id) is placed:
                del self._placed[video_id]
            placed.set_exception(error if isinstance(error, RedisError) else RedisConnectionError("given up"))
            placed.exception()  # nobody may be waiting
            raise
        self._positions[video_id] = tip[0][0].decode() if tip else "0-0"
        self._wanted += 1
        self._changed.set()
        self._needed.set()
        placed.set_result(None)

    async def _first_page(self, watch: Watch) -> None:
        # The status is read in the transaction that reads the events: if the video has ended, its last event is
        # among those.
        pipe = self._redis.pipeline(transaction=True)
        pipe.hget(video_key(watch.video_id), "status")
        pipe.xrevrange(events_key(watch.video_id), count=1)
        self._ask_page(pipe, watch)
        status, tip, *answers = await pipe.execute()
        if status is None:
            raise VideoGone(watch.video_id)
        watch.finished = status.strip(b'"') in _TERMINAL
        # An id from after the newest event can only come from a Redis that lost its last second: go on from here.
        watch.last = min(watch.last, _parsed(tip[0][0])) if tip else (0, 0)
        await self._set_page(watch, *answers)

    async def _next_page(self, watch: Watch) -> None:
        delay = 0.1
        while not watch.ended:
            try:
                pipe = self._redis.pipeline(transaction=True)
                self._ask_page(pipe, watch)
                await self._set_page(watch, *await pipe.execute())
            except (VideoGone, RecordError):
                watch.end()
            except (RedisError, OSError):
                await asyncio.sleep(delay)
                delay = min(2 * delay, 2)
            else:
                return

    def _ask_page(self, pipe: Connection, watch: Watch) -> None:
        after = b"(" + _text(watch.last)
        pipe.xrange(events_key(watch.video_id), min=after, count=_PAGE)
        pipe.xrange(events_key(watch.video_id), count=1)
        pipe.xrange(announced_key(watch.video_id), min=after, count=1)

    async def _set_page(
        self, watch: Watch, entries: list[_Entry], oldest: list[_Entry], announced: list[_Entry]
    ) -> None:
        """Takes the answers to `_ask_page`. Raises `VideoGone`, `RecordError` and `redis.exceptions.RedisError`."""
        watch.page, watch.more = _items(entries), len(entries) == _PAGE
        if not watch.page or watch.last >= _parsed(oldest[0][0]):
            return
        # What the watcher had last is not kept, so something that came after it may have been trimmed too.
        chunks_missed = bool(announced) and _parsed(announced[0][0]) < _parsed(oldest[0][0])
        if not chunks_missed and watch.page[0].type in _WHOLE:
            return
        chunks, status = await asyncio.to_thread(
            self._videos.trimmed_events,
            watch.video_id,
            _text(watch.last).decode(),
            oldest[0][0].decode(),
            _PAGE,
        )
        missed = [_told(entry_id, event) for entry_id, event in chunks]
        if len(missed) == _PAGE:  # there may be more of them before what is kept
            watch.page, watch.more = missed, True
            return
        if status is not None:
            missed.append(_told(_text(missed[-1].id if missed else watch.last), status))
        watch.page = missed + watch.page

    # -- the shared reader ------------------------------------------------------------------------------

    async def _read(self) -> None:
        delay = 0.1
        while not self._closed.is_set():
            try:
                self._reader_id = int(await self._reader.client_id())
                await self._cut_off_behind()
                while not self._closed.is_set():
                    self._known = self._wanted
                    keys = {events_key(video_id): position for video_id, position in self._positions.items()}
                    if keys:
                        self._hand_on(await self._reader.xread(keys, _PAGE, int(_BLOCK_SECONDS * 1000)))
                    else:
                        self._needed.clear()
                        await self._needed.wait()
                    delay = 0.1
            except (RedisError, OSError) as error:
                self._reader_id = None
                log.warning("events wait for Redis: %s", type(error).__name__)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 2)
            except Exception:  # everybody waits for this one reader: it outlives whatever it trips over
                log.exception("the reader of events failed")
                await asyncio.sleep(1)

    async def _cut_off_behind(self) -> None:
        """Ends the watches of streams that were trimmed beyond where they were read: their replay tells the rest."""
        positions = dict(self._positions)
        pipe = self._redis.pipeline(transaction=False)
        for video_id in positions:
            pipe.xrange(events_key(video_id), count=1)
        for (video_id, position), oldest in zip(positions.items(), await pipe.execute(), strict=True):
            if oldest and _parsed(oldest[0][0]) > _parsed(position.encode()):
                for watch in self._watches.get(video_id, ()):
                    watch.end()

    def _hand_on(self, answer: Any) -> None:
        for key, entries in _streams(answer):
            video_id = _video_id(key)
            if video_id not in self._positions:
                continue  # the last watcher left meanwhile
            watches = self._watches.get(video_id, set())
            self._positions[video_id] = entries[-1][0].decode()
            for item in _items(entries):
                for watch in watches:
                    if len(watch.queue) < self.queue_limit:
                        watch.queue.append(item)
                        watch.wake.set()
                    elif not watch.ended:
                        # It resumes with its last event id, and this process keeps its memory.
                        log.info("a watcher of %s lags %d events behind: cut off", video_id, self.queue_limit)
                        watch.queue.clear()
                        watch.end()

    async def _interrupt(self) -> None:
        """Gets the reader out of a blocking read that does not know of the newest stream."""
        while not self._closed.is_set():
            await self._changed.wait()
            self._changed.clear()
            while self._known < self._wanted and not self._closed.is_set():
                try:
                    if self._reader_id is not None:
                        await self._redis.client_unblock(self._reader_id)
                    await asyncio.sleep(0.002)
                except (RedisError, OSError):
                    # Away, or CLIENT UNBLOCK is not allowed here: the read ends by itself after a while.
                    await asyncio.sleep(0.5)

    async def _sweep(self) -> None:
        """Sends away the watchers of videos that were deleted."""
        while not self._closed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._closed.wait()
            watched = list(self._watches)
            if not watched:
                continue
            try:
                pipe = self._redis.pipeline(transaction=False)
                for video_id in watched:
                    pipe.exists(video_key(video_id))
                exist = await pipe.execute()
            except (RedisError, OSError):
                continue
            for video_id, exists in zip(watched, exist, strict=True):
                if not exists:
                    for watch in self._watches.get(video_id, ()):
                        watch.end()


def _take(watch: Watch, items: Iterable[_Item]) -> list[_Item]:
    """The items up to the terminal one, which are now the watcher's last."""
    taken: list[_Item] = []
    for item in items:
        watch.last = item.id
        taken.append(item)
        if item.terminal:
            break
    return taken


def _items(entries: list[_Entry]) -> list[_Item]:
    return [
        _item(entry_id, fields[b"type"], fields[b"data"])
        for entry_id, fields in entries
        if fields.keys() >= {b"type", b"data"}
    ]


def _told(entry_id: bytes, event: Event) -> _Item:
    return _item(entry_id, event.type.encode(), json.dumps(event.data).encode())


def _item(entry_id: bytes, kind: bytes, data: bytes) -> _Item:
    # The data is JSON on one line, so it needs no splitting into several `data:` fields.
    return _Item(_parsed(entry_id), kind, b"id: %b\nevent: %b\ndata: %b\n\n" % (entry_id, kind, data))


def _parsed(entry_id: bytes) -> EventId:
    first, _, second = entry_id.partition(b"-")
    return int(first), int(second)


def _text(event_id: EventId) -> bytes:
    return b"%d-%d" % event_id


def _video_id(key: bytes) -> str:
    prefix, suffix = (part.encode() for part in events_key("*").split("*"))
    return key.removeprefix(prefix).removesuffix(suffix).decode()


def _streams(answer: Any) -> Iterable[tuple[bytes, list[_Entry]]]:
    """XREAD's answer, which is a list of pairs in RESP2 and a map to lists of pages in RESP3."""
    if isinstance(answer, dict):
        return [(key, [entry for page in pages for entry in page]) for key, pages in answer.items()]
    return answer or []
