"""The loss of Redis: what the bucket alone gives back. Workers, Redis and objects are real, the model a stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from app.embedded import EmbeddedRedis
from app.jobs import queue
from app.jobs.job import Status
from app.jobs.manifest import Manifest
from app.jobs.store import ACTIVE_KEY, Restored, events_key, video_key
from app.recover import Found, recover
from app.schemas import chunk_object
from app.storage.objects import chunk_key, final_key, init_key, manifest_key, video_prefix
from worker.media.assemble import probe


def run_recover(work: Any, **options: Any) -> dict[str, Found]:
    """Recovers, and returns what became of each video in the order in which it was told."""
    found: list[Found] = []
    recover(work.store, work.objects, tell=found.append, **options)
    assert len({one.video_id for one in found}) == len(found)
    return {one.video_id: one for one in found}


def outcomes(found: dict[str, Found]) -> dict[str, Any]:
    return {video_id: one.outcome for video_id, one in found.items()}


def made(work: Any, spec: Any, *states: str, chunks: int | None = None) -> Any:
    work.store.create(spec)
    return work.wait(spec.id, *states, chunks=chunks)


def everything(work: Any) -> dict[str, str]:
    """SHA-256 of every object in the bucket."""
    return {
        info.key: hashlib.sha256(work.objects.get(info.key)).hexdigest()
        for info in work.objects.list("videos/")
    }


def told(work: Any, video_id: str) -> list[tuple[str, dict[str, Any]]]:
    entries = work.store.redis.xrange(events_key(video_id))
    return [(fields[b"type"].decode(), json.loads(fields[b"data"])) for _, fields in entries]


def waiting(work: Any, spec: Any) -> list[str]:
    key = queue.waiting_key(queue.queue_name(spec.model, spec.priority))
    return [i.decode() for i in work.store.redis.lrange(key, 0, -1)]


def kept(work: Any, video_id: str) -> Manifest:
    return Manifest.from_json(work.objects.get(manifest_key(video_id)))


def rewrite(work: Any, video_id: str, **changes: Any) -> None:
    """Changes the state that a manifest tells."""
    manifest = kept(work, video_id)
    state = manifest.state.model_copy(update=changes)
    work.objects.put(manifest_key(video_id), manifest.model_copy(update={"state": state}).to_json())


def test_the_bucket_alone_gives_back_every_record_and_unfinished_videos_go_on_to_the_same_bytes(
    work: Any,
) -> None:
    worker = work.start(max_attempts=1, keep_seconds=3600.0)
    completed = made(work, work.spec(40, metadata={"scene": "12"}, owner="key_1"), "completed")
    failed = made(work, work.spec(40, prompt="nan"), "failed")
    expected = work.digests(made(work, work.spec(200), "completed").id)
    deleted = made(work, work.spec(1), "completed")
    work.objects.delete_prefix(video_prefix(deleted.id))
    work.store.delete(deleted)
    worker.stop()
    cut, urgent, paused = (work.spec(200), work.spec(200, priority="high"), work.spec(200))
    for spec in (cut, urgent, paused):
        # The manifest is written when a worker takes the video, and then not for a long time: it is far behind.
        worker = work.start(work.model(step_seconds=0.05), manifest_seconds=600.0)
        made(work, spec, chunks=2)
        worker.stop()
        work.store.redis.hdel(ACTIVE_KEY, spec.id)
        work.store.redis.delete(*[queue.waiting_key(name) for name in queue.queue_names("stand-in")])
    worker = work.start(work.model(step_seconds=0.01))
    made(work, cancelled := work.spec(2400), chunks=2)
    work.store.request_cancel(cancelled.id)
    work.wait(cancelled.id, "cancelled")
    worker.stop()
    rewrite(work, paused.id, status=Status.PAUSED)
    ended = [completed, failed, work.video(cancelled.id)]
    chunks = {video.id: work.store.chunks(video.id) for video in ended}
    committed = {spec.id: work.store.chunks(spec.id) for spec in (cut, urgent, paused)}
    objects = everything(work)
    assert kept(work, cut.id).state.chunks_ready < len(committed[cut.id])

    work.store.redis.flushall()
    assert run_recover(work, dry_run=True).keys() >= {completed.id, cut.id}
    assert work.store.redis.dbsize() == 0
    found = run_recover(work)
    assert {i: o for i, o in outcomes(found).items() if i in {video.id for video in ended}} == dict.fromkeys(
        chunks, Restored.ENDED
    )
    assert [i for i in found if i in committed] == list(found)[-3:], "those that have ended come first"
    assert outcomes(found) | {
        cut.id: Restored.QUEUED,
        urgent.id: Restored.QUEUED,
        paused.id: Restored.PAUSED,
    } == outcomes(found)
    assert not any(one.problem for one in found.values())
    assert deleted.id not in found

    def lasting(video: Any) -> Any:
        """A video without what was measured while it ran, which goes on after the last manifest."""
        measured = dict.fromkeys(("forwards_done", "forwards_total", "chunks_total", "seconds_per_forward"))
        return video.model_copy(update={"state": video.state.model_copy(update=measured)})

    for video in ended:
        assert lasting(work.video(video.id)) == lasting(video)
        assert work.store.chunks(video.id) == chunks[video.id]
        assert not work.store.redis.hexists(ACTIVE_KEY, video.id)
        kinds = [kind for kind, _ in told(work, video.id)]
        assert kinds == ["status", *["chunk"] * len(chunks[video.id]), video.state.status]
        wire = [chunk_object(video.id, chunk, 24).model_dump(mode="json") for chunk in chunks[video.id]]
        assert [data for kind, data in told(work, video.id) if kind == "chunk"] == wire
    assert completed.state.expires_at == completed.state.completed_at + 3600
    assert [video.id for video in work.store.page("key_1", limit=9)[0]] == [completed.id]
    assert (waiting(work, cut), waiting(work, urgent)) == ([cut.id], [urgent.id])
    assert set(outcomes(run_recover(work)).values()) == {Restored.KEPT}
    assert (waiting(work, cut), waiting(work, urgent)) == ([cut.id], [urgent.id])
    assert everything(work) == objects, "nothing is written to the bucket"

    work.start()
    work.wait(urgent.id, "completed")
    work.wait(cut.id, "completed")
    assert work.video(urgent.id).state.started_at is not None
    for spec in (cut, urgent):
        assert work.digests(spec.id) == expected
        assert [c.sha256 for c in work.store.chunks(spec.id)][: len(committed[spec.id])] == [
            c.sha256 for c in committed[spec.id]
        ]
    assert work.video(paused.id).state.status is Status.PAUSED
    untouched = [video.id for video in ended] + [paused.id]
    now = everything(work)
    assert {k: v for k, v in objects.items() if k.split("/")[1] in untouched} == {
        k: v for k, v in now.items() if k.split("/")[1] in untouched
    }


def test_a_working_service_is_not_disturbed_and_newer_records_stay(work: Any) -> None:
    model = work.model(step_seconds=0.01)
    model.hold_at = 80  # of 106: for 38 of its 51 chunks, so that the other video waits as long as this looks
    work.start(model, manifest_seconds=600.0)
    running, behind = work.spec(400), work.spec(40)
    made(work, running, chunks=4)
    work.store.create(behind)
    end, ready = time.monotonic() + 60.0, 0
    while ready < 38:
        assert time.monotonic() < end
        ready = work.video(running.id).state.chunks_ready
        found = run_recover(work)
        assert outcomes(found)[running.id] is Restored.KEPT
        assert behind.id not in found, "it has no manifest: no worker has begun it"
    model.hold_at = None
    work.wait(behind.id, "completed")
    video = work.wait(running.id, "completed")
    assert video.state.attempts == 1
    kinds = [kind for kind, _ in told(work, running.id)]
    assert kinds.count("chunk") == video.state.chunks_ready


def test_a_redis_that_came_back_from_an_old_copy_learns_what_happened_since(work: Any) -> None:
    model = work.model(step_seconds=0.01)
    model.hold_at = 8  # the copy is of a video that has made two chunks at most
    worker = work.start(model, manifest_seconds=0)
    ended, going = work.spec(60, webhook_url="https://hooks.example/ended"), work.spec(400)
    made(work, ended, chunks=1)
    copies = {ended.id: work.store.redis.hgetall(video_key(ended.id))}
    model.hold_at = None
    work.wait(ended.id, "completed")
    model.step_seconds = 0.05
    made(work, going, chunks=1)
    copies[going.id] = work.store.redis.hgetall(video_key(going.id))
    work.wait(going.id, chunks=6)
    work.eventually(lambda: kept(work, going.id).state.chunks_ready >= 6)
    worker.stop()
    after = {spec.id: work.video(spec.id) for spec in (ended, going)}
    for spec in (ended, going):
        work.store.redis.delete(video_key(spec.id))
        work.store.redis.hset(video_key(spec.id), mapping=copies[spec.id])
        work.store.redis.ltrim(f"{video_key(spec.id)}:chunks", 0, 0)
        work.store.redis.hset(ACTIVE_KEY, spec.id, queue.queue_name(spec.model, spec.priority))
    (sent,) = work.store.deliveries.page(ended.id, limit=2)[0]
    pipe = work.store.redis.pipeline()
    work.store.deliveries.drop(pipe, ended.id)
    pipe.execute()
    before = {
        spec.id: work.store.redis.xinfo_stream(events_key(spec.id))["last-generated-id"]
        for spec in (ended, going)
    }
    assert outcomes(run_recover(work)) == {ended.id: Restored.ENDED, going.id: Restored.QUEUED}
    assert work.video(ended.id) == after[ended.id]
    (again,) = work.store.deliveries.page(ended.id, limit=2)[0]
    assert (again.delivery.id, again.delivery.type) == (sent.delivery.id, "video.completed"), (
        "its owner is told of the end"
    )
    assert work.video(going.id).state.chunks_ready == len(work.store.chunks(going.id)) >= 6
    for video_id, last in before.items():
        first = work.store.redis.xrange(events_key(video_id), count=1)[0][0]
        assert tuple(map(int, first.split(b"-"))) > tuple(map(int, last.split(b"-"))), "no watcher misses one"
    assert waiting(work, going) == [going.id]
    work.start()
    work.wait(going.id, "completed")


def test_a_begun_video_that_is_cancelled_in_line_ends_as_a_file_and_never_runs_again(
    work: Any, tmp_path: Any
) -> None:
    worker = work.start(work.model(step_seconds=0.01), manifest_seconds=0)
    spec, other = work.spec(2400), work.spec(2400)
    made(work, spec, chunks=3)
    work.store.create(other)
    worker.stop()
    in_line = queue.waiting_key(queue.queue_name("stand-in", "normal"))
    work.store.redis.rpush(in_line, work.store.redis.lpop(in_line))
    assert waiting(work, spec) == [other.id, spec.id]
    asked = work.store.request_cancel(spec.id)
    assert (asked.state.status, asked.state.cancel_requested) == (Status.QUEUED, True)
    assert waiting(work, spec) == [spec.id, other.id], "it is the next to be looked at"
    model = work.model()
    work.start(model)
    video = work.wait(spec.id, "cancelled")
    assert video.state.chunks_ready >= 3
    path = tmp_path / "part.mp4"
    path.write_bytes(work.objects.get(final_key(spec.id)))
    assert probe(path).frames == video.state.frames_ready
    assert [kind for kind, _ in told(work, spec.id)][-1] == "cancelled"
    work.store.request_cancel(other.id)
    work.wait(other.id, "cancelled")
    work.store.redis.flushall()
    assert set(outcomes(run_recover(work)).values()) == {Restored.ENDED}
    assert work.video(spec.id) == video


def test_a_wish_to_cancel_outlives_redis(work: Any) -> None:
    worker = work.start(work.model(step_seconds=0.01), manifest_seconds=0)
    spec = work.spec(2400)
    made(work, spec, chunks=3)
    work.eventually(lambda: kept(work, spec.id).chunks)
    worker.stop()
    rewrite(work, spec.id, cancel_requested=True, status=Status.PAUSED)
    work.store.redis.flushall()
    assert outcomes(run_recover(work)) == {spec.id: Restored.QUEUED}
    model = work.model()
    work.start(model)
    work.wait(spec.id, "cancelled")
    assert model.rows == [], "not one forward"
    assert work.objects.exists(final_key(spec.id))


def test_a_video_that_was_paused_while_it_ran_stays_paused(work: Any) -> None:
    worker = work.start(work.model(step_seconds=0.02), manifest_seconds=600.0)
    spec = work.spec(2400)
    made(work, spec, chunks=2)
    work.store.request_pause(spec.id)
    paused = work.wait(spec.id, "paused")
    worker.stop()
    assert kept(work, spec.id).state.chunks_ready == paused.state.chunks_ready
    work.store.redis.flushall()
    assert outcomes(run_recover(work)) == {spec.id: Restored.PAUSED}
    assert work.video(spec.id).state.status is Status.PAUSED
    assert waiting(work, spec) == []


def test_a_worker_whose_redis_was_emptied_and_restored_hands_its_video_over(work: Any) -> None:
    expected = work.spec(200)
    spec = work.spec(200)
    worker = work.start(work.model(step_seconds=0.01), manifest_seconds=0)
    work.store.create(expected)
    work.wait(expected.id, "completed")
    made(work, spec, chunks=3)
    work.store.redis.flushall()
    run_recover(work)
    work.eventually(work.store.models)  # the worker tells the new Redis about itself
    work.wait(spec.id, "completed")
    assert work.digests(spec.id) == work.digests(expected.id)
    worker.stop()


def test_what_cannot_be_restored_is_named_and_left_alone(work: Any) -> None:
    work.start()
    specs = [work.spec(40) for _ in range(6)]
    for spec in specs:
        made(work, spec, "completed")
    good, chunkless, garbage, newer, foreign, orphan = (spec.id for spec in specs)
    work.objects.delete(chunk_key(chunkless, 1))
    work.objects.delete(init_key(chunkless))
    work.objects.put(manifest_key(garbage), b"{")
    data = json.loads(work.objects.get(manifest_key(newer)))
    work.objects.put(manifest_key(newer), json.dumps(data | {"schema_version": 99}).encode())
    work.objects.put(manifest_key(foreign), work.objects.get(manifest_key(good)))
    work.objects.delete(manifest_key(orphan))
    work.store.redis.flushall()
    found = run_recover(work)
    assert (found[good].outcome, found[good].problem) == (Restored.ENDED, "")
    assert found[chunkless].outcome is Restored.ENDED, "what there is of it is served"
    assert found[chunkless].problem == "files are missing or cut short: chunks/000001.m4s, init.mp4"
    for video_id, words in (
        (garbage, "damaged"),
        (newer, "version 99"),
        (foreign, good),
        (orphan, "no manifest"),
    ):
        assert found[video_id].outcome is None
        assert words in found[video_id].problem
        assert work.store.get(video_id) is None
    # A record that was damaged in Redis comes back whole.
    work.store.redis.hset(video_key(good), "spec", "{")
    assert run_recover(work)[good].outcome is Restored.ENDED
    assert work.video(good).state.status is Status.COMPLETED


def test_a_video_that_was_deleted_does_not_come_back_with_files_that_were_left(work: Any) -> None:
    work.start()
    video = made(work, work.spec(5), "completed")
    work.store.delete(video)
    assert outcomes(run_recover(work)) == {video.id: Restored.DELETED}
    assert work.store.get(video.id) is None


def test_the_command_tells_each_video_and_exits_1_when_one_needs_a_person(
    work: Any, own_redis: EmbeddedRedis
) -> None:
    work.use(own_redis.url)
    work.start()
    whole, broken = made(work, work.spec(5), "completed"), made(work, work.spec(5), "completed")
    own_redis.kill()
    shutil.rmtree(own_redis.folder)
    settings = work.settings()
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGTAKE_")}
    env |= {"LONGTAKE_REDIS_URL": own_redis.url, "LONGTAKE_STORAGE_URL": settings.resolved_storage_url}

    def command(*arguments: str, **more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", "recover", *arguments],
            env=env | more, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, _, error = command()
    assert (code, error.count("\n")) == (1, 1)
    assert "Redis is not reachable" in error
    own_redis.start()
    code, said, _ = command("--dry-run")
    assert (code, work.store.get(whole.id)) == (0, None)
    assert f"{whole.id}  restored (completed, 1 chunk)\n" in said
    assert said.endswith("would be: 2 restored\n")
    work.objects.put(manifest_key(broken.id), b"")
    code, said, _ = command("--quiet")
    assert code == 1
    assert (
        said
        == f"{broken.id}  left alone: the manifest: The record is damaged.\n1 restored, 1 with a problem\n"
    )
    assert work.video(whole.id) == whole
    code, _, error = command(LONGTAKE_REDIS_URL="")
    assert code != 0
    assert command(LONGTAKE_STORAGE_URL="ftp://x")[0] == 2


@pytest.mark.parametrize("moment", ["waiting", "running"])
def test_a_worker_leaves_a_record_of_a_newer_version_to_others(work: Any, moment: str) -> None:
    newer, other = work.spec(2400), work.spec(1)
    work.store.create(newer)
    if moment == "running":
        work.start(work.model(step_seconds=0.01))
        work.wait(newer.id, chunks=1)
    fields = json.loads(work.store.redis.hget(video_key(newer.id), "spec")) | {"schema_version": 99}
    work.store.redis.hset(video_key(newer.id), "spec", json.dumps(fields))
    work.store.create(other)
    if moment == "waiting":
        work.start()
    work.wait(other.id, "completed")  # the slot is free
    status = b'"queued"' if moment == "waiting" else b'"in_progress"'
    assert work.store.redis.hget(video_key(newer.id), "status") == status
    assert work.store.redis.hexists(ACTIVE_KEY, newer.id), "a worker that can read it will find it lost"
    assert waiting(work, newer) == []
    redis = work.store.redis
    work.eventually(lambda: not any(redis.zcard(key) for key in redis.keys("rq:wip:*")))
