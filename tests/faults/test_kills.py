"""Workers that die at every point of a video's life, and at any time."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping

import pytest

from app.jobs.job import Status
from tests.faults.agreement import (
    TERMINAL,
    Request,
    Undisturbed,
    assert_agreement,
    assert_no_leftovers,
    create,
)
from tests.faults.cluster import Cluster, until
from tests.faults.rounds import Fault, Round, Watcher, every_boundary, wait_for_zombie
from tests.faults.worker_entry import POINTS


@pytest.mark.slow
def test_a_kill_at_every_boundary_costs_nothing_but_time(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    faults = every_boundary(random.Random(0))
    assert len(faults) == len(POINTS) >= 20
    report = Round(cluster, 0, faults, expected, fleet=3).run()
    assert len(report.faults) == len(faults)
    assert report.attempts >= report.videos


@pytest.mark.slow
def test_kills_of_every_process_at_random_times_while_clients_give_orders_cost_nothing_but_time(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    faults = [
        Fault("term", after_seconds=1.0),
        Fault("zombie", after_seconds=1.5),
        Fault("api", after_seconds=0.5),
        Fault("redis", after_seconds=2.0),
        Fault("random", after_seconds=1.7),
        Fault("random", after_seconds=0.6),
        Fault("pause", after_seconds=0.5),
        Fault("urgent", after_seconds=0.3),
        Fault("pause", after_seconds=1.0),
        Fault("steer", after_seconds=0.4),
        Fault("delete", after_seconds=0.4),
        Fault("finish", after_seconds=0.4),
        Fault("cancel", after_seconds=0.4),
        Fault("lengthen", after_seconds=0.4),
    ]
    report = Round(cluster, 1, faults, expected).run()
    assert len(report.faults) == len(faults)


def test_a_zombie_stopped_between_upload_and_commit_commits_nothing_when_it_wakes(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    request = next(iter(expected))
    # It does not look at its flags for long: the commit itself has to refuse.
    plan = [{"point": "checkpoint uploaded", "passage": 4, "action": "stop"}]
    zombie = cluster.worker(plan, control_seconds=5)
    video_id = create(cluster, request)
    watcher = Watcher(cluster.client(1), video_id)
    wait_for_zombie(zombie)
    # The heir has claimed the video and made nothing yet, so the zombie's chunk would still be the next one.
    heir = cluster.worker([{"point": "prompt encoded", "action": "stop"}])
    wait_for_zombie(heir)
    zombie.proceed()
    until(lambda: "another worker has taken over" in zombie.words, "the zombie finds out")
    assert cluster.video(video_id).state.chunks_ready == len(cluster.store.chunks(video_id)) == 3
    heir.proceed()
    cluster.wait(video_id, *TERMINAL)
    assert_agreement(cluster, video_id, expected[request], watched=watcher.result())
    cluster.end_workers()
    assert zombie.code == 0
    assert_no_leftovers(cluster)


def test_sigterm_uses_up_no_attempt_however_often_it_comes(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    request = next(iter(expected))
    video_id = create(cluster, request)
    # A long lease: what is counted here is not one that a busy machine let run out.
    for number, point in enumerate(("sampled", "encoded", "segment uploaded", "committed", "assembling")):
        plan = [{"point": point, "passage": 1 if point == "assembling" else 3, "action": "term"}]
        assert cluster.worker(plan, lease_seconds=30, max_attempts=1).wait() == 0
        state = cluster.video(video_id).state
        assert (state.status, state.attempts) == (Status.QUEUED, 0), number
    cluster.worker(lease_seconds=30, max_attempts=1)
    assert cluster.wait(video_id, *TERMINAL).state.attempts == 1
    assert_agreement(cluster, video_id, expected[request])
    cluster.end_workers()
    assert_no_leftovers(cluster)


def test_a_poison_job_fails_after_its_attempts_and_the_fleet_lives(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    plan = [{"point": "prompt encoded", "action": "kill", "prompt": "poison"}]
    workers = [cluster.worker(plan, max_attempts=3) for _ in range(2)]
    request = next(iter(expected))
    poison = create(cluster, Request(prompt="poison", seconds=1.0))
    healthy = [create(cluster, request, replica) for replica in range(2)]
    deaths = 0

    def ended() -> bool:
        nonlocal deaths
        for place, worker in enumerate(workers):
            if worker.code is not None:  # as a supervisor would
                assert worker.code == -signal.SIGKILL
                deaths += 1
                workers[place] = cluster.worker(plan, max_attempts=3)
        return all(cluster.video(i).state.status.terminal for i in (poison, *healthy))

    until(ended, "all videos have ended", 120)
    state = cluster.video(poison).state
    assert state.status is Status.FAILED
    assert state.error is not None
    assert state.error.code == "attempts_exhausted"
    assert "each time the worker was lost" in state.error.message
    assert deaths == 3
    assert [event.type for event in cluster.client().events(poison)][-1] == "failed"
    for video_id in healthy:
        assert_agreement(cluster, video_id, expected[request])
    cluster.end_workers()
