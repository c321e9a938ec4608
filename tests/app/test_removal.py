"""Expiry and deletion: what is removed, in which order, and what is never touched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.jobs.connection import connect
from app.jobs.job import Status, Video
from app.jobs.manifest import Manifest
from app.jobs.store import EXPIRING_KEY, VideoStore, video_key
from app.removal import remove, sweep
from app.settings import Settings
from app.storage import FilesystemStore, ObjectStore, StorageError, StoreMisconfigured, StoreUnavailable
from app.storage.objects import chunk_key, manifest_key, video_prefix
from tests.app.conftest import Api, running_api
from tests.conftest import Eventually


@pytest.fixture
def api(redis_url: str, settings: Callable[..., Settings]) -> Iterator[Api]:
    """An API whose videos expire after a minute. Its own sweeper comes too late for these tests."""
    with running_api(settings(redis_url=redis_url, keep_seconds=60.0, sweep_seconds=3600.0)) as running:
        running.worker.register()
        running.worker.videos.keep_seconds = 60.0
        yield running


@pytest.fixture
def store(api: Api) -> VideoStore:
    return api.worker.videos


def objects_of(api: Api, video_id: str) -> list[str]:
    prefix = video_prefix(video_id)
    return [info.key.removeprefix(prefix) for info in api.worker.objects.list(prefix)]


def made(api: Api, ended: str = "completed") -> str:
    """A video that has ended, with its manifest."""
    video_id: str = api.create()["id"]
    api.worker.claim(video_id)
    for index in range(2):
        api.worker.commit(video_id, index)
    api.worker.finish(video_id, ended)
    write_manifest(api, video_id)
    return video_id


def write_manifest(api: Api, video_id: str) -> None:
    video = api.worker.videos.get(video_id)
    assert video is not None
    manifest = Manifest.of(video, api.worker.videos.chunks(video_id))
    api.worker.objects.put(manifest_key(video_id), manifest.to_json())


def time_passes(store: VideoStore, video_id: str, seconds: float) -> None:
    """Makes a video as much older."""
    video = store.get(video_id)
    assert video is not None
    assert video.state.expires_at is not None
    earlier = video.state.expires_at - seconds
    store.redis.hset(video_key(video_id), "expires_at", str(earlier))
    store.redis.zadd(EXPIRING_KEY, {video_id: earlier})


@pytest.mark.parametrize("ended", ["completed", "cancelled", "failed"])
def test_a_video_that_has_ended_tells_when_it_expires_and_then_nothing_of_it_is_left(
    api: Api, store: VideoStore, ended: str
) -> None:
    video_id, young, running = made(api, ended), made(api), api.create()["id"]
    api.worker.claim(running)
    api.worker.commit(running, 0)
    orphan = "videos/video_00000000000000000000000000000000/video.mp4"
    api.worker.objects.put(orphan, b"x")
    wire = api.http.get(f"/v1/videos/{video_id}").json()
    assert wire["expires_at"] - wire["completed_at"] in (60, 61)
    assert api.http.get(f"/v1/videos/{running}").json()["expires_at"] is None
    assert sweep(store, api.worker.objects) == []
    time_passes(store, video_id, 61)
    assert sweep(store, api.worker.objects) == [video_id]
    assert objects_of(api, video_id) == []
    api.error(api.http.get(f"/v1/videos/{video_id}"), 404, "video_not_found", "video_id")
    assert [video["id"] for video in api.http.get("/v1/videos").json()["data"]] == [running, young]
    assert not [key for key in store.redis.keys(f"*{video_id}*") if b"deleted" not in key]
    assert objects_of(api, young)
    assert objects_of(api, running)
    assert api.worker.objects.exists(orphan), "what has no record is nobody's to remove"
    assert sweep(store, api.worker.objects) == []


@pytest.mark.parametrize("refusal", [StoreMisconfigured, StoreUnavailable, StorageError])
def test_a_video_whose_files_stay_does_not_keep_the_others(
    api: Api, store: VideoStore, monkeypatch: pytest.MonkeyPatch, refusal: type[StorageError]
) -> None:
    stubborn, other = made(api), made(api)
    for video_id in (stubborn, other):
        time_passes(store, video_id, 61)
    delete_prefix = FilesystemStore.delete_prefix

    def refuse(self: FilesystemStore, prefix: str) -> None:
        if stubborn in prefix:
            raise refusal("the folder is not removed")
        delete_prefix(self, prefix)

    # As root, whom no permission stops, there is no other way to have one folder refused.
    monkeypatch.setattr(FilesystemStore, "delete_prefix", refuse)
    assert sweep(store, api.worker.objects) == [other]
    with pytest.raises(refusal):
        sweep(store, api.worker.objects)
    monkeypatch.undo()
    assert sweep(store, api.worker.objects) == [stubborn]


def test_while_the_store_is_away_a_sweep_tries_one_video_only(api: Api, store: VideoStore) -> None:
    for video_id in (made(api), made(api)):
        time_passes(store, video_id, 61)
    tried: list[str] = []

    class Away(Dying):
        def delete(self, key: str) -> None:
            tried.append(key)
            self._spend()

        def check(self) -> None:
            self._spend()

    with pytest.raises(StoreUnavailable):
        sweep(store, Away(api.worker.objects, 0))  # type: ignore[arg-type]
    assert len(tried) == 1


def test_a_video_cancelled_before_it_was_begun_expires_too(api: Api, store: VideoStore) -> None:
    video_id = api.create()["id"]
    wire = api.http.post(f"/v1/videos/{video_id}/cancel").json()
    assert wire["expires_at"] - wire["completed_at"] in (60, 61)
    time_passes(store, video_id, 61)
    assert sweep(store, api.worker.objects) == [video_id]


def test_a_video_that_another_is_to_continue_stays_until_its_chunks_are_taken_over(
    api: Api, store: VideoStore
) -> None:
    source, other = made(api), made(api)
    asked = {"video": {"id": source}, "prompt": "A blue ball", "seconds": 5}
    extension = api.http.post("/v1/videos/extensions", json=asked).json()["id"]
    for video_id in (source, other):
        time_passes(store, video_id, 61)
    assert sweep(store, api.worker.objects) == [other]
    api.worker.claim(extension)
    api.worker.commit(extension, 0)
    assert sweep(store, api.worker.objects) == []
    assert objects_of(api, source)
    api.worker.commit(extension, 1)
    assert sweep(store, api.worker.objects) == [source]
    assert store.get(extension) is not None


def test_without_the_setting_videos_stay(api: Api, redis_url: str) -> None:
    api.worker.videos.keep_seconds = 0.0
    video_id = made(api)
    assert api.http.get(f"/v1/videos/{video_id}").json()["expires_at"] is None
    assert not api.worker.videos.redis.exists(EXPIRING_KEY)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS, Status.PAUSED])
def test_an_unfinished_video_is_not_touched_whatever_the_index_says(
    api: Api, store: VideoStore, status: Status
) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    store.redis.hset(video_key(video_id), "status", f'"{status}"')
    store.redis.zadd(EXPIRING_KEY, {video_id: 1.0, "video_" + "f" * 32: 1.0})
    before = objects_of(api, video_id)
    assert sweep(store, api.worker.objects) == []
    assert objects_of(api, video_id) == before
    assert not store.redis.exists(EXPIRING_KEY), "the index has mended itself"


class Dying:
    """A store on which the process dies after some deletions; everything else goes to a real one."""

    def __init__(self, inner: ObjectStore, deletions: int) -> None:
        self.inner, self.left = inner, deletions

    def _spend(self) -> None:
        if not self.left:
            raise StoreUnavailable("gone")
        self.left -= 1

    def delete(self, key: str) -> None:
        self._spend()
        self.inner.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        for info in self.inner.list(prefix):
            self.delete(info.key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("deletions", [0, 1, 2, 3, 4])
def test_a_removal_that_was_interrupted_is_repeated_and_never_restored_in_part(
    api: Api, store: VideoStore, deletions: int
) -> None:
    from app.recover import recover

    video_id = made(api)
    whole = objects_of(api, video_id)
    assert len(whole) > 4
    time_passes(store, video_id, 61)
    with pytest.raises(StoreUnavailable):
        sweep(store, Dying(api.worker.objects, deletions))  # type: ignore[arg-type]
    assert store.get(video_id) is not None, "the record goes last"
    assert len(objects_of(api, video_id)) == len(whole) - deletions
    if deletions:
        keys = store.redis.keys("longtake:video:*")
        saved = {key: store.redis.dump(key) for key in keys}
        store.redis.delete(*keys)
        found: list[Any] = []
        recover(store, api.worker.objects, tell=found.append)
        assert [one.outcome for one in found] == [None]
        for key, value in saved.items():
            store.redis.restore(key, 0, value)
    assert sweep(store, api.worker.objects) == [video_id]
    assert objects_of(api, video_id) == []


def test_many_sweepers_do_no_harm(api: Api, redis_url: str, store: VideoStore) -> None:
    ids = [made(api) for _ in range(6)]
    for video_id in ids[:5]:
        time_passes(store, video_id, 61)
    errors: list[Exception] = []

    def work() -> None:
        try:
            sweep(VideoStore(connect(redis_url)), api.worker.objects)
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [video_id for video_id in ids if store.get(video_id) is not None] == ids[5:]
    assert sum(len(objects_of(api, video_id)) for video_id in ids[:5]) == 0


def test_every_replica_sweeps_all_the_time(
    redis_url: str, settings: Callable[..., Settings], eventually: Eventually
) -> None:
    quick = settings(redis_url=redis_url, keep_seconds=60.0, sweep_seconds=0.05)
    with ExitStack() as stack:
        one, _ = (stack.enter_context(running_api(quick)) for _ in range(2))
        one.worker.register()
        one.worker.videos.keep_seconds = 60.0
        video_id = made(one)
        assert objects_of(one, video_id)
        time_passes(one.worker.videos, video_id, 61)
        eventually(lambda: one.http.get(f"/v1/videos/{video_id}").status_code == 404)
        assert objects_of(one, video_id) == []


def test_deleting_a_running_video_leaves_nothing_that_could_be_restored(api: Api, store: VideoStore) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    write_manifest(api, video_id)
    order: list[str] = []

    class Noting(Dying):
        def _spend(self) -> None:
            pass

        def delete(self, key: str) -> None:
            order.append(key)
            super().delete(key)

    video = store.get(video_id)
    assert isinstance(video, Video)
    remove(video, store, Noting(api.worker.objects, 0))  # type: ignore[arg-type]
    assert order[0] == manifest_key(video_id)
    assert chunk_key(video_id, 0) in order
    assert objects_of(api, video_id) == []
    assert store.was_deleted(video_id)


def waiting(api: Api, store: VideoStore) -> str:
    """A begun video that waits in line."""
    video_id: str = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    write_manifest(api, video_id)
    fence = api.worker.fences[video_id]
    store.release(video_id, fence, f"{video_id}:double", count_attempt=False, standing="front")
    return video_id


def test_what_is_asked_of_a_begun_video_that_waits_reaches_its_manifest_at_once(
    api: Api, store: VideoStore
) -> None:
    video_id = waiting(api, store)
    url = f"/v1/videos/{video_id}"

    def kept() -> Manifest:
        return Manifest.from_json(api.worker.objects.get(manifest_key(video_id)))

    api.http.post(f"{url}/pause")
    assert kept().state.status is Status.PAUSED
    api.http.post(f"{url}/prompts", json={"text": "a blue ball"})
    assert [prompt.text for prompt in kept().state.pending_prompts] == ["a blue ball"]
    api.http.patch(url, json={"seconds": 9})
    api.http.post(f"{url}/resume")
    assert kept().state.status is Status.QUEUED
    assert kept().video == store.get(video_id)


def test_cancelling_a_begun_video_that_waits_reaches_its_manifest_at_once(
    api: Api, store: VideoStore
) -> None:
    video_id = waiting(api, store)
    began = time.time()
    answer = api.http.post(f"/v1/videos/{video_id}/cancel").json()
    assert answer["status"] == "queued", "a worker ends it, with a file"
    manifest = Manifest.from_json(api.worker.objects.get(manifest_key(video_id)))
    assert manifest.state.cancel_requested
    assert len(manifest.chunks) == 1
    assert api.http.post(f"/v1/videos/{video_id}/cancel").json()["status"] == "queued"
    assert time.time() - began < 5
