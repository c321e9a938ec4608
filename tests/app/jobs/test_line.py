"""Who runs when: the order of taking, fairness between owners, limits, turns, and what waiting videos are told."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from app.jobs.connection import connect
from app.jobs.estimate import Contender, Lineup, forwards_needed
from app.jobs.job import PRIORITIES, ModelCard, Status, TimedPrompt, VideoSpec, new_video_id
from app.jobs.line import Taken, blocked_key, promoted_key, speed_kind
from app.jobs.store import FenceLost, NotPaused, QueueFull, VideoGone, VideoStore, events_key, video_key
from app.limits import LIMITS_KEY, Limits

LEASE = 60.0
CARD = ModelCard(
    name="m",
    fps=24,
    sizes=("16x16",),
    default_size="16x16",
    temporal_factor=4,
    chunk_latents=2,
    chunks_in_flight=3,
    forwards_per_shift=2,
    guidance_scale=2.0,
    prompt_tokens=16,
    created_at=1.0,
)


class Scene:
    """A store, and workers as far as the line sees them."""

    def __init__(self, url: str, **options: Any) -> None:
        self.store = VideoStore(connect(url), **options)
        self.line = self.store.line
        self.limits: dict[str, int] = {}
        self.fences: dict[str, str] = {}
        self.leases: dict[str, Taken] = {}

    def submit(self, **fields: Any) -> VideoSpec:
        given: dict[str, Any] = {
            "id": new_video_id(), "created_at": time.time(), "model": "m", "seconds": 1.0, "fps": 24, "frames": 40,
            "prompts": (TimedPrompt(at=0, text="a circle"),), "width": 16, "height": 16, "seed": 1,
        }  # fmt: skip
        spec = VideoSpec(**(given | fields))
        self.store.create(spec, limits=Limits(max_running=self.limits.get(spec.owner, 0)))
        return spec

    def take(self, model: str = "m") -> str | None:
        """A slot takes the next video, claims it and begins its turn."""
        self.store.redis.delete(blocked_key(model))
        taken = self.store.take(model, "w", LEASE)
        if taken is None:
            return None
        video, self.fences[taken.video_id] = self.store.claim(taken.video_id, "w")
        self.leases[taken.video_id] = taken
        self.asks(video.spec)
        return taken.video_id

    def asks(self, spec: VideoSpec) -> str | None:
        return self.store.make_room(spec, self.fences[spec.id])

    def give_back(self, spec: VideoSpec, standing: Any = "back") -> Status:
        member = self.leases.pop(spec.id).member
        video = self.store.release(
            spec.id, self.fences[spec.id], member, count_attempt=False, standing=standing
        )
        return video.state.status

    def finish(self, video_id: str) -> None:
        video = self.store.get(video_id)
        assert video is not None
        taken = self.leases.pop(video_id)
        self.store.finish(video, self.fences[video_id], "completed")
        self.store.redis.zrem(f"rq:wip:{taken.queue}", taken.member)

    def began(self, spec: VideoSpec, seconds_ago: float, field: str = "turn") -> None:
        """Moves the start of a turn, or of the waiting, into the past."""
        self.store.redis.hset(video_key(spec.id), field, time.time() - seconds_ago)

    def positions(self, *specs: VideoSpec) -> list[int | None]:
        self.store._lineups.clear()
        found = self.store.places(v for spec in specs if (v := self.store.get(spec.id)))
        return [place.position if (place := found.get(spec.id)) else None for spec in specs]


@pytest.fixture
def scene(redis_url: str) -> Scene:
    return Scene(redis_url)


@pytest.fixture
def make_scene(redis_url: str) -> Callable[..., Scene]:
    return lambda **options: Scene(redis_url, **options)


def limit(scene: Scene, limits: dict[str, int]) -> None:
    """What the API does when it knows new limits: they reach Redis with the owner's next video."""
    scene.limits = limits
    scene.store.redis.delete(LIMITS_KEY)


# -- order ----------------------------------------------------------------------------------------------


def test_owners_take_turns_and_each_owner_is_served_in_its_own_order(scene: Scene) -> None:
    a = [scene.submit(owner="a") for _ in range(4)]
    b = [scene.submit(owner="b") for _ in range(2)]
    c = scene.submit(owner="c")
    expected = [a[0], b[0], c, a[1], b[1], a[2], a[3]]
    assert scene.positions(*expected) == list(range(7))
    assert [scene.take() for _ in range(3)] == [a[0].id, b[0].id, c.id]
    late = scene.submit(owner="d")  # never served: next
    assert scene.positions(late, a[1], b[1]) == [0, 1, 2]
    assert [scene.take() for _ in range(5)] == [late.id, a[1].id, b[1].id, a[2].id, a[3].id]
    assert scene.take() is None


def test_who_has_waited_since_before_is_not_passed_by_a_flood(scene: Scene) -> None:
    for _ in range(50):
        scene.submit(owner="flood")
    mine = scene.submit(owner="me")
    assert scene.take() != mine.id
    assert scene.take() == mine.id


@pytest.mark.parametrize("seed", range(8))
def test_any_mix_is_served_as_told_within_limits_fairly_and_in_order(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    owners = [f"key{n}" for n in range(chance.randint(1, 6))]
    limits = {owner: chance.randint(0, 3) for owner in owners if chance.random() < 0.6}
    limit(scene, limits)
    waiting: dict[str, list[VideoSpec]] = {priority: [] for priority in PRIORITIES}
    specs: dict[str, VideoSpec] = {}
    running: list[str] = []
    served: Counter[str] = Counter()
    clock = 0
    for _ in range(120):
        action = chance.random()
        if action < 0.5:
            spec = scene.submit(owner=chance.choice(owners), priority=chance.choice(PRIORITIES))
            waiting[spec.priority].append(spec)
            specs[spec.id] = spec
            continue
        if action < 0.6 and running:
            scene.finish(running.pop(chance.randrange(len(running))))
            continue
        busy = Counter(specs[video_id].owner for video_id in running)
        may = [o for o in owners if not limits.get(o) or busy[o] < limits[o]]
        order = scene.line.order("m").waiting
        taken = scene.take()
        eligible = [spec for p in PRIORITIES for spec in waiting[p] if spec.owner in may]
        if not eligible:
            assert taken is None
            continue
        assert taken == order[0][0], "what is told is what is done"
        spec = specs[taken]
        most_urgent = eligible[0].priority
        assert spec.priority == most_urgent
        rivals = {other.owner for other in eligible if other.priority == most_urgent}
        assert served[spec.owner] == min(served[owner] for owner in rivals)
        assert spec == next(other for other in waiting[most_urgent] if other.owner == spec.owner)
        waiting[most_urgent].remove(spec)
        running.append(taken)
        clock += 1
        served[spec.owner] = clock
    # What is told about all of them comes true when slots come free and nothing else happens.
    limit(scene, {})
    told = [video_id for video_id, _ in scene.line.order("m").waiting]
    assert [scene.take() for _ in told] == told


def test_an_owner_at_its_limit_is_passed_over_whatever_the_model(scene: Scene) -> None:
    limit(scene, {"a": 1, "b": 0})
    elsewhere = scene.submit(owner="a", model="other")
    assert scene.take("other") == elsewhere.id
    urgent = scene.submit(owner="a", priority="high")
    others = [scene.submit(owner="b", priority="low") for _ in range(2)]
    assert scene.positions(urgent, *others) == [2, 0, 1]
    assert [scene.take() for _ in range(3)] == [others[0].id, others[1].id, None]
    scene.finish(elsewhere.id)
    assert scene.take() == urgent.id


def test_idle_slots_see_soon_that_an_owner_may_run_more_and_at_once_that_another_has_come(
    scene: Scene, eventually: Any
) -> None:
    limit(scene, {"a": 1})
    first, second = scene.submit(owner="a"), scene.submit(owner="a")
    scene.take()
    assert scene.store.take("m", "w", LEASE) is None
    other = scene.submit(owner="b")
    taken = scene.store.take("m", "w", LEASE)
    assert taken is not None
    assert taken.video_id == other.id
    assert scene.store.take("m", "w", LEASE) is None
    scene.finish(first.id)
    assert eventually(lambda: scene.store.take("m", "w", LEASE), 5).video_id == second.id


def test_a_thousand_waiting_videos_are_ordered_at_once(scene: Scene) -> None:
    specs = [scene.submit(owner=f"key{n % 100}") for n in range(1000)]
    assert scene.positions(*specs) == list(range(1000))
    assert scene.take() == specs[0].id


def test_a_lost_video_and_one_given_back_by_a_shutdown_are_next_although_their_owner_was_just_served(
    scene: Scene,
) -> None:
    mine = scene.submit(owner="a")
    scene.take()
    other = scene.submit(owner="b")
    assert scene.give_back(mine, "next") is Status.QUEUED
    assert scene.positions(mine, other) == [0, 1]
    scene.take()
    scene.give_back(mine, "front")
    assert scene.positions(other, mine) == [0, 1]


# -- making room ----------------------------------------------------------------------------------------


def slots(scene: Scene, count: int) -> None:
    scene.store.worker_alive("w", {"model": "m", "slots": count}, LEASE)


def test_nobody_makes_room_while_nobody_waits_or_a_slot_is_free(scene: Scene) -> None:
    slots(scene, 2)
    low = scene.submit(priority="low")
    scene.take()
    scene.began(low, 1e6)
    assert scene.asks(low) is None
    scene.submit(priority="high")
    assert scene.asks(low) is None, "the other slot will take it"
    slots(scene, 1)
    scene.line.withdraw_slots("m", "w", 2)
    slots(scene, 1)
    assert scene.asks(low) == "turn_over"


def test_one_urgent_video_makes_one_of_many_give_way_the_least_urgent_with_the_longest_turn(
    scene: Scene,
) -> None:
    slots(scene, 4)
    normal, young, old, youngest = (scene.submit(priority=p) for p in ("normal", "low", "low", "low"))
    for _ in range(4):
        scene.take()
    for spec, seconds in ((normal, 30), (young, 10), (old, 20), (youngest, 5)):
        scene.began(spec, seconds)
    scene.submit(priority="high")
    assert [scene.asks(spec) for spec in (normal, young, youngest)] == [None] * 3
    assert scene.asks(old) == "outranked"
    assert [scene.asks(spec) for spec in (normal, young, youngest)] == [None] * 3, "one is enough"
    scene.submit(priority="high")
    assert [scene.asks(spec) for spec in (youngest, normal, young)] == [None, None, "outranked"]


def test_who_is_pausing_makes_room_already_and_who_is_ending_is_not_waited_for(scene: Scene) -> None:
    slots(scene, 2)
    first, second = (scene.submit(priority="low") for _ in range(2))
    scene.take()
    scene.take()
    scene.began(first, 20)
    scene.submit(priority="high")
    assert scene.asks(second) is None
    scene.store.redis.hset(video_key(first.id), mapping={"chunks_ready": 6, "chunks_total": 6})
    scene.store.request_pause(first.id)
    assert scene.asks(second) is None
    scene.store.resume(first.id)
    assert scene.asks(second) == "outranked"


def test_equals_take_turns_when_theirs_is_over_and_not_before(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(turn_seconds=30.0)
    slots(scene, 1)
    endless = scene.submit(owner="a")
    scene.take()
    short = scene.submit(owner="b")
    scene.submit(owner="b", priority="low")
    scene.began(endless, 29)
    assert scene.asks(endless) is None
    scene.began(endless, 31)
    assert scene.asks(endless) == "turn_over"
    scene.give_back(endless)
    assert scene.take() == short.id
    assert scene.asks(short) is None, "its turn begins now"
    scene.finish(short.id)
    assert scene.take() == endless.id
    assert scene.asks(endless) is None, "a new turn"


def test_room_is_made_for_an_owner_at_its_limit_only_by_its_own(scene: Scene) -> None:
    limit(scene, {"a": 1})
    slots(scene, 2)
    own, another = scene.submit(owner="a"), scene.submit(owner="b")
    scene.take()
    scene.take()
    scene.began(another, 1e4)
    scene.began(own, 1e3)
    waiting = scene.submit(owner="a")
    assert scene.asks(another) is None
    assert scene.asks(own) == "turn_over"
    scene.give_back(own)
    assert scene.take() == waiting.id


def test_a_slot_that_is_free_does_not_help_an_owner_at_its_limit(scene: Scene) -> None:
    limit(scene, {"a": 2})
    slots(scene, 4)
    lows = [scene.submit(owner="a", priority="low") for _ in range(2)]
    for seconds, spec in zip((5, 1), lows, strict=True):
        scene.take()
        scene.began(spec, seconds)
    urgent = [scene.submit(owner="a", priority="high") for _ in range(2)]
    assert scene.take() is None
    assert scene.line.order("m").blocked == 2
    assert [scene.asks(spec) for spec in reversed(lows)] == [None, "outranked"], (
        "the longest turn, and one at a time"
    )
    scene.give_back(lows[0])
    assert scene.take() == urgent[0].id
    assert scene.asks(lows[1]) == "outranked"
    scene.give_back(lows[1])
    assert scene.take() == urgent[1].id


def test_a_video_of_an_owner_over_its_limit_comes_to_its_end_when_it_was_cancelled(scene: Scene) -> None:
    limit(scene, {"a": 1})
    slots(scene, 2)
    first, running = scene.submit(owner="a"), scene.submit(owner="a")
    scene.take()
    scene.store.request_pause(first.id)
    scene.give_back(first)
    assert scene.take() == running.id
    assert scene.store.request_cancel(first.id).state.status is Status.QUEUED
    assert scene.asks(running) is None
    assert scene.take() == first.id


def test_a_low_priority_gets_a_turn_from_time_to_time(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(starvation_seconds=100.0, turn_seconds=10.0)
    slots(scene, 1)
    endless = scene.submit(priority="high")
    scene.take()
    lows = [scene.submit(priority="low") for _ in range(3)]
    scene.began(endless, 11)
    scene.began(lows[1], 99, "since")
    assert scene.asks(endless) is None
    for spec, waited in zip(lows, (101, 103, 102), strict=True):
        scene.began(spec, waited, "since")
    assert scene.asks(endless) == "turn_over"
    scene.give_back(endless)
    assert scene.positions(lows[1], endless, lows[0], lows[2]) == [0, 1, 2, 3]
    assert scene.take() == lows[1].id, "who has waited longest"
    assert scene.asks(lows[1]) is None, "it counts as urgent for one turn"
    scene.began(lows[1], 11)
    assert scene.asks(lows[1]) == "turn_over"
    scene.give_back(lows[1])
    assert scene.take() == endless.id
    scene.began(endless, 11)
    assert scene.asks(endless) is None, "not again so soon, although others have waited as long"
    scene.store.redis.delete(promoted_key("m"))  # as when it has expired
    assert scene.asks(endless) == "turn_over"


def test_a_promoted_low_priority_gives_way_to_normal_ones_when_its_turn_is_over(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(starvation_seconds=100.0, turn_seconds=10.0)
    slots(scene, 1)
    low, normal = scene.submit(priority="low"), scene.submit()
    assert scene.take() == normal.id
    scene.began(low, 101, "since")
    scene.began(normal, 11)
    assert scene.asks(normal) == "turn_over"
    scene.give_back(normal)
    assert scene.take() == low.id
    scene.began(low, 9)
    assert scene.asks(low) is None
    scene.began(low, 11)
    assert scene.asks(low) == "turn_over"
    scene.give_back(low)
    assert scene.take() == normal.id


def test_of_several_the_promoted_one_whose_turn_is_over_gives_way_first(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(starvation_seconds=100.0, turn_seconds=10.0)
    slots(scene, 2)
    low = scene.submit(priority="low")
    scene.began(low, 101, "since")
    assert scene.take() == low.id
    normal = scene.submit()
    assert scene.take() == normal.id
    scene.submit()
    scene.began(low, 11)
    scene.began(normal, 12)
    assert scene.asks(normal) is None
    assert scene.asks(low) == "turn_over"


def test_who_has_lost_its_fence_is_told_so(scene: Scene) -> None:
    spec = scene.submit()
    scene.take()
    scene.store.claim(spec.id, "another")
    with pytest.raises(FenceLost):
        scene.asks(spec)


def test_who_makes_room_and_was_deleted_meanwhile_is_told_that_it_is_gone(scene: Scene) -> None:
    spec = scene.submit()
    scene.take()
    video = scene.store.get(spec.id)
    assert video is not None
    scene.store.delete(video)
    with pytest.raises(VideoGone):
        scene.asks(spec)


@pytest.mark.parametrize("reason", ["outranked", "turn_over"])
def test_who_is_to_make_room_is_told_so_again_when_the_answer_was_lost(scene: Scene, reason: str) -> None:
    slots(scene, 1)
    low = scene.submit(priority="low")
    scene.take()
    scene.submit(priority="high")
    if reason == "turn_over":
        scene.began(low, 1e6)
    assert [scene.asks(low) for _ in range(3)] == [reason] * 3
    scene.give_back(low)
    scene.take()
    assert scene.take() == low.id
    assert scene.asks(low) is None, "a new turn"


# -- pause and resume -----------------------------------------------------------------------------------


def test_a_waiting_video_is_paused_at_once_and_resumes_in_front_of_its_owners_others(scene: Scene) -> None:
    specs = [scene.submit(owner="a") for _ in range(3)]
    other = scene.submit(owner="b")
    assert scene.store.request_pause(specs[2].id).state.status is Status.PAUSED
    told = scene.store.redis.xlen(events_key(specs[2].id))
    assert scene.store.request_pause(specs[2].id).state.status is Status.PAUSED
    assert scene.store.redis.xlen(events_key(specs[2].id)) == told
    assert scene.positions(*specs, other) == [0, 2, None, 1]
    assert not scene.store.redis.exists(f"rq:job:{specs[2].id}")
    assert scene.store.resume(specs[2].id).state.status is Status.QUEUED
    assert scene.positions(specs[2], other, specs[0], specs[1]) == [0, 1, 2, 3]
    with pytest.raises(NotPaused):
        scene.store.resume(specs[2].id)
    with pytest.raises(VideoGone):
        scene.store.request_pause("video_" + "0" * 32)


def test_a_running_video_rests_when_it_is_given_back_unless_it_may_go_on_after_all(scene: Scene) -> None:
    spec = scene.submit()
    scene.take()
    for _ in range(2):
        video = scene.store.request_pause(spec.id)
        assert (video.state.status, video.state.pause_requested) == (Status.IN_PROGRESS, True)
    assert scene.store.controls(spec.id, scene.fences[spec.id]).pause_requested
    scene.store.resume(spec.id)
    assert not scene.store.controls(spec.id, scene.fences[spec.id]).pause_requested
    scene.store.request_pause(spec.id)
    assert scene.give_back(spec) is Status.PAUSED
    assert scene.take() is None
    video = scene.store.resume(spec.id)
    assert (video.state.attempts, video.state.pause_requested) == (0, False)
    assert scene.take() == spec.id
    scene.store.request_pause(spec.id)
    scene.store.request_cancel(spec.id)
    assert scene.give_back(spec) is Status.QUEUED, "a worker has to end it"


def test_a_video_paused_between_taking_and_claiming_is_not_made(scene: Scene) -> None:
    spec = scene.submit()
    assert scene.store.take("m", "w", LEASE) is not None
    scene.store.request_pause(spec.id)
    video, fence = scene.store.claim(spec.id, "w")
    assert (video.state.status, fence) == (Status.PAUSED, "")


def test_a_video_resumed_between_taking_and_claiming_is_made_once(scene: Scene) -> None:
    spec = scene.submit()
    assert scene.store.take("m", "w", LEASE) is not None
    scene.store.request_pause(spec.id)
    scene.store.resume(spec.id)
    video, fence = scene.store.claim(spec.id, "w")
    assert (video.state.status, bool(fence)) == (Status.IN_PROGRESS, True)
    assert scene.take() is None


def test_a_paused_video_can_be_cancelled_and_deleted_and_leaves_nothing(scene: Scene) -> None:
    cancelled, deleted = scene.submit(), scene.submit()
    for spec in (cancelled, deleted):
        scene.store.request_pause(spec.id)
    assert scene.store.request_cancel(cancelled.id).state.status is Status.CANCELLED
    assert scene.store.request_pause(cancelled.id).state.status is Status.CANCELLED
    assert scene.store.resume(cancelled.id).state.status is Status.CANCELLED
    video = scene.store.get(deleted.id)
    assert video is not None
    scene.store.delete(video)
    assert scene.take() is None
    assert not scene.store.redis.keys(f"rq:*{cancelled.id}*")
    assert scene.store.redis.keys(f"*{deleted.id}*") == [f"longtake:deleted:{deleted.id}".encode()]


def test_what_was_let_in_comes_back_into_a_full_line(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(max_queued=2)
    running, paused = scene.submit(), scene.submit()
    scene.take()
    scene.store.request_pause(paused.id)
    scene.submit()
    with pytest.raises(QueueFull):
        scene.submit()
    scene.submit(model="other")  # it has workers of its own
    assert scene.give_back(running) is Status.QUEUED
    assert scene.store.resume(paused.id).state.status is Status.QUEUED
    assert len(scene.line.order("m").waiting) == 3


def test_a_pause_makes_no_room_in_a_full_line(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(max_queued=3)
    specs = [scene.submit() for _ in range(3)]
    for spec in specs:
        scene.store.request_pause(spec.id)
    with pytest.raises(QueueFull):
        scene.submit()
    scene.store.request_cancel(specs[0].id)
    scene.submit()
    scene.store.resume(specs[1].id)
    with pytest.raises(QueueFull):
        scene.submit()
    scene.take()
    scene.submit()


# -- estimates ------------------------------------------------------------------------------------------


def test_nothing_is_estimated_before_anything_was_measured_and_then_from_what_was(scene: Scene) -> None:
    first, second = scene.submit(), scene.submit()

    def told() -> list[float | None]:
        scene.store._lineups.clear()
        videos = [video for spec in (first, second) if (video := scene.store.get(spec.id))]
        found = scene.store.places(videos)
        return [found[spec.id].eta_seconds for spec in (first, second)]

    assert told() == [None, None]
    scene.store.register_model(CARD)
    slots(scene, 1)
    assert told() == [None, None]
    scene.line.learn_speed("m", speed_kind(16, 16, 2.0), 0.5)
    # 40 frames are 6 chunks: 16 forwards, 8 seconds.
    assert told() == [8.0, 16.0]
    scene.line.learn_speed("m", speed_kind(16, 16, 2.0), 1.5)
    assert scene.line.speeds("m") == {"16x16 guided": pytest.approx(0.8)}
    scene.line.withdraw_slots("m", "w", 1)
    assert told() == [None, None], "nobody is there to make them"


@pytest.mark.parametrize("frames", [1, 5, 6, 40, 120])
def test_forwards_are_counted_as_the_sampler_does(frames: int) -> None:
    from worker.models.base import Geometry
    from worker.pipeline import Layout
    from worker.sampler.window import SamplerConfig

    config = SamplerConfig(2, 3, 2, 1, 3.0, 2.0)
    layout = Layout(frames, 2, Geometry(3, 8, 4, 8, 24, ((16, 16),), (16, 16)))
    assert forwards_needed(frames, CARD) == config.forwards(layout.chunks)
    assert forwards_needed(frames, CARD, 12) == 2 * config.forwards(layout.chunks)
    given = min(2, layout.chunks - 1)
    behind_given = config.forwards(layout.chunks - given)
    assert forwards_needed(frames, CARD, given_chunks=given) == behind_given
    assert forwards_needed(frames, CARD, given_chunks=layout.chunks) == 0


def test_estimates_follow_priorities_turns_and_slots() -> None:
    def etas(
        waiting: list[Contender], running: list[Contender], slots: int = 1, blocked: int = 0
    ) -> list[float | None]:
        lineup = Lineup(waiting, running, slots=slots, turn_seconds=10.0, blocked=blocked)
        places = [lineup.place(one.video_id) for one in waiting]
        assert [place and place.position for place in places] == list(range(len(waiting)))
        return [place and place.eta_seconds for place in places]

    def job(name: str, seconds: float | None, rank: int = 2) -> Contender:
        return Contender(name, rank, seconds)

    assert etas([job("a", 5.0), job("b", 5.0)], []) == [5.0, 10.0]
    assert etas([job("short", 5.0)], [job("endless", math.inf)]) == [15.0], "one turn of the other"
    assert etas([job("long", 25.0), job("short", 4.0)], []) == [29.0, 14.0]
    assert etas([job("low", 5.0, 3)], [job("running", 7.0)]) == [12.0]
    assert etas([job("low", 5.0, 3)], [job("endless", math.inf)]) == [None]
    assert etas([job("endless", math.inf)], []) == [None]
    assert etas([job("urgent", 5.0, 1)], [job("low", 100.0, 3)]) == [5.0]
    assert etas([job("a", 5.0)], [job("b", 8.0)], slots=2) == [5.0]
    assert etas([job("a", 6.0)], [job("b", 4.0), job("c", 4.0)], slots=2) == [10.0]
    assert etas([job("a", 5.0, 3)], [job("unknown", None)]) == [None]
    assert etas([job("unknown", None)], []) == [None]
    assert etas([job("a", 5.0), job("b", 5.0)], [], slots=2, blocked=1) == [5.0, None]
