"""Two API replicas and three workers on one Redis and one store, some of which die. The model is a stand-in."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.test_serve import start
from tests.worker.conftest import Workbench, make_spec, work  # noqa: F401 - fixtures

FRAMES = 240
VIDEOS = 4


@dataclass
class Watcher:
    """Follows one video's events, on whichever replica answers, and keeps what it was sent."""

    replicas: list[str]
    video_id: str
    events: list[tuple[str, str, str]] = field(default_factory=list)
    served_by: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """Seconds from each lost connection to the next."""
    done: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        lost: float | None = None
        for url in itertools.cycle(self.replicas):
            headers = {"Last-Event-ID": self.events[-1][0]} if self.events else {}
            try:
                with httpx.stream(
                    "GET",
                    f"{url}/v1/videos/{self.video_id}/events",
                    headers=headers,
                    timeout=20,
                    trust_env=False,
                ) as answer:
                    if answer.status_code == 200:
                        self.served_by.append(url)
                        if lost is not None:
                            self.pauses.append(time.monotonic() - lost)
                        self._read(answer)
            except httpx.HTTPError:
                pass
            if self.done.is_set():
                return
            lost = time.monotonic()
            time.sleep(0.05)

    def _read(self, answer: httpx.Response) -> None:
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if line == "":
                if fields.get("event"):
                    self.events.append((fields["id"], fields["event"], fields["data"]))
                if fields.get("event") in ("completed", "failed", "cancelled"):
                    self.done.set()
                    return
                fields = {}


@pytest.fixture
def replica(work: Any, tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:  # noqa: F811
    """Starts an API process; gives it and its address."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> tuple[subprocess.Popen[str], str]:
        settings = work.settings()
        process = start(settings.data_dir, LONGTAKE_REDIS_URL=settings.redis_url.get_secret_value())
        started.append(process)
        assert process.stdout is not None
        host, port = process.stdout.readline().split()
        return process, f"http://{host}:{port}"

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_replica_and_a_worker_die_and_nobody_misses_or_repeats_anything(
    work: Any,  # noqa: F811
    replica: Callable[[], tuple[subprocess.Popen[str], str]],
) -> None:
    # Slow enough that none has finished before all have begun; no lease runs out but that of the one that is killed.
    workers = [work.process({"step_seconds": 0.1}, lease_seconds=6) for _ in range(3)]
    (first, first_url), (second, second_url) = replica(), replica()
    work.eventually(lambda: len(work.store.workers()) == 3, 120)
    body = {"prompt": "a circle", "model": "stand-in", "seconds": FRAMES / 24, "seed": 7}
    with httpx.Client(timeout=20, trust_env=False) as http:
        # Asked of one replica, known to both.
        ids = [http.post(f"{url}/v1/videos", json=body).json()["id"] for url in (first_url, second_url) * 2]
        assert len(set(ids)) == VIDEOS
        for url in (first_url, second_url):
            listed = [video["id"] for video in http.get(f"{url}/v1/videos").json()["data"]]
            assert sorted(listed) == sorted(ids)
        watchers = [
            Watcher([url, other], video_id)
            for video_id in ids
            for url, other in ((first_url, second_url), (second_url, first_url))
        ]
        threads = [threading.Thread(target=watcher.follow, daemon=True) for watcher in watchers]
        for thread in threads:
            thread.start()
        work.eventually(lambda: sum(work.video(i).state.chunks_ready > 2 for i in ids) == 3, 60)
        running = [work.video(i) for i in ids if work.video(i).state.worker]
        assert len({video.state.worker for video in running}) == 3, "each worker has a video"

        victim = workers[0]
        orphaned = next(v.id for v in running if f"-{victim.process.pid}-" in v.state.worker)
        first.kill()
        victim.kill()
        for video_id in ids:
            video = work.wait(video_id, "completed", "failed", seconds=120)
            assert video.state.status == "completed"
            assert video.state.attempts == (2 if video_id == orphaned else 1)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

        digests = {tuple(work.digests(video_id)) for video_id in ids}
        assert len(digests) == 1, "all asked for the same, and got it to the bit"
        for watcher in watchers:
            history = httpx.get(
                f"{second_url}/v1/videos/{watcher.video_id}/events", trust_env=False, timeout=20
            )
            replay = Watcher([], watcher.video_id)
            replay._read(history)
            assert watcher.events == replay.events, "no gap, no repeat, no other order"
        moved = [watcher for watcher in watchers if watcher.replicas[0] == first_url]
        assert all(watcher.served_by[-1] == second_url for watcher in moved)
        assert all(len(watcher.served_by) == 1 for watcher in watchers if watcher not in moved)

        # The other way to go: a replica that is told to stop ends its streams at once, and they go on elsewhere.
        third, third_url = replica()
        video_id = http.post(f"{third_url}/v1/videos", json=body | {"seconds": 60}).json()["id"]
        watcher = Watcher([second_url, third_url], video_id)
        thread = threading.Thread(target=watcher.follow, daemon=True)
        thread.start()
        work.wait(video_id, chunks=2)
        work.eventually(lambda: len(watcher.events) > 4)
        os.kill(second.pid, signal.SIGTERM)
        work.eventually(lambda: watcher.served_by[-1] == third_url)
        assert watcher.pauses[0] < 1
        assert second.wait(60) == 0
        http.post(f"{third_url}/v1/videos/{video_id}/cancel")
        thread.join(30)
        assert watcher.events[-1][1] == "cancelled"
        replay = Watcher([], video_id)
        replay._read(httpx.get(f"{third_url}/v1/videos/{video_id}/events", trust_env=False, timeout=20))
        assert watcher.events == replay.events
    assert third.poll() is None
