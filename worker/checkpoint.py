"""What must be saved to continue a video bit for bit.

After each chunk three objects beside the segment make a continuation possible: the window's state as the chunk left
it (`checkpoints/N`), and the emitted latents of this and earlier chunks (`latents/N`), whose last few are replayed
into a new decoder. The encoder needs nothing but the number of the next frame, and its settings, which travel in the
checkpoint: a worker with other settings continues a video as it was begun.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from worker.media.encode import EncoderSettings
from worker.models.base import StreamedDecoder
from worker.sampler.window import WindowState

CHECKPOINT_SCHEMA: Final = 1


class CheckpointError(Exception):
    """A stored state that cannot be continued."""


class CheckpointTooNew(Exception):
    """A newer version of the software began the video. What this one samples could differ, so it does not go on."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a chunk: the window, and what the segments so far were encoded with."""

    chunk: int
    window: WindowState
    encoder: EncoderSettings
    model: str | None
    """Fingerprint of the model that made it; None where an earlier version of the software did not tell."""


def pack_checkpoint(
    chunk: int, state: tuple[dict[str, Tensor], dict[str, str]], encoder: EncoderSettings, model: str
) -> bytes:
    """A safetensors file of `WindowState.to_tensors`, the encoder's settings and the model's fingerprint.

    Same state, same bytes.
    """
    tensors, metadata = state
    facts = {
        "schema": CHECKPOINT_SCHEMA,
        "chunk": chunk,
        "codec": encoder.codec,
        "quality": encoder.quality,
        "threads": encoder.threads,
        "model": model,
    }
    # One entry only: safetensors writes several in no particular order.
    return safetensors.save(tensors, {"longtake": json.dumps({**facts, "window": metadata})})


def unpack_checkpoint(data: bytes, device: torch.device | str) -> Checkpoint:
    """Raises `CheckpointError`, also for an older schema: that costs work and no bits. Raises `CheckpointTooNew`."""
    try:
        tensors = safetensors.load(data)
        facts = json.loads(_metadata(data)["longtake"])
        if facts["schema"] != CHECKPOINT_SCHEMA:
            message = f"the checkpoint has schema {facts['schema']}, this version reads {CHECKPOINT_SCHEMA}"
            raise (CheckpointTooNew if facts["schema"] > CHECKPOINT_SCHEMA else CheckpointError)(message)
        return Checkpoint(
            chunk=facts["chunk"],
            window=WindowState.from_tensors(tensors, facts["window"], device),
            encoder=EncoderSettings(facts["codec"], facts["quality"], facts["threads"]),
            model=facts.get("model"),
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


def _metadata(data: bytes) -> dict[str, str]:
    # safetensors reads metadata from files only; its header is a JSON object behind eight bytes of length.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata
