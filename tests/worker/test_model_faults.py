"""Models that run out of memory, make black pictures, or hang: the video gets a clear code, the next one runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from app.jobs.job import Status
from app.jobs.manifest import Manifest
from app.jobs.store import events_key
from app.storage.objects import latents_key, manifest_key
from worker import main as worker_main
from worker.checkpoint import unpack_latents
from worker.devices import device_failed, ran_out_of_memory
from worker.generate import fault
from worker.media.encode import EncodingError
from worker.models.base import InvalidOutput
from worker.pipeline import BLACK_LEVEL, BlackFrames, StageError, is_black


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def no_memory() -> RuntimeError:
    """What PyTorch says when it asks a CPU for too much."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


def test_every_way_to_run_out_of_memory_is_known_as_such() -> None:
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        no_memory(),
        RuntimeError("CUDA error: out of memory"),
    ):
        assert ran_out_of_memory(error)
        assert fault(error)[0] == "out_of_memory"
        assert fault(caused(StageError("decode"), error))[0] == "out_of_memory"
        assert fault(caused(StageError("encode"), caused(EncodingError("x"), error)))[0] == "out_of_memory"
    for other in (
        RuntimeError("shapes differ"),
        ValueError("x"),
        caused(StageError("decode"), KeyError("x")),
    ):
        assert not ran_out_of_memory(other)


def test_every_way_of_a_gpu_to_fail_is_known_as_such() -> None:
    for error in (
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ):
        assert device_failed(error)
        assert fault(error)[0] == "gpu_error"
        assert fault(caused(StageError("decode"), error))[0] == "gpu_error"
    for other in (
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("shapes differ"),
        ValueError("CUDA error"),
    ):
        assert not device_failed(other)


def test_faults_have_codes_and_messages_without_details() -> None:
    for error, code in (
        (BlackFrames("chunks 3 to 5"), "black_frames"),
        (InvalidOutput("/secret"), "invalid_output"),
        (caused(StageError("decode"), RuntimeError("/secret")), "model_error"),
        (caused(StageError("upload"), KeyError("/secret")), "internal_error"),
    ):
        found, message = fault(error)
        assert found == code
        assert "/secret" not in message


def test_black_is_no_pixel_above_the_level_wherever_it_is() -> None:
    frames = np.full((4, 48, 64, 3), BLACK_LEVEL, np.uint8)
    assert is_black(frames)
    for place in ((0, 0, 0, 0), (3, 47, 63, 2), (1, 5, 7, 1)):
        lit = frames.copy()
        lit[place] = BLACK_LEVEL + 1
        assert not is_black(lit)


def test_a_process_that_ran_out_of_memory_hands_over_and_is_replaced(work: Any) -> None:
    long, greedy, after = work.spec(400), work.spec(prompt="memory"), work.spec(1)
    expected = work.spec(400)
    worker = work.process({"step_seconds": 0.1}, slots=2, max_attempts=2)
    work.store.create(long)
    held_by = work.wait(long.id, chunks=1).state.worker
    work.store.create(greedy)
    assert worker.process.wait(60) == worker_main.EXIT_OUT_OF_MEMORY
    assert "ran out of memory; ending this process" in worker.words
    handed = work.video(long.id)
    assert (handed.state.status, handed.state.attempts, handed.state.worker) == (Status.QUEUED, 0, "")
    assert work.video(greedy.id).state.status is Status.QUEUED
    work.store.create(after)
    # What supervisors do: the next process goes on, and ends in the same way.
    worker = work.process({"step_seconds": 0.02}, slots=2, max_attempts=2)
    video = work.wait(greedy.id, "failed")
    assert (video.state.error.code, video.state.attempts) == ("out_of_memory", 2)
    assert worker.process.wait(60) == worker_main.EXIT_OUT_OF_MEMORY
    work.start()
    work.wait(after.id, "completed")
    assert work.wait(long.id, "completed").state.worker != held_by
    work.store.create(expected)
    work.wait(expected.id, "completed")
    assert len(work.digests(long.id)) == len(work.digests(expected.id))


def test_a_process_whose_gpu_failed_costs_one_video_an_attempt_and_is_replaced(work: Any) -> None:
    long, bad, waiting = work.spec(400), work.spec(prompt="gpu", width=32), work.spec(1)
    worker = work.process({"step_seconds": 0.1}, slots=2, max_attempts=2)
    work.store.create(long)
    work.wait(long.id, chunks=1)
    work.store.create(bad)
    work.store.create(waiting)
    assert worker.process.wait(60) == worker_main.EXIT_GPU_FAILED
    assert "the GPU failed; ending this process" in worker.words
    attempts = [work.video(spec.id).state.attempts for spec in (long, bad, waiting)]
    assert attempts == [0, 1, 0]
    assert {work.video(spec.id).state.status for spec in (long, bad, waiting)} == {Status.QUEUED}
    worker = work.process({"step_seconds": 0.02}, slots=2, max_attempts=2)
    video = work.wait(bad.id, "failed")
    assert (video.state.error.code, video.state.attempts) == ("gpu_error", 2)
    assert worker.process.wait(60) == worker_main.EXIT_GPU_FAILED
    work.start()
    for spec in (long, waiting):
        assert work.wait(spec.id, "completed").state.attempts == 1


def test_nothing_but_black_fails_the_video_and_no_black_chunk_is_shown(work: Any) -> None:
    model = work.model(step_seconds=0.01)
    work.start(model, max_attempts=2, black_chunks=3)
    spec, other = work.spec(2400), work.spec(40)
    work.store.create(spec)
    work.wait(spec.id, chunks=2)
    model.black = True
    video = work.wait(spec.id, "failed")
    assert video.state.error.code == "black_frames"
    assert video.state.attempts == 3, "the first made chunks, two more came no further"
    assert len(work.digests(spec.id)) == video.state.chunks_ready + 1
    black = work.store.chunks(spec.id)[-1].bytes
    assert black > work.store.chunks(spec.id)[1].bytes // 2, "the last chunk has a picture"
    manifest = Manifest.from_json(work.objects.get(manifest_key(spec.id)))
    assert manifest.state == video.state.model_copy(
        update={
            name: getattr(manifest.state, name)
            for name in ("forwards_done", "seconds_per_forward", "forwards_total", "chunks_total")
        }
    )
    (_, last), *_ = work.store.redis.xrevrange(events_key(spec.id), count=1)
    assert json.loads(last[b"data"])["error"]["code"] == "black_frames"
    model.black = False
    work.store.create(other)
    work.wait(other.id, "completed")


@pytest.mark.parametrize(("black_chunks", "frames"), [(0, 60), (20, 60)])
def test_black_is_a_picture_where_the_operator_says_so_or_where_it_is_short(
    work: Any, black_chunks: int, frames: int
) -> None:
    model = work.model()
    model.black = True
    work.start(model, black_chunks=black_chunks)
    spec = work.spec(frames)
    work.store.create(spec)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED
    assert video.state.frames_ready == frames


def test_a_decoder_that_hangs_ends_the_process_too(work: Any) -> None:
    spec = work.spec()
    work.store.create(spec)
    worker = work.process({"decode_seconds": 3600.0}, stall_seconds=0.5)
    assert worker.process.wait(60) == worker_main.EXIT_STALLED
    assert "a decoder or encoder has been at one chunk" in worker.words
    work.start()
    work.wait(spec.id, "completed")


def test_a_decoder_that_hangs_while_a_video_is_resumed_ends_the_process_too(work: Any) -> None:
    spec = work.spec(2400)
    worker = work.start(work.model(step_seconds=0.05))
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    worker.stop()
    process = work.process({"decode_seconds": 3600.0}, stall_seconds=0.5).process
    assert process.wait(60) == worker_main.EXIT_STALLED


def test_videos_that_take_turns_show_no_black_chunk_and_fail_when_all_is_black(work: Any) -> None:
    model = work.model(step_seconds=0.002)
    model.black = True
    work.start(model, max_attempts=2, black_chunks=3, turn_seconds=0.0)
    specs = [work.spec(480), work.spec(480)]
    for spec in specs:
        work.store.create(spec)
    for spec in specs:
        video = work.wait(spec.id, "completed", "failed")
        assert (video.state.status, video.state.chunks_ready) == (Status.FAILED, 0)
        assert video.state.error.code == "black_frames"


def test_a_short_black_scene_is_part_of_the_video_also_where_turns_are_as_short(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = work.model(step_seconds=0.002)
    decode = work.stand_in.StandInDecoder._next

    def dark_in_between(decoder: Any, latent: Any) -> Any:
        frames = decode(decoder, latent)
        return frames * 0 if any(torch.equal(latent, known) for known in blackened) else frames

    first = work.spec(240)
    worker = work.start(model)
    work.store.create(first)
    work.wait(first.id, "completed")
    worker.stop()
    scene = [unpack_latents(work.objects.get(latents_key(first.id, chunk))) for chunk in (4, 5)]
    blackened = [latents[0, :, place] for latents in scene for place in range(latents.shape[2])]

    monkeypatch.setattr(work.stand_in.StandInDecoder, "_next", dark_in_between)
    work.start(model, max_attempts=2, black_chunks=3, turn_seconds=0.0)
    specs = [work.spec(240), work.spec(240)]
    for spec in specs:
        work.store.create(spec)
    for spec in specs:
        video = work.wait(spec.id, "completed", "failed")
        assert (video.state.status, video.state.frames_ready) == (Status.COMPLETED, 240)
