"""Rounds of kills on a running service: what dies when comes from a seed, so that a round can be run again.

python -m tests.faults kills --seeds 3          rounds 0, 1 and 2 of the fixed list
python -m tests.faults kills --only 17          one of them again
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from redis.exceptions import RedisError

from app.client import Conflict, LongtakeClient, VideoEvent
from app.jobs.job import Priority, Status
from tests.faults.agreement import (
    TERMINAL,
    Request,
    Undisturbed,
    asked_of,
    assert_agreement,
    assert_cancelled,
    assert_deleted,
    assert_no_leftovers,
    create,
    undisturbed,
)
from tests.faults.cluster import Cluster, Worker, until
from tests.faults.worker_entry import HAND_OVER, POINTS

Kind = Literal[
    "point", "random", "term", "zombie", "api", "redis",
    "pause", "urgent", "steer", "lengthen", "finish", "cancel", "delete",
]  # fmt: skip
RESTS: tuple[Kind, ...] = ("pause", "urgent")
ORDERS: tuple[Kind, ...] = ("steer", "lengthen", "finish", "cancel", "delete")
WISHES: tuple[Kind, ...] = (*RESTS, *ORDERS)
"""What a client asks for while processes end; no fault, but a video has to survive both together."""

# The worker that is to die at a chosen point gets this long to come there.
POINT_SECONDS = 90.0

ROUND_SECONDS = 900.0

# A video that was asked to pause does so at its next chunk, or when somebody else has taken it.
PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """One process ends, or stands still for longer than its lease; or a client has a wish.

    `point`: SIGKILL of a worker by itself at a point of its work. `random`, `term`, `zombie`: SIGKILL, SIGTERM or
    SIGSTOP of a worker `after_seconds` of its life. `api`, `redis`: SIGKILL at a time, and started again. `pause`: a
    running video is paused, and goes on `after_seconds` later. `urgent`: a video of high priority is asked for.
    `steer`, `lengthen`, `finish`, `cancel`, `delete`: a video that runs or waits is told so.
    """

    kind: Kind
    point: str = ""
    passage: int = 1
    after_seconds: float = 0.0

    def plan(self) -> list[dict[str, Any]]:
        """What `worker_entry` has to do for it."""
        if self.kind != "point":
            return []
        first = []
        if self.point in HAND_OVER:
            first = [{"point": "segment uploaded", "passage": 2, "action": "term"}]
        return [*first, {"point": self.point, "passage": self.passage, "action": "kill"}]


@dataclass
class Report:
    """What a round did, and that everything survived it."""

    seed: int
    faults: list[Fault]
    videos: int = 0
    attempts: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kinds": dict(Counter(fault.kind for fault in self.faults))}


def every_boundary(generator: random.Random) -> list[Fault]:
    """A kill at each point of a video's life, at a chunk chosen by the generator where there is one per chunk."""
    return [
        Fault("point", name, generator.randint(1, 8) if point.each_chunk else 1)
        for name, point in POINTS.items()
    ]


def at_random(generator: random.Random, count: int) -> list[Fault]:
    """Kills of every kind at times from the generator."""
    kinds: list[Kind] = generator.choices(
        ["point", "random", "term", "zombie", "api", "redis"], [30, 35, 15, 6, 7, 7], k=count
    )
    names = list(POINTS)
    faults = []
    for kind in kinds:
        name = generator.choice(names)
        passage = generator.randint(1, 8) if POINTS[name].each_chunk else 1
        seconds = round(generator.uniform(0.3, 4.0), 3)
        faults.append(
            Fault("point", name, passage) if kind == "point" else Fault(kind, after_seconds=seconds)
        )
    return faults


def with_wishes(generator: random.Random, count: int) -> list[Fault]:
    """Faults of every kind at random, and as many wishes, two pauses to one urgent video."""
    return _mixed(generator, count, generator.choices(RESTS, [2, 1], k=count))


def with_orders(generator: random.Random, count: int) -> list[Fault]:
    """Faults of every kind at random, and as many orders, each kind about as often, one pause among them."""
    kinds = [ORDERS[number % len(ORDERS)] for number in range(count - 1)]
    return _mixed(generator, count, [*kinds, "pause"])


def _mixed(generator: random.Random, count: int, kinds: Sequence[Kind]) -> list[Fault]:
    wishes = [Fault(kind, after_seconds=round(generator.uniform(0.2, 1.5), 3)) for kind in kinds]
    together = [*at_random(generator, count), *wishes]
    generator.shuffle(together)
    return together


class Watcher:
    """A client that follows one video from its beginning to its end, whatever ends in between."""

    def __init__(self, client: LongtakeClient, video_id: str) -> None:
        self.events: list[VideoEvent] = []
        self.error: Exception | None = None
        self._client, self._video_id = client, video_id
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            self.events.extend(self._client.events(self._video_id))
        except Exception as error:  # noqa: BLE001 - told to the test
            self.error = error

    def result(self, seconds: float = 60.0) -> list[VideoEvent]:
        """What it saw, once the stream has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the events of {self._video_id} do not end"
        if self.error is not None:
            raise self.error
        return self.events


@dataclass
class _Doomed:
    """A worker and what becomes of it."""

    worker: Worker
    fault: Fault | None
    due: float
    stopped_at: float | None = None


@dataclass
class _Pause:
    """A video that was asked to pause, and when it is to go on."""

    fault: Fault
    video_id: str
    asked: float
    due: float | None = None


@dataclass
class Round:
    """One run of a list of faults against a fleet that always has something to do."""

    cluster: Cluster
    seed: int
    faults: Sequence[Fault]
    expected: Mapping[Request, Undisturbed]
    fleet: int = 2
    slots: int = 1
    """Videos that a worker makes at once; more than one share their forwards, and are equal to rounding."""
    watchers: dict[str, Watcher] = field(default_factory=dict)
    _requests: dict[str, Request] = field(default_factory=dict)
    _done: list[Fault] = field(default_factory=list)
    _pauses: list[_Pause] = field(default_factory=list)
    _orders: dict[str, Kind] = field(default_factory=dict)
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def run(self) -> Report:
        """Raises `AssertionError`, naming the seed, when anything was lost."""
        began = time.monotonic()
        try:
            self._disturb()
            attempts = self._settle()
        except AssertionError as error:
            raise AssertionError(
                f"seed {self.seed}: {error}\nrun it again: python -m tests.faults kills --only {self.seed}"
            ) from error
        return Report(
            self.seed, self._done, len(self._requests), attempts, round(time.monotonic() - began, 1)
        )

    def _disturb(self) -> None:
        apart: tuple[Kind, ...] = ("api", "redis", *WISHES)
        mine = [fault for fault in self.faults if fault.kind not in apart]
        others = [fault for fault in self.faults if fault.kind in apart]
        fleet: list[_Doomed] = []
        deadline = time.monotonic() + ROUND_SECONDS
        next_other = time.monotonic() + (others[0].after_seconds if others else 0.0)
        while mine or others or self._pauses or any(doomed.fault for doomed in fleet):
            assert time.monotonic() < deadline, f"stuck; done {len(self._done)} of {len(self.faults)} faults"
            while len(fleet) < self.fleet:
                fault = mine.pop(0) if mine else None
                fleet.append(self._start(fault))
            self._keep_busy()
            fleet = [doomed for doomed in fleet if not self._tend(doomed)]
            others += self._tend_pauses()
            if others and time.monotonic() >= next_other and self._begin_other(others[0]):
                others.pop(0)
                next_other = time.monotonic() + (others[0].after_seconds if others else 0.0)
            time.sleep(0.02)
        while len(fleet) < self.fleet:
            fleet.append(self._start(None))

    def _start(self, fault: Fault | None) -> _Doomed:
        worker = self.cluster.worker(fault.plan() if fault else ())
        after = fault.after_seconds if fault else 0.0
        return _Doomed(worker, fault, time.monotonic() + after)

    def _keep_busy(self) -> None:
        """As many unfinished videos as all workers make at once, and one more."""
        try:
            states = self.cluster.store.get_many(self._requests)
        except RedisError:
            return
        open_videos = sum(not video.state.status.terminal for video in states)
        for _ in range(self.fleet * self.slots + 1 - open_videos):
            self._ask()

    def _ask(self, priority: Priority = "normal") -> None:
        """One more video, and a client that watches it."""
        replica = len(self._requests)
        request = list(self.expected)[replica % len(self.expected)]
        video_id = create(self.cluster, request, replica, priority)
        self._requests[video_id] = request
        self.watchers[video_id] = Watcher(self.cluster.client(replica + 1), video_id)

    def _tend(self, doomed: _Doomed) -> bool:
        """Does to a worker what is due; whether it is gone."""
        worker, fault, now = doomed.worker, doomed.fault, time.monotonic()
        if worker.code is not None:
            assert fault is not None, f"a worker ended by itself ({worker.code}):\n{worker.words[-3000:]}"
            expected = 0 if fault.kind in ("term", "zombie") else -signal.SIGKILL
            assert worker.code == expected, f"{fault}: exit code {worker.code}\n{worker.words[-3000:]}"
            self._done.append(fault)
            return True
        if fault is None:
            return False
        if fault.kind == "point":
            assert now < doomed.due + POINT_SECONDS, f"{fault} was not reached\n{worker.words[-3000:]}"
        elif fault.kind == "zombie" and doomed.stopped_at is not None:
            if now > doomed.stopped_at + 1.5 * self.cluster.settings["lease_seconds"]:
                worker.proceed()
                time.sleep(0.2)  # time to do harm
                worker.signal(signal.SIGTERM)
                doomed.due = float("inf")
                doomed.stopped_at = float("inf")
        elif now >= doomed.due:
            if fault.kind == "zombie":
                doomed.stopped_at = now
                worker.signal(signal.SIGSTOP)
            else:
                worker.signal(signal.SIGTERM if fault.kind == "term" else signal.SIGKILL)
            doomed.due = float("inf")
        return False

    def _begin_other(self, fault: Fault) -> bool:
        """Does what is no worker's end; False when there is nothing to do it to now."""
        if fault.kind == "pause":
            return self._pause(fault)
        if fault.kind in ORDERS:
            return self._order(fault)
        if fault.kind == "urgent":
            self._ask("high")
        elif fault.kind == "redis":
            self.cluster.redis.kill()
            self.cluster.redis.start()
        else:
            api = self.cluster.apis[len(self._done) % len(self.cluster.apis)]
            api.kill()
            api.start()
        self._done.append(fault)
        return True

    def _pause(self, fault: Fault) -> bool:
        """Asks the newest running video to pause."""
        gone = {video_id for video_id, order in self._orders.items() if order in ("cancel", "delete")}
        running = self._open_videos(gone, Status.IN_PROGRESS)
        if not running:
            return False
        try:
            self.cluster.client(len(self._done)).pause(running[-1])
        except Conflict:  # it ended meanwhile
            return False
        self._pauses.append(_Pause(fault, running[-1], time.monotonic()))
        return True

    def _order(self, fault: Fault) -> bool:
        """Tells a video that runs or waits, one of them each time, what becomes of it."""
        videos = self._open_videos(self._orders, Status.IN_PROGRESS, Status.QUEUED)
        if not videos:
            return False
        video_id, client = self._dice.choice(videos), self.cluster.client(len(self._done))
        try:
            if fault.kind == "steer":
                client.steer(video_id, "a blue square")
            elif fault.kind == "lengthen":
                client.update(video_id, seconds=self._requests[video_id].seconds + 1)
            elif fault.kind == "finish":
                client.finish(video_id)
            elif fault.kind == "cancel":
                client.cancel(video_id)
            else:
                client.delete(video_id)
        except Conflict:  # too late, or too early
            return False
        self._orders[video_id] = fault.kind
        self._done.append(fault)
        return True

    def _open_videos(self, but: Container[str], *statuses: Status) -> list[str]:
        """Videos in one of the states, the newest last, without those given and those that are paused."""
        paused = {pause.video_id for pause in self._pauses}
        try:
            videos = self.cluster.store.get_many([i for i in self._requests if i not in paused])
        except RedisError:
            return []
        return [video.id for video in videos if video.id not in but and video.state.status in statuses]

    def _tend_pauses(self) -> list[Fault]:
        """Lets videos go on whose time has come. Returns the wishes that came too late, for another video."""
        late = []
        for pause in list(self._pauses):
            try:
                status = self.cluster.video(pause.video_id).state.status
            except RedisError:
                continue
            now = time.monotonic()
            if status is Status.PAUSED and pause.due is None:
                pause.due = now + pause.fault.after_seconds
            elif status is Status.PAUSED and pause.due is not None and now >= pause.due:
                self.cluster.client(len(self._done)).resume(pause.video_id)
                self._done.append(pause.fault)
                self._pauses.remove(pause)
            elif pause.due is None and status.terminal:
                late.append(pause.fault)
                self._pauses.remove(pause)
            else:
                assert pause.due is None or status is Status.PAUSED, (
                    f"a paused video went on by itself: {status}"
                )
                assert now < pause.asked + PAUSE_SECONDS, f"{pause.video_id} does not pause"
        return late

    def _settle(self) -> int:
        """Everything is finished by whoever is left, and everything agrees."""
        for api in self.cluster.apis:
            api.await_ready()
        deleted = [video_id for video_id, order in self._orders.items() if order == "delete"]
        others = [video_id for video_id in self._requests if video_id not in deleted]
        videos = [self.cluster.wait(video_id, *TERMINAL, seconds=300) for video_id in others]
        lease = self.cluster.settings["lease_seconds"]
        for video_id in deleted:
            assert_deleted(self.cluster, video_id, 30 + 2 * lease)
        self.cluster.end_workers()
        expected = dict(self.expected)
        asked = {video.id: asked_of(video) for video in videos if video.state.status is Status.COMPLETED}
        if others_asked := set(asked.values()) - expected.keys():
            expected |= undisturbed(self.cluster, others_asked)
        redis_survived = not any(fault.kind == "redis" for fault in self._done)
        for video in videos:
            cancelled = video.state.status is Status.CANCELLED
            if cancelled and self._orders.get(video.id) == "cancel":
                assert_cancelled(self.cluster, video.id, expected[self._requests[video.id]], self.slots > 1)
                continue
            assert video.state.status is Status.COMPLETED, (video.state, self.cluster.logs())
            if video.id not in self._orders:
                assert asked[video.id] == self._requests[video.id]
            assert_agreement(
                self.cluster,
                video.id,
                expected[asked[video.id]],
                watched=self.watchers[video.id].result(),
                redis_survived=redis_survived,
                shared=self.slots > 1,
            )
        worker = self.cluster.worker()  # somebody has to look for what was left
        assert_no_leftovers(self.cluster, 30 + 2 * lease)
        worker.signal(signal.SIGTERM)
        worker.wait()
        self.cluster.workers.clear()
        return sum(video.state.attempts for video in videos)


def wait_for_zombie(worker: Worker) -> None:
    """Until the worker has stopped itself at its point."""
    until(lambda: worker.stopped, f"worker {worker.pid} stops at its point", POINT_SECONDS)
