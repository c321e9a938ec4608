"""The API, Redis and the clocks fail; the workers live."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from app.client import ServiceUnreachable
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
from tests.faults.conftest import REQUESTS, tool
from tests.faults.rounds import Watcher

REQUEST = REQUESTS[0]


@pytest.mark.parametrize("point", [pytest.param("creating", marks=pytest.mark.slow), "created"])
def test_a_post_whose_answer_was_lost_with_its_replica_makes_one_video(
    cluster: Cluster, expected: Mapping[Request, Undisturbed], point: str
) -> None:
    first, second = cluster.apis
    watched = create(cluster, REQUEST, replica=1)
    watcher = Watcher(cluster.client(0), watched)
    first.kill()  # with an open event stream
    first.start([{"point": point, "action": "kill"}])
    first.await_ready()
    body = {"prompt": REQUEST.prompt, "seconds": REQUEST.seconds, "seed": REQUEST.seed}
    headers = {"Idempotency-Key": f"lost-{point}"}
    with pytest.raises(httpx.RequestError), httpx.Client(trust_env=False, timeout=30) as http:
        http.post(f"{first.url}/v1/videos", json=body, headers=headers)
    assert first.process.wait(10) == -signal.SIGKILL
    made = {video.id for video in cluster.store.page("", limit=10_000)[0]}
    with httpx.Client(trust_env=False, timeout=30) as http:
        answers = [http.post(f"{second.url}/v1/videos", json=body, headers=headers) for _ in range(2)]
    ids = {answer.raise_for_status().json()["id"] for answer in answers}
    assert len(ids) == 1
    assert (ids <= made) is (point == "created")
    after = {video.id for video in cluster.store.page("", limit=10_000)[0]}
    assert after == made | ids
    first.start()
    first.await_ready()
    cluster.worker()
    for video_id in (watched, *ids):
        cluster.wait(video_id, *TERMINAL)
    assert_agreement(cluster, watched, expected[REQUEST], watched=watcher.result())
    assert_agreement(cluster, *ids, expected[REQUEST])
    cluster.end_workers()
    assert_no_leftovers(cluster)


def test_redis_away_for_longer_than_a_lease_costs_no_attempt(
    cluster: Cluster, expected: Mapping[Request, Undisturbed]
) -> None:
    lease = 5.0
    holder = cluster.worker(
        [{"point": "segment uploaded", "passage": 5, "action": "stop"}], lease_seconds=lease
    )
    video_id = create(cluster, REQUEST)
    watcher = Watcher(cluster.client(1), video_id)
    until(lambda: holder.stopped, "the worker stands before a commit")
    other = cluster.worker(lease_seconds=lease)
    cluster.redis.kill()
    holder.proceed()
    with httpx.Client(trust_env=False, timeout=30) as http:
        answer = http.get(f"{cluster.apis[0].url}/v1/videos/{video_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unavailable")
        assert "retry-after" in answer.headers
    time.sleep(lease + 0.5)
    assert holder.code is other.code is None
    cluster.redis.start()
    video = cluster.wait(video_id, *TERMINAL)
    assert (video.state.status, video.state.attempts) == (Status.COMPLETED, 1)
    assert_agreement(cluster, video_id, expected[REQUEST], watched=watcher.result(), redis_survived=False)
    cluster.end_workers()
    assert_no_leftovers(cluster)


def test_a_client_gives_up_with_a_clear_error_when_no_replica_comes_back(cluster: Cluster) -> None:
    api = cluster.apis[0]
    api.kill()
    client = type(cluster.client(0))(api.url, patience_seconds=0.5)
    with client, pytest.raises(ServiceUnreachable, match="no answer from"):
        client.models()
    api.start()
    api.await_ready()


def faked(path: Path) -> dict[str, str]:
    """The environment of processes whose wall clock is ahead of the true one by the seconds that `path` holds."""
    found = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed")
    path.write_text("+0")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        # What a clock that is set moves is the wall clock alone.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@pytest.mark.slow
def test_clocks_that_jump_by_five_seconds_lose_nothing(
    own_cluster: Callable[..., Cluster], expected: Mapping[Request, Undisturbed], tmp_path: Path
) -> None:
    tool("faketime")
    clocks = {host: tmp_path / f"{host}-clock" for host in ("redis", "service")}
    cluster = own_cluster(
        redis_environment=faked(clocks["redis"]), extra_environment=faked(clocks["service"])
    )
    for _ in range(2):
        cluster.worker()
    video_id = create(cluster, REQUEST)
    watcher = Watcher(cluster.client(), video_id)

    def redis_clock() -> float:
        return float(cluster.store.redis.time()[0])

    for chunks, host, seconds in ((2, "redis", 5), (7, "service", 5), (12, "redis", -5), (17, "service", -5)):
        cluster.wait(video_id, *TERMINAL, chunks=chunks)
        clocks[host].write_text(f"{seconds:+d}")
        if host == "redis":  # the jump is real
            until(
                lambda seconds=seconds: abs(redis_clock() - time.time() - seconds) < 2.5, "the clock is set"
            )  # type: ignore[misc]
    assert cluster.wait(video_id, *TERMINAL).state.status is Status.COMPLETED
    assert_agreement(cluster, video_id, expected[REQUEST], watched=watcher.result())
    cluster.end_workers()
