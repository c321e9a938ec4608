"""Videos through a worker, from the request to the last object. The model is a stand-in; all else is real."""

from __future__ import annotations

import errno
import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs import queue
from app.jobs.job import Status, TimedPrompt, VideoSpec
from app.jobs.manifest import Manifest
from app.jobs.store import ACTIVE_KEY, FenceLost, VideoStore, events_key
from app.storage import FilesystemStore, ObjectStore, StoreFull, StoreUnavailable
from app.storage.objects import (
    checkpoint_key,
    chunk_key,
    final_key,
    latents_key,
    manifest_key,
    spritesheet_key,
    thumbnail_key,
    video_prefix,
)
from tests.conftest import Eventually
from worker import checkpoint, generate, pipeline
from worker import main as worker_main
from worker.checkpoint import unpack_latents
from worker.direction import prompt_timeline
from worker.engine import Engine, Stopped, Track
from worker.media import encode
from worker.media.assemble import probe
from worker.models.registry import load_model
from worker.pipeline import Layout, Pipeline


def events(store: VideoStore, video_id: str) -> list[tuple[str, dict[str, Any]]]:
    entries = store.redis.xrange(events_key(video_id))
    return [(fields[b"type"].decode(), json.loads(fields[b"data"])) for _, fields in entries]


def keys(objects: ObjectStore, video_id: str) -> list[str]:
    prefix = video_prefix(video_id)
    return [info.key.removeprefix(prefix) for info in objects.list(prefix)]


def test_what_a_video_held_is_freed_when_it_ends(work: Any, eventually: Eventually) -> None:
    """At once, not when Python next looks for cycles: a large model's decoder alone remembers gigabytes."""
    kinds = (Pipeline, Track, work.stand_in.StandInDecoder)

    def held() -> list[str]:
        return [type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds]

    gc.collect()
    before = held()
    gc.disable()
    try:
        work.start()
        for prompt, end in (("a circle", "completed"), ("nan", "failed"), ("error", "failed")):
            spec = work.spec(40, prompt=prompt)
            work.store.create(spec)
            work.wait(spec.id, end)
        long = work.spec(40_000)
        work.store.create(long)
        work.wait(long.id, chunks=1)
        assert len(held()) > len(before)
        work.store.request_cancel(long.id)
        work.wait(long.id, "cancelled")
        eventually(lambda: held() == before)
    finally:
        gc.enable()


def test_a_video_is_made_from_request_to_manifest(work: Any, tmp_path: Path) -> None:
    work.start()
    spec = work.spec(40)
    work.store.create(spec)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    # 40 frames are 11 latents (1 + 10 * 4 frames), 6 chunks of two; 41 frames less one.
    assert video.state.chunks_ready == video.state.chunks_total == 6
    assert video.state.frames_ready == 40
    assert video.state.forwards_done == video.state.forwards_total == 2 * (6 + 3 - 1)
    assert (video.state.attempts, video.state.barren_attempts, video.progress) == (1, 0, 100)
    chunks = work.store.chunks(spec.id)
    assert [chunk.frames for chunk in chunks] == [5, 8, 8, 8, 8, 3]
    assert [chunk.first_frame for chunk in chunks] == [0, 5, 13, 21, 29, 37]
    assert video.state.first_chunk_at is not None

    stored = keys(work.objects, spec.id)
    numbers = [f"{number:06d}" for number in range(6)]
    assert stored == sorted(
        [f"chunks/{n}.m4s" for n in numbers]
        + [f"latents/{n}.safetensors" for n in numbers]
        + ["checkpoints/000005.safetensors", "init.mp4", "manifest.json"]
        + ["spritesheet.jpg", "thumbnail.jpg", "video.mp4"]
    )
    path = tmp_path / "final.mp4"
    path.write_bytes(work.objects.get(final_key(spec.id)))
    info = probe(path)
    assert (info.frames, info.fps, info.width, info.height) == (40, 24, 16, 16)
    assert video.state.final_bytes == info.size == work.objects.head(final_key(spec.id)).size
    assert (
        work.objects.get(thumbnail_key(spec.id))[:2]
        == work.objects.get(spritesheet_key(spec.id))[:2]
        == b"\xff\xd8"
    )
    assert unpack_latents(work.objects.get(latents_key(spec.id, 0))).shape == (1, 3, 2, 2, 2)

    manifest = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
    assert manifest.spec == spec
    assert manifest.chunks == tuple(chunks)
    assert manifest.state.status is Status.COMPLETED
    assert (manifest.state.checkpoint, manifest.state.final_bytes) == (5, info.size)
    assert not work.store.redis.hexists(ACTIVE_KEY, spec.id)
    assert not work.store.redis.keys(f"rq:*{spec.id}*")


def test_watchers_see_every_chunk_once_and_the_end_last(work: Any) -> None:
    work.start(work.model(step_seconds=0.03))
    spec = work.spec(60)
    work.store.create(spec)
    work.wait(spec.id, "completed")
    told = events(work.store, spec.id)
    assert [data["index"] for kind, data in told if kind == "chunk"] == list(range(8))
    assert told[0][0] == told[1][0] == "status"
    assert told[-1][0] == "completed"
    assert told[-1][1]["progress"] == 100
    progress = [data for kind, data in told if kind == "progress"]
    assert progress
    assert set(progress[0]) == {"progress", "chunks_ready", "chunks_total", "seconds_ready", "eta_seconds"}
    assert [p["progress"] for p in progress] == sorted(p["progress"] for p in progress)
    assert all(p["chunks_total"] == 8 for p in progress)
    assert any(p["eta_seconds"] for p in progress)


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 13, 14])
def test_a_video_has_exactly_the_frames_asked_for_also_when_shorter_than_the_window(
    work: Any, tmp_path: Path, frames: int
) -> None:
    work.start()
    spec = work.spec(frames)
    work.store.create(spec)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert video.state.frames_ready == sum(c.frames for c in work.store.chunks(spec.id)) == frames
    path = tmp_path / "final.mp4"
    path.write_bytes(work.objects.get(final_key(spec.id)))
    assert probe(path).frames == frames


def test_seed_steps_guidance_and_prompts_each_change_the_video_and_nothing_else_does(work: Any) -> None:
    work.start()
    timeline = (TimedPrompt(at=0, text="a circle"), TimedPrompt(at=1, text="a square"))
    specs = [
        work.spec(48),
        work.spec(48),
        work.spec(48, seed=8),
        work.spec(48, num_inference_steps=9),
        work.spec(48, guidance_scale=1.0),
        work.spec(48, negative_prompt="a square"),
        work.spec(48, prompts=timeline),
    ]
    for spec in specs:
        work.store.create(spec)
    made = [work.digests(work.wait(spec.id, "completed").id) for spec in specs]
    assert made[0] == made[1]
    assert len({tuple(m) for m in made}) == len(made) - 1
    assert work.store.get(specs[3].id).state.forwards_total == 3 * (7 + 3 - 1)
    # The second prompt begins in chunk 3 and shows from its first forward on: when chunk 0 has just left.
    assert made[6][:2] == made[0][:2]
    assert made[6][3:] != made[0][3:]


def test_the_prompts_of_a_long_timeline_are_encoded_in_a_few_groups(work: Any) -> None:
    model = work.model()
    encode, asked = model.encode_prompt, list[int]()
    model.encode_prompt = lambda texts: (asked.append(len(texts)), encode(texts))[1]
    work.start(model)
    prompts = tuple(TimedPrompt(at=number, text=f"prompt {number}") for number in range(20))
    spec = work.spec(12, prompts=prompts)
    work.store.create(spec)
    work.wait(spec.id, "completed")
    assert asked == [generate.PROMPTS_AT_ONCE, 21 - generate.PROMPTS_AT_ONCE]


def test_prompts_begin_at_the_chunk_that_holds_their_second(work: Any) -> None:
    model = work.model()
    prompts = tuple(
        TimedPrompt(at=at, text=text)
        for at, text in [(0, "a"), (0.3, "b"), (0.5, "c"), (1.0, "d"), (99, "later")]
    )
    spec: VideoSpec = work.spec(48, prompts=prompts)
    layout = Layout(spec.frames, 2, model.geometry)
    # Frames 7, 12 and 24 lie in chunks 1, 1 and 3; that behind the end counts if the video becomes longer.
    assert prompt_timeline(spec, layout).changes == ((0, "a"), (1, "c"), (3, "d"), (297, "later"))


def test_cancel_stops_soon_and_keeps_a_playable_part(work: Any, tmp_path: Path) -> None:
    model = work.model(step_seconds=0.02)
    work.start(model)
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    work.store.request_cancel(spec.id)
    asked = time.monotonic()
    video = work.wait(spec.id, "cancelled")
    assert time.monotonic() - asked < 5
    forwards = len(model.rows)
    assert video.state.chunks_ready >= 3
    assert events(work.store, spec.id)[-1][0] == "cancelled"
    path = tmp_path / "part.mp4"
    path.write_bytes(work.objects.get(final_key(spec.id)))
    assert probe(path).frames == video.state.frames_ready
    assert Manifest.from_json(work.objects.get(manifest_key(spec.id))).state.status is Status.CANCELLED
    other = work.spec(1)
    work.store.create(other)
    work.wait(other.id, "completed")
    assert len(model.rows) == forwards + 6


def test_cancel_before_the_first_chunk_leaves_a_cancelled_video_without_a_file(work: Any) -> None:
    model = work.model()
    model.hold.clear()
    work.start(model)
    spec = work.spec()
    work.store.create(spec)
    work.wait(spec.id, "in_progress")
    work.store.request_cancel(spec.id)
    model.hold.set()
    video = work.wait(spec.id, "cancelled")
    if video.state.chunks_ready == 0:
        assert not work.objects.exists(final_key(spec.id))
        assert video.state.final_bytes is None


def test_a_video_deleted_while_it_runs_leaves_nothing(work: Any) -> None:
    work.start(work.model(step_seconds=0.02))
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.store.delete(work.wait(spec.id, chunks=2))
    work.objects.delete_prefix(video_prefix(spec.id))
    other = work.spec(1)
    work.store.create(other)
    work.wait(other.id, "completed")  # the slot is free again
    assert keys(work.objects, spec.id) == []
    assert work.store.get(spec.id) is None
    assert not work.store.redis.keys(f"*{spec.id}*") or work.store.was_deleted(spec.id)


def test_records_lost_by_redis_do_not_cost_the_objects(work: Any) -> None:
    work.start(work.model(step_seconds=0.02))
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    work.store.redis.flushall()
    other = work.spec(1)
    work.store.create(other)
    work.wait(other.id, "completed")
    manifest = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
    assert manifest.spec == spec
    assert "chunks/000001.m4s" in keys(work.objects, spec.id)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("error", "model_error"), ("nan", "invalid_output")],
)
def test_a_model_that_fails_ends_the_video_after_its_attempts_and_not_the_worker(
    work: Any, prompt: str, code: str
) -> None:
    work.start(max_attempts=2)
    spec, other = work.spec(prompt=prompt), work.spec(1)
    work.store.create(spec)
    work.store.create(other)
    video = work.wait(spec.id, "failed")
    assert video.state.attempts == 2
    assert video.state.error is not None
    assert video.state.error.code == code
    assert "/" not in video.state.error.message
    assert events(work.store, spec.id)[-1][0] == "failed"
    work.wait(other.id, "completed")
    assert not work.store.redis.hexists(ACTIVE_KEY, spec.id)


@pytest.mark.parametrize(
    "fields", [{"num_inference_steps": 7}, {"num_inference_steps": 2}, {"width": 20}, {"guidance_scale": -1}]
)
def test_what_the_model_cannot_make_fails_at_once_and_says_why(work: Any, fields: dict[str, Any]) -> None:
    work.start()
    spec = work.spec(**fields)
    work.store.create(spec)
    video = work.wait(spec.id, "failed")
    assert video.state.attempts == 1
    assert video.state.error is not None
    assert video.state.error.code == "invalid_request"


def test_a_video_that_was_started_too_often_without_a_chunk_fails(work: Any) -> None:
    spec = work.spec()
    work.store.create(spec)
    for _ in range(3):
        work.store.claim(spec.id, "a worker that died")
    work.start()
    video = work.wait(spec.id, "failed")
    assert video.state.error is not None
    assert video.state.error.code == "attempts_exhausted"


@pytest.mark.parametrize("chunk_latents", [1, 3])
def test_a_video_ends_where_its_model_was_changed_and_keeps_what_is_made(
    work: Any, chunk_latents: int
) -> None:
    spec = work.spec(400)
    worker = work.start(work.model(step_seconds=0.02))
    work.store.create(spec)
    work.wait(spec.id, chunks=4)
    worker.stop()
    before, digests = work.video(spec.id).state, work.digests(spec.id)
    changed = work.model()
    changed.sampler = replace(changed.sampler, chunk_latents=chunk_latents)
    work.start(changed)
    video = work.wait(spec.id, "failed", "completed")
    assert video.state.error is not None
    assert video.state.error.code == "model_changed"
    assert (video.state.chunks_ready, video.state.frames_ready) == (before.chunks_ready, before.frames_ready)
    assert work.digests(spec.id) == digests


@pytest.mark.parametrize(("began", "code"), [("of other weights", "model_changed"), (None, None)])
def test_other_weights_under_the_same_name_do_not_continue_a_video_and_its_checkpoints_of_before_stay_good(
    work: Any, began: str | None, code: str | None
) -> None:
    spec = work.spec(400)
    model = work.model(step_seconds=0.02)
    model.fingerprint = began
    worker = work.start(model)
    work.store.create(spec)
    work.wait(spec.id, chunks=4)
    worker.stop()
    before, digests = work.video(spec.id).state, work.digests(spec.id)
    assert before.status is Status.QUEUED
    work.start()
    video = work.wait(spec.id, "failed", "completed")
    assert (video.state.error.code if video.state.error else None) == code
    assert work.digests(spec.id)[: len(digests)] == digests
    assert (video.state.chunks_ready == before.chunks_ready) == (code is not None)


def test_a_video_that_only_has_to_be_concluded_completes_whatever_its_model_is_now(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = work.spec(40)

    def stopped(**_: Any) -> None:
        worker.shutdown.set()
        raise Stopped

    monkeypatch.setattr(generate, "conclude", stopped)
    worker = work.start()
    work.store.create(spec)
    worker.shutdown.wait(60)
    worker.stop()
    assert work.video(spec.id).state.status is not Status.COMPLETED
    monkeypatch.undo()
    changed = work.model()
    changed.sampler = replace(changed.sampler, chunk_latents=1)
    work.start(changed)
    video = work.wait(spec.id, "failed", "completed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert (video.state.chunks_ready, video.state.frames_ready) == (6, 40)


def test_a_shutdown_gives_the_video_back_and_the_next_worker_finishes_it_to_the_same_bytes(work: Any) -> None:
    undisturbed, disturbed = work.spec(120), work.spec(120)
    worker = work.start()
    work.store.create(undisturbed)
    work.wait(undisturbed.id, "completed")
    worker.stop()
    work.store.create(disturbed)
    waiting = work.spec(1)
    work.store.create(waiting)
    chunks = 0
    while chunks < 12:
        worker = work.start(work.model(step_seconds=0.01))
        chunks = work.wait(disturbed.id, "completed", chunks=chunks + 3).state.chunks_ready
        asked = time.monotonic()
        worker.stop()
        assert time.monotonic() - asked < 3
        video = work.store.get(disturbed.id)
        assert video is not None
        if video.state.status is not Status.COMPLETED:
            assert video.state.status is Status.QUEUED
            assert (video.state.attempts, video.state.worker) == (0, "")
            place = work.store.places([video])[disturbed.id]
            assert place.position == 0, "it stands in front of the one that came later"
        chunks = video.state.chunks_ready
    work.start()
    work.wait(disturbed.id, "completed")
    assert work.digests(disturbed.id) == work.digests(undisturbed.id)


def test_a_real_pipeline_continues_to_the_same_bytes_with_its_weights_loaded_anew(
    work: Any, tiny_folder: Path
) -> None:
    size = {"model": "tiny", "width": 32, "height": 32, "prompt": "a red circle"}
    undisturbed, disturbed = work.spec(100, **size), work.spec(100, **size)
    worker = work.start(load_model(str(tiny_folder)))
    work.store.create(undisturbed)
    work.wait(undisturbed.id, "completed")
    work.store.create(disturbed)
    for chunks in (3, 7):
        work.wait(disturbed.id, chunks=chunks)
        worker.stop()
        worker = work.start(load_model(str(tiny_folder)))
    video = work.wait(disturbed.id, "completed")
    assert video.state.attempts == 1
    assert work.digests(disturbed.id) == work.digests(undisturbed.id)


@pytest.mark.parametrize("damage", ["gone", "garbage", "latents gone", "all gone"])
def test_a_lost_checkpoint_costs_work_but_not_the_video(work: Any, damage: str) -> None:
    undisturbed, disturbed = work.spec(64), work.spec(64)
    model = work.model()
    worker = work.start(model)
    work.store.create(undisturbed)
    work.wait(undisturbed.id, "completed")
    model.step_seconds = 0.1  # the rest is to be made by the next worker
    work.store.create(disturbed)
    work.wait(disturbed.id, chunks=4)
    worker.stop()
    last = work.video(disturbed.id).state.checkpoint
    if damage == "gone":
        work.objects.delete(checkpoint_key(disturbed.id, last))
    elif damage == "garbage":
        work.objects.put(checkpoint_key(disturbed.id, last), b"\x00" * 40)
    elif damage == "latents gone":
        work.objects.delete(latents_key(disturbed.id, last))
    else:
        work.objects.delete_prefix(video_prefix(disturbed.id) + "checkpoints/")
    work.start()
    work.wait(disturbed.id, "completed")
    assert work.digests(disturbed.id) == work.digests(undisturbed.id)


def test_superseded_checkpoints_go_soon_but_not_at_once(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "KEEP_CHECKPOINT_SECONDS", 0.1)
    worker = work.start(work.model(step_seconds=0.01))
    spec = work.spec(24 * 600)
    work.store.create(spec)

    def kept() -> list[str]:
        return [key for key in keys(work.objects, spec.id) if key.startswith("checkpoints/")]

    for chunks in (30, 60):
        work.wait(spec.id, chunks=chunks)
        work.eventually(lambda: 2 <= len(kept()) < 25)
        worker.stop()
        video = work.video(spec.id)
        assert work.objects.exists(checkpoint_key(spec.id, video.state.checkpoint))
        worker = work.start(work.model(step_seconds=0.01))
    work.wait(spec.id, "in_progress")
    work.store.request_cancel(spec.id)
    last = work.wait(spec.id, "cancelled").state.checkpoint
    assert kept() == [f"checkpoints/{last:06d}.safetensors"]


def test_a_checkpoint_that_was_written_and_not_committed_is_not_taken_for_an_old_one(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = work.spec(200)
    last = -(-work.model.geometry.latents_for_frames(200) // work.model.sampler.chunk_latents) - 1
    commit, died = VideoStore.commit_chunk, threading.Event()

    def dies_before(store: Any, video: Any, fence: str, chunk: Any, **changes: Any) -> None:
        if chunk.index == last and not died.is_set():
            died.set()
            raise FenceLost(video.id)  # whatever ends the worker here, the checkpoint is in the store
        commit(store, video, fence, chunk, **changes)

    monkeypatch.setattr(VideoStore, "commit_chunk", dies_before)
    monkeypatch.setattr(pipeline, "KEEP_CHECKPOINT_SECONDS", 0.0)
    worker = work.start(lease_seconds=1.0)
    work.store.create(spec)
    assert died.wait(60)
    worker.stop()
    assert work.objects.exists(checkpoint_key(spec.id, last))
    work.start(lease_seconds=1.0)
    video = work.wait(spec.id, "completed")
    assert video.state.checkpoint == last
    assert work.objects.exists(checkpoint_key(spec.id, last)), "an extension begins there"


def test_a_full_disk_for_temporary_files_is_waited_for(
    work: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    full = threading.Event()
    full.set()
    scratch = pipeline.scratch_folder

    @contextmanager
    def refused() -> Iterator[Path]:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        with scratch() as folder:
            yield folder

    monkeypatch.setattr(pipeline, "scratch_folder", refused)
    work.start(max_attempts=1)
    spec = work.spec(40)
    work.store.create(spec)
    eventually(lambda: work.video(spec.id).state.stalled == "the worker's disk is full or read-only")
    full.clear()
    video = work.wait(spec.id, "completed", "failed")
    assert (video.state.status, video.state.attempts, video.state.stalled) == (Status.COMPLETED, 1, None)


def test_a_late_manifest_does_not_hide_an_end_that_clients_have_seen(
    work: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    spec = work.spec(2400)
    put, reached, opened, late = work.objects.put, threading.Event(), threading.Event(), threading.Event()
    armed = threading.Event()

    def slow(store: Any, key: str, data: Any) -> None:
        if key == manifest_key(spec.id) and armed.is_set() and not reached.is_set():
            reached.set()
            assert opened.wait(60)
            put.__func__(store, key, data)
            late.set()
        else:
            put.__func__(store, key, data)

    monkeypatch.setattr(type(work.objects), "put", slow)
    work.start(work.model(step_seconds=0.01))
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    armed.set()
    assert reached.wait(60)
    _, fence = work.store.claim(spec.id, "heir")
    work.start(work.model(step_seconds=0.01))
    work.store.request_cancel(spec.id)
    work.store.release(spec.id, fence, "heir:lease", count_attempt=True, standing="next")
    work.wait(spec.id, "cancelled")
    assert Manifest.from_json(work.objects.get(manifest_key(spec.id))).state.status is Status.CANCELLED
    opened.set()
    assert late.wait(60)

    def corrected() -> bool:
        kept = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
        return kept.state.status is Status.CANCELLED

    eventually(corrected)


def test_a_shutdown_just_behind_the_end_of_a_video_leaves_it_ended(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, given_back = threading.Event(), threading.Event()
    release = VideoStore.release

    def confirm(*_: Any) -> None:  # the record tells the end, the worker's thread has not come back from it
        ended.set()
        assert given_back.wait(60)

    def released(*given: Any, **named: Any) -> Any:
        try:
            return release(*given, **named)
        finally:
            given_back.set()

    monkeypatch.setattr(pipeline, "_confirm_end", confirm)
    monkeypatch.setattr(VideoStore, "release", released)
    worker = work.start()
    spec = work.spec(40)
    work.store.create(spec)
    assert ended.wait(60)
    before = work.video(spec.id)
    worker.stop()
    assert given_back.is_set()
    assert before.state.status is Status.COMPLETED
    assert work.video(spec.id) == before
    assert not work.store.redis.hexists(ACTIVE_KEY, spec.id)
    name = queue.queue_name(spec.model, spec.priority)
    assert work.store.redis.lrange(queue.waiting_key(name), 0, -1) == []
    assert work.store.redis.zcard(queue.leases_key(name)) == 0


@pytest.mark.parametrize("lacks", ["the version", "the encoder"])
@pytest.mark.parametrize("extends", [False, True])
def test_a_video_begun_by_a_newer_version_or_with_an_encoder_that_is_not_here_is_left_to_another_worker(
    work: Any, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, lacks: str, extends: bool
) -> None:
    monkeypatch.setattr(generate, "NOT_HERE_SECONDS", 0.05)
    here = dict(encode._CODECS)
    monkeypatch.setitem(encode._CODECS, "h264_nvenc", encode._CODECS["h264"])  # for as long as there is a GPU
    begun = work.start(work.model(step_seconds=0.02), codec="h264_nvenc")
    spec = work.spec(40 if extends else 400)
    work.store.create(spec)
    if extends:
        source = work.wait(spec.id, "completed")
        begun.stop()
        spec = work.spec(80, given_chunks=source.state.chunks_ready, extended_from=source.id)
        work.store.create(spec)
    else:
        work.wait(spec.id, chunks=2)
        begun.stop()
    known = work.video(spec.id).state
    if lacks == "the version":
        monkeypatch.setattr(checkpoint, "CHECKPOINT_SCHEMA", checkpoint.CHECKPOINT_SCHEMA - 1)
    else:
        monkeypatch.setattr(encode, "_CODECS", here)
    tried: list[str] = []
    claim = VideoStore.claim
    monkeypatch.setattr(
        VideoStore, "claim", lambda *args, **named: (tried.append(args[1]), claim(*args, **named))[1]
    )
    older = work.start(max_attempts=1)
    eventually(lambda: len(tried) > 3)
    older.stop()
    monkeypatch.undo()
    given_back = work.video(spec.id).state
    assert (given_back.status, given_back.attempts) == (Status.QUEUED, known.attempts)
    monkeypatch.setitem(encode._CODECS, "h264_nvenc", encode._CODECS["h264"])
    work.start()
    work.wait(spec.id, "completed")


def test_a_segment_that_is_missing_at_the_end_fails_the_video_with_a_code(work: Any) -> None:
    worker = work.start(work.model(step_seconds=0.1))
    spec = work.spec(100)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    worker.stop()
    assert work.video(spec.id).state.chunks_ready < 13
    work.objects.delete(chunk_key(spec.id, 0))
    work.start(max_attempts=1)
    video = work.wait(spec.id, "failed", "completed")
    assert video.state.error is not None
    assert video.state.error.code == "storage_error"
    assert video.state.chunks_ready == 13


class Moody:
    """An object store that refuses when told to; everything else goes to a real one."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.refusal: Exception | None = None
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.refusal is not None:
                self.refused += 1
                raise self.refusal
            return getattr(self.inner, name)(*args, **options)

        return call


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (StoreUnavailable("it does not answer"), "storage is not reachable"),
        (StoreFull("no space"), "disk is full"),
    ],
)
def test_a_store_that_goes_away_stops_the_sampler_and_costs_nothing(
    work: Any, monkeypatch: pytest.MonkeyPatch, refusal: Exception, reason: str
) -> None:
    moody = Moody(work.objects)
    monkeypatch.setattr(worker_main, "store_of", lambda settings: moody)
    model = work.model(step_seconds=0.005)
    work.start(model)
    undisturbed, disturbed = work.spec(120), work.spec(120)
    work.store.create(undisturbed)
    work.wait(undisturbed.id, "completed")
    model.hold_at = len(model.rows) + 12  # four chunks of sixteen
    work.store.create(disturbed)
    work.wait(disturbed.id, chunks=3)
    moody.refusal = refusal
    model.hold_at = None
    work.eventually(lambda: work.video(disturbed.id).state.stalled == reason)

    def standing_still() -> bool:
        forwards = len(model.rows)
        time.sleep(0.2)
        return len(model.rows) == forwards

    work.eventually(standing_still)
    assert any(
        data.get("stalled") == reason for kind, data in events(work.store, disturbed.id) if kind == "progress"
    )
    assert work.video(disturbed.id).state.status is Status.IN_PROGRESS
    moody.refusal = None
    video = work.wait(disturbed.id, "completed")
    assert video.state.stalled is None
    assert video.state.attempts == 1
    assert work.digests(disturbed.id) == work.digests(undisturbed.id)


def test_a_worker_stops_in_time_while_the_store_is_away(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moody = Moody(work.objects)
    monkeypatch.setattr(worker_main, "store_of", lambda settings: moody)
    worker = work.start(work.model(step_seconds=0.01))
    spec = work.spec(24 * 60)
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    moody.refusal = StoreUnavailable("it does not answer")
    work.eventually(lambda: moody.refused)
    worker.stop(5)
    # A worker that takes it up now waits for the checkpoint, and stops in time, too.
    worker = work.start()
    work.eventually(lambda: work.video(spec.id).state.stalled == "storage is not reachable")
    worker.stop(5)
    video = work.store.get(spec.id)
    assert video is not None
    assert (video.state.status, video.state.attempts) == (Status.QUEUED, 0)


def test_a_worker_that_lost_its_fence_commits_nothing(work: Any) -> None:
    model = work.model(step_seconds=0.01)
    work.start(model, control_seconds=5.0)  # it does not look; the commit itself must refuse
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    model.hold.clear()
    _, fence = work.store.claim(spec.id, "another")
    work.store.hold(spec, fence, f"{spec.id}:another", 60)
    ready = work.video(spec.id).state.chunks_ready
    model.hold.set()
    other = work.spec(1)
    work.store.create(other)
    work.wait(other.id, "completed")  # the slot has given up
    video = work.store.get(spec.id)
    assert video is not None
    assert (video.state.chunks_ready, video.state.worker) == (ready, "another")
    assert not work.store.controls(spec.id, fence).cancel_requested
    with pytest.raises(FenceLost):
        work.store.controls(spec.id, "an older fence")


def test_two_slots_make_two_videos_in_shared_forwards(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both, joined, add = threading.Barrier(2), [], Engine.add

    def together(engine: Engine, *arguments: Any, **options: Any) -> Track:
        both.wait(60)  # none is begun before the other can be
        joined.append(add(engine, *arguments, **options))
        return joined[-1]

    monkeypatch.setattr(Engine, "add", together)
    model = work.model(step_seconds=0.005)
    # Room for all chunks: a video whose chunks are not encoded in time would leave the other to go on alone.
    work.start(model, slots=2, stage_queue=16)
    first, second = work.spec(120), work.spec(120, seed=9)
    model.hold.clear()
    work.store.create(first)
    work.store.create(second)
    work.wait(first.id, "in_progress")
    work.wait(second.id, "in_progress")
    work.eventually(lambda: len(joined) == 2)
    model.hold.set()
    work.wait(first.id, "completed")
    work.wait(second.id, "completed")
    alone = model.sampler.forwards(16)
    assert model.rows.count(2) > alone // 2
    assert len(model.rows) < 2 * alone - alone // 2


def test_urgent_videos_come_first(work: Any) -> None:
    low, high = work.spec(1, priority="low"), work.spec(1, priority="high")
    work.store.create(low)
    work.store.create(high)
    work.start()
    assert work.wait(high.id, "completed").state.started_at < work.wait(low.id, "completed").state.started_at


def test_manifests_restore_a_running_video(work: Any) -> None:
    threads = threading.active_count()
    worker = work.start(work.model(step_seconds=0.01), manifest_seconds=0)
    spec = work.spec(24 * 600)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)

    def consistent() -> bool:
        manifest = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
        assert manifest.state.checkpoint is not None
        assert manifest.state.chunks_ready == len(manifest.chunks) == manifest.state.checkpoint + 1
        return work.objects.exists(checkpoint_key(spec.id, manifest.state.checkpoint))

    for _ in range(5):
        work.eventually(consistent)
    worker.stop()
    work.eventually(lambda: threading.active_count() <= threads)
    assert isinstance(work.objects, FilesystemStore)
