"""Object stores that fail, lose answers, fill up and go away, while videos are made."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

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
from tests.faults.conftest import REQUESTS
from tests.faults.detection import DEFAULTS
from tests.faults.proxy import TROUBLES, StorageProxy
from tests.faults.rounds import Watcher

REQUEST = REQUESTS[0]
DISK_BYTES = 6 << 20


@pytest.fixture
def bucket() -> Iterator[str]:
    """URL of a server of this test's own."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> StorageProxy:
    """What lies between the service and the bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    return StorageProxy(bucket)


@pytest.fixture
def proxied_cluster(
    own_cluster: Callable[..., Cluster], bucket: str, proxy: StorageProxy
) -> Callable[..., Cluster]:
    """Starts a service that reaches the bucket through the proxy alone."""
    return partial(own_cluster, s3_endpoint_url=proxy.url, direct_endpoint=bucket)


@pytest.mark.slow
def test_a_bucket_that_fails_in_every_way_costs_nothing_but_time(
    proxied_cluster: Callable[..., Cluster], proxy: StorageProxy, expected: Mapping[Request, Undisturbed]
) -> None:
    cluster = proxied_cluster(storage_url="s3://faults/videos-of-a-test", lease_seconds=4)
    worker = cluster.worker([{"point": "committed", "passage": 12, "action": "kill"}])
    proxy.every = 5
    video_id = create(cluster, REQUEST)
    watcher = Watcher(cluster.client(), video_id)
    cluster.wait(video_id, *TERMINAL, chunks=4)

    proxy.always = "refuse"
    until(
        lambda: cluster.video(video_id).state.stalled == "storage is not reachable",
        "the video tells why it stalls",
    )
    told = cluster.client().retrieve(video_id)
    assert (told.status, told.stalled) == (Status.IN_PROGRESS, "storage is not reachable")
    proxy.always = "slow down"
    met = proxy.met["slow down"]
    until(lambda: proxy.met["slow down"] > met + 5, "the worker tries again")

    proxy.always = None
    assert worker.wait(120) == -signal.SIGKILL
    cluster.worker()  # it takes over through the same network
    assert cluster.wait(video_id, *TERMINAL).state.status is Status.COMPLETED
    assert set(proxy.met) == set(TROUBLES)
    proxy.every = 0
    assert cluster.video(video_id).state.attempts == 2
    assert_agreement(cluster, video_id, expected[REQUEST], watched=watcher.result())
    cluster.end_workers()
    assert_no_leftovers(cluster)


@pytest.mark.slow
def test_a_bucket_that_is_away_for_a_minute_costs_that_minute_and_no_attempt(
    proxied_cluster: Callable[..., Cluster], proxy: StorageProxy, expected: Mapping[Request, Undisturbed]
) -> None:
    cluster = proxied_cluster(storage_url="s3://faults", **DEFAULTS)
    cluster.worker()
    video_id = create(cluster, REQUEST)
    watcher = Watcher(cluster.client(), video_id)
    cluster.wait(video_id, *TERMINAL, chunks=4)
    proxy.always = "refuse"
    reason = "storage is not reachable"
    until(lambda: cluster.video(video_id).state.stalled == reason, "the video tells why it stalls")
    time.sleep(60)
    waiting = cluster.video(video_id).state
    assert (waiting.status, waiting.stalled, waiting.attempts) == (Status.IN_PROGRESS, reason, 1)
    assert waiting.chunks_ready < len(expected[REQUEST].segments) // 2
    proxy.always = None
    ended = cluster.wait(video_id, *TERMINAL).state
    assert (ended.status, ended.attempts) == (Status.COMPLETED, 1)
    assert_agreement(cluster, video_id, expected[REQUEST], watched=watcher.result())
    cluster.end_workers()


@pytest.fixture
def small_disk(tmp_path: Path, needs_root: None) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_or_turns_read_only_stops_the_video_until_it_is_mended(
    own_cluster: Callable[..., Cluster], small_disk: Path, expected: Mapping[Request, Undisturbed]
) -> None:
    cluster = own_cluster(storage_url=(small_disk / "objects").as_uri(), lease_seconds=30)
    filler = small_disk / "filler"

    def fill() -> None:
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(DISK_BYTES))

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    for harm, reason, mend in (
        (fill, "disk is full", filler.unlink),
        (lambda: remount("ro"), "storage refuses access or does not exist", lambda: remount("rw")),
    ):
        worker = cluster.worker([{"point": "committed", "passage": 4, "action": "stop"}])
        video_id = create(cluster, REQUEST)
        watcher = Watcher(cluster.client(), video_id)
        until(lambda worker=worker: worker.stopped, "the worker stands still")  # type: ignore[misc]
        harm()
        worker.proceed()
        until(lambda: cluster.video(video_id).state.stalled == reason, reason)  # noqa: B023
        state = cluster.video(video_id).state
        assert state.status is Status.IN_PROGRESS
        assert 4 <= state.chunks_ready <= 5
        mend()
        video = cluster.wait(video_id, *TERMINAL)
        assert (video.state.status, video.state.attempts) == (Status.COMPLETED, 1)
        assert_agreement(cluster, video_id, expected[REQUEST], watched=watcher.result())
        assert reason in {event.data.get("stalled") for event in watcher.events if event.type == "progress"}
        cluster.end_workers()
