"""Videos that begin with something given: an upload, or an earlier video. The model is a stand-in; all else is real."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
import torch
from redis.exceptions import ConnectionError as RedisConnectionError

from app.jobs.job import PendingPrompt, Reference, Status, TimedPrompt, Video, VideoSpec, new_video_id
from app.storage.objects import chunk_key, final_key, latents_key, reference_key, video_prefix
from worker.checkpoint import unpack_latents
from worker.sampler.window import SamplerConfig, WindowState

GIVEN = 2
GIVEN_FRAMES = 13
"""Frames of two chunks of the stand-in: 1 + 3 * 4."""


def clip(frames: int = GIVEN_FRAMES, size: int = 16) -> np.ndarray:
    """A bright bar that moves down a dark picture."""
    pictures = np.full((frames, size, size, 3), 40, np.uint8)
    for number in range(frames):
        pictures[number, number % size, :, :2] = 220
    return pictures


def lossless(frames: np.ndarray) -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def with_reference(work: Any, frames: int = 40, **fields: Any) -> VideoSpec:
    """A video whose reference is in the store; not yet created."""
    reference = Reference(kind="video", width=64, height=64, frames=GIVEN_FRAMES, sha256="0" * 64)
    spec: VideoSpec = work.spec(frames, reference=reference, given_chunks=GIVEN, **fields)
    work.objects.put(reference_key(spec.id), lossless(clip()))
    return spec


def extension(source: Video, frames: int, prompt: str = "a square", **fields: Any) -> VideoSpec:
    changes = {
        "id": new_video_id(),
        "created_at": time.time(),
        "frames": frames,
        "seconds": frames / 24,
        "prompts": (*source.spec.prompts, TimedPrompt(at=source.state.frames_ready / 24, text=prompt)),
        "extended_from": source.id,
        "given_chunks": source.state.chunks_ready,
    }
    return source.spec.model_copy(update=changes | fields)


def times(data: bytes) -> list[Fraction]:
    with av.open(BytesIO(data)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def pictures(data: bytes) -> np.ndarray:
    with av.open(BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def finished(work: Any, spec: VideoSpec) -> Video:
    video: Video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert times(work.objects.get(final_key(spec.id))) == [Fraction(n, 24) for n in range(spec.frames)]
    return video


def latents(work: Any, video_id: str, chunk: int) -> torch.Tensor:
    return unpack_latents(work.objects.get(latents_key(video_id, chunk)))


# -- the window ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"sink": True}, {"constant_shape": True, "sink": True}, {"context_sigma": 0.1}]
)
@pytest.mark.parametrize("given", [1, 2, 5])
def test_a_window_behind_given_chunks_has_the_past_of_one_that_made_them(
    options: dict[str, Any], given: int
) -> None:
    config = SamplerConfig(2, 3, 2, 1, 3.0, 1.0, **options)
    made = WindowState.start(config, 5, (3, 2, 2), total=given)
    chunks = []
    while not made.done:
        emitted = made.advance(torch.zeros(1, *made.shape) - made.view().latents)
        if emitted is not None:
            chunks.append(emitted.latents)
    asked: list[int] = []

    def load(number: int) -> torch.Tensor:
        asked.append(number)
        return chunks[number]

    state = WindowState.start_after(config, 5, (3, 2, 2), given=given, load=load, total=given + 4)
    assert torch.equal(state.context, made.context)
    assert torch.equal(state.sink, made.sink)
    assert (state.known_latents, state.next_chunk) == (made.known_latents, given + 1)
    assert [chunk.number for chunk in state.active] == [given]
    assert state.forwards_total == config.forwards(4)
    assert len(asked) <= config.kept_context_latents // 2 + 1
    whole = WindowState.start_after(config, 5, (3, 2, 2), given=given, load=load, total=given)
    assert whole.done
    assert whole.forwards_left == 0


def test_a_window_refuses_given_chunks_that_do_not_fit() -> None:
    config = SamplerConfig(2, 3, 2, 1, 3.0, 1.0)
    good = torch.zeros(1, 3, 2, 2, 2)
    for given, total, latent in [(0, 3, good), (4, 3, good), (1, 3, good[:, :, :1]), (1, 3, good[:, :2])]:
        with pytest.raises(ValueError, match=r"given|latents"):
            WindowState.start_after(
                config, 0, (3, 2, 2), given=given, load=lambda _, latent=latent: latent, total=total
            )


# -- from an upload -----------------------------------------------------------------------------------------


def test_a_video_begins_with_the_upload_and_goes_on(work: Any) -> None:
    work.start()
    spec, plain = with_reference(work), work.spec(40)
    work.store.create(spec)
    work.store.create(plain)
    video = finished(work, spec)
    finished(work, plain)
    encoded = work.model().encode_video(clip())
    for number in range(GIVEN):
        assert torch.equal(latents(work, spec.id, number), encoded[:, :, 2 * number : 2 * number + 2])
    expected = work.model().open_decoder().push(encoded)
    shown = pictures(work.objects.get(final_key(spec.id)))
    assert np.abs(shown[:GIVEN_FRAMES].astype(int) - expected).mean() < 6  # what the codec loses
    # Four of the six chunks were sampled, and differently than without a past.
    assert video.state.forwards_done == video.state.forwards_total == 2 * (4 + 3 - 1)
    assert not torch.equal(latents(work, spec.id, 2), latents(work, plain.id, 2))
    assert video.state.first_chunk_at is not None


def test_a_start_that_was_interrupted_anywhere_goes_on_to_the_same_bytes(work: Any, monkeypatch: Any) -> None:
    """The worker is stopped after each chunk in turn, in the given part and beyond."""
    from app.jobs.store import VideoStore

    whole = with_reference(work)
    first = work.start()
    work.store.create(whole)
    finished(work, whole)
    source = work.video(whole.id)
    longer = extension(source, 70)
    work.store.create(longer)
    finished(work, longer)
    first.stop()

    shutdown: list[threading.Event] = []
    real = VideoStore.commit_chunk

    def commit(store: Any, *arguments: Any, **changes: Any) -> None:
        if shutdown[0].is_set():  # what comes while it stops: a chunk a start, however quick it is
            raise RedisConnectionError
        real(store, *arguments, **changes)
        shutdown[0].set()

    monkeypatch.setattr(VideoStore, "commit_chunk", commit)
    again = with_reference(work)
    extended = extension(source, 70)
    for spec in (again, extended):
        work.store.create(spec)
        starts = 0
        while starts < 40:
            worker = work.start()
            shutdown[:] = [worker.shutdown]
            worker._thread.join(60)
            assert not worker._thread.is_alive()
            starts += 1
            if work.video(spec.id).state.chunks_ready == -(-(spec.frames + 3) // 8):
                break
        assert starts > GIVEN + 2  # it was stopped in the given part and beyond
    monkeypatch.undo()
    work.start()
    finished(work, again)
    finished(work, extended)
    assert work.digests(again.id) == work.digests(whole.id)
    assert work.digests(extended.id) == work.digests(longer.id)


@pytest.mark.parametrize(
    ("stored", "code"), [(None, "reference_gone"), (b"no video", "start_damaged"), ("short", "start_damaged")]
)
def test_a_reference_that_is_lost_ends_the_video_with_a_reason(work: Any, stored: Any, code: str) -> None:
    spec = with_reference(work)
    if stored is None:
        work.objects.delete(reference_key(spec.id))
    else:
        work.objects.put(reference_key(spec.id), lossless(clip(5)) if stored == "short" else stored)
    work.start()
    work.store.create(spec)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.error is not None
    assert video.state.error.code == code


# -- from an earlier video ----------------------------------------------------------------------------------


@pytest.fixture
def source(work: Any) -> Video:
    """A finished video whose last chunk was cut to 3 of 8 frames."""
    work.start()
    spec = work.spec(40)
    work.store.create(spec)
    return finished(work, spec)


def test_an_extension_begins_with_the_source_and_has_no_seam(work: Any, source: Video) -> None:
    spec = extension(source, 90)
    work.store.create(spec)
    video = finished(work, spec)
    assert video.state.chunks_ready == 12
    assert video.state.forwards_total == 2 * (6 + 3 - 1)
    before, after = work.digests(source.id), work.digests(spec.id)
    assert after[:6] == before[:6]  # the initialisation segment, and all chunks but the last as they were
    assert after[6] != before[6]
    records = work.store.chunks(spec.id)
    assert [record.frames for record in records] == [5, *[8] * 10, 5]
    for number in range(6):
        assert torch.equal(latents(work, spec.id, number), latents(work, source.id, number))
    # The whole decodes as one: to what a decoder makes of all latents that are stored.
    stored = torch.cat([latents(work, spec.id, number) for number in range(12)], dim=2)
    expected = work.model().open_decoder().push(stored)[:90]
    shown = pictures(work.objects.get(final_key(spec.id)))
    assert np.abs(shown.astype(int) - expected).mean() < 6
    old = pictures(work.objects.get(final_key(source.id)))
    assert np.array_equal(shown[:37], old[:37])
    assert np.abs(shown[37:40].astype(int) - old[37:40]).mean() < 6


def test_an_extension_outlives_its_source_and_can_be_extended(work: Any, source: Video) -> None:
    spec = extension(source, 60)
    work.store.create(spec)
    second = extension(finished(work, spec), 61)
    work.objects.delete_prefix(video_prefix(source.id))
    work.store.delete(source)
    digests = work.digests(spec.id)
    assert len(pictures(work.objects.get(final_key(spec.id)))) == 60
    # One frame more lies in the chunk that was cut: nothing is left to sample.
    work.store.create(second)
    video = finished(work, second)
    assert (video.state.chunks_ready, video.state.forwards_total) == (8, None)
    assert work.digests(second.id)[:8] == digests[:8]
    third = extension(video, 80)
    work.store.create(third)
    finished(work, third)
    assert work.digests(third.id)[:9] == work.digests(second.id)


def test_the_prompt_changes_where_the_source_ends(work: Any, source: Video) -> None:
    changed, same = extension(source, 90), extension(source, 90, prompt="a circle")
    for spec in (changed, same):
        work.store.create(spec)
        finished(work, spec)
    a, b = work.digests(changed.id), work.digests(same.id)
    assert a[:7] == b[:7]
    assert not set(a[7:]) & set(b[7:])


def test_a_cancelled_video_is_continued_after_its_last_chunk(work: Any) -> None:
    work.start(work.model(step_seconds=0.02))
    spec = work.spec(400)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    work.store.request_cancel(spec.id)
    cancelled = work.wait(spec.id, "cancelled")
    ready = cancelled.state.chunks_ready
    assert 3 <= ready < 50
    longer = extension(cancelled, cancelled.state.frames_ready + 20)
    work.store.create(longer)
    finished(work, longer)
    assert work.digests(longer.id)[: ready + 1] == work.digests(spec.id)


@pytest.mark.parametrize("gone", ["record", "latents", "chunk"])
def test_a_source_that_is_deleted_too_early_ends_the_extension_with_a_reason(
    work: Any, source: Video, gone: str
) -> None:
    spec = extension(source, 60)
    if gone == "record":
        work.store.delete(source)
    else:
        key = latents_key if gone == "latents" else chunk_key
        work.objects.delete(key(source.id, 2))
    work.store.create(spec)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.error is not None
    assert video.state.error.code == "source_gone"
    assert video.state.attempts == 1


def test_a_finished_video_may_be_extended_by_other_weights(work: Any, source: Video) -> None:
    work.end()
    retrained = work.model()
    retrained.fingerprint = "of other weights"
    spec = extension(source, 90)
    work.store.create(spec)
    work.start(retrained)
    assert work.wait(spec.id, "completed", "failed").state.status is Status.COMPLETED


@pytest.mark.parametrize("chunk_latents", [1, 3])
def test_what_was_to_begin_a_video_of_a_model_changed_meanwhile_is_not_taken_for_its_chunks(
    work: Any, source: Video, chunk_latents: int
) -> None:
    work.end()
    longer, uploaded = extension(source, 90), with_reference(work)
    changed = work.model()
    changed.sampler = replace(changed.sampler, chunk_latents=chunk_latents)
    for spec in (longer, uploaded):
        work.store.create(spec)
    work.start(changed)
    for spec in (longer, uploaded):
        video = work.wait(spec.id, "completed", "failed")
        assert video.state.error is not None
        assert (video.state.error.code, video.state.chunks_ready) == ("model_changed", 0)
    assert work.digests(source.id)


def test_a_lost_checkpoint_of_a_given_start_is_made_anew(work: Any, source: Video, eventually: Any) -> None:
    whole, spec = extension(source, 90), extension(source, 90)
    work.store.create(whole)
    finished(work, whole)
    work.end()
    worker = work.start(work.model(step_seconds=0.15))
    work.store.create(spec)
    work.wait(spec.id, chunks=8)
    worker.stop()
    assert work.video(spec.id).state.status is Status.QUEUED
    work.objects.delete_prefix(video_prefix(spec.id) + "checkpoints/")
    work.start()
    finished(work, spec)
    assert work.digests(spec.id) == work.digests(whole.id)


# -- and what is asked of it meanwhile ----------------------------------------------------------------------


def changed(work: Any, video_id: str, *, spec: dict[str, Any] | None = None, **state: Any) -> None:
    def change(video: Video) -> Video:
        return Video(
            spec=video.spec.model_copy(update=spec or {}), state=video.state.model_copy(update=state)
        )

    work.store.request(video_id, change)


def test_steering_counts_from_behind_what_is_given(work: Any) -> None:
    spec, plain = with_reference(work), with_reference(work)
    for each in (spec, plain):
        work.store.create(each)
    changed(work, spec.id, pending_prompts=(PendingPrompt(text="a square"),))
    work.start()
    video = finished(work, spec)
    finished(work, plain)
    assert [(p.at, p.text) for p in video.spec.prompts] == [(0, "a circle"), (GIVEN_FRAMES / 24, "a square")]
    a, b = work.digests(spec.id), work.digests(plain.id)
    assert a[: GIVEN + 1] == b[: GIVEN + 1]
    assert not set(a[GIVEN + 1 :]) & set(b[GIVEN + 1 :])


@pytest.mark.parametrize(("asked", "made"), [(6, 6), (4, GIVEN_FRAMES)])
def test_a_video_shortened_to_less_than_is_given_ends_within_that(work: Any, asked: int, made: int) -> None:
    spec = with_reference(work)
    work.store.create(spec)
    changed(work, spec.id, spec={"frames": asked, "seconds": asked / 24})
    work.start()
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert (video.spec.frames, video.state.chunks_ready) == (made, GIVEN)
    # It can be continued like any other.
    longer = extension(video, 40)
    work.store.create(longer)
    assert finished(work, longer).state.chunks_ready == 6


def test_an_endless_video_from_an_upload_is_finished_and_comes_out_the_same_again(work: Any) -> None:
    work.start(work.model(step_seconds=0.01))
    spec = with_reference(work)
    endless = spec.model_copy(update={"frames": None, "seconds": None})
    work.store.create(endless)
    work.wait(spec.id, chunks=4)
    changed(work, spec.id, finish_requested=True)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED, video.state.error
    assert video.spec.frames == video.state.frames_ready
    again = video.spec.model_copy(update={"id": new_video_id(), "created_at": time.time()})
    work.objects.copy(reference_key(spec.id), reference_key(again.id))
    work.store.create(again)
    finished(work, again)
    assert work.digests(again.id) == work.digests(spec.id)
