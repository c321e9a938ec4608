"""One video from window to store: sample -> decode -> encode -> upload -> commit, each stage in a thread of its own.

Between two stages stands a queue of a few chunks. A stage that cannot go on fills the queue before it, and in the end
the sampler is not runnable any more: nothing piles up, whatever the video's length. While Redis or the store is away
a stage tries again, with growing delay, for as long as it takes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from redis.exceptions import RedisError

from app.jobs.job import ChunkRecord, JobError, Status, Video, VideoSpec
from app.jobs.manifest import Manifest, keep_manifest
from app.jobs.migrations import RecordError
from app.jobs.store import FenceLost, VideoGone, VideoStore
from app.storage import ObjectNotFound, ObjectStore, StorageError, StoreFull, StoreMisconfigured
from app.storage.objects import (
    checkpoint_key,
    chunk_key,
    final_key,
    init_key,
    latents_key,
    manifest_key,
    spritesheet_key,
    thumbnail_key,
    video_prefix,
)
from worker.checkpoint import pack_checkpoint, pack_latents
from worker.engine import Emission, Stopped, Track, detached
from worker.media.assemble import assemble_final, spritesheet
from worker.media.encode import EncodedChunk, EncoderSettings, encode_chunk
from worker.models.base import Geometry, InvalidOutput, StreamedDecoder, VideoFrames
from worker.scratch import scratch_folder
from worker.stopwatch import Stopwatch

T = TypeVar("T")

# A superseded checkpoint stays this long: Redis that comes back from a crash may have forgotten the last commits
# (the append-only file is flushed every second) and then names an older one.
KEEP_CHECKPOINT_SECONDS = 5.0

# Rewriting the manifest of a very long video takes longer and longer; it gets this share of the time at most.
MANIFEST_SHARE = 0.05

THUMBNAIL_WIDTH = 640

# A pixel up to this value of 255 counts as black: decoders are off by one or two.
BLACK_LEVEL = 2

# Most chunks are told from black ones by one pixel in this many squared.
_BLACK_STRIDE = 8

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def chunk_number(key: str) -> int | None:
    """The number in the key of a chunk's object; None for another key."""
    stem = key.rpartition("/")[2].partition(".")[0]
    return int(stem) if stem.isdigit() else None


class Patiently(Protocol):
    """Does what may fail for a while, again and again until it works."""

    def __call__(self, action: Callable[[], T]) -> T: ...


class Patience:
    """Repeats what fails because Redis or the store is away, until it works or the video is stopped."""

    def __init__(
        self, stop: threading.Event, *, max_seconds: float, log: Log, every_seconds: float = 1.0
    ) -> None:
        """Waits at most `max_seconds` between two tries, and looks around every `every_seconds`."""
        self._stop, self._max_seconds, self._log = stop, max_seconds, log
        self._every_seconds = every_seconds
        self._reasons: dict[object, str] = {}

    @property
    def reason(self) -> str | None:
        """What the video waits for, in words; None when nothing is in its way."""
        return next(iter(self._reasons.copy().values()), None)

    def __call__(self, action: Callable[[], T], meanwhile: Callable[[], None] | None = None) -> T:
        """The result of `action`. While it waits it calls `meanwhile`, which may raise.

        Raises `Stopped` when stopped meanwhile, and every error that waiting cannot mend.
        """
        me, delay = threading.get_ident(), 0.1
        outer = self._reasons.get(me)  # of a wait that `action` is part of
        try:
            while not self._stop.is_set():
                try:
                    return action()
                except (StorageError, RedisError, OSError) as error:
                    reason = _reason(error)
                    if reason is None:
                        raise
                    if self._reasons.get(me) != reason:
                        self._log.warning("%s (%s); trying again until it is back", reason, _named(error))
                    self._reasons[me] = reason
                self._wait(delay * random.uniform(0.5, 1.0), meanwhile)
                delay = min(2 * delay, self._max_seconds)
            raise Stopped
        finally:
            if (waited := self._reasons.pop(me, None)) is not None and outer is not None:
                self._reasons[me] = outer
            elif waited is not None and not self._stop.is_set():
                self._log.info("continuing")

    def _wait(self, seconds: float, meanwhile: Callable[[], None] | None) -> None:
        if meanwhile is None:
            self._stop.wait(seconds)
            return
        end = time.monotonic() + seconds
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            meanwhile()
            self._stop.wait(min(left, self._every_seconds))


def _reason(error: Exception) -> str | None:
    if isinstance(error, RedisError):
        return "Redis is not reachable"
    if isinstance(error, StoreFull):
        return "disk is full"
    if isinstance(error, StoreMisconfigured):
        return "storage refuses access or does not exist"
    if isinstance(error, StorageError):
        return "storage is not reachable" if error.retryable else None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "the worker's disk is full or read-only"
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, StorageError) else type(error).__name__


class Channel(Generic[T]):
    """A bounded queue between two stages that ends when it is closed or the video is stopped."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._closed = self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Waits for room. Raises `Stopped`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nothing is wanted any more."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Items until the channel is closed. Raises `Stopped`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._closed or bool(self._items))
                if self._stopped:
                    raise Stopped
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


@dataclass(frozen=True, slots=True)
class Layout:
    """Which frames of a video each of its chunks holds."""

    frames: int
    """Frames of the whole video; of an endless one as many as it may have."""
    chunk_latents: int
    geometry: Geometry

    @property
    def chunks(self) -> int:
        """Chunks of the whole video; the last holds at least one frame."""
        return -(-self.geometry.latents_for_frames(self.frames) // self.chunk_latents)

    def first_frame(self, chunk: int) -> int:
        return self.geometry.frames_for_latents(chunk * self.chunk_latents)

    def frames_of(self, chunk: int) -> int:
        """Frames of a chunk; the last one is trimmed, so that the video has exactly its frames."""
        return min(self.first_frame(chunk + 1), self.frames) - self.first_frame(chunk)

    def chunk_of(self, frame: int) -> int:
        """The chunk that holds a frame."""
        return (self.geometry.latents_for_frames(frame + 1) - 1) // self.chunk_latents


@dataclass(frozen=True, slots=True)
class _Decoded:
    emission: Emission
    frames: VideoFrames


@dataclass(frozen=True, slots=True)
class _Encoded:
    record: ChunkRecord
    init: bytes
    segment: bytes
    latents: bytes
    checkpoint: bytes


class BlackFrames(InvalidOutput):
    """The model has made nothing but black for longer than a video is."""


def is_black(frames: VideoFrames) -> bool:
    """Whether no pixel of the uint8 frames ``(T, H, W, 3)`` is lighter than `BLACK_LEVEL`."""
    sample = frames[:, ::_BLACK_STRIDE, ::_BLACK_STRIDE]
    return int(sample.max()) <= BLACK_LEVEL and int(frames.max()) <= BLACK_LEVEL


class StageError(Exception):
    """A stage failed for good; `__cause__` says why."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"{stage} failed")
        self.stage = stage


class Archive:
    """What one worker writes to the store about one video beside its chunks: manifest and superseded checkpoints."""

    def __init__(
        self, spec: VideoSpec, fence: str, store: VideoStore, objects: ObjectStore, patience: Patiently
    ) -> None:
        self._spec, self._fence = spec, fence
        self._store, self._objects, self._patience = store, objects, patience
        self._superseded: deque[tuple[float, int]] = deque()
        self._named: int | None = None
        self._due = 0.0

    def write_manifest(self, changes: Mapping[str, Any] | None = None, *, seconds: float = 0.0) -> None:
        """Writes the record as Redis has it now (with changes to its state, if given); not again within `seconds`.

        Raises `FenceLost`, with the manifest as the record is by then: it may have been written over that of another
        worker, or over the end of the video. Raises `VideoGone`.
        """
        started = time.monotonic()
        video = self._patience(lambda: self._store.get(self._spec.id))
        if video is None:
            raise VideoGone(self._spec.id)
        if changes is not None:
            video = Video(spec=video.spec, state=video.state.model_copy(update=dict(changes)))
        chunks = self._patience(lambda: self._store.chunks(video.id, 0, video.state.chunks_ready))
        manifest = Manifest.of(video, chunks).to_json()
        self._patience(lambda: self._objects.put(manifest_key(video.id), manifest))
        try:
            self._put_right()  # also where nobody has patience any more
        except (RedisError, StorageError):
            self._patience(self._put_right)
        self._named = video.state.checkpoint
        now = time.monotonic()
        self._due = now + max(seconds, (now - started) / MANIFEST_SHARE)

    def _put_right(self) -> None:
        """Raises `FenceLost` and `VideoGone`."""
        try:
            self._store.controls(self._spec.id, self._fence)
        except FenceLost:
            keep_manifest(self._spec.id, self._store, self._objects)
            raise

    @property
    def manifest_due(self) -> bool:
        return time.monotonic() >= self._due

    def supersede(self, chunk: int) -> None:
        """The checkpoint of `chunk` is not the newest any more; it goes when nothing can name it."""
        self._superseded.append((time.monotonic(), chunk))
        while self._superseded and self._superseded[0][0] < time.monotonic() - KEEP_CHECKPOINT_SECONDS:
            _, old = self._superseded[0]
            if old == self._named:
                return
            self._superseded.popleft()
            self._delete(old)

    def adopt(self, current: int) -> None:
        """Learns of the checkpoints that earlier attempts left before that of chunk `current`.

        One behind it was written but not committed: it is going to be the video's newest, written again.
        """
        now = time.monotonic()
        self._superseded.extend((now, number) for number in self._stored() if number < current)

    def prune(self, keep: int | None) -> None:
        """Removes every checkpoint but one."""
        self._superseded.clear()
        for number in self._stored():
            if number != keep:
                self._delete(number)

    def _stored(self) -> list[int]:
        folder = video_prefix(self._spec.id) + "checkpoints/"
        keys = self._patience(lambda: [info.key for info in self._objects.list(folder)])
        return [number for number in map(chunk_number, keys) if number is not None]

    def _delete(self, number: int) -> None:
        self._patience(lambda: self._objects.delete(checkpoint_key(self._spec.id, number)))


class Pipeline:
    """The stages of one video from its next chunk on. When they end, well or not, `ended` is true and `wake` is set."""

    def __init__(
        self,
        *,
        spec: VideoSpec,
        fence: str,
        layout: Layout,
        next_chunk: int,
        track: Track,
        decoder: StreamedDecoder,
        encoder: EncoderSettings,
        model: str,
        store: VideoStore,
        objects: ObjectStore,
        patience: Patience,
        stop: threading.Event,
        wake: threading.Event,
        stage_queue: int,
        manifest_seconds: float,
        black_chunks: int,
        again: bool,
        stopwatch: Stopwatch,
        log: Log,
    ) -> None:
        """`decoder` stands where `track` does, which may be before `next_chunk`: what comes before is not written.

        `model` is the fingerprint of the one that makes it. `again`: attempts before this one came to nothing.
        """
        self.committed = next_chunk
        self.layout = layout
        """Set anew when the video's length changes, before a chunk that this concerns leaves the window."""
        self._directed = False
        self.error: BaseException | None = None
        self.ended = False
        self._spec, self._fence = spec, fence
        self._next_chunk, self._track = next_chunk, track
        self._encoder, self._model = encoder, model
        self._store, self._objects, self._patience = store, objects, patience
        self._archive = Archive(spec, fence, store, objects, patience)
        self._stop, self._wake = stop, wake
        self._manifest_seconds = manifest_seconds
        self._black_chunks = black_chunks
        # Black chunks may have been all that a turn had time for: this one has time to see what follows them.
        self._rest_from = next_chunk + (black_chunks if again else 0)
        self._stopwatch = stopwatch
        self._log = log
        self._frames: Channel[_Decoded] = Channel(stage_queue)
        self._segments: Channel[_Encoded] = Channel(stage_queue)
        # Only its thread has the decoder: what it remembers, gigabytes with a large model, is freed with the stage.
        stages: list[tuple[str, Callable[[], None]]] = [
            ("decode", partial(self._decode, decoder)),
            ("encode", self._encode),
            ("upload", self._upload),
        ]
        self._threads = [
            threading.Thread(target=self._guarded, args=stage, name=f"{stage[0]} {spec.id}", daemon=True)
            for stage in stages
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def rest(self) -> None:
        """Ends all stages at the next chunk boundary, with every chunk before it committed. May be repeated."""
        self._track.rest_after(self._rest_from)

    @property
    def rests(self) -> bool:
        """Whether the sampler has stopped at a chunk boundary, as asked."""
        return self._track.resting

    @property
    def has_committed(self) -> bool:
        """Whether it has made a chunk."""
        return self.committed > self._next_chunk

    def stop(self) -> None:
        """Ends all stages as soon as what they are in the middle of is done."""
        self._stop.set()
        self._track.stop()
        self._frames.stop()
        self._segments.stop()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the stages to end; False when they do not in time."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _guarded(self, name: str, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - kept for the video it belongs to
            if self.error is None:
                self.error = StageError(name)
                self.error.__cause__ = detached(error)
            self.stop()
        else:
            if name != "upload":
                return
        self.ended = True
        self._wake.set()

    # -- the stages -------------------------------------------------------------------------------------

    def _decode(self, decoder: StreamedDecoder) -> None:
        # Black chunks are held back until a picture follows, or the end: a failure is never shown, and an attempt
        # that ends in one has committed nothing, so the next one finds it again, and the attempts come to an end.
        black: list[_Decoded] = []
        with torch.inference_mode():
            while (emission := self._track.take()) is not None:
                frames = decoder.push(emission.latents)
                if emission.chunk < self._next_chunk:
                    continue
                wanted = self.layout.frames_of(emission.chunk)
                if len(frames) < wanted:
                    raise ValueError(f"the decoder gave {len(frames)} frames where {wanted} were due")
                decoded = _Decoded(emission, frames[:wanted])
                if self._black_chunks and is_black(decoded.frames):
                    black.append(decoded)
                    if len(black) == self._black_chunks:
                        raise BlackFrames(f"chunks {black[0].emission.chunk} to {emission.chunk} are black")
                    continue
                for earlier in black:
                    self._frames.put(earlier)
                black.clear()
                self._frames.put(decoded)
            if not self._track.resting:
                for last in black:
                    self._frames.put(last)
            elif black and black[0].emission.chunk == self._next_chunk:
                # Going on from here again and again would be no progress, so it counts as an attempt.
                raise BlackFrames(f"chunks {self._next_chunk} to {black[-1].emission.chunk} are black")
        self._frames.close()

    def _encode(self) -> None:
        for decoded in self._frames:
            index = decoded.emission.chunk
            first = self.layout.first_frame(index)
            with self._stopwatch:
                chunk = encode_chunk(decoded.frames, index, first, self._spec.fps, self._encoder)
            record = record_of(chunk, index, first)
            checkpoint = pack_checkpoint(index, decoded.emission.state, self._encoder, self._model)
            latents = pack_latents(decoded.emission.latents)
            self._segments.put(_Encoded(record, chunk.init, chunk.segment, latents, checkpoint))
        self._segments.close()

    def _upload(self) -> None:
        self._archive.write_manifest(seconds=self._manifest_seconds)
        if self._next_chunk:
            self._archive.adopt(self._next_chunk - 1)
        for chunk in self._segments:
            index = chunk.record.index
            if index == 0:
                self._put(init_key(self._spec.id), chunk.init)
            self._put(chunk_key(self._spec.id, index), chunk.segment)
            self._put(latents_key(self._spec.id, index), chunk.latents)
            self._put(checkpoint_key(self._spec.id, index), chunk.checkpoint)
            self._commit(chunk.record)

    def _put(self, key: str, data: bytes) -> None:
        def attempt() -> None:
            # Who was away for long finds out before it writes over what another worker has made.
            self._store.controls(self._spec.id, self._fence)
            self._objects.put(key, data)

        self._patience(attempt)

    def direct(self, layout: Layout) -> None:
        """Goes on with another length, and has what the record says now in the manifest before the next commit."""
        self.layout, self._directed = layout, True

    def _commit(self, record: ChunkRecord) -> None:
        if self._directed:
            # Even without Redis, no committed chunk is made again by older prompts.
            self._directed = False
            self._archive.write_manifest(seconds=self._manifest_seconds)
        changes: dict[str, object] = {"checkpoint": record.index}
        if record.index == 0:
            changes["first_chunk_at"] = time.time()
        if record.index == self.layout.chunks - 1:
            changes["forwards_done"] = self._track.forwards_done
        self._patience(lambda: self._store.commit_chunk(self._spec, self._fence, record, **changes))
        self.committed = record.index + 1
        self._log.debug("chunk %d committed, %d bytes", record.index, record.bytes)
        if record.index:
            self._archive.supersede(record.index - 1)
        if self._archive.manifest_due:
            self._archive.write_manifest(seconds=self._manifest_seconds)


def record_of(chunk: EncodedChunk, index: int, first_frame: int) -> ChunkRecord:
    """The record of a chunk that was just encoded."""
    return ChunkRecord(
        index=index,
        first_frame=first_frame,
        frames=chunk.frames,
        bytes=len(chunk.segment),
        sha256=hashlib.sha256(chunk.segment).hexdigest(),
        created_at=time.time(),
    )


def conclude(
    *,
    video: Video,
    fence: str,
    status: Literal["completed", "cancelled", "failed"],
    error: JobError | None = None,
    store: VideoStore,
    objects: ObjectStore,
    patience: Patience,
) -> None:
    """Makes one MP4 of the committed chunks, its stills and the last manifest, then ends the video.

    A cancelled video keeps what was made of it; of one that failed only the chunks stay. The manifest tells the end
    before the record does, so no end that a client has seen is ever taken back. Raises `AssemblyError`, `FenceLost`,
    `VideoGone` and `Stopped`.
    """
    archive = Archive(video.spec, fence, store, objects, patience)
    final_bytes: int | None = None
    if status == "cancelled":
        archive.write_manifest()  # joining takes a while; the wish is kept meanwhile
    if status != "failed" and video.state.chunks_ready:
        final_bytes = patience(lambda: _write_files(video, objects, patience))
    patience(lambda: store.update(video.id, fence, final_bytes=final_bytes))
    ending = store.ending()
    try:
        archive.write_manifest({**ending, "status": Status(status), "error": error, "stalled": None})
        archive.prune(video.state.checkpoint)
    except StorageError:
        # A video may fail because of the very store that refuses this.
        if status != "failed":
            raise
    patience(lambda: store.finish(video, fence, status, error=error, final_bytes=final_bytes, **ending))
    with suppress(Stopped, StorageError):  # the video has ended; a worker that was away may have hidden it
        patience(lambda: _confirm_end(video.id, store, objects))


def _confirm_end(video_id: str, store: VideoStore, objects: ObjectStore) -> None:
    """Writes the last manifest once more if a late one of another worker is in its place."""
    try:
        told = Manifest.from_json(objects.get(manifest_key(video_id))).state.status.terminal
    except ObjectNotFound:
        return  # the video is being deleted
    except RecordError:
        told = False
    if not told:
        keep_manifest(video_id, store, objects)


def _write_files(video: Video, objects: ObjectStore, patience: Patience) -> int:
    """The finished MP4 and its stills; returns the length of the MP4 in bytes. Raises OSError."""
    with scratch_folder() as folder:
        path = folder / "video.mp4"
        _assemble(video, path, objects, patience)
        width = min(THUMBNAIL_WIDTH, video.spec.width)
        still = spritesheet(path, columns=1, rows=1, tile_width=width)
        sheet = spritesheet(path)
        patience(lambda: objects.put(final_key(video.id), path))
        patience(lambda: objects.put(thumbnail_key(video.id), still))
        patience(lambda: objects.put(spritesheet_key(video.id), sheet))
        return path.stat().st_size


def _assemble(video: Video, path: Path, objects: ObjectStore, patience: Patience) -> None:
    """Reads one segment at a time, waiting for each as long as it takes."""

    def read(key: str) -> bytes:
        return patience(lambda: objects.get(key))

    segments = (read(chunk_key(video.id, number)) for number in range(video.state.chunks_ready))
    init = read(init_key(video.id))
    assemble_final(init, segments, path, video.state.frames_ready, video.spec.fps)
