"""What a video begins with when it is not noise: given chunks, from an upload or from an earlier video.

Chunks 0 .. n-1 are laid down first: committed like any others, with their latents, and with the checkpoint of chunk
n-1, whose window has them for its past. From there on the video is one that was interrupted after chunk n-1, and goes
on as such a video does. So nothing else knows how it began, and it needs its source no more.

An upload becomes latents by the model's autoencoder, and frames by the decoder that makes those of the whole video,
so there is no seam. Of an earlier video the latents and segments are copied inside the store; only a last chunk that
was cut to the length of that video is decoded and encoded again, to its full length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import av
import numpy as np
import torch
from torch import Tensor

from app.jobs.job import ChunkRecord, VideoSpec
from app.jobs.store import VideoStore
from app.storage import ObjectNotFound, ObjectStore
from app.storage.objects import checkpoint_key, chunk_key, init_key, latents_key, reference_key
from worker.checkpoint import (
    CheckpointError,
    pack_checkpoint,
    pack_latents,
    replay,
    unpack_checkpoint,
    unpack_latents,
)
from worker.media.encode import EncoderSettings, check_encoder, encode_chunk
from worker.models.base import StreamedDecoder, VideoFrames, VideoModel
from worker.pipeline import Archive, Layout, Patiently, record_of
from worker.sampler.window import SamplerConfig, WindowState
from worker.stopwatch import Stopwatch, TimedDecoder

# Copies inside the store that are on their way at once: each waits for an answer, none moves a byte here.
COPIES_AT_ONCE = 16


class StartLost(Exception):
    """What the video was to begin with cannot be had any more; the message is for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ModelChanged(Exception):
    """The model is another by now than that of the chunks there are, so none of its own can follow them.

    A video is made by the same weights from its first to its last chunk. What it begins with, an upload or a finished
    video, may be from anywhere, only not chunks of another length.
    """

    def __init__(
        self,
        message: str = "The model now makes chunks of another length than those that were to be continued.",
    ) -> None:
        super().__init__(message)


class Start:
    """The beginning of one video: the given chunks, and the window and decoder that stand behind them."""

    def __init__(
        self,
        *,
        spec: VideoSpec,
        layout: Layout,
        config: SamplerConfig,
        frame_shape: tuple[int, int, int],
        model: VideoModel,
        store: VideoStore,
        objects: ObjectStore,
        attentively: Patiently,
        encoder: EncoderSettings,
        stopwatch: Stopwatch,
    ) -> None:
        """`encoder` is for a video that has no segments yet; an extension keeps to the settings of its source."""
        self._spec, self._layout, self._config, self._frame_shape = spec, layout, config, frame_shape
        self._model, self._store, self._objects = model, store, objects
        self._attentively, self._own_encoder = attentively, encoder
        self._stopwatch = stopwatch
        self._ending = False

    def window(self, *, ending: bool = False) -> WindowState:
        """The window behind the given chunks, whose latents must be there; without any, that of pure noise.

        Its length is for the caller to set, unless the video is `ending` with the given chunks.
        """
        config, seed, device = self._config, self._spec.seed, self._model.device
        if not self._spec.given_chunks:
            return WindowState.start(config, seed, self._frame_shape, total=None, device=device)
        return WindowState.start_after(
            config,
            seed,
            self._frame_shape,
            given=self._spec.given_chunks,
            load=self._latents,
            total=self._spec.given_chunks if ending else None,
            device=device,
        )

    def decoder(self, behind: int | None = None) -> StreamedDecoder:
        """A decoder that stands behind that many chunks; default: the given ones."""
        chunks = self._spec.given_chunks if behind is None else behind
        decoder = TimedDecoder(self._model.open_decoder(), self._stopwatch)
        with torch.inference_mode():
            replay(decoder, chunks - 1, self._config.chunk_latents, self._latents)
        return decoder

    def lay(self, next_chunk: int, fence: str, check: Callable[[], None], *, ending: bool) -> None:
        """Commits the given chunks from `next_chunk` on; `ending`: they are all of the video.

        `check` is called all along, and may raise.

        Raises `StartLost`, `ModelChanged`, `EncoderUnusable`, `FenceLost` and `VideoGone`.
        """
        self._ending = ending
        if next_chunk == 0:
            Archive(self._spec, fence, self._store, self._objects, self._attentively).write_manifest()
        try:
            if self._spec.extended_from is not None:
                self._continue(self._spec.extended_from, next_chunk, fence, check)
            else:
                self._encode_reference(next_chunk, fence, check)
        except CheckpointError as error:
            raise StartLost("start_damaged", "What the video was to begin with is damaged.") from error

    # -- from an upload ---------------------------------------------------------------------------------

    def _encode_reference(self, next_chunk: int, fence: str, check: Callable[[], None]) -> None:
        size, given, reference = self._config.chunk_latents, self._spec.given_chunks, self._spec.reference
        if reference is not None and reference.frames not in range(
            self._layout.first_frame(given), self._layout.first_frame(given + 1)
        ):
            raise ModelChanged  # the given chunks were counted by the length of earlier ones
        frames = self._reference()
        with torch.inference_mode():
            with self._stopwatch:
                latents = self._model.encode_video(frames).float().cpu()
            decoder = self.decoder(behind=next_chunk)
            for number in range(next_chunk, given):
                check()
                mine = latents[:, :, number * size : (number + 1) * size].contiguous()
                self._put(latents_key(self._spec.id, number), pack_latents(mine))
                self._encode(number, decoder.push(mine), fence, self._own_encoder)

    def _reference(self) -> VideoFrames:
        wanted = self._layout.first_frame(self._spec.given_chunks)
        try:
            data = self._attentively(lambda: self._objects.get(reference_key(self._spec.id)))
            with av.open(BytesIO(data), "r", format="matroska") as container:
                decoded = container.decode(video=0)
                frames = [
                    frame.to_ndarray(format="rgb24") for frame, _ in zip(decoded, range(wanted), strict=False)
                ]
        except ObjectNotFound as error:
            raise StartLost("reference_gone", "The uploaded reference is not there any more.") from error
        except av.FFmpegError as error:
            raise CheckpointError(f"the reference cannot be read: {error}") from error
        shape = (self._spec.height, self._spec.width, 3)
        if len(frames) < wanted or frames[0].shape != shape:
            raise CheckpointError(
                f"the reference has {len(frames)} frames, {wanted} of shape {shape} were due"
            )
        return np.stack(frames).astype(np.uint8, copy=False)

    # -- from an earlier video --------------------------------------------------------------------------

    def _continue(self, source: str, next_chunk: int, fence: str, check: Callable[[], None]) -> None:
        given = self._spec.given_chunks
        try:
            records = self._attentively(lambda: self._store.chunks(source, 0, given))
            if len(records) < given:
                raise ObjectNotFound(f"video {source} has {len(records)} chunks")
            encoder = self._encoder_of(source)
            if next_chunk == 0:
                self._copy(init_key(source), init_key(self._spec.id))
            with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
                for first in range(next_chunk, given, COPIES_AT_ONCE):
                    batch = records[first : first + COPIES_AT_ONCE]
                    check()
                    self._attentively(partial(self._take_over, pool, source, batch))
                    for record in batch:
                        self._adopt(record, fence, encoder)
        except ObjectNotFound as error:
            raise StartLost(
                "source_gone", "The video to be continued was deleted before its chunks were taken over."
            ) from error

    def _encoder_of(self, source: str) -> EncoderSettings:
        """What the source's segments were encoded with; they and the new ones share one initialisation segment.

        Raises `ModelChanged` if they are no chunks of this model any more, and `EncoderUnusable`.
        """
        video = self._attentively(lambda: self._store.get(source))
        if video is None or video.state.checkpoint is None:
            raise ObjectNotFound(f"video {source} has no checkpoint")
        key = checkpoint_key(source, video.state.checkpoint)
        checkpoint = unpack_checkpoint(self._attentively(lambda: self._objects.get(key)), "cpu")
        if checkpoint.window.config.chunk_latents != self._config.chunk_latents:
            raise ModelChanged
        check_encoder(checkpoint.encoder, self._spec.width, self._spec.height, self._spec.fps)
        return checkpoint.encoder

    def _take_over(self, pool: ThreadPoolExecutor, source: str, records: Sequence[ChunkRecord]) -> None:
        """Copies what chunks of the source consist of. Doing it again changes nothing."""
        own = self._spec.id
        pairs = [(latents_key(source, r.index), latents_key(own, r.index)) for r in records]
        pairs += [(chunk_key(source, r.index), chunk_key(own, r.index)) for r in records if self._whole(r)]
        for copied in [pool.submit(self._objects.copy, *pair) for pair in pairs]:
            copied.result()

    def _adopt(self, record: ChunkRecord, fence: str, encoder: EncoderSettings) -> None:
        if self._whole(record):
            self._commit(record.model_copy(update={"created_at": time.time()}), fence, encoder)
            return
        decoder = self.decoder(behind=record.index)
        with torch.inference_mode():
            frames = decoder.push(self._latents(record.index))
        self._encode(record.index, frames, fence, encoder)

    def _whole(self, record: ChunkRecord) -> bool:
        """Whether a chunk of the source has the frames that this video shows of it."""
        return record.frames == self._layout.frames_of(record.index)

    # -- both -------------------------------------------------------------------------------------------

    def _encode(self, number: int, frames: VideoFrames, fence: str, encoder: EncoderSettings) -> None:
        first = self._layout.first_frame(number)
        wanted = frames[: self._layout.frames_of(number)]
        with self._stopwatch:
            chunk = encode_chunk(wanted, number, first, self._spec.fps, encoder)
        if number == 0:
            self._put(init_key(self._spec.id), chunk.init)
        self._put(chunk_key(self._spec.id, number), chunk.segment)
        self._commit(record_of(chunk, number, first), fence, encoder)

    def _commit(self, record: ChunkRecord, fence: str, encoder: EncoderSettings) -> None:
        """A chunk whose segment and latents are in the store becomes part of the video; the last with a checkpoint."""
        changes: dict[str, object] = {}
        if record.index == 0:
            changes["first_chunk_at"] = time.time()
            changes["chunks_total"] = None if self._spec.frames is None else self._layout.chunks
        if record.index == self._spec.given_chunks - 1:
            window = self.window(ending=self._ending).to_tensors()
            data = pack_checkpoint(record.index, window, encoder, self._model.fingerprint)
            self._put(checkpoint_key(self._spec.id, record.index), data)
            changes["checkpoint"] = record.index
        self._attentively(lambda: self._store.commit_chunk(self._spec, fence, record, **changes))

    def _latents(self, number: int) -> Tensor:
        return unpack_latents(
            self._attentively(lambda: self._objects.get(latents_key(self._spec.id, number)))
        )

    def _put(self, key: str, data: bytes) -> None:
        self._attentively(lambda: self._objects.put(key, data))

    def _copy(self, source: str, target: str) -> None:
        self._attentively(lambda: self._objects.copy(source, target))
