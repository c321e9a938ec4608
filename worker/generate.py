"""One job in a slot: claim the video, resume or start it, run its pipeline, finish it or hand it back."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, TypeVar

import torch
from redis.exceptions import RedisError
from torch import Tensor

from app.jobs.job import JobError, Status, Video, VideoSpec
from app.jobs.line import speed_kind
from app.jobs.manifest import keep_manifest
from app.jobs.migrations import RecordError
from app.jobs.store import Event, FenceLost, Standing, VideoGone, VideoStore, new_fence
from app.settings import Settings
from app.storage import ObjectNotFound, ObjectStore, StorageError
from app.storage.objects import checkpoint_key, latents_key, video_prefix
from worker.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointTooNew,
    replay,
    unpack_checkpoint,
    unpack_latents,
)
from worker.company import Company
from worker.devices import device_failed, ran_out_of_memory
from worker.direction import directed, first_open_chunk, prompt_timeline
from worker.engine import Conditioning, Engine, Stopped, Track
from worker.media.assemble import AssemblyError
from worker.media.encode import EncoderSettings, EncoderUnusable, EncodingError, check_encoder
from worker.models.base import InvalidOutput, StreamedDecoder, VideoModel
from worker.pipeline import BlackFrames, Layout, Patience, Pipeline, StageError, chunk_number, conclude
from worker.sampler.window import SamplerConfig
from worker.starts import ModelChanged, Start, StartLost
from worker.stopwatch import Stopwatch, TimedDecoder

T = TypeVar("T")

log = logging.getLogger(__name__)

# A shutdown does not wait longer than this for Redis to take a video back; its lease runs out then.
RELEASE_SECONDS = 1.0

# A video that only another worker can make stays this long in a slot, or it would be back there at once.
NOT_HERE_SECONDS = 5.0

# How much the newest measurement counts in the running mean of seconds per forward.
SPEED_WEIGHT = 0.2

# Prompts that are encoded between two forwards: a text encoder that rests on the host is moved for each such group.
PROMPTS_AT_ONCE = 16

# How often a running video tells its speed, for estimates about those that wait.
LEARN_SECONDS = 5.0


# Codes of the faults after which a process is not used any more.
OUT_OF_MEMORY = "out_of_memory"
GPU_ERROR = "gpu_error"

# A video that its process's GPU failed for another waits at most this long for the process to stop.
SPOILED_SECONDS = 5.0


class Outcome(Enum):
    """What becomes of the job in the transport."""

    DONE = "done"
    """The video is in a terminal state, deleted, or nothing that this version can read."""
    RELEASED = "released"
    """Given back: it is in line again, or paused."""
    DROPPED = "dropped"
    """Somebody else's by now, or Redis is away: whoever finds it continues it."""


class InvalidRequest(Exception):
    """The video asks for something this model cannot make; the message is for the client."""


class _Preempted(Exception):
    """The worker is to stop."""


class _Rests(Exception):
    """The video was paused, or makes room for another; all that it has emitted is committed."""


class _Cancelled(Exception):
    """The client wants no more of it."""


# What ends an attempt by no fault of the video or the model.
_NOT_AT_FAULT = (
    FenceLost,
    VideoGone,
    RecordError,
    CheckpointTooNew,
    EncoderUnusable,
    Stopped,
    _Preempted,
    _Rests,
)


class Spoiled:
    """The fault after which the process is of no more use: a new one starts with all of its memory and its GPU."""

    def __init__(self) -> None:
        self.code: str | None = None
        self._lock = threading.Lock()

    def by(self, code: str) -> bool:
        """Notes the first such fault; False for any later one."""
        with self._lock:
            first = self.code is None
            self.code = self.code or code
            return first


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all slots of a worker process share."""

    settings: Settings
    store: VideoStore
    objects: ObjectStore
    model: VideoModel
    engine: Engine
    worker: str
    shutdown: threading.Event
    spoiled: Spoiled = field(default_factory=Spoiled)
    """Once it is, `shutdown` is set as soon as the video at fault has been dealt with."""
    company: Company = field(default_factory=Company)


def chunk_layout(spec: VideoSpec, model: VideoModel, settings: Settings) -> Layout:
    """Which frames of the video each of its chunks holds; an endless one is taken to have all it may have."""
    frames = max(1, round(settings.max_endless_seconds * spec.fps)) if spec.frames is None else spec.frames
    return Layout(frames, model.sampler.chunk_latents, model.geometry)


def sampler_config(spec: VideoSpec, model: VideoModel) -> SamplerConfig:
    """The model's sampler settings with what the request overrides. Raises `InvalidRequest`."""
    config = model.sampler
    if spec.num_inference_steps is not None:
        steps, slots = spec.num_inference_steps, config.chunks_in_flight
        if steps < slots or steps % slots:
            raise InvalidRequest(
                f"num_inference_steps must be a multiple of {slots} for this model, not {steps}."
            )
        config = replace(config, forwards_per_shift=steps // slots)
    if spec.guidance_scale is not None:
        try:
            config = replace(config, guidance_scale=float(spec.guidance_scale))
        except ValueError as error:
            raise InvalidRequest(f"{error}.") from error
    return config


def run_video(video_id: str) -> None:
    """The function that jobs name. A `longtake worker` runs a `Generation` instead; any other cannot."""
    raise RuntimeError(f"video {video_id} can only be made by `longtake worker`, which has the model")


class Generation:
    """The work of one slot on one video, from claim to outcome. `wake` makes it look at its flags at once."""

    def __init__(
        self, runtime: Runtime, video_id: str, lease: str, claimed: Callable[[VideoSpec, str], None]
    ) -> None:
        """`claimed` is told the fence, under which the caller then keeps the lease, a member of wip, alive."""
        self.wake = threading.Event()
        self._runtime, self._video_id, self._lease, self._claimed = runtime, video_id, lease, claimed
        self._settings, self._store = runtime.settings, runtime.store
        self._log = logging.LoggerAdapter(log, {"video": video_id, "worker": runtime.worker})
        self._fence = ""
        self._own_patience = self._patience(threading.Event(), every_seconds=self._settings.control_seconds)
        self._waiting = self._own_patience
        self._running: _Running | None = None
        self.stopwatch = Stopwatch()
        """Of decoder and encoder."""
        self._told_stalled: str | None = None
        self._revision = ""
        self._spec: VideoSpec | None = None
        self._suspect = False
        self._told_to_rest = False
        self._standing: Standing = "front"  # where it goes when it rests

    def _patience(self, stop: threading.Event, **options: Any) -> Patience:
        return Patience(stop, max_seconds=self._settings.retry_max_seconds, log=self._log, **options)

    def _attentively(self, action: Callable[[], T]) -> T:
        """In this thread, waiting for the store must not keep it from looking at the flags."""
        return self._own_patience(action, self._check_flags)

    def run(self) -> Outcome:
        """Does everything that can be done for the video here and says what becomes of its job."""
        try:
            return self._run()
        except FenceLost:
            self._log.warning("another worker has taken over; nothing more is written")
            return Outcome.DROPPED
        except VideoGone:
            return self._gone()
        except (CheckpointTooNew, EncoderUnusable) as error:
            self._log.error("not a video for this worker: %s", error)
            self._runtime.shutdown.wait(NOT_HERE_SECONDS)
            return self._release(count_attempt=False, standing="back")
        except RecordError as error:
            self._log.error("not a video for this worker: %s (%s)", error, error.__cause__)
            return Outcome.DONE
        except _Preempted:
            return self._release(count_attempt=False, standing="next")
        except _Rests:
            return self._release(count_attempt=False, standing=self._standing)
        except Stopped:
            return Outcome.DROPPED
        finally:
            self._running = None
            self._runtime.company.leave(self._lease)

    def _run(self) -> Outcome:
        fence = new_fence()  # of all tries, if an answer is lost
        video, self._fence = self._when_redis_answers(
            lambda: self._store.claim(self._video_id, self._runtime.worker, fence=fence)
        )
        if not self._fence:
            return Outcome.DONE if video.state.status.terminal else Outcome.DROPPED
        self._spec = video.spec
        self._claimed(video.spec, self._fence)
        if video.state.barren_attempts > self._settings.max_attempts:
            error = JobError(
                code="attempts_exhausted",
                message=f"The video was started {self._settings.max_attempts} times in a row without getting "
                "any further: each time the worker was lost.",
            )
            return self._fail(error)
        # The attempt before this one came to nothing, perhaps together with its worker and the other videos there.
        self._suspect = video.state.barren_attempts > 1
        if not self._runtime.company.join(self._lease, alone=self._suspect):
            return self._release(count_attempt=False, standing="next")
        self._log.info(
            "claimed: %s, %s frames at %d fps, %d chunks are ready, attempt %d",
            video.spec.size, video.spec.frames or "endless", video.spec.fps, video.state.chunks_ready,
            video.state.attempts,
        )  # fmt: skip
        try:
            self._make(video)
        except InvalidRequest as error:
            return self._fail(JobError(code="invalid_request", message=str(error)))
        except ModelChanged as error:
            return self._fail(JobError(code="model_changed", message=str(error)))
        except StartLost as error:
            return self._fail(JobError(code=error.code, message=error.message))
        except _NOT_AT_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - kept for the video it belongs to
            try:
                return self._failed(error)
            finally:
                traceback.clear_frames(error.__traceback__)
        return Outcome.DONE

    # -- making it --------------------------------------------------------------------------------------

    def _make(self, video: Video) -> None:
        """Everything from the next chunk to the terminal state."""
        status: Literal["completed", "cancelled"] = "completed"
        try:
            self._check_flags()
            if self._suspect:
                self._attend(lambda: self._runtime.company.is_alone(self._lease))
            self._generate(video)
        except _Cancelled:
            status = "cancelled"
        self._conclude(status)

    def _generate(self, video: Video) -> None:
        """Makes and commits every chunk that is missing. Raises what ended it otherwise."""
        spec, model = video.spec, self._runtime.model
        ready, layout = video.state.chunks_ready, chunk_layout(spec, model, self._settings)
        if video.state.ending and video.state.frames_ready >= layout.frames:
            return
        if video.state.frames_ready not in (layout.first_frame(ready), layout.frames):
            raise ModelChanged
        config = sampler_config(spec, model)
        try:
            frame_shape = model.geometry.latent_shape(spec.width, spec.height)
        except ValueError as error:
            raise InvalidRequest(f"This model cannot make {spec.size}: {error}.") from error
        given = spec.given_chunks
        if ready < given:
            # All that is asked by now counts from behind the given chunks on; whether there is more is settled here.
            video = self._when_redis_answers(lambda: self._settle(given, config))
        start = Start(
            spec=video.spec,
            layout=chunk_layout(video.spec, model, self._settings),
            config=config,
            frame_shape=frame_shape,
            model=model,
            store=self._store,
            objects=self._runtime.objects,
            attentively=self._attentively,
            encoder=_encoder_settings(self._settings),
            stopwatch=self.stopwatch,
        )
        if ready < given:
            start.lay(ready, self._fence, self._check_flags, ending=video.state.ending)
            if video.state.ending:
                return
            video = self._when_redis_answers(lambda: self._store.get(self._video_id)) or video
            ready = video.state.chunks_ready
        resumed = self._resume(video, config)
        if resumed is None:
            state, decoder = start.window(), start.decoder()
            encoder = _encoder_settings(self._settings)
        else:
            state, decoder, encoder = resumed[0].window, resumed[1], resumed[0].encoder
            check_encoder(encoder, spec.width, spec.height, spec.fps)
        video = self._when_redis_answers(lambda: self._settle(state.next_chunk, config))
        layout = chunk_layout(video.spec, model, self._settings)
        if not state.draining:
            state.set_total(layout.chunks)
        conditioning = self._conditioning(video.spec, layout, since=state.newest_chunk)
        track = self._runtime.engine.add(
            state,
            conditioning,
            capacity=self._settings.stage_queue,
            settled=video.state.ending,
            wake=self.wake,
        )
        stop = threading.Event()
        self._waiting = self._patience(stop)
        pipeline = Pipeline(
            spec=spec,
            fence=self._fence,
            layout=layout,
            next_chunk=ready,
            track=track,
            decoder=decoder,
            encoder=encoder,
            model=model.fingerprint,
            store=self._store,
            objects=self._runtime.objects,
            patience=self._waiting,
            stop=stop,
            wake=self.wake,
            stage_queue=self._settings.stage_queue,
            manifest_seconds=self._settings.manifest_seconds,
            black_chunks=self._settings.black_chunks,
            again=video.state.barren_attempts > 1,
            stopwatch=self.stopwatch,
            log=self._log,
        )
        progress = _Progress(video, track, pipeline, self._settings.progress_seconds)
        self._running = _Running(config, track, pipeline, progress)
        pipeline.start()
        try:
            self._attend(lambda: pipeline.ended)
        except BaseException as error:
            pipeline.stop()
            # A shutdown cannot wait for a store that does not answer; whatever comes late is fenced or put right.
            pipeline.join(RELEASE_SECONDS if isinstance(error, _Preempted) else None)
            raise
        pipeline.join()
        if pipeline.error is not None:
            raise _root(pipeline.error)
        self._learn_speed(self._running)
        if pipeline.committed < pipeline.layout.chunks:
            raise _Rests if pipeline.rests else Stopped

    def _resume(self, video: Video, config: SamplerConfig) -> tuple[Checkpoint, StreamedDecoder] | None:
        """The newest state the video can be continued from, and a decoder that stands there; None is the start.

        Usually that of the last committed chunk. If that is gone or damaged, an older one does, or none: what lies
        before the next chunk is then sampled once more, to the same bits, and not written. Raises `ModelChanged`.
        """
        if video.state.chunks_ready == 0:
            return None
        for chunk in self._checkpoints(video):
            try:
                data = self._get(checkpoint_key(video.id, chunk))
                checkpoint = unpack_checkpoint(data, self._runtime.model.device)
                if checkpoint.window.config.chunk_latents != config.chunk_latents:
                    raise ModelChanged
                if checkpoint.model not in (None, self._runtime.model.fingerprint):
                    raise ModelChanged(
                        "The model has other weights now than those that the video was begun with."
                    )
                decoder = TimedDecoder(self._runtime.model.open_decoder(), self.stopwatch)
                with torch.inference_mode():
                    replay(decoder, chunk, config.chunk_latents, lambda n: self._latents(video.id, n))
            except (ObjectNotFound, CheckpointError) as error:
                self._log.warning("cannot continue after chunk %d: %s", chunk, error)
                continue
            self._log.info("continuing after chunk %d", chunk)
            return checkpoint, decoder
        self._log.warning("no usable checkpoint: sampling from the start again")
        return None

    def _checkpoints(self, video: Video) -> list[int]:
        """Chunks with a checkpoint that may serve, the committed one first, then the newest."""
        last = video.state.chunks_ready - 1
        folder = video_prefix(video.id) + "checkpoints/"
        keys = self._attentively(lambda: [info.key for info in self._runtime.objects.list(folder)])
        known = {number for number in map(chunk_number, keys) if number is not None and number <= last}
        return sorted(known, reverse=True)

    # -- what is asked of it meanwhile ------------------------------------------------------------------

    def _settle(self, next_chunk: int, config: SamplerConfig) -> Video:
        """Settles in the record what everything asked so far comes to, and returns it. Raises `RedisError`."""

        def change(video: Video) -> Video:
            # No window saw the given chunks being made.
            made = video.state.chunks_ready if video.state.chunks_ready > video.spec.given_chunks else 0
            free = first_open_chunk(next_chunk, made, config.chunks_in_flight)
            return directed(video, free, chunk_layout(video.spec, self._runtime.model, self._settings))

        video, self._revision = self._store.settle(self._video_id, self._fence, change)
        return video

    def _direct(self, running: _Running) -> None:
        """The same for the running video, which then goes on accordingly.

        Raises `RedisError`: the record may have been written or not, so the video waits at its next chunk until this
        has been done again.
        """
        track, pipeline = running.track, running.pipeline
        free = track.hold()
        video = self._settle(free, running.config)
        layout = chunk_layout(video.spec, self._runtime.model, self._settings)
        conditioning = self._conditioning(video.spec, layout, since=free - 1, known=track.conditioning)
        pipeline.direct(layout)
        self._runtime.engine.call(
            lambda _: track.direct(layout.chunks, conditioning, settled=video.state.ending)
        )
        running.progress.video = video

    def _conditioning(
        self, spec: VideoSpec, layout: Layout, *, since: int, known: Conditioning | None = None
    ) -> Conditioning:
        def encode(texts: Sequence[str]) -> Tensor:
            return self._runtime.engine.call(lambda model: model.encode_prompt(texts))

        def embed(texts: Sequence[str]) -> Tensor:
            # Not all of a long timeline at once: the forwards of other videos go on in between.
            starts = range(0, len(texts), PROMPTS_AT_ONCE)
            return torch.cat([encode(texts[start : start + PROMPTS_AT_ONCE]) for start in starts])

        timeline = prompt_timeline(spec, layout)
        return Conditioning.encode(embed, timeline, spec.negative_prompt, since=since, known=known)

    def _get(self, key: str) -> bytes:
        return self._attentively(lambda: self._runtime.objects.get(key))

    def _latents(self, video_id: str, chunk: int) -> Tensor:
        return unpack_latents(self._get(latents_key(video_id, chunk)))

    # -- looking after it while it runs -----------------------------------------------------------------

    def _attend(self, over: Callable[[], bool], *, concluding: bool = False) -> None:
        """Until `over`: tells progress, looks at the flags. Raises what ends the work early."""
        while not over():
            self._check_flags(concluding=concluding)
            self.wake.wait(self._settings.control_seconds)
            self.wake.clear()

    def _check_flags(self, *, concluding: bool = False) -> None:
        if self._runtime.shutdown.is_set():
            raise _Preempted
        try:
            controls = self._store.controls(self._video_id, self._fence)
            if not concluding:
                if controls.cancel_requested:
                    raise _Cancelled
                if (running := self._running) is not None and (
                    controls.revision != self._revision or running.track.undecided
                ):
                    self._direct(running)
                self._look_for_rest(paused=controls.pause_requested)
            self._tell_progress()
        except RedisError as error:
            self._log.debug("Redis is away: %s", type(error).__name__)

    def _look_for_rest(self, *, paused: bool) -> None:
        """Lets the video rest at its next chunk boundary when it is to be paused, or somebody else's turn has come."""
        company = self._runtime.company
        if self._running is not None and self._running.pipeline.has_committed:
            company.open(self._lease)
        rests = paused or company.makes_way(self._lease)
        if self._running is None or self._spec is None:
            if rests:
                raise _Rests  # nothing has been sampled yet
        elif not self._told_to_rest:
            reason = None if rests else self._store.make_room(self._spec, self._fence)
            if rests or reason is not None:
                self._told_to_rest = True
                self._standing = "back" if reason == "turn_over" else "front"
                self._running.pipeline.rest()

    def _tell_progress(self) -> None:
        reason = self._waiting.reason
        if self._running is None:
            if reason != self._told_stalled:
                self._store.update(self._video_id, self._fence, stalled=reason)
                self._told_stalled = reason
        elif (news := self._running.progress.news(reason)) is not None:
            changes, event = news
            self._store.update(self._video_id, self._fence, events=[event], **changes)
            self._running.progress.told(changes)
            if self._running.progress.lap_seconds >= LEARN_SECONDS:
                self._learn_speed(self._running)

    def _learn_speed(self, running: _Running) -> None:
        """Tells how fast this video was sampled since it told last, unless something stood in its way."""
        if (measured := running.progress.lap()) is None:
            return
        spec, scale = running.progress.video.spec, self._runtime.model.sampler.guidance_scale
        kind = speed_kind(
            spec.width, spec.height, scale if spec.guidance_scale is None else spec.guidance_scale
        )
        with suppress(RedisError):
            self._store.line.learn_speed(spec.model, kind, measured)

    # -- ending it --------------------------------------------------------------------------------------

    def _conclude(
        self, status: Literal["completed", "cancelled", "failed"], error: JobError | None = None
    ) -> None:
        video = self._when_redis_answers(lambda: self._store.get(self._video_id))
        if video is None:
            raise VideoGone(self._video_id)
        stop = threading.Event()
        patience = self._waiting = self._patience(stop)
        errors: list[BaseException] = []
        ended = threading.Event()

        def work() -> None:
            try:
                conclude(
                    video=video,
                    fence=self._fence,
                    status=status,
                    error=error,
                    store=self._store,
                    objects=self._runtime.objects,
                    patience=patience,
                )
            except Exception as problem:  # noqa: BLE001 - kept for the video it belongs to
                errors.append(problem)
            finally:
                ended.set()
                self.wake.set()

        thread = threading.Thread(target=work, name=f"finish {self._video_id}", daemon=True)
        thread.start()
        try:
            self._attend(ended.is_set, concluding=True)
        except BaseException as problem:
            if not ended.is_set():
                stop.set()
                thread.join(RELEASE_SECONDS if isinstance(problem, _Preempted) else None)
                raise
        thread.join()
        if errors:
            raise errors[0]
        self._log.info("%s: %d chunks, %d frames", status, video.state.chunks_ready, video.state.frames_ready)

    def _failed(self, error: Exception) -> Outcome:
        """An attempt came to nothing by the video's own fault, or the model's: again, or the end."""
        code, message = fault(error)
        self._log.error("attempt failed (%s)", code, exc_info=error)
        if code in (OUT_OF_MEMORY, GPU_ERROR) and not self._runtime.spoiled.by(code) and code == GPU_ERROR:
            # A GPU fails under all videos of its process at once; the first pays for it.
            self._runtime.shutdown.wait(SPOILED_SECONDS)
            raise _Preempted
        video = self._when_redis_answers(lambda: self._store.get(self._video_id))
        if video is None:
            raise VideoGone(self._video_id)
        try:
            if video.state.barren_attempts < self._settings.max_attempts:
                return self._release(count_attempt=True, standing="back")
            return self._fail(JobError(code=code, message=message))
        finally:
            if code in (OUT_OF_MEMORY, GPU_ERROR):
                self._runtime.shutdown.set()

    def _fail(self, error: JobError) -> Outcome:
        self._log.error("failed (%s): %s", error.code, error.message)
        self._conclude("failed", error)
        return Outcome.DONE

    def _release(self, *, count_attempt: bool, standing: Standing) -> Outcome:
        """Gives the video back to be continued by whoever is next, or to rest while it is paused."""
        if not self._fence:
            return Outcome.DROPPED
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            try:
                video = self._store.release(
                    self._video_id, self._fence, self._lease, count_attempt=count_attempt, standing=standing
                )
            except FenceLost:
                return Outcome.DROPPED
            except VideoGone:
                return self._gone()
            except RedisError:
                if self._runtime.shutdown.is_set() and time.monotonic() > deadline:
                    return Outcome.DROPPED
                time.sleep(0.05)
            else:
                if video.state.status.terminal:
                    return Outcome.DONE
                paused = video.state.status is Status.PAUSED
                if paused:
                    self._keep_pause()
                self._log.info(
                    "%s after chunk %d", "paused" if paused else "given back", video.state.chunks_ready - 1
                )
                return Outcome.RELEASED

    def _keep_pause(self) -> None:
        """Tells the manifest that the video is paused, or it would go on if Redis were lost."""
        try:
            keep_manifest(self._video_id, self._store, self._runtime.objects)
        except (StorageError, RedisError) as error:
            self._log.warning("the manifest of a paused video is not up to date: %s", error)

    def _gone(self) -> Outcome:
        """The record is gone. If the video was deleted, so are its objects, those just uploaded included."""
        try:
            deleted = self._when_redis_answers(lambda: self._store.was_deleted(self._video_id))
            if deleted:
                patience = self._patience(self._runtime.shutdown)
                patience(lambda: self._runtime.objects.delete_prefix(video_prefix(self._video_id)))
                self._log.info("deleted; stopped and removed its objects")
            else:
                self._log.error("Redis does not know this video any more; its objects stay where they are")
        except (Stopped, StorageError, _Preempted):
            pass
        return Outcome.DONE

    def _when_redis_answers(self, action: Callable[[], Any]) -> Any:
        """The result of `action`, tried again while Redis is away. Raises `_Preempted` on shutdown."""
        delay = 0.1
        while True:
            try:
                return action()
            except RedisError as error:
                if self._runtime.shutdown.is_set():
                    raise _Preempted from error
            self.wake.wait(delay)
            self.wake.clear()
            delay = min(2 * delay, self._settings.retry_max_seconds)


@dataclass(frozen=True, slots=True)
class _Running:
    """A video between its window and the store."""

    config: SamplerConfig
    track: Track
    pipeline: Pipeline
    progress: _Progress


class _Progress:
    """Measures a running video and says what is new about it."""

    def __init__(self, video: Video, track: Track, pipeline: Pipeline, every_seconds: float) -> None:
        self.video = video
        """As it was last directed."""
        self._track, self._pipeline = track, pipeline
        self._every_seconds = every_seconds
        self._speed = video.state.seconds_per_forward  # what an earlier turn has measured
        self._measured = self._lap = (time.monotonic(), track.forwards_done)
        self._held_up = False
        self._told_at = float("-inf")
        self._told: dict[str, Any] = {}

    def news(self, stalled: str | None) -> tuple[dict[str, Any], Event] | None:
        """Changed state fields and an event, or None when it is too early or nothing has changed."""
        now = time.monotonic()
        self._held_up = self._held_up or stalled is not None
        due = now - self._told_at >= self._every_seconds or stalled != self._told.get("stalled")
        if not due:
            return None
        self._measure(now)
        layout, endless = self._pipeline.layout, self.video.spec.frames is None
        chunks_total = None if endless else layout.chunks
        changes: dict[str, Any] = {
            "chunks_total": chunks_total,
            "forwards_total": None if endless else self._track.forwards_total,
            "forwards_done": self._track.forwards_done,
            "seconds_per_forward": self._speed,
            "stalled": stalled,
        }
        if changes == self._told:
            return None
        ready = self._pipeline.committed
        video = Video(spec=self.video.spec, state=self.video.state.model_copy(update=changes))
        eta = video.eta_seconds
        data: dict[str, Any] = {
            "progress": video.progress,
            "chunks_ready": ready,
            "chunks_total": chunks_total,
            "seconds_ready": round(min(layout.first_frame(ready), layout.frames) / video.spec.fps, 3),
            "eta_seconds": None if eta is None else round(eta, 1),
        }
        if stalled is not None:
            data["stalled"] = stalled
        return changes, Event("progress", data)

    def told(self, changes: dict[str, Any]) -> None:
        """The news have reached the record."""
        self._told_at, self._told = time.monotonic(), changes

    @property
    def lap_seconds(self) -> float:
        """Time since the last `lap`, or the start."""
        return time.monotonic() - self._lap[0]

    def lap(self) -> float | None:
        """Seconds per forward since the last call, or the start; None if there was none, or something held it up."""
        now, done = time.monotonic(), self._track.forwards_done
        (then, before), self._lap = self._lap, (now, done)
        held_up, self._held_up = self._held_up, False
        return None if held_up or done == before else (now - then) / (done - before)

    def _measure(self, now: float) -> None:
        then, before = self._measured
        done = self._track.forwards_done
        if done == before:
            return
        measured = (now - then) / (done - before)
        self._speed = (
            measured if self._speed is None else self._speed + SPEED_WEIGHT * (measured - self._speed)
        )
        self._measured = (now, done)


def fault(error: BaseException) -> tuple[str, str]:
    """Stable code and client's message of an error that ended an attempt. Details belong in the log only."""
    if ran_out_of_memory(error):
        return OUT_OF_MEMORY, "The worker ran out of memory while making this video."
    if device_failed(error):
        return GPU_ERROR, "The worker's GPU failed while making this video."
    match error:
        case BlackFrames():
            return "black_frames", "The model made nothing but black frames."
        case InvalidOutput():
            return "invalid_output", "The model produced values that are not a picture (not finite numbers)."
        case EncodingError():
            return "encoding_failed", "The frames could not be encoded."
        case AssemblyError():
            return "assembly_failed", "The chunks could not be joined into one file."
        case StorageError():
            return "storage_error", "The storage refused what the video needs."
        case OSError():
            return "internal_error", "The worker failed while making this video."
        case StageError() if error.stage != "decode":
            return "internal_error", "The worker failed while making this video."
        case _:
            return "model_error", "The model failed while making this video."


def _root(error: BaseException) -> Exception:
    """What a stage's error is about: the cause where it has a meaning of its own, else the stage's error."""
    cause = error.__cause__
    known = (InvalidOutput, EncodingError, AssemblyError, StorageError)
    if isinstance(cause, (FenceLost, VideoGone, *known)):
        return cause
    assert isinstance(error, Exception)
    return error


def _encoder_settings(settings: Settings) -> EncoderSettings:
    return EncoderSettings(settings.codec, settings.crf)
