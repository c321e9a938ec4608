"""Figures for Prometheus: what this process does, and what Redis knows of the whole service.

What the process counts lives in its memory. What belongs to the service is read from Redis when somebody asks, so every
replica tells the same, and nothing is lost with a process.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import Scope

from app.jobs.job import PRIORITIES, Status
from app.jobs.queue import model_and_priority

if TYPE_CHECKING:
    from app.jobs.store import VideoStore

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNFINISHED = (Status.QUEUED, Status.IN_PROGRESS, Status.PAUSED)
_ENDED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)

# Seconds until an answer begins: from a look at Redis to a playlist that waits for its first chunk.
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The figures of one application. No label holds an id, a path or a key: there are few series, and no secrets."""

    def __init__(self, videos: VideoStore, watchers: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "longtake_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "longtake_http_response_seconds",
            "Seconds until the answer began.",
            ("method", "route"),
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        Gauge(
            "longtake_sse_clients", "Clients that follow a video's events.", registry=self._registry
        ).set_function(watchers)
        self._registry.register(_Service(videos))

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts an answered request. `seconds` went by before its answer began."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        # The pattern of the route, as paths hold ids; what was refused or found no route has none.
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All figures in a format that the `Accept` header names, and its media type. Blocks."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


class _Service(Collector):
    """What Redis knows. While it is away there is one figure, which says so."""

    def __init__(self, videos: VideoStore) -> None:
        self._videos = videos

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry must not ask Redis before it is asked itself."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        try:
            families = self._read()
        except RedisError:
            families = []
        yield GaugeMetricFamily("longtake_redis_up", "Whether Redis answers.", value=bool(families))
        yield from families

    def _read(self) -> list[Metric]:
        models, counts = self._videos.models(), self._videos.counts()
        unfinished = Tally(
            (*model_and_priority(queue), status) for queue, status in self._videos.unfinished()
        )
        workers = Tally(str(worker.get("model", "")) for worker in self._videos.workers())

        videos = GaugeMetricFamily(
            "longtake_videos", "Videos that have not ended.", labels=("model", "priority", "status")
        )
        idle = {
            (model, priority, status) for model in models for priority in PRIORITIES for status in _UNFINISHED
        }
        for labels in sorted(idle | unfinished.keys()):
            videos.add_metric(labels, unfinished[labels])
        alive = GaugeMetricFamily("longtake_workers", "Workers alive.", labels=("model",))
        for model in sorted(models.keys() | workers.keys()):
            alive.add_metric((model,), workers[model])
        ended = CounterMetricFamily("longtake_videos_ended", "Videos that have ended.", labels=("status",))
        for status in _ENDED:
            ended.add_metric((status,), counts.get(f"ended:{status}", 0))
        failed = CounterMetricFamily("longtake_videos_failed", "Videos that failed.", labels=("code",))
        for name, count in sorted(counts.items()):
            if name.startswith("failed:"):
                failed.add_metric((name.removeprefix("failed:"),), count)
        return [
            videos,
            alive,
            CounterMetricFamily("longtake_chunks", "Chunks committed.", value=counts.get("chunks", 0)),
            CounterMetricFamily(
                "longtake_video_seconds", "Seconds of video made.", value=counts.get("seconds", 0)
            ),
            ended,
            failed,
        ]
