"""The parts of a pipeline: which frames a chunk holds, bounded queues, patience with what is away."""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import Any

import av
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from app.storage import ObjectNotFound, StoreFull, StoreMisconfigured, StoreUnavailable
from worker.engine import Stopped
from worker.media.assemble import AssemblyError
from worker.models.base import Geometry
from worker.pipeline import Channel, Layout, Patience

LOG = logging.getLogger(__name__)


def geometry(factor: int) -> Geometry:
    return Geometry(3, 8, factor, 8, 24, ((16, 16),), (16, 16))


@pytest.mark.parametrize("factor", [1, 4, 8])
@pytest.mark.parametrize("chunk_latents", [1, 2, 5])
def test_chunks_cover_every_frame_once_and_no_chunk_is_empty(factor: int, chunk_latents: int) -> None:
    for frames in range(1, 130):
        layout = Layout(frames, chunk_latents, geometry(factor))
        sizes = [layout.frames_of(chunk) for chunk in range(layout.chunks)]
        assert sum(sizes) == frames
        assert min(sizes) >= 1
        starts = [layout.first_frame(chunk) for chunk in range(layout.chunks)]
        assert starts == [sum(sizes[:chunk]) for chunk in range(layout.chunks)]
        for frame in range(frames):
            chunk = layout.chunk_of(frame)
            assert starts[chunk] <= frame < starts[chunk] + sizes[chunk]


def test_a_channel_holds_no_more_than_its_capacity_and_keeps_the_order() -> None:
    channel: Channel[int] = Channel(2)
    done: list[int] = []

    def produce() -> None:
        for number in range(20):
            channel.put(number)
            done.append(number)
        channel.close()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    got = []
    for number in channel:
        time.sleep(0.002)
        got.append(number)
        assert len(done) <= len(got) + 3
    assert got == list(range(20))
    thread.join(5)


@pytest.mark.parametrize("side", ["put", "get"])
def test_a_stopped_channel_lets_go_of_who_waits(side: str) -> None:
    channel: Channel[int] = Channel(1)
    ended = threading.Event()

    def wait() -> None:
        try:
            if side == "put":
                channel.put(1)
                channel.put(2)
            else:
                next(iter(channel))
        except Stopped:
            ended.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not ended.wait(0.05)
    channel.stop()
    assert ended.wait(60)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreUnavailable("x"), "storage is not reachable"),
        (StoreFull("x"), "disk is full"),
        (OSError(errno.ENOSPC, "no space"), "the worker's disk is full or read-only"),
        (av.error.OSError(errno.EROFS, "read-only"), "the worker's disk is full or read-only"),
        (StoreMisconfigured("x"), "storage refuses access or does not exist"),
        (RedisConnectionError("x"), "Redis is not reachable"),
    ],
)
def test_what_passes_is_tried_again_and_the_reason_is_known_meanwhile(error: Exception, reason: str) -> None:
    patience = Patience(threading.Event(), max_seconds=0.01, log=LOG)
    reasons: list[str | None] = []

    def flaky() -> str:
        reasons.append(patience.reason)
        if len(reasons) < 4:
            raise error
        return "done"

    assert patience(flaky) == "done"
    assert reasons == [None, reason, reason, reason]
    assert patience.reason is None


@pytest.mark.parametrize(
    "error", [ObjectNotFound("x"), AssemblyError("a gap"), KeyError("x"), OSError(errno.EIO, "x")]
)
def test_what_waiting_cannot_mend_is_raised_at_once(error: Exception) -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        Patience(threading.Event(), max_seconds=0.01, log=LOG)(broken)
    assert len(calls) == 1


def test_the_reason_of_a_wait_stays_known_while_a_part_of_the_action_waits_too() -> None:
    patience = Patience(threading.Event(), max_seconds=0.01, log=LOG)
    reasons: list[str | None] = []

    def part() -> None:
        reasons.append(patience.reason)
        if len(reasons) in (1, 3):
            raise StoreUnavailable("x")

    def whole() -> None:
        patience(part)
        reasons.append(patience.reason)
        if len(reasons) < 5:
            raise OSError(errno.ENOSPC, "no space")

    patience(whole)
    store, disk = "storage is not reachable", "the worker's disk is full or read-only"
    assert reasons[:3] == [None, store, None]
    assert reasons[3:] == [disk, disk]
    assert patience.reason is None


def test_waits_grow_up_to_the_longest() -> None:
    waits: list[float] = []

    class Recorder(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            if len(waits) == 12:
                self.set()
            return self.is_set()

    def away() -> None:
        raise StoreUnavailable("SlowDown")

    with pytest.raises(Stopped):
        Patience(Recorder(), max_seconds=10.0, log=LOG)(away)
    longest = [min(0.1 * 2**n, 10.0) for n in range(12)]
    for wait, most in zip(waits, longest, strict=True):
        assert most / 2 <= wait <= most


def test_patience_ends_when_stopped_and_calls_back_while_it_waits() -> None:
    stop = threading.Event()
    seen: list[int] = []

    def meanwhile() -> None:
        seen.append(1)
        if len(seen) == 5:
            stop.set()

    def away() -> None:
        raise StoreUnavailable("x")

    patience = Patience(stop, max_seconds=60, log=LOG, every_seconds=0.001)
    began = time.monotonic()
    with pytest.raises(Stopped):
        patience(away, meanwhile)
    assert time.monotonic() - began < 5
    assert len(seen) == 5


def test_what_is_raised_meanwhile_ends_the_patience() -> None:
    def meanwhile() -> None:
        raise LookupError

    def away() -> Any:
        raise StoreUnavailable("x")

    with pytest.raises(LookupError):
        Patience(threading.Event(), max_seconds=60, log=LOG)(away, meanwhile)
