"""Two hosts, made of network namespaces, and a cable between them that is pulled."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
from tests.faults.cluster import START_SECONDS, Cluster, until
from tests.faults.conftest import REQUESTS, tool
from tests.faults.proxy import Relay
from tests.faults.rounds import Watcher


@dataclass
class OtherHost:
    """A network namespace that reaches this one over one virtual cable."""

    name: str
    cable: str
    address: str
    """Of this host, on the cable."""

    @property
    def prefix(self) -> list[str]:
        """What a command has to begin with to run there."""
        return ["ip", "netns", "exec", self.name]

    def pull_the_cable(self) -> None:
        ip("link", "set", self.cable, "down")

    def plug_it_in(self) -> None:
        ip("link", "set", self.cable, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def other_host(needs_root: None) -> Iterator[OtherHost]:
    tool("ip")
    tag = secrets.token_hex(3)
    host = OtherHost(f"longtake-{tag}", f"lt{tag}a", "10.231.77.1")
    there = f"lt{tag}b"
    try:
        ip("netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", host.cable, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", host.name)
        ip("addr", "add", f"{host.address}/30", "dev", host.cable)
        ip("link", "set", host.cable, "up")
        for arguments in (
            ("addr", "add", "10.231.77.2/30", "dev", there),
            ("link", "set", there, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", host.name, *arguments)
        yield host
    finally:
        subprocess.run(["ip", "link", "del", host.cable], check=False, capture_output=True)
        ip("netns", "del", host.name)


@pytest.mark.slow
def test_a_worker_cut_off_from_redis_for_longer_than_its_lease_is_replaced_and_fenced(
    cluster: Cluster, expected: Mapping[Request, Undisturbed], other_host: OtherHost
) -> None:
    request = REQUESTS[0]
    relay = Relay(other_host.address, cluster.redis.port)
    redis_url = f"redis://:{cluster.redis.password}@{other_host.address}:{relay.port}/0"
    far = cluster.fresh_worker(
        prefix=other_host.prefix,
        plan=[{"point": "checkpoint uploaded", "passage": 6, "action": "stop"}],
        redis_url=redis_url,
    )
    until(lambda: "is ready" in far.words, "the far worker is ready", START_SECONDS)
    video_id = create(cluster, request)
    watcher = Watcher(cluster.client(), video_id)
    until(lambda: far.stopped, "the far worker stands before a commit")
    other_host.pull_the_cable()
    far.proceed()
    near = cluster.worker()
    video = cluster.wait(video_id, *TERMINAL)
    assert (video.state.status, video.state.attempts) == (Status.COMPLETED, 2)
    assert far.code is None, far.words
    assert "taken over" not in far.words, "it cannot know yet"

    other_host.plug_it_in()
    until(lambda: "another worker has taken over" in far.words, "the far worker finds out", 60)
    assert_agreement(cluster, video_id, expected[request], watched=watcher.result())

    # It is as good as before.
    near.end()
    again = create(cluster, request)
    assert cluster.wait(again, *TERMINAL).state.worker
    assert_agreement(cluster, again, expected[request])
    cluster.end_workers()
    assert far.code == 0
    relay.close()
    cluster.worker()
    assert_no_leftovers(cluster)
    cluster.end_workers()
