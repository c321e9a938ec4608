"""What must be saved to continue a video bit for bit, and the manifest that outlives Redis.

After each chunk three objects beside the segment make a continuation possible: the window's state as the chunk left
it (`checkpoints/N`), and the emitted latents of this and earlier chunks (`latents/N`), whose last few are replayed
into a new decoder. The encoder needs nothing but the number of the next frame, and its settings, which travel in the
checkpoint: a worker with other settings continues a video as it was begun.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from app.jobs.job import SCHEMA_VERSION, ChunkRecord, Video, VideoSpec, VideoState
from worker.media.encode import EncoderSettings
from worker.models.base import StreamedDecoder
from worker.sampler.window import WindowState

CHECKPOINT_SCHEMA: Final = 1


class CheckpointError(Exception):
    """A stored state that cannot be continued: damaged, or of another schema version."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a chunk: the window, and what the segments so far were encoded with."""

    chunk: int
    window: WindowState
    encoder: EncoderSettings


def pack_checkpoint(
    chunk: int, state: tuple[dict[str, Tensor], dict[str, str]], encoder: EncoderSettings
) -> bytes:
    """A safetensors file of `WindowState.to_tensors` and the encoder's settings. Same state, same bytes."""
    tensors, metadata = state
    facts = {
        "schema": CHECKPOINT_SCHEMA,
        "chunk": chunk,
        "codec": encoder.codec,
        "quality": encoder.quality,
        "threads": encoder.threads,
    }
    # One entry only: safetensors writes several in no particular order.
    return safetensors.save(tensors, {"longtake": json.dumps({**facts, "window": metadata})})


def unpack_checkpoint(data: bytes, device: torch.device | str) -> Checkpoint:
    """Raises `CheckpointError`."""
    try:
        tensors = safetensors.load(data)
        facts = json.loads(_metadata(data)["longtake"])
        if facts["schema"] != CHECKPOINT_SCHEMA:
            raise CheckpointError(
                f"the checkpoint has schema {facts['schema']}, this version reads {CHECKPOINT_SCHEMA}"
            )
        return Checkpoint(
            chunk=facts["chunk"],
            window=WindowState.from_tensors(tensors, facts["window"], device),
            encoder=EncoderSettings(facts["codec"], facts["quality"], facts["threads"]),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error}") from error


def pack_latents(latents: Tensor) -> bytes:
    """A chunk's clean latents, float32 ``(1, channels, C, h, w)``, as a safetensors file."""
    return safetensors.save({"latents": latents.contiguous()})


def unpack_latents(data: bytes) -> Tensor:
    """Raises `CheckpointError`."""
    try:
        return safetensors.load(data)["latents"]
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"the latents cannot be read: {error}") from error


def replay(decoder: StreamedDecoder, chunk: int, chunk_latents: int, load: Callable[[int], Tensor]) -> None:
    """Brings a new decoder to where chunk `chunk` ended; `load(n)` gives the latents of chunk n."""
    if chunk < 0:
        return
    needed = -(-decoder.memory_latents // chunk_latents)
    first = max(0, chunk + 1 - needed)
    decoder.replay(torch.cat([load(number) for number in range(first, chunk + 1)], dim=2))


class Manifest(BaseModel):
    """A video's durable record: enough to restore it, and to go on with it, without Redis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    spec: VideoSpec
    state: VideoState
    chunks: tuple[ChunkRecord, ...]

    @classmethod
    def of(cls, video: Video, chunks: Sequence[ChunkRecord]) -> Manifest:
        return cls(spec=video.spec, state=video.state, chunks=tuple(chunks))

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises `CheckpointError`, also for a manifest of another schema version."""
        try:
            version: Any = json.loads(data).get("schema_version")
            if version != SCHEMA_VERSION:
                raise CheckpointError(
                    f"the manifest has schema {version}, this version reads {SCHEMA_VERSION}"
                )
            return cls.model_validate_json(data)
        except (ValidationError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the manifest cannot be read: {error}") from error


def _metadata(data: bytes) -> dict[str, str]:
    # safetensors reads metadata from files only; its header is a JSON object behind eight bytes of length.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata
