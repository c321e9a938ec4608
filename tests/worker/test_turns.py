"""Pauses, preemption and turns with real workers: who has to wait loses no bit and no attempt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from app.jobs.job import PendingPrompt, Status, Video
from app.jobs.store import events_key, video_key
from app.storage.objects import checkpoint_key

FRAMES = 240
LONG = 24 * 600


@pytest.fixture
def undisturbed(work: Any) -> Callable[[int], list[str]]:
    """Digests of a video that nothing happened to."""

    def make(frames: int) -> list[str]:
        worker = work.start()
        spec = work.spec(frames)
        work.store.create(spec)
        work.wait(spec.id, "completed")
        worker.stop()
        found: list[str] = work.digests(spec.id)
        return found

    return make


def statuses(work: Any, video_id: str) -> list[tuple[str, bool]]:
    """The statuses that watchers were told, and whether a pause was coming; each change once."""
    entries = [fields for _, fields in work.store.redis.xrange(events_key(video_id))]
    told = [json.loads(fields[b"data"]) for fields in entries if fields[b"type"] == b"status"]
    return [key for key, _ in groupby((video["status"], video["pause_requested"]) for video in told)]


def test_a_paused_video_frees_its_worker_and_goes_on_elsewhere_to_the_same_bytes(
    work: Any, undisturbed: Callable[[int], list[str]]
) -> None:
    expected = undisturbed(FRAMES)
    worker = work.start(work.model(step_seconds=0.1))
    spec, other = work.spec(FRAMES), work.spec(5)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    asked: Video = work.store.request_pause(spec.id)
    paused = work.wait(spec.id, "paused", "completed")
    state = paused.state
    assert (state.status, state.worker, state.attempts) == (Status.PAUSED, "", 0)
    # The chunk in the making, and those that were being encoded.
    assert 1 <= state.chunks_ready - asked.state.chunks_ready <= 6
    assert state.checkpoint == state.chunks_ready - 1
    assert state.forwards_total is not None
    assert paused.eta_seconds is None
    work.store.create(other)
    work.wait(other.id, "completed")
    assert work.video(spec.id).state == state, "it rests"
    worker.stop()

    model = work.model(step_seconds=0.01)
    model.hold_at = 8  # four chunks further, when most are still to be made
    work.start(model)
    work.store.resume(spec.id)
    again = work.wait(spec.id, chunks=state.chunks_ready + 2)
    assert again.state.status is Status.IN_PROGRESS
    work.store.request_pause(spec.id)
    model.hold_at = None
    work.wait(spec.id, "paused")
    work.store.resume(spec.id)
    assert work.wait(spec.id, "completed").state.attempts == 1
    assert work.digests(spec.id) == expected
    pausing = [("in_progress", False), ("in_progress", True), ("paused", False), ("queued", False)]
    assert statuses(work, spec.id) == [("queued", False), *pausing, *pausing, ("in_progress", False)]


def test_a_pause_before_the_first_chunk_and_one_while_the_last_is_made_cost_nothing(
    work: Any, undisturbed: Callable[[int], list[str]]
) -> None:
    expected = undisturbed(FRAMES)
    model = work.model(step_seconds=0.05)
    model.hold.clear()
    work.start(model)
    spec = work.spec(FRAMES)
    work.store.create(spec)
    work.wait(spec.id, "in_progress")
    work.store.request_pause(spec.id)
    model.hold.set()
    video = work.wait(spec.id, "paused")
    assert video.state.chunks_ready < 31
    model.step_seconds = 0.01
    work.store.resume(spec.id)
    work.wait(spec.id, chunks=30)
    work.store.request_pause(spec.id)
    video = work.wait(spec.id, "paused", "completed")
    if video.state.status is Status.PAUSED:
        work.store.resume(spec.id)
    video = work.wait(spec.id, "completed")
    assert not video.state.pause_requested
    assert work.digests(spec.id) == expected


def test_a_running_video_can_be_cancelled_and_deleted_while_it_comes_to_rest(work: Any) -> None:
    model = work.model(step_seconds=0.02)
    work.start(model)
    cancelled, deleted = work.spec(LONG), work.spec(LONG)
    work.store.create(cancelled)
    work.store.create(deleted)
    work.wait(cancelled.id, chunks=2)
    model.hold.clear()
    work.store.request_pause(cancelled.id)
    work.store.request_cancel(cancelled.id)
    model.hold.set()
    assert work.wait(cancelled.id, "cancelled").state.final_bytes
    work.wait(deleted.id, chunks=2)
    work.store.request_pause(deleted.id)
    work.store.delete(work.video(deleted.id))
    last = work.spec(1)
    work.store.create(last)
    work.wait(last.id, "completed")


def test_an_urgent_video_starts_at_the_next_chunk_and_the_other_goes_on_to_the_same_bytes(
    work: Any, undisturbed: Callable[[int], list[str]]
) -> None:
    expected = undisturbed(FRAMES)
    model = work.model(step_seconds=0.1)
    work.start(model)
    low, high = work.spec(FRAMES, priority="low"), work.spec(40, priority="high")
    work.store.create(low)
    work.wait(low.id, chunks=3)
    before = work.video(low.id).state.chunks_ready
    work.store.create(high)
    work.wait(high.id, "in_progress")
    video = work.video(low.id)
    assert video.state.status is Status.QUEUED
    assert video.state.chunks_ready - before <= 6
    place = work.store.places([video])[low.id]
    assert place.position == 0
    model.step_seconds = 0.005
    started = work.wait(high.id, "completed").state
    done = work.wait(low.id, "completed").state
    assert started.completed_at < done.completed_at
    assert (started.attempts, done.attempts) == (1, 1)
    assert work.digests(low.id) == expected


def test_one_of_two_workers_makes_room_for_one_urgent_video(work: Any) -> None:
    workers = [work.start(work.model(step_seconds=0.02)) for _ in range(2)]
    lows = [work.spec(LONG, priority="low") for _ in range(2)]
    for low in lows:
        work.store.create(low)
    for low in lows:
        work.wait(low.id, chunks=2)
    high = work.spec(40, priority="high")
    work.store.create(high)
    work.wait(high.id, "completed")
    work.eventually(lambda: all(work.video(low.id).state.status is Status.IN_PROGRESS for low in lows))
    given_back = [[status for status, _ in statuses(work, low.id)].count("queued") - 1 for low in lows]
    assert sorted(given_back) == [0, 1]
    for worker in workers:
        worker.stop()


def test_short_videos_do_not_wait_for_a_long_one_which_goes_on_in_between(
    work: Any, undisturbed: Callable[[int], list[str]]
) -> None:
    expected = undisturbed(FRAMES)
    work.start(work.model(step_seconds=0.01), turn_seconds=0.3)
    endless, short = work.spec(LONG), work.spec(FRAMES)
    work.store.create(endless)
    work.wait(endless.id, chunks=1)
    work.store.create(short)
    done = work.wait(short.id, "completed")
    assert work.digests(short.id) == expected
    turns = [status for status, _ in statuses(work, short.id)].count("in_progress")
    assert turns >= 2, "the long one came in between"
    assert done.state.attempts == 1
    chunks = work.video(endless.id).state.chunks_ready
    work.wait(endless.id, chunks=chunks + 3)
    changes = len(statuses(work, endless.id))
    time.sleep(0.7)  # more than two turns
    assert len(statuses(work, endless.id)) == changes, "alone it is not interrupted"
    # Both keep moving however short the turn is.
    assert [work.video(endless.id).state.attempts, work.video(endless.id).state.barren_attempts] == [1, 0]


def test_turns_as_short_as_can_be_still_bring_everybody_on_even_without_checkpoints(
    work: Any, undisturbed: Callable[[int], list[str]]
) -> None:
    expected = undisturbed(64)
    work.start(turn_seconds=0.0)
    specs = [work.spec(64) for _ in range(3)]
    for spec in specs:
        work.store.create(spec)
    video = work.wait(specs[0].id, chunks=2)
    work.objects.delete(checkpoint_key(specs[0].id, video.state.chunks_ready - 1))
    for spec in specs:
        assert work.wait(spec.id, "completed", "failed").state.status is Status.COMPLETED
        assert work.digests(spec.id) == expected


@pytest.mark.parametrize("wanted", ["paused", pytest.param("outranked", marks=pytest.mark.slow)])
def test_sigkill_while_a_video_comes_to_rest_loses_nothing(
    work: Any, undisturbed: Callable[[int], list[str]], wanted: str
) -> None:
    expected = undisturbed(FRAMES)
    spec = work.spec(FRAMES, priority="low")
    worker = work.process({"step_seconds": 0.3})  # killed long before it comes to the end of a chunk
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    if wanted == "paused":
        work.store.request_pause(spec.id)
    else:
        work.store.create(work.spec(5, priority="high"))
        work.eventually(lambda: work.store.redis.hexists(video_key(spec.id), "yielding"))
    worker.kill()
    assert work.video(spec.id).state.status is Status.IN_PROGRESS
    work.start(work.model(step_seconds=0.005))
    if wanted == "paused":
        assert work.wait(spec.id, "paused").state.chunks_ready >= 2
        work.store.resume(spec.id)
    assert work.wait(spec.id, "completed", "failed").state.status is Status.COMPLETED
    assert work.digests(spec.id) == expected


def test_waiting_videos_are_told_an_honest_time_once_a_speed_was_measured(work: Any) -> None:
    model = work.model(step_seconds=0.02)
    work.start(model)
    first = work.spec(FRAMES)
    work.store.create(first)
    work.wait(first.id, "completed")
    forward = work.store.line.speeds("stand-in")["16x16 guided"]
    assert 0.02 <= forward < 1
    running, waiting = work.spec(LONG), work.spec(40)
    work.store.create(running)
    work.wait(running.id, chunks=1)
    model.hold.clear()
    work.store.create(waiting)
    place = work.store.places([work.video(waiting.id)])[waiting.id]
    assert place.position == 0
    # Its own 16 forwards, and a turn of the running one at most.
    assert 16 * forward <= place.eta_seconds <= 16 * forward + work.store.line.turn_seconds
    model.hold.set()


def test_steering_and_the_end_count_across_pauses_and_turns_to_the_same_bytes(work: Any) -> None:
    work.start(work.model(step_seconds=0.01), turn_seconds=0.2)
    endless, other = work.spec(None, seconds=None), work.spec(LONG)
    work.store.create(endless)
    work.store.create(other)
    work.wait(endless.id, chunks=3)
    work.store.request(
        endless.id,
        lambda video: Video(
            spec=video.spec,
            state=video.state.model_copy(update={"pending_prompts": (PendingPrompt(text="a square"),)}),
        ),
    )
    work.store.request_pause(endless.id)
    work.wait(endless.id, "paused")
    work.store.resume(endless.id)
    ready = work.video(endless.id).state.chunks_ready
    work.wait(endless.id, chunks=ready + 8)
    work.store.request(
        endless.id,
        lambda video: Video(spec=video.spec, state=video.state.model_copy(update={"finish_requested": True})),
    )
    done = work.wait(endless.id, "completed")
    assert [prompt.text for prompt in done.spec.prompts] == ["a circle", "a square"]
    again = work.spec(done.frames, seconds=done.seconds, prompts=done.spec.prompts)
    work.store.request_cancel(other.id)
    work.store.create(again)
    work.wait(again.id, "completed")
    assert work.digests(again.id) == work.digests(endless.id)
