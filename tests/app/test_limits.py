"""Limits of a key: exact under concurrency and over replicas, with answers that a client can act on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.embedded import EmbeddedRedis
from app.jobs.job import Video, new_video_id
from app.jobs.manifest import Manifest
from app.limits import LIMITS_KEY, DailySecondsExceeded, Limits, spent_key
from app.settings import Settings
from tests.app.conftest import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, FPS, Tenants, owner_of, running_tenants
from tests.conftest import Eventually


@pytest.fixture
def replicas(settings: Callable[..., Settings], tmp_path: Path) -> Iterator[tuple[Tenants, Tenants]]:
    """Two processes' worth of API on one Redis and one file of keys."""
    config = settings(api_keys_file=tmp_path / "keys.json")
    with running_tenants(config) as one, running_tenants(config) as two:
        yield one, two


def both(replicas: tuple[Tenants, Tenants], **limits: Any) -> tuple[httpx.Client, httpx.Client]:
    """Clients of one key at either replica."""
    first = replicas[0].join(**limits)
    return first, replicas[1].client(first.headers["authorization"].removeprefix("Bearer "))


def at_once(clients: tuple[httpx.Client, ...], count: int, ask: Callable[[httpx.Client], Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, [clients[n % len(clients)] for n in range(count)]))


def post(client: httpx.Client, seconds: float = 2, **headers: str) -> httpx.Response:
    return client.post("/v1/videos", json={"prompt": "A ball", "seconds": seconds}, headers=headers)


def spent_milliseconds(tenants: Tenants, client: httpx.Client) -> int:
    return int(tenants.api.worker.videos.redis.get(spent_key(owner_of(client), time.time())) or 0)


def test_no_more_videos_wait_than_a_key_may_have_waiting(replicas: tuple[Tenants, Tenants]) -> None:
    tenants = replicas[0]
    clients = both(replicas, max_queued=3)
    answers = at_once(clients, 16, post)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 13
    message = tenants.api.error(post(clients[0]), 429, "too_many_queued")
    assert "3 videos" in message
    assert post(tenants.join()).status_code == 200  # others are not held up
    # A video that is being made, or has ended, does not wait.
    first, second, third = (answer.json()["id"] for answer in answers if answer.status_code == 200)
    tenants.api.worker.claim(first)
    assert post(clients[1]).status_code == 200
    assert post(clients[1]).status_code == 429
    assert clients[0].post(f"/v1/videos/{second}/cancel").status_code == 200
    assert clients[0].delete(f"/v1/videos/{third}").status_code == 200
    assert [post(clients[0]).status_code for _ in range(3)] == [200, 200, 429]


def test_a_paused_video_counts_among_those_that_wait(tenants: Tenants) -> None:
    client = tenants.join(max_queued=1)
    video_id = tenants.create(client)["id"]
    assert client.post(f"/v1/videos/{video_id}/pause").json()["status"] == "paused"
    assert post(client).status_code == 429
    client.post(f"/v1/videos/{video_id}/cancel")
    assert post(client).status_code == 200


def test_a_day_s_seconds_are_counted_once_over_all_replicas(replicas: tuple[Tenants, Tenants]) -> None:
    tenants = replicas[0]
    clients = both(replicas, seconds_per_day=10)
    answers = at_once(clients, 16, post)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 11
    refused = post(clients[0], 0.25)
    assert "0 s of today's are left" in tenants.api.error(refused, 429, "daily_seconds_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
    assert refused.headers["x-should-retry"] == "false"
    assert post(tenants.join()).status_code == 200


def test_what_nobody_began_to_make_is_given_back(tenants: Tenants) -> None:
    client = tenants.join(seconds_per_day=10)
    cancelled, deleted, begun, begun_deleted = (tenants.create(client)["id"] for _ in range(4))
    assert spent_milliseconds(tenants, client) == 8000
    for _ in range(2):
        client.post(f"/v1/videos/{cancelled}/cancel")
    assert spent_milliseconds(tenants, client) == 6000
    client.delete(f"/v1/videos/{cancelled}")
    client.delete(f"/v1/videos/{deleted}")
    assert spent_milliseconds(tenants, client) == 4000
    for video_id in (begun, begun_deleted):
        tenants.api.worker.videos.take("builtin", "double", 60)
        tenants.api.worker.claim(video_id)
    client.post(f"/v1/videos/{begun}/cancel")
    client.delete(f"/v1/videos/{begun_deleted}")
    assert spent_milliseconds(tenants, client) == 4000
    assert post(client, 6).status_code == 200
    assert post(client, 0.5).status_code == 429


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_what_is_given_back_is_what_was_charged(tenants: Tenants, end: str) -> None:
    client = tenants.join(seconds_per_day=10)
    tenants.create(client, seconds=4)
    video_id = tenants.create(client, seconds=2)["id"]
    assert client.patch(f"/v1/videos/{video_id}", json={"seconds": 5}).status_code == 200
    assert spent_milliseconds(tenants, client) == 9000
    if end == "cancel":
        client.post(f"/v1/videos/{video_id}/cancel")
    client.delete(f"/v1/videos/{video_id}")
    assert spent_milliseconds(tenants, client) == 4000


def test_what_makes_a_video_longer_is_asked_for_too(replicas: tuple[Tenants, Tenants]) -> None:
    tenants = replicas[0]
    clients = both(replicas, seconds_per_day=10)
    ids = iter([tenants.create(clients[0], seconds=1)["id"] for _ in range(8)])
    answers = at_once(clients, 8, lambda client: client.patch(f"/v1/videos/{next(ids)}", json={"seconds": 2}))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "0 s of today's are left" in tenants.api.error(refused, 429, "daily_seconds_exceeded")
    assert spent_milliseconds(tenants, clients[0]) == 10_000
    video_id = tenants.create(tenants.join(), seconds=1)["id"]
    assert clients[1].patch(f"/v1/videos/{video_id}", json={"seconds": 2}).status_code == 404


def test_a_shorter_video_and_a_repeated_length_cost_nothing(tenants: Tenants) -> None:
    client = tenants.join(seconds_per_day=5)
    video_id = tenants.create(client, seconds=5)["id"]
    for seconds in (3, 5, 5):
        assert client.patch(f"/v1/videos/{video_id}", json={"seconds": seconds}).status_code == 200
    assert spent_milliseconds(tenants, client) == 5000
    endless = client.patch(f"/v1/videos/{video_id}", json={"seconds": "endless"})
    tenants.api.error(endless, 429, "daily_seconds_exceeded")


def test_an_endless_video_ends_when_its_key_s_day_is_spent(
    settings: Callable[..., Settings], tmp_path: Path, eventually: Any
) -> None:
    with running_tenants(settings(api_keys_file=tmp_path / "keys.json", sweep_seconds=0.05)) as tenants:
        spender, other = tenants.join(seconds_per_day=60), tenants.join()
        ids = [tenants.create(client, seconds="endless")["id"] for client in (spender, other)]
        worker = tenants.api.worker
        for video_id in ids:
            worker.claim(video_id)
            worker.commit(video_id, 0)
        chunks = 60 * FPS // CHUNK_FRAMES
        for index in range(1, chunks):
            worker.commit(ids[0], index)

        def asked(video_id: str) -> bool:
            video = worker.videos.get(video_id)
            assert video is not None
            return video.state.finish_requested

        assert spent_milliseconds(tenants, spender) == 60_000
        assert not asked(ids[0])
        for index in range(chunks, chunks + 2):
            worker.commit(ids[0], index)
        eventually(lambda: asked(ids[0]))
        assert not asked(ids[1])


def test_two_deletions_at_once_give_back_once(tenants: Tenants) -> None:
    client = tenants.join(seconds_per_day=10)
    tenants.create(client, seconds=4)
    videos = tenants.api.worker.videos
    known = videos.get(tenants.create(client, seconds=2)["id"])
    assert known is not None
    videos.delete(known)
    videos.delete(known)
    assert spent_milliseconds(tenants, client) == 4000


def test_what_is_made_beyond_what_was_asked_counts_as_it_is_made(tenants: Tenants) -> None:
    client = tenants.join(seconds_per_day=4)
    video_id = tenants.create(client, seconds=1)["id"]
    video = tenants.api.worker.claim(video_id)
    tenants.api.worker.commit(video_id, 0)
    assert spent_milliseconds(tenants, client) == 1000  # 17 frames, which were paid for
    records = [tenants.api.worker.commit(video_id, index) for index in (1, 2, 3)]
    made = (FIRST_CHUNK_FRAMES + 3 * CHUNK_FRAMES) * 1000 // FPS
    assert spent_milliseconds(tenants, client) == made
    tenants.api.worker.videos.commit_chunk(video.spec, tenants.api.worker.fences[video_id], records[-1])
    assert spent_milliseconds(tenants, client) == made
    assert post(client, 1).status_code == 429


def test_a_video_that_is_back_from_the_bucket_is_not_charged_again(tenants: Tenants, redis_url: str) -> None:
    client, worker = tenants.join(), tenants.api.worker
    video_id = tenants.create(client, seconds=1)["id"]
    worker.claim(video_id)
    for index in range(4):
        worker.commit(video_id, index)
    video = worker.videos.get(video_id)
    assert video is not None
    manifest = Manifest.of(video, worker.videos.chunks(video_id))
    worker.videos.redis.flushall()
    worker.videos.restore(manifest)
    worker.claim(video_id)
    worker.commit(video_id, 4)
    frames = FIRST_CHUNK_FRAMES + 3 * CHUNK_FRAMES
    assert spent_milliseconds(tenants, client) == (frames + CHUNK_FRAMES) * 1000 // FPS - frames * 1000 // FPS


def test_a_day_is_not_overdrawn_by_a_video_made_longer_while_another_is_asked_for(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, videos = tenants.join(), tenants.api.worker.videos
    known = videos.get(tenants.create(client, seconds=2)["id"])
    assert known is not None
    now = videos._now

    def longer(video: Video) -> Video:
        return Video(spec=video.spec.model_copy(update={"seconds": 8.0}), state=video.state)

    def meanwhile() -> float:  # what is left of the day has been read
        monkeypatch.setattr(videos, "_now", now)
        videos.request(known.id, longer, limits=limits)
        return now()

    monkeypatch.setattr(videos, "_now", meanwhile)
    spec, limits = (
        known.spec.model_copy(update={"id": new_video_id(), "seconds": 5.0}),
        Limits(seconds_per_day=10),
    )
    with pytest.raises(DailySecondsExceeded):
        videos.create(spec, limits=limits)
    assert spent_milliseconds(tenants, client) == 8000


def test_a_repeated_request_and_a_refused_one_cost_nothing(tenants: Tenants) -> None:
    client = tenants.join(seconds_per_day=5, max_queued=1)
    ids = {post(client, 3, **{"Idempotency-Key": "k"}).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    assert post(client, 1).status_code == 429  # waiting
    assert post(client, 1000_000).status_code == 400
    assert spent_milliseconds(tenants, client) == 3000


def test_requests_per_minute_are_counted_over_all_replicas(
    replicas: tuple[Tenants, Tenants], eventually: Any
) -> None:
    clients = both(replicas, requests_per_minute=40)

    def look(client: httpx.Client) -> httpx.Response:
        return client.get("/v1/models")

    began = time.monotonic()
    answers = at_once(clients, 60, look)
    grown = int((time.monotonic() - began) * 40 / 60) + 1  # how many more the time itself has allowed
    good = sum(answer.status_code == 200 for answer in answers)
    assert 40 <= good <= 40 + grown
    refused = next(answer for answer in answers if answer.status_code == 429)
    replicas[0].api.error(refused, 429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert look(replicas[0].join()).status_code == 200
    eventually(lambda: look(clients[1]).status_code == 200)


def test_no_limit_on_requests_is_too_high_to_be_counted(tenants: Tenants) -> None:
    client = tenants.join(requests_per_minute=10**12)
    assert [client.get("/v1/models").status_code for _ in range(3)] == [200] * 3


def test_playing_by_a_signed_url_costs_its_owner_no_requests(tenants: Tenants) -> None:
    client = tenants.join(requests_per_minute=2)
    video = tenants.create(client)
    tenants.api.worker.make(video["id"])
    for _ in range(5):
        assert tenants.client().get(video["playlist_url"]).status_code == 200
    assert client.get("/v1/models").status_code == 200
    assert client.get("/v1/models").status_code == 429


def test_settings_are_the_limits_of_keys_that_have_none_of_their_own(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    config = settings(
        api_keys_file=tmp_path / "keys.json", key_max_queued=1, key_max_running=3, key_seconds_per_day=100
    )
    with running_tenants(config) as tenants:
        plain, free = tenants.join(), tenants.join(max_queued=0, max_running=0)
        assert [post(plain).status_code for _ in range(2)] == [200, 429]
        assert [post(free).status_code for _ in range(2)] == [200, 200]
        # Where the queue reads how many of an owner's videos may run.
        running = tenants.api.worker.videos.redis.hgetall(LIMITS_KEY)
        assert running == {owner_of(plain).encode(): b"3", owner_of(free).encode(): b"0"}


def test_a_changed_limit_and_one_that_redis_lost_are_in_force_without_a_request(
    settings: Callable[..., Settings], tmp_path: Path, eventually: Eventually
) -> None:
    path = tmp_path / "keys.json"
    config = settings(api_keys_file=path, sweep_seconds=0.05)
    with running_tenants(config) as tenants:
        owner, redis = owner_of(tenants.join(max_running=4)), tenants.api.worker.videos.redis
        eventually(lambda: redis.hget(LIMITS_KEY, owner) == b"4")
        path.write_text(path.read_text().replace('"max_running": 4', '"max_running": 2'))
        eventually(lambda: redis.hget(LIMITS_KEY, owner) == b"2")
        redis.delete(LIMITS_KEY)
        eventually(lambda: redis.hget(LIMITS_KEY, owner) == b"2")


def test_without_redis_nothing_is_let_past_a_limit(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    config = settings(redis_url=SecretStr(own_redis.url), api_keys_file=tmp_path / "keys.json")
    with running_tenants(config) as tenants:
        client = tenants.join(requests_per_minute=100, max_queued=5, seconds_per_day=100)
        assert post(client).status_code == 200
        own_redis.kill()
        tenants.api.error(post(client), 503, "redis_unavailable")
        tenants.api.error(client.get("/v1/models"), 503, "redis_unavailable")
        tenants.api.error(tenants.client().get("/v1/models"), 401, "missing_api_key")
