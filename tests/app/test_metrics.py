"""Figures for Prometheus: right, few, and silent about who."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from app.embedded import EmbeddedRedis
from app.jobs.job import JobError
from app.settings import Settings
from tests.app.conftest import (
    CHUNK_FRAMES,
    FIRST_CHUNK_FRAMES,
    FPS,
    Api,
    owner_of,
    running_api,
    running_tenants,
)


def figures(client: httpx.Client, **headers: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, these by the labels' names."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_what_the_service_does_is_counted_once_by_every_replica(settings: Callable[..., Settings]) -> None:
    with running_api(settings()) as one, running_api(settings()) as two:
        one.worker.register()
        one.worker.videos.worker_alive("w", {"model": "builtin", "slots": 1}, 60)
        made, failed, cancelled, running = (one.create()["id"] for _ in range(4))
        one.create(priority="high")
        one.worker.make(made)
        one.worker.claim(failed)
        one.worker.finish(failed, "failed", error=JobError(code="out_of_memory", message="x"))
        one.http.post(f"/v1/videos/{cancelled}/cancel")
        one.worker.claim(running)
        one.worker.commit(running, 0)
        expected = {
            ("longtake_redis_up",): 1,
            ("longtake_workers", "builtin"): 1,
            ("longtake_videos", "builtin", "high", "queued"): 1,
            ("longtake_videos", "builtin", "normal", "queued"): 0,
            ("longtake_videos", "builtin", "normal", "in_progress"): 1,
            ("longtake_videos", "builtin", "low", "paused"): 0,
            ("longtake_chunks_total",): 4,
            ("longtake_videos_ended_total", "completed"): 1,
            ("longtake_videos_ended_total", "failed"): 1,
            ("longtake_videos_ended_total", "cancelled"): 1,
            ("longtake_videos_failed_total", "out_of_memory"): 1,
        }
        seconds = (2 * FIRST_CHUNK_FRAMES + 2 * CHUNK_FRAMES) / FPS
        for api in (one, two):
            found = figures(api.http)
            assert {name: found[name] for name in expected} == expected
            assert found["longtake_video_seconds_total",] == pytest.approx(seconds)
        assert figures(one.http)["longtake_http_requests_total", "POST", "/v1/videos", "200"] == 5
        assert ("longtake_http_requests_total", "POST", "/v1/videos", "200") not in figures(two.http)


def test_readiness_and_figures_do_not_look_through_all_keys_of_redis(api: Api) -> None:
    store = api.worker.videos
    store.redis.mset({f"somebody else's {n}": n for n in range(20_000)})
    for name in ("one", "two"):
        store.worker_alive(name, {"model": "builtin", "slots": 1}, 60)
    store.redis.config_resetstat()
    assert api.http.get("/readyz").json()["workers"] == 2
    assert figures(api.http)["longtake_workers", "builtin"] == 2
    assert not {"cmdstat_scan", "cmdstat_keys"} & store.redis.info("commandstats").keys()


def test_a_chunk_that_is_committed_twice_counts_once(settings: Callable[..., Settings]) -> None:
    with running_api(settings()) as api:
        api.worker.register()
        video_id = api.create()["id"]
        video = api.worker.claim(video_id)
        record = api.worker.commit(video_id, 0)
        api.worker.videos.commit_chunk(video.spec, api.worker.fences[video_id], record)
        api.worker.finish(video_id)
        found = figures(api.http)
        assert found["longtake_chunks_total",] == 1
        assert found["longtake_videos_ended_total", "completed"] == 1


def test_requests_are_counted_by_route_and_no_path_becomes_a_label(
    settings: Callable[..., Settings], eventually: Any
) -> None:
    with running_api(settings()) as api:
        api.worker.register()
        video_id = api.create()["id"]
        for n in range(30):
            api.http.get(f"/nothing/{n}")
            api.http.get(f"/v1/videos/video_{n:032x}")
            api.http.request(("PROPFIND", "LOCK", "PURGE")[n % 3], "/v1/videos")
        found = figures(api.http)
        assert found["longtake_http_requests_total", "GET", "/v1/videos/{video_id}", "404"] == 30
        assert found["longtake_http_requests_total", "GET", "none", "404"] == 30
        assert found["longtake_http_requests_total", "other", "/v1/videos", "405"] == 30
        assert found["longtake_http_response_seconds_count", "GET", "/v1/videos/{video_id}"] == 30
        assert sum(name[0] == "longtake_http_requests_total" for name in found) < 10
        assert found["longtake_sse_clients",] == 0
        with api.http.stream("GET", f"/v1/videos/{video_id}/events") as stream:
            pieces = stream.iter_bytes()
            next(pieces)
            assert figures(api.http)["longtake_sse_clients",] == 1
        eventually(lambda: figures(api.http)["longtake_sse_clients",] == 0)
        text = api.http.get("/metrics").text
        assert video_id not in text


def test_without_redis_there_is_still_word_of_the_process(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings]
) -> None:
    with running_api(settings(redis_url=SecretStr(own_redis.url))) as api:
        own_redis.kill()
        found = figures(api.http)
        assert found["longtake_redis_up",] == 0
        assert ("longtake_chunks_total",) not in found
        assert found["process_open_fds",] > 0


def test_with_keys_on_metrics_take_a_token_and_name_nobody(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    token = "a token for prometheus"
    config = settings(api_keys_file=tmp_path / "keys.json", metrics_token=SecretStr(token))
    with running_tenants(config) as tenants:
        client = tenants.join("Mrs Smith", max_running=1)
        video = tenants.create(client)
        for wrong in (client, tenants.client(), tenants.client("wrong")):
            tenants.api.error(wrong.get("/metrics"), 401, "invalid_metrics_token")
        operator = tenants.client(token)
        assert figures(operator)["longtake_videos", "builtin", "normal", "queued"] == 1
        text = operator.get("/metrics").text
        for secret in (owner_of(client), "Smith", video["id"], token, "lt_"):
            assert secret not in text
        # It opens nothing else.
        tenants.api.error(operator.get("/v1/videos"), 401, "invalid_api_key")
