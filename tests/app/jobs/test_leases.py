"""Leases and lost videos: nothing that was accepted is ever forgotten, nothing is made twice at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from app.jobs import queue
from app.jobs.connection import connect
from app.jobs.job import ChunkRecord, Status, TimedPrompt, VideoSpec, new_video_id
from app.jobs.line import Taken
from app.jobs.store import (
    ACTIVE_KEY,
    RECONCILED_KEY,
    WORKERS_KEY,
    Event,
    FenceLost,
    VideoGone,
    VideoStore,
    events_key,
    video_key,
    worker_key,
)
from tests.app.conftest import CARD
from tests.conftest import Eventually

LEASE = 1.5
"""Short, because tests wait for its end, but longer than what is done within it takes on a busy machine."""


class UpForLong(VideoStore):
    """A store on a Redis that has been up for long; the session's has only just begun."""

    def _uptime_seconds(self) -> float:
        return 1e6


@pytest.fixture
def store(redis_url: str) -> VideoStore:
    return UpForLong(connect(redis_url))


@pytest.fixture
def submit(store: VideoStore) -> Callable[..., VideoSpec]:
    def make(**fields: Any) -> VideoSpec:
        given: dict[str, Any] = {
            "id": new_video_id(), "created_at": time.time(), "model": "m", "seconds": 1.0, "fps": 24, "frames": 24,
            "prompts": (TimedPrompt(at=0, text="a circle"),), "width": 16, "height": 16, "seed": 1,
        }  # fmt: skip
        spec = VideoSpec(**(given | fields))
        store.create(spec)
        return spec

    return make


def waiting(store: VideoStore, priority: Any = "normal") -> list[str]:
    return [i.decode() for i in store.redis.lrange(queue.waiting_key(queue.queue_name("m", priority)), 0, -1)]


def leases(store: VideoStore, priority: Any = "normal") -> list[str]:
    key = queue.leases_key(queue.queue_name("m", priority))
    return [member.decode() for member in store.redis.zrange(key, 0, -1)]


def reconcile(store: VideoStore) -> list[str]:
    store.redis.delete(RECONCILED_KEY)
    return store.reconcile(LEASE)


def take(store: VideoStore, seconds: float = LEASE) -> Taken:
    taken = store.take("m", "w", seconds)
    assert taken is not None
    return taken


def test_videos_are_taken_by_priority_then_age_each_with_a_lease(store: VideoStore, submit: Any) -> None:
    low, first, second, high = (submit(priority=p) for p in ("low", "normal", "normal", "high"))
    submit(model="another")
    got = [take(store, 60) for _ in range(4)]
    assert [taken.video_id for taken in got] == [spec.id for spec in (high, first, second, low)]
    assert store.take("m", "w", LEASE) is None
    assert leases(store, "high") == [got[0].member] == [f"{high.id}:w"]
    assert reconcile(store) == []


def test_a_video_whose_taker_died_at_once_is_back_in_line_when_the_lease_has_run_out(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec = submit()
    later = submit()
    take(store)
    assert reconcile(store) == []
    assert eventually(lambda: reconcile(store)) == [spec.id]
    assert waiting(store) == [spec.id, later.id], "it had stood in line before"
    assert leases(store) == []
    assert Job.fetch(spec.id, connection=store.redis, serializer=JSONSerializer).args == [spec.id]
    assert reconcile(store) == []


def test_a_lease_that_is_renewed_lasts_and_one_that_is_not_ends(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec = submit()
    taken = take(store)
    _, fence = store.claim(spec.id, "w")
    end = time.monotonic() + 3 * LEASE
    while time.monotonic() < end:
        store.hold(spec, fence, taken.member, LEASE)
        assert reconcile(store) == []
        time.sleep(LEASE / 10)
    assert eventually(lambda: reconcile(store)) == [spec.id]


def test_a_reaped_lease_is_taken_back_unless_somebody_claimed_the_video(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec = submit()
    taken = take(store)
    _, fence = store.claim(spec.id, "sleeper")
    eventually(lambda: reconcile(store))
    store.hold(spec, fence, taken.member, LEASE)
    assert (waiting(store), leases(store)) == ([], [taken.member])
    eventually(lambda: reconcile(store))
    take(store)
    store.claim(spec.id, "heir")
    with pytest.raises(FenceLost):
        store.hold(spec, fence, taken.member, LEASE)
    store.delete(store.get(spec.id))  # type: ignore[arg-type]
    with pytest.raises(VideoGone):
        store.hold(spec, fence, taken.member, LEASE)
    assert store.was_deleted(spec.id)


def test_where_redis_does_not_tell_how_long_it_has_been_up_lost_videos_are_put_back_all_the_same(
    redis_user: Callable[[str], str], submit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(redis_user("~* +@all -@dangerous")) as client:
        store = VideoStore(client)
        spec = submit()
        for _ in range(2):
            take(store)
            store.redis.delete(RECONCILED_KEY, queue.leases_key(queue.queue_name("m", "normal")))
            assert store.reconcile(60) == [spec.id]
    assert len([record for record in caplog.records if "INFO" in record.message]) == 1, "told once"


def begun_and_lost(store: VideoStore, submit: Any, eventually: Any) -> tuple[VideoSpec, str, str]:
    """A video with a chunk, back in line after its worker fell silent; with that one's fence and lease."""
    spec = submit(frames=48)
    taken = take(store)
    _, fence = store.claim(spec.id, "silent")
    chunk = ChunkRecord(index=0, first_frame=0, frames=5, bytes=1, sha256="", created_at=1.0)
    store.commit_chunk(spec, fence, chunk, checkpoint=0)
    assert (store.chunks(spec.id, 0, 0), store.chunks(spec.id, 0, 1)) == ([], [chunk])
    store.update(spec.id, fence, stalled="storage is not reachable")
    assert eventually(lambda: reconcile(store)) == [spec.id]
    return spec, fence, taken.member


def told(store: VideoStore, video_id: str) -> list[str]:
    """The statuses that watchers were told."""
    entries = [fields for _, fields in store.redis.xrange(events_key(video_id))]
    return [json.loads(entry[b"data"])["status"] for entry in entries if entry[b"type"] == b"status"]


def test_a_lost_video_that_is_back_in_line_says_so_and_can_be_paused_and_resumed_at_once(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec, fence, member = begun_and_lost(store, submit, eventually)
    video = store.get(spec.id)
    assert video is not None
    state = video.state
    assert (state.status, state.worker, state.stalled) == (Status.QUEUED, "", None)
    assert (state.attempts, state.barren_attempts, state.chunks_ready) == (1, 0, 1), "the attempt was one"
    assert told(store, spec.id) == ["queued", "in_progress", "queued"]
    assert store.places([video])[spec.id].position == 0

    assert store.request_pause(spec.id).state.status is Status.PAUSED
    assert waiting(store) == []
    with pytest.raises(FenceLost):  # its worker wakes up
        store.hold(spec, fence, member, LEASE)
    with pytest.raises(FenceLost):
        store.controls(spec.id, fence)
    assert store.resume(spec.id).state.status is Status.QUEUED
    assert waiting(store) == [spec.id]


def test_a_lost_video_that_is_cancelled_in_line_is_the_next_to_be_ended(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec, *_ = begun_and_lost(store, submit, eventually)
    rival = submit()
    store.redis.rpush(key := queue.waiting_key(queue.queue_name("m", "normal")), store.redis.lpop(key))
    assert waiting(store) == [rival.id, spec.id]
    state = store.request_cancel(spec.id).state
    assert (state.status, state.cancel_requested) == (Status.QUEUED, True)
    assert waiting(store) == [spec.id, rival.id]


def test_a_lost_video_that_its_worker_takes_back_is_in_progress_again(
    store: VideoStore, submit: Any, eventually: Any
) -> None:
    spec, fence, member = begun_and_lost(store, submit, eventually)
    for _ in range(2):
        store.hold(spec, fence, member, LEASE, worker="silent")
    video = store.get(spec.id)
    assert video is not None
    assert (video.state.status, video.state.worker) == (Status.IN_PROGRESS, "silent")
    assert (video.state.attempts, video.state.barren_attempts) == (1, 0)
    assert (waiting(store), leases(store)) == ([], [member])
    assert told(store, spec.id) == ["queued", "in_progress", "queued", "in_progress"]
    assert store.request_pause(spec.id).state.pause_requested, "it comes to rest as any that runs"


def test_giving_back_is_one_step_and_leaves_one_entry(store: VideoStore, submit: Any) -> None:
    first, second = submit(), submit()
    taken = [take(store) for _ in range(2)]
    fences = [store.claim(spec.id, "w")[1] for spec in (first, second)]
    for spec, fence, lease, standing in zip(
        (second, first), fences[::-1], taken[::-1], ("back", "next"), strict=True
    ):
        released = store.release(spec.id, fence, lease.member, count_attempt=False, standing=standing)
        assert (released.state.status, released.state.attempts) == (Status.QUEUED, 0)
        with pytest.raises(FenceLost):
            store.hold(spec, fence, lease.member, LEASE)
        with pytest.raises(FenceLost):  # the same again after a lost answer
            store.release(spec.id, fence, lease.member, count_attempt=False, standing=standing)
    assert waiting(store) == [first.id, second.id]
    assert leases(store) == []
    assert take(store).video_id == first.id


def test_a_claim_whose_answer_was_lost_counts_once(store: VideoStore, submit: Any) -> None:
    spec = submit()
    first = store.claim(spec.id, "w", fence="mine")
    events = store.redis.xlen(events_key(spec.id))
    assert store.claim(spec.id, "w", fence="mine") == first == (store.get(spec.id), "mine")
    assert (first[0].state.attempts, store.redis.xlen(events_key(spec.id))) == (1, events)
    other, fence = store.claim(spec.id, "heir")
    assert (other.state.attempts, fence != "mine") == (2, True)


def test_giving_back_a_video_that_has_ended_changes_nothing(store: VideoStore, submit: Any) -> None:
    spec, lease = submit(), take(store)
    video, fence = store.claim(spec.id, "w")
    ended = store.finish(video, fence, "completed")
    events = store.redis.xlen(events_key(spec.id))
    for count_attempt in (True, False):
        given = store.release(spec.id, fence, lease.member, count_attempt=count_attempt, standing="next")
        assert given == ended == store.get(spec.id)
    assert (waiting(store), store.redis.xlen(events_key(spec.id))) == ([], events)


def test_only_unfinished_videos_are_kept_in_the_index_and_put_back(store: VideoStore, submit: Any) -> None:
    done, cancelled, deleted, lost = submit(), submit(), submit(), submit()
    video, fence = store.claim(done.id, "w")
    store.finish(video, fence, "completed")
    store.request_cancel(cancelled.id)
    store.delete(store.get(deleted.id))  # type: ignore[arg-type]
    for spec in (done, lost):
        queue.dequeue(store.redis, spec)
    assert {i.decode() for i in store.redis.hkeys(ACTIVE_KEY)} == {lost.id}
    assert reconcile(store) == [lost.id]
    assert waiting(store) == [lost.id]
    # An index that names what is over, or gone, mends itself.
    store.redis.hset(
        ACTIVE_KEY, mapping={done.id: queue.queue_name("m", "normal"), deleted.id: "longtake:m:low"}
    )
    assert reconcile(store) == []
    assert {i.decode() for i in store.redis.hkeys(ACTIVE_KEY)} == {lost.id}


def test_a_paused_video_is_not_lost(store: VideoStore, submit: Any) -> None:
    spec = submit()
    queue.dequeue(store.redis, spec)
    store.redis.hset(video_key(spec.id), "status", f'"{Status.PAUSED}"')
    assert reconcile(store) == []
    assert store.redis.hexists(ACTIVE_KEY, spec.id)


def test_many_workers_that_look_at_once_put_a_lost_video_back_once(
    redis_url: str, store: VideoStore, submit: Any
) -> None:
    specs = [submit() for _ in range(20)]
    for spec in specs:
        queue.dequeue(store.redis, spec)
    stores = [UpForLong(connect(redis_url)) for _ in range(6)]
    found: list[str] = []

    def look(mine: VideoStore) -> None:
        for _ in range(5):
            mine.redis.delete(RECONCILED_KEY)
            found.extend(mine.reconcile(LEASE))

    threads = [threading.Thread(target=look, args=(mine,)) for mine in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(waiting(store)) == sorted(spec.id for spec in specs)


def test_nothing_is_called_lost_right_after_redis_came_back(
    redis_url: str, submit: Any, store: VideoStore
) -> None:
    class JustUp(VideoStore):
        def _uptime_seconds(self) -> float:
            return LEASE / 2

    spec = submit()
    queue.dequeue(store.redis, spec)
    assert JustUp(connect(redis_url)).reconcile(LEASE) == []
    assert reconcile(store) == [spec.id]


def test_attempts_are_counted_and_a_chunk_shows_that_the_last_was_not_in_vain(
    store: VideoStore, submit: Any
) -> None:
    spec = submit()
    store.claim(spec.id, "w")
    video, fence = store.claim(spec.id, "w")
    assert (video.state.attempts, video.state.barren_attempts) == (2, 2)
    chunk = ChunkRecord(index=0, first_frame=0, frames=5, bytes=1, sha256="", created_at=1.0)
    store.commit_chunk(spec, fence, chunk, checkpoint=0)
    video, fence = store.claim(spec.id, "w")
    assert (video.state.attempts, video.state.barren_attempts) == (3, 1)
    released = store.release(spec.id, fence, f"{spec.id}:w", count_attempt=False, standing="front")
    assert (released.state.attempts, released.state.barren_attempts) == (2, 0)
    assert released.state.status is Status.QUEUED


def test_ending_a_video_twice_ends_it_once(store: VideoStore, submit: Any) -> None:
    spec = submit()
    video, fence = store.claim(spec.id, "w")
    store.finish(video, fence, "completed")
    events = store.redis.xlen(events_key(spec.id))
    store.finish(video, fence, "completed")
    assert store.redis.xlen(events_key(spec.id)) == events
    store.update(spec.id, fence, events=[Event("progress", {})], forwards_done=9)
    assert store.redis.xlen(events_key(spec.id)) == events, "nothing follows the last event"


@pytest.mark.parametrize("end", ["finish", "delete"])
def test_what_rq_keeps_of_a_video_whose_worker_died_after_its_end_goes_with_the_lease(
    store: VideoStore, submit: Callable[..., VideoSpec], eventually: Any, end: str
) -> None:
    store.register_model(CARD.model_copy(update={"name": "m"}))
    spec = submit()
    taken = store.take("m", "w", LEASE)
    assert taken is not None
    video, fence = store.claim(spec.id, "w")
    if end == "finish":
        store.finish(video, fence, "completed")
    else:
        store.delete(video)
    running = submit()
    assert store.take("m", "x", 60) is not None
    assert len(store.redis.zrange(queue.leases_key(taken.queue), 0, -1)) == 2

    def gone() -> bool:
        assert reconcile(store) == []
        leases = store.redis.zrange(queue.leases_key(taken.queue), 0, -1)
        assert [member.decode().partition(":")[0] for member in leases] == [running.id]
        return not store.redis.exists(Job.key_for(spec.id))

    assert eventually(gone)
    assert store.redis.exists(Job.key_for(running.id)), "that one is still being made"


def test_leases_are_looked_after_when_no_video_is_left(
    store: VideoStore, submit: Callable[..., VideoSpec], eventually: Any
) -> None:
    store.register_model(CARD.model_copy(update={"name": "m"}))
    spec = submit()
    store.take("m", "w", LEASE)
    video, fence = store.claim(spec.id, "w")
    store.finish(video, fence, "completed")

    def nothing() -> bool:
        assert reconcile(store) == []
        return not list(store.redis.scan_iter(match="rq:[wj]*"))

    assert eventually(nothing)


def test_a_worker_is_on_the_list_while_its_lease_lasts(store: VideoStore, eventually: Eventually) -> None:
    def names() -> list[str]:
        return sorted(worker["name"] for worker in store.workers())

    def alive(name: str, seconds: float) -> None:
        store.worker_alive(name, {"model": "m", "slots": 1, "name": name}, seconds)

    # An older version kept no list of them.
    store.redis.set(worker_key("older"), json.dumps({"model": "m", "slots": 1, "name": "older"}))
    assert names() == []
    for name in ("gone", "silent", "steady"):
        alive(name, LEASE)
    assert names() == ["gone", "silent", "steady"]
    store.worker_gone("gone", {"model": "m", "slots": 1})
    assert names() == ["silent", "steady"]

    def alone() -> bool:
        alive("steady", 60)
        return names() == ["steady"] and store.redis.zcard(WORKERS_KEY) == 1

    eventually(alone)
    store.worker_gone("steady", {"model": "m", "slots": 1})
    assert names() == []
