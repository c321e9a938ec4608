"""How soon a video runs elsewhere after its worker is gone, with the service's default lease and heartbeat."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

from app.settings import Settings
from tests.faults.cluster import QUICK, Cluster, Worker, running_cluster, until

DEFAULTS: dict[str, Any] = {
    name: Settings.model_fields[name].default for name in QUICK if name != "max_attempts"
}

# Long enough never to end while it is watched.
VIDEO_SECONDS = 3600


def measure(folder: Path, model: Path, *, kills: int = 8, terms: int = 20) -> dict[str, Any]:
    """Seconds from SIGKILL and from SIGTERM until another worker has claimed the video and until its next chunk."""
    with running_cluster(folder, model, **DEFAULTS) as cluster:
        for _ in range(2):
            cluster.worker()
        cluster.ready_workers(2)
        video_id = cluster.client().create("a red circle", seconds=VIDEO_SECONDS, seed=1).id
        found = {
            name: [_one(cluster, video_id, number) for _ in range(count)]
            for name, number, count in (
                ("sigkill", signal.SIGKILL, kills),
                ("sigterm", signal.SIGTERM, terms),
            )
        }
        attempts = cluster.video(video_id).state.attempts
        assert attempts == 1 + kills, f"{attempts} attempts after {kills} kills: a SIGTERM uses up none"
        cluster.store.request_cancel(video_id)
        cluster.wait(video_id, "cancelled")
        return {
            "settings": {name: DEFAULTS[name] for name in ("lease_seconds", "heartbeat_seconds")},
            **{
                name: {
                    "claimed": summary([a for a, _ in pairs]),
                    "next_chunk": summary([b for _, b in pairs]),
                }
                for name, pairs in found.items()
            },
        }


def _one(cluster: Cluster, video_id: str, number: signal.Signals) -> tuple[float, float]:
    """Ends the video's worker and starts another in its place."""
    start = cluster.video(video_id).state.chunks_ready
    until(lambda: cluster.video(video_id).state.chunks_ready > start + 2, "the video goes on")
    holder = _holder(cluster, cluster.video(video_id).state.worker)
    before = cluster.video(video_id).state.worker
    killed = time.monotonic()
    holder.signal(number)
    claimed = 0.0
    while True:
        state = cluster.video(video_id).state
        now = time.monotonic() - killed
        if not claimed and state.worker not in ("", before):
            claimed, at_claim = now, state.chunks_ready
        if claimed and state.chunks_ready > at_claim:
            break
        assert now < 60, "nobody has taken the video over"
        time.sleep(0.005)
    holder.wait()
    cluster.workers.remove(holder)
    cluster.worker()
    cluster.ready_workers(2)
    return claimed, now


def _holder(cluster: Cluster, name: str) -> Worker:
    """The process behind a worker's name, which ends in its process id and a random part."""
    pid = int(name.split("-")[-2])
    return next(worker for worker in cluster.workers if worker.pid == pid)


def summary(seconds: list[float]) -> dict[str, float | int]:
    """Of a list of durations in seconds."""
    return {
        "n": len(seconds),
        "min": round(min(seconds), 3),
        "median": round(median(seconds), 3),
        "max": round(max(seconds), 3),
    }
