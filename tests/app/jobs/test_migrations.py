"""Records of other versions: older ones are read as if written today, newer and damaged ones harm nobody else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs import queue
from app.jobs.connection import connect
from app.jobs.deliveries import DeliveryStore, deliveries_key, deliveries_of, delivery_key, secret_key
from app.jobs.job import SCHEMA_VERSION, Status
from app.jobs.manifest import Manifest
from app.jobs.migrations import RecordDamaged, RecordTooNew, migrated
from app.jobs.store import (
    ACTIVE_KEY,
    EXPIRING_KEY,
    MODELS_KEY,
    RECONCILED_KEY,
    IdempotencyMismatch,
    VideoStore,
    chunks_key,
    idempotency_key,
    owner_key,
    video_key,
)
from app.storage.objects import manifest_key
from tests.app.conftest import Api

RECORDS = Path(__file__).parent / "records"


class UpForLong(VideoStore):
    """A store on a Redis that has been up for long; the session's has only just begun."""

    def _uptime_seconds(self) -> float:
        return 1e6


@pytest.fixture
def store(redis_url: str) -> VideoStore:
    return UpForLong(connect(redis_url))


def written_by(version: int) -> dict[str, Any]:
    """Records as that version of the software left them in Redis and in the bucket."""
    records: dict[str, Any] = json.loads((RECORDS / f"version-{version}.json").read_text())
    return records


def put(store: VideoStore, record: dict[str, Any]) -> str:
    """Writes a video's records as they were, and returns its id."""
    spec = json.loads(record["hash"]["spec"])
    video_id: str = spec["id"]
    store.redis.hset(video_key(video_id), mapping=record["hash"])
    store.redis.rpush(chunks_key(video_id), *record["chunks"])
    store.redis.zadd(owner_key(spec["owner"]), {video_id: spec["created_at"]})
    if record["hash"]["status"] == '"queued"':
        store.redis.hset(ACTIVE_KEY, video_id, queue.queue_name(spec["model"], spec["priority"]))
    return video_id


def change(store: VideoStore, video_id: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    spec = json.loads(store.redis.hget(video_key(video_id), "spec"))
    edit(spec)
    store.redis.hset(video_key(video_id), "spec", json.dumps(spec))


def test_every_older_version_has_a_record_to_be_tested_with() -> None:
    assert {path.name for path in RECORDS.iterdir()} == {
        f"version-{n}.json" for n in range(1, SCHEMA_VERSION)
    }


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_what_an_older_version_wrote_is_read_as_if_written_today(store: VideoStore, version: int) -> None:
    records = written_by(version)
    for name, status in (("completed", Status.COMPLETED), ("queued", Status.QUEUED)):
        video_id = put(store, records[name])
        video = store.get(video_id)
        assert video is not None
        assert (video.state.status, video.spec.schema_version) == (status, SCHEMA_VERSION)
        assert (video.spec.prompt, video.spec.seed, video.spec.fps) == ("a circle", 7, 24)
        chunks = store.chunks(video_id)
        assert len(chunks) == video.state.chunks_ready >= 3
        assert {chunk.schema_version for chunk in chunks} == {SCHEMA_VERSION}
        assert [json.loads(raw)["sha256"] for raw in records[name]["chunks"]] == [c.sha256 for c in chunks]
        assert store.chunk(video_id, 1) == chunks[1]

        manifest = Manifest.from_json(records[name]["manifest"].encode())
        assert manifest.spec == video.spec
        assert manifest.schema_version == SCHEMA_VERSION
        assert manifest.chunks == tuple(chunks[: len(manifest.chunks)])
        assert Manifest.from_json(manifest.to_json()) == manifest
    store.redis.hset(MODELS_KEY, mapping=records["models"])
    assert store.models()["stand-in"].default_size == "16x16"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_what_belongs_to_no_video_alone_is_read_from_an_older_version_too(
    store: VideoStore, version: int
) -> None:
    records = written_by(version)
    video_id = put(store, records["completed"])
    deliveries = DeliveryStore(store.redis)
    try:
        store.redis.set(idempotency_key("", "older"), records["idempotency"])
        replayed = store.replayed("", "older", "d1")
        assert replayed is not None
        assert replayed.id == video_id
        with pytest.raises(IdempotencyMismatch):
            store.replayed("", "older", "d2")

        store.redis.set(secret_key("older"), records["secret"])
        secret = deliveries.secret("older")
        assert (secret.current, [name for name, _ in secret.previous]) == ("whsec_AAAA", ["whsec_BBBB"])

        stored = {"delivery": records["delivery"], "status": "failed", "attempts": "[]"}
        delivery_id = json.loads(records["delivery"])["id"]
        store.redis.hset(delivery_key(delivery_id), mapping=stored)
        store.redis.zadd(deliveries_key(video_id), {delivery_id: 1.0})
        found = deliveries.get(video_id, delivery_id)
        assert found is not None
        assert (found.delivery.schema_version, found.delivery.video_id) == (SCHEMA_VERSION, video_id)
    finally:
        store.redis.delete(
            idempotency_key("", "older"),
            secret_key("older"),
            deliveries_key(video_id),
            delivery_key("evt_0f"),
        )


def test_what_belongs_to_no_video_alone_says_which_version_wrote_it_and_is_refused_when_newer(
    store: VideoStore, api: Api
) -> None:
    key, owner = {"Idempotency-Key": "versioned"}, ""
    asked = {"prompt": "x", "webhook_url": "https://example.com/hook"}
    video_id = api.http.post("/v1/videos", json=asked, headers=key).json()["id"]
    video, deliveries = store.get(video_id), DeliveryStore(store.redis)
    assert video is not None
    name = deliveries_of(video.spec, "video.completed", 1.0)[0]
    pipe = store.redis.pipeline()
    deliveries.enqueue(pipe, video_key(video_id), [name])
    pipe.execute()
    deliveries.secret(owner)

    def rewritten(read: Callable[[], bytes], write: Callable[[str], object]) -> None:
        record = json.loads(read())
        assert record["schema_version"] == SCHEMA_VERSION
        write(json.dumps(record | {"schema_version": 99, "more": "to come"}))

    redis, idem, kept = store.redis, idempotency_key(owner, "versioned"), delivery_key(name.id)
    before = redis.get(secret_key(owner))
    try:
        rewritten(lambda: redis.get(idem), lambda raw: redis.set(idem, raw))
        rewritten(lambda: redis.hget(kept, "delivery"), lambda raw: redis.hset(kept, "delivery", raw))
        rewritten(lambda: redis.get(secret_key(owner)), lambda raw: redis.set(secret_key(owner), raw))
        with pytest.raises(RecordTooNew):
            deliveries.secret(owner)
        with pytest.raises(RecordTooNew):
            deliveries.take(1.0)
        api.error(api.http.post("/v1/videos", json={"prompt": "x"}, headers=key), 500, "record_unreadable")
        api.error(api.http.get(f"/v1/videos/{video_id}/webhook_deliveries"), 500, "record_unreadable")
    finally:
        redis.set(secret_key(owner), before)
        api.http.delete(f"/v1/videos/{video_id}")


def test_an_older_record_becomes_a_new_one_when_a_worker_claims_it(store: VideoStore) -> None:
    video_id = put(store, written_by(1)["queued"])
    before = store.get(video_id)
    store.claim(video_id, "w")
    assert json.loads(store.redis.hget(video_key(video_id), "spec"))["schema_version"] == SCHEMA_VERSION
    after = store.get(video_id)
    assert before is not None
    assert after is not None
    assert after.spec == before.spec
    assert (after.state.chunks_ready, after.state.started_at) == (
        before.state.chunks_ready,
        before.state.started_at,
    )


def test_a_manifest_is_refused_when_it_is_newer_or_not_whole() -> None:
    data = json.loads(written_by(1)["completed"]["manifest"])
    with pytest.raises(RecordTooNew, match=rf"schema version 99; .* reads up to {SCHEMA_VERSION}"):
        Manifest.from_json(json.dumps(data | {"schema_version": 99}).encode())
    whole = Manifest.from_json(json.dumps(data).encode()).to_json()
    short = json.loads(whole)
    short["chunks"].pop(1)
    for bad in (b"", b"[]", b"{}", b"null", b'"x"', whole[:-9], json.dumps(short).encode()):
        with pytest.raises(RecordDamaged):
            Manifest.from_json(bad)


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5])
def test_a_version_that_cannot_be_is_damage(version: object) -> None:
    with pytest.raises(RecordDamaged):
        migrated("chunk", {"index": 0, "schema_version": version})


def test_a_record_that_cannot_be_read_harms_no_other(
    store: VideoStore, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    good, newer, damaged = (api.create()["id"] for _ in range(3))
    change(store, newer, lambda spec: spec.update(schema_version=99, dimension="fourth"))
    store.redis.hset(video_key(damaged), "spec", "{")
    store.redis.hset(MODELS_KEY, "later", json.dumps({"name": "later", "schema_version": 99}))

    with caplog.at_level(logging.ERROR):
        listed = api.http.get("/v1/videos").json()
        assert [video["id"] for video in listed["data"]] == [good]
        assert api.http.get("/v1/videos").status_code == 200
    for video_id in (newer, damaged):
        assert sum(f"{video_id} is left out" in record.getMessage() for record in caplog.records) == 1
    assert [model["id"] for model in api.http.get("/v1/models").json()["data"]] == ["builtin"]

    message = api.error(api.http.get(f"/v1/videos/{newer}"), 500, "record_unreadable")
    assert f"schema version 99; this version of longtake reads up to {SCHEMA_VERSION}" in message
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/chunks"), ("DELETE", "")):
        api.error(api.http.request(method, f"/v1/videos/{damaged}{path}"), 500, "record_unreadable")

    # Lost from their queues, only the one that can be read is put back: the others are another version's to make.
    for name in queue.queue_names("builtin"):
        store.redis.delete(queue.waiting_key(name))
    store.redis.delete(RECONCILED_KEY)
    assert store.reconcile(0.0) == [good]
    assert {i.decode() for i in store.redis.hkeys(ACTIVE_KEY)} == {good, newer, damaged}


def test_an_expired_video_of_a_newer_version_is_left_to_that_version(api: Api) -> None:
    store = api.worker.videos
    newer, damaged, old = (api.create()["id"] for _ in range(3))
    for age, video_id in enumerate((newer, damaged, old)):
        api.worker.claim(video_id)
        api.worker.finish(video_id)
        store.redis.zadd(EXPIRING_KEY, {video_id: 1.0 + age})
    change(store, newer, lambda spec: spec.update(schema_version=99))
    store.redis.hset(video_key(damaged), "spec", "{")
    try:
        for _ in range(2):
            assert [video.id for video in store.expired(1)] == [old], "nothing that stays stands before it"
        assert {i.decode() for i in store.redis.zrange(EXPIRING_KEY, 0, -1)} == {newer, old}
        change(store, newer, lambda spec: spec.update(schema_version=SCHEMA_VERSION))
        assert [video.id for video in store.expired(10)] == [newer, old]
    finally:
        store.redis.delete(EXPIRING_KEY)


def test_the_bucket_of_an_older_version_is_restored(store: VideoStore, api: Api) -> None:
    from app.recover import recover

    records = written_by(1)
    for name in ("completed", "queued"):
        data = records[name]["manifest"].encode()
        api.worker.objects.put(manifest_key(json.loads(data)["spec"]["id"]), data)
    found: list[Any] = []
    recover(store, api.worker.objects, tell=found.append)
    ids = {json.loads(records[name]["hash"]["spec"])["id"]: name for name in ("completed", "queued")}
    for one in found:
        if one.video_id in ids:
            assert one.outcome == {"completed": "restored", "queued": "requeued"}[ids[one.video_id]]
            assert api.http.get(f"/v1/videos/{one.video_id}").json()["status"] == ids.pop(one.video_id)
            api.worker.objects.delete_prefix(f"videos/{one.video_id}/")
    assert not ids
