"""Watching under load: many clients on one API process, some of which drop and resume.

The events are written as a worker writes them, by a process of its own, and each carries the time it was written. A
client is right when the ids it received are exactly those of the stream in Redis, in order, over all its connections.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import resource
import time
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event as ProcessEvent
from typing import Any

from redis import Redis

from app.client import EventParser, VideoEvent
from app.jobs.connection import connect
from app.jobs.events import parse_event_id
from app.jobs.job import TimedPrompt, VideoSpec, new_video_id
from app.jobs.store import Event, VideoStore, events_key
from benchmarks.service import MODEL_CARD, ApiProcess, percentile, running_api

# Connections being opened at the same time, and the pause of a client that has dropped, in seconds.
_OPENING = 50
_AWAY_SECONDS = (0.1, 3.0)


@dataclass
class Viewer:
    """One client: what it received over all its connections, and how late the live part of it was."""

    video_id: str
    drops: list[int]  # numbers of events after which the connection is cut
    connections: int = 0
    ids: list[str] = field(default_factory=list)
    late_seconds: list[float] = field(default_factory=list)
    finished: bool = False

    async def watch(self, port: int, opening: asyncio.Semaphore) -> None:
        """Follows the video to its terminal event, dropping and resuming on the way."""
        while not self.finished:
            async with opening:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port)
            self.connections += 1
            await connection.ended
            if not self.finished:
                await asyncio.sleep(random.uniform(*_AWAY_SECONDS))

    def take(self, event: VideoEvent, connected_at: float) -> bool:
        """Notes an event; whether the client drops its connection now."""
        self.ids.append(event.id)
        sent = event.data.get("sent")
        if sent is not None and sent > connected_at:  # what was written before is a replay
            self.late_seconds.append(time.monotonic() - sent)
        self.finished = event.terminal
        if self.drops and len(self.ids) >= self.drops[0]:
            self.drops.pop(0)
            return not self.finished
        return False


class _Connection(asyncio.Protocol):
    """One event stream. Asked for with HTTP/1.0, so that its body is the stream and nothing else."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._head: bytes | None = b""
        self._parser = EventParser()
        self._connected_at = float("inf")
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        last = f"Last-Event-ID: {self._viewer.ids[-1]}\r\n" if self._viewer.ids else ""
        path = f"/v1/videos/{self._viewer.video_id}/events"
        transport.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n{last}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            status = int(head.split(b" ", 2)[1])
            if status != 200:
                self._fail(RuntimeError(f"an event stream was answered with {status}"))
                return
            self._head = None
            self._connected_at = time.monotonic()
        for event in self._parser.feed(data):
            if self._viewer.take(event, self._connected_at):
                self._transport.abort()  # what else has arrived is lost, as on a real network
                return

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        self.ended.set_exception(error)
        self._transport.abort()


def publish(redis_url: str, ids: list[str], events: int, per_second: float, begin: ProcessEvent) -> None:
    """Takes the videos and writes `events` progress events into each, `per_second` each, then ends them."""
    store = VideoStore(connect(redis_url))
    fences = [store.claim(video_id, "benchmark")[1] for video_id in ids]
    begin.wait()
    start, count = time.monotonic(), 0
    for number in range(events):
        for video_id, fence in zip(ids, fences, strict=True):
            time.sleep(max(0.0, start + count / (per_second * len(ids)) - time.monotonic()))
            count += 1
            data = {"id": video_id, "number": number, "sent": time.monotonic()}
            store.update(video_id, fence, events=[Event("progress", data)])
    for video_id, fence in zip(ids, fences, strict=True):
        video = store.get(video_id)
        assert video is not None
        store.finish(video, fence, "completed")


def sse(clients: int, videos: int, events: int, per_second: float, dropping: float) -> dict[str, Any]:
    """The figures; `dropping` is the share of clients that drop, each one to three times."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < clients + 100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, clients + 100), hard))
    with running_api() as api:
        store = VideoStore(connect(api.redis_url))
        ids = [_create(store) for _ in range(videos)]
        begin = multiprocessing.get_context("spawn").Event()
        publisher = multiprocessing.get_context("spawn").Process(
            target=publish, args=(api.redis_url, ids, events, per_second, begin), daemon=True
        )
        publisher.start()
        viewers = [
            Viewer(
                ids[number % videos],
                sorted(random.sample(range(1, events), random.randint(1, 3)))
                if number < dropping * clients
                else [],
            )
            for number in range(clients)
        ]
        figures = asyncio.run(_watch(api, viewers, begin))
        publisher.join(30)
        with Redis.from_url(api.redis_url) as redis:
            streams = {video_id: _ids(redis, video_id) for video_id in ids}
    return figures | judged(viewers, streams) | {"videos": videos, "events_per_video_per_second": per_second}


async def _watch(api: ApiProcess, viewers: list[Viewer], begin: ProcessEvent) -> dict[str, Any]:
    before = api.resident_bytes()
    opening = asyncio.Semaphore(_OPENING)
    watching = [asyncio.create_task(viewer.watch(api.port, opening)) for viewer in viewers]
    while not all(viewer.ids for viewer in viewers):
        if broken := next((task for task in watching if task.done() and task.exception()), None):
            broken.result()
        await asyncio.sleep(0.1)
    connected = api.resident_bytes()
    cpu, start = api.cpu_seconds(), time.monotonic()
    begin.set()
    await asyncio.gather(*watching)
    return {
        "clients": len(viewers),
        "memory_per_client_bytes": round((connected - before) / len(viewers)),
        "memory_per_client_at_the_end_bytes": round((api.resident_bytes() - before) / len(viewers)),
        "api_cpu_share": (api.cpu_seconds() - cpu) / (time.monotonic() - start),
    }


def judged(viewers: list[Viewer], streams: dict[str, list[str]]) -> dict[str, Any]:
    """What was delivered against what was written."""
    gaps = repeats = disorder = delivered = resumed = 0
    for viewer in viewers:
        written = streams[viewer.video_id]
        gaps += len(set(written) - set(viewer.ids))
        repeats += len(viewer.ids) - len(set(viewer.ids))
        disorder += [parse_event_id(i) for i in viewer.ids] != sorted(parse_event_id(i) for i in viewer.ids)
        if unknown := set(viewer.ids) - set(written):
            raise RuntimeError(f"events that nobody wrote: {sorted(unknown)[:3]}")
        delivered += len(viewer.ids)
        resumed += viewer.connections - 1
    late = [seconds for viewer in viewers for seconds in viewer.late_seconds]
    return {
        "events_written": sum(map(len, streams.values())),
        "events_delivered": delivered,
        "resumed_connections": resumed,
        "gaps": gaps,
        "repeats": repeats,
        "clients_out_of_order": disorder,
        "live_events": len(late),
        "latency_ms": {
            name: round(1000 * percentile(late, share), 2)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
    }


def _ids(redis: Any, video_id: str) -> list[str]:
    return [entry[0].decode() for entry in redis.xrange(events_key(video_id))]


def _create(store: VideoStore) -> str:
    store.register_model(MODEL_CARD)
    spec = VideoSpec(
        id=new_video_id(),
        created_at=time.time(),
        model=MODEL_CARD.name,
        prompts=(TimedPrompt(at=0, text="a red ball"),),
        seconds=60,
        fps=MODEL_CARD.fps,
        frames=60 * MODEL_CARD.fps,
        width=64,
        height=64,
        seed=1,
    )
    store.create(spec)
    return spec.id
