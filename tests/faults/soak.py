"""Hours of ordinary traffic, and whether anything grows.

    python -m tests.faults.soak --minutes 60

Two API replicas, two workers, one Redis, one folder, with the service's default times. One client keeps a long video
going, or an endless one that it steers, pauses and ends; others ask for short ones, watch them over server-sent events
or the playlist, to their end or not, cancel and delete them. Every ten seconds memory, files, threads, keys and
temporary files are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from app.client import Conflict, LongtakeClient, NotFound
from tests.faults.cluster import ROOT, Cluster, running_cluster, until
from tests.faults.detection import DEFAULTS
from tests.worker import tiny

RESULTS = ROOT / "benchmarks" / "results" / "soak.json"

# What comes before is warming up: libraries load, pools and caches fill.
WARM_UP_SHARE = 0.25

LONG_SECONDS = 120
SHORT_SECONDS = (1, 2, 3)
KEPT = 10
"""Finished short videos that are not deleted yet."""


@dataclass(frozen=True)
class Allowance:
    """How much a figure may seem to grow from the end of the warm-up to the end of the run."""

    amount: float
    share: float = 0.0
    """Of its median."""

    def of(self, median: float) -> float:
        return max(self.amount, self.share * median)


MIB = float(1 << 20)
ALLOWED = {
    # Each video brings threads, and the C library gives them one arena after another, each of which keeps the most it
    # ever held. What a worker leaks for each video comes to more: it makes hundreds in ten minutes.
    "rss": Allowance(8 * MIB, 0.02),
    "files": Allowance(3),
    "threads": Allowance(3),
    "keys": Allowance(40),
    "memory": Allowance(2 * MIB, 0.03),
    "temporary": Allowance(3),
}


def growth(times: Sequence[float], values: Sequence[float]) -> float:
    """How much a figure grew over the times, by the median of the slopes between all pairs (Theil and Sen)."""
    t, v = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    first, second = np.triu_indices(len(t), 1)
    return float(np.median((v[second] - v[first]) / (t[second] - t[first])) * (t[-1] - t[0]))


def verdict(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """For each figure of the samples, with their `seconds`: where it stood, what it grew, and whether it is flat.

    One that rises to a level and stays there is flat, too: pools keep a connection for each request that ever ran at
    the same time as others. It may grow no more than half its allowance in the second half of the run.
    """
    last = samples[-1]["seconds"]
    steady = [sample for sample in samples if sample["seconds"] >= WARM_UP_SHARE * last]
    if len(steady) < 8:
        raise ValueError("too few samples to say anything")
    told = {}
    for name in samples[0]:
        if name == "seconds":
            continue
        values = [sample[name] for sample in steady]
        middle = float(np.median(values))
        allowed = ALLOWED[name.split()[-1]].of(middle)
        grown, later = (_growth_since(samples, name, share * last) for share in (WARM_UP_SHARE, 0.5))
        told[name] = {
            "median": round(middle, 1),
            "max": round(max(values), 1),
            "growth": round(grown, 1),
            "later": round(later, 1),
            "allowed": round(allowed, 1),
            "flat": grown <= allowed or later <= allowed / 2,
        }
    return told


def _growth_since(samples: Sequence[Mapping[str, float]], name: str, seconds: float) -> float:
    chosen = [sample for sample in samples if sample["seconds"] >= seconds]
    return growth([sample["seconds"] for sample in chosen], [sample[name] for sample in chosen])


class Traffic:
    """Clients of all sorts, each in a thread, until they are told to stop. What goes wrong is kept."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._cluster, self._stop = cluster, threading.Event()
        self._finished: list[str] = []
        self._lock = threading.Lock()
        bodies: list[Callable[[LongtakeClient, random.Random], None]] = [
            self._long,
            self._short,
            self._short,
            self._short,
        ]
        self._threads = [
            threading.Thread(
                target=self._loop, args=(body, number, random.Random(seed + number)), daemon=True
            )
            for number, body in enumerate(bodies)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            if thread.is_alive():
                self.errors.append(f"{thread.name} does not end")

    def _loop(
        self, body: Callable[[LongtakeClient, random.Random], None], number: int, dice: random.Random
    ) -> None:
        url = self._cluster.apis[number % len(self._cluster.apis)].url
        with LongtakeClient(url, patience_seconds=60) as client:
            while not self._stop.is_set():
                try:
                    body(client, dice)
                except Exception as error:  # noqa: BLE001 - the verdict tells
                    self.errors.append(f"{type(error).__name__}: {error}")
                    self._stop.wait(1)

    def _long(self, client: LongtakeClient, dice: random.Random) -> None:
        if dice.random() < 0.5:
            self._endless(client, dice)
            return
        video = client.create("a red circle", seconds=LONG_SECONDS, seed=dice.randrange(1000))
        frames = 0
        for event in client.events(video.id):
            frames += event.chunk.frames if event.chunk else 0
            if self._stop.is_set():
                client.cancel(video.id)
        if client.retrieve(video.id).status == "completed":
            assert frames == LONG_SECONDS * 24, f"{frames} frames of a long video"
            assert client.read(video.id)
            self.counts["long videos"] += 1
        client.delete(video.id)

    def _endless(self, client: LongtakeClient, dice: random.Random) -> None:
        """As long as the other one, by what its owner does: steered again and again, paused, resumed, ended."""
        video = client.create("a red circle", seconds="endless", seed=dice.randrange(1000))
        frames, ending = 0, False
        for event in client.events(video.id):
            if event.chunk is not None:
                frames += event.chunk.frames
                if not ending and (frames >= LONG_SECONDS * 24 or self._stop.is_set()):
                    client.finish(video.id)
                    ending = True
                elif not ending and event.chunk.index % 50 == 25:
                    client.steer(video.id, dice.choice(["a red square", "a red circle"]))
                elif not ending and event.chunk.index % 100 == 50:
                    client.pause(video.id)
            elif event.type == "status" and event.data["status"] == "paused":
                client.resume(video.id)
                self.counts["pauses"] += 1
        ended = client.retrieve(video.id)
        assert (ended.status, ended.frames) == ("completed", frames), f"{ended} of {frames} frames"
        self.counts["endless videos"] += 1
        client.delete(video.id)

    def _short(self, client: LongtakeClient, dice: random.Random) -> None:
        video = client.create("a red square", seconds=dice.choice(SHORT_SECONDS), seed=dice.randrange(1000))
        action = dice.choice(["watch", "watch", "watch", "play", "play", "leave", "cancel", "delete"])
        self.counts[action] += 1
        if action in ("watch", "leave"):
            for number, event in enumerate(client.events(video.id)):
                if action == "leave" and number > 2:
                    break
                if event.terminal:
                    assert event.type == "completed", event
        elif action == "play":
            self._play(client.url, video.id)
        else:
            time.sleep(dice.uniform(0, 1))
            if action == "delete":
                client.delete(video.id)
                return
            try:
                client.cancel(video.id)
            except Conflict:
                self.counts["too late to cancel"] += 1
        ended = client.wait(video.id, timeout_seconds=300)
        assert ended.status == (
            "cancelled" if action == "cancel" and ended.status != "completed" else "completed"
        )
        self.counts["short videos"] += 1
        with self._lock:
            self._finished.append(video.id)
            old = self._finished[:-KEPT]
            del self._finished[:-KEPT]
        for video_id in old:
            try:
                client.delete(video_id)
            except NotFound:
                self.errors.append(f"{video_id} was gone")

    def _play(self, url: str, video_id: str) -> None:
        """What a player does: the playlist again and again, each segment once."""
        seen: set[str] = set()
        base = f"{url}/v1/videos/{video_id}"
        with httpx.Client(trust_env=False, timeout=60) as http:
            while not self._stop.is_set():
                answer = http.get(f"{base}/stream.m3u8")
                if answer.status_code == 404:
                    time.sleep(0.5)
                    continue
                lines = answer.raise_for_status().text.splitlines()
                for name in lines:
                    if not name.startswith("#") and name not in seen:
                        assert http.get(f"{base}/{name}").raise_for_status().content
                        seen.add(name)
                if lines[-1] == "#EXT-X-ENDLIST":
                    return
                time.sleep(0.5)


def sample(cluster: Cluster, began: float) -> dict[str, float]:
    """One look at everything that could grow."""
    processes = {
        "redis": cluster.redis.pid,
        **{f"api {number}": api.process.pid for number, api in enumerate(cluster.apis, 1)},
        **{f"worker {number}": worker.pid for number, worker in enumerate(cluster.workers, 1)},
    }
    found: dict[str, float] = {"seconds": round(time.monotonic() - began, 1)}
    for name, pid in processes.items():
        process = psutil.Process(pid)
        with process.oneshot():
            found[f"{name} rss"] = process.memory_info().rss
            found[f"{name} files"] = process.num_fds()
            found[f"{name} threads"] = process.num_threads()
    redis = cluster.store.redis
    space = redis.info("keyspace").get("db0", {"keys": 0, "expires": 0})
    # Keys that expire (idempotency keys, marks of deleted videos) grow up to their time, and then stay.
    found["redis lasting keys"] = space["keys"] - space["expires"]
    found["redis used memory"] = redis.info("memory")["used_memory"]
    partial = cluster.folder / "data" / "objects" / ".tmp"
    found["temporary"] = sum(1 for folder in (cluster.temporary, partial) for _ in folder.iterdir())
    return found


def run(
    folder: Path, model: Path, *, minutes: float, every_seconds: float = 10.0, seed: int = 0
) -> dict[str, Any]:
    """A soak and its verdict. Raises `AssertionError` when a client met an error or something is left over."""
    # Marks for repeated requests would fill Redis for a day.
    with running_cluster(folder, model, apis=2, **DEFAULTS, idempotency_seconds=60) as cluster:
        for _ in range(2):  # not of the nursery, whose memory they would share
            cluster.fresh_worker()
        cluster.ready_workers(2)
        began = time.monotonic()
        traffic = Traffic(cluster, seed)
        samples = []
        while time.monotonic() - began < 60 * minutes:
            time.sleep(every_seconds)
            samples.append(sample(cluster, began))
            assert all(worker.code is None for worker in cluster.workers), cluster.logs()
        traffic.stop()
        assert not traffic.errors, traffic.errors
        states = cluster.store.page("", limit=1000)[0]
        until(lambda: not cluster.store.redis.hlen("longtake:active"), "everything has ended", 120)
        told = verdict(samples)
        return {
            "minutes": minutes,
            "samples": len(samples),
            "traffic": dict(traffic.counts),
            "videos_left": len(states),
            "flat": all(figure["flat"] for figure in told.values()),
            "figures": told,
            "series": _thinned(samples),
        }


def _thinned(samples: Sequence[dict[str, float]], most: int = 60) -> list[dict[str, float]]:
    step = -(-len(samples) // most)
    return list(samples[::step])


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="longtake-soak-") as folder:
        model = tiny.save(Path(folder) / "model")
        found = run(Path(folder) / "service", model, minutes=arguments.minutes, seed=arguments.seed)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    growing = [name for name, figure in found["figures"].items() if not figure["flat"]]
    print("flat" if found["flat"] else f"growing: {', '.join(growing)}")


if __name__ == "__main__":
    main()
