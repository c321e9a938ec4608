"""A stand-in for a model, and a worker process around it: what is tested is the data flow, not the picture.

It is deterministic, its window mixes all its frames, and its decoder remembers, so a resume that forgets anything
shows in the bytes. As a script it is a worker that reads the usual settings, and options of the model as JSON:
``python stand_in.py '{"step_seconds": 0.01}'``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.models.base import Geometry, SamplerConfig, VideoFrames

MEMORY_LATENTS = 3


class StandInDecoder:
    """A frame depends on its latent and the two before it."""

    memory_latents = MEMORY_LATENTS

    def __init__(self, model: StandIn) -> None:
        self._model = model
        self._seen: list[Tensor] = []
        self._fresh = True

    def push(self, latents: Tensor) -> VideoFrames:
        return np.concatenate([self._next(latents[0, :, index]) for index in range(latents.shape[2])])

    def replay(self, latents: Tensor) -> None:
        if self._seen:
            raise ValueError("used before")
        self.push(latents)

    def _next(self, latent: Tensor) -> VideoFrames:
        self._seen = [*self._seen, latent][-MEMORY_LATENTS:]
        weights = torch.tensor([1.0, 0.5, 0.25])[: len(self._seen)]
        mixed = sum(weight * past for weight, past in zip(weights, reversed(self._seen), strict=True))
        count = 1 if self._fresh else self._model.geometry.temporal_factor
        self._fresh = False
        if self._model.black:
            return np.zeros((count, 8 * latent.shape[1], 8 * latent.shape[2], 3), np.uint8)
        if self._model.decode_seconds:
            time.sleep(self._model.decode_seconds)
        pixels = torch.sigmoid(mixed + 0.0 * latent).repeat_interleave(8, 1).repeat_interleave(8, 2)
        frames = [torch.sigmoid(torch.logit(pixels, eps=1e-4) + 0.1 * step) for step in range(count)]
        return (torch.stack(frames) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


class StandIn:
    """Implements `worker.models.base.VideoModel`. A prompt with a word of `FAULTS` in it makes it fail."""

    name = "stand-in"
    fingerprint = "of the stand-in"
    device = torch.device("cpu")
    geometry = Geometry(3, 8, 4, 8, 24, ((16, 16), (32, 16)), (16, 16))
    sampler = SamplerConfig(
        chunk_latents=2,
        chunks_in_flight=3,
        forwards_per_shift=2,
        context_chunks=1,
        time_shift=3.0,
        guidance_scale=2.0,
    )

    def __init__(self, *, step_seconds: float = 0.0, decode_seconds: float = 0.0) -> None:
        self.step_seconds, self.decode_seconds = step_seconds, decode_seconds
        self.gpu_failed = False
        """Whether every forward fails, as after the first error of a GPU."""
        self.black = False
        """Whether decoders make black frames."""
        self.rows: list[int] = []
        """Windows of each forward, guidance's second row not counted."""
        self.hold = threading.Event()
        self.hold.set()
        self.hold_at: int | None = None
        """Number of forwards after which it waits until this is None, so a test knows how much is made at most."""

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        rows = []
        for text in prompts:
            row = torch.full((3, 4), (zlib.crc32(text.encode()) % 997) / 997)
            row[0, 0] = FAULTS.get(text, 0.0)
            rows.append(row)
        return torch.stack(rows)

    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        while (most := self.hold_at) is not None and len(self.rows) >= most:
            time.sleep(0.001)
        self.hold.wait()
        self.rows.append((len(latents) + 1) // 2)
        time.sleep(self.step_seconds)
        faults = prompt[:, 0, 0]
        if bool((faults == FAULTS["error"]).any()):
            raise RuntimeError("the network failed in /secret/path")
        if bool((faults == FAULTS["memory"]).any()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.gpu_failed or bool((faults == FAULTS["gpu"]).any()):
            self.gpu_failed = True
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if bool((faults == FAULTS["hang"]).any()):
            time.sleep(3600)
        level = sigmas[:, None, :, None, None]
        pooled = latents.mean((3, 4)).transpose(1, 2) + sigmas[..., None] + prompt.mean((1, 2))[:, None, None]
        mixed = torch.softmax(pooled @ pooled.transpose(1, 2), -1) @ pooled
        velocity = 0.4 * latents + level + mixed.transpose(1, 2)[..., None, None]
        velocity[faults == FAULTS["nan"]] = float("nan")
        return velocity

    def open_decoder(self) -> StandInDecoder:
        return StandInDecoder(self)

    def encode_video(self, frames: VideoFrames) -> Tensor:
        """Not the decoder's inverse, but every latent depends on its own frames and on those before it."""
        size, step = self.geometry.spatial_factor, self.geometry.temporal_factor
        clip = torch.from_numpy(frames[(len(frames) - 1) % step :].copy()).float() / 127.5 - 1
        blocks = clip.unflatten(1, (-1, size)).unflatten(3, (-1, size)).mean((2, 4)).permute(3, 0, 1, 2)
        groups = [blocks[:, :1], *blocks[:, 1:].split(step, dim=1)]
        latents = [group.mean(1) for group in groups]
        mixed = [
            latent + 0.1 * earlier for latent, earlier in zip(latents, [latents[0], *latents], strict=False)
        ]
        return torch.stack(mixed, dim=1)[None]


FAULTS = {"error": 7.0, "nan": 8.0, "hang": 9.0, "memory": 10.0, "gpu": 11.0}


def card(model: Any) -> Any:
    from worker.main import model_card
    from worker.models.registry import ModelDescription

    return model_card(
        model,
        ModelDescription("stand-in", model.name, "", model.geometry, model.sampler, 16, ("a circle",)),
        "builtin",
    )


def main() -> None:
    from app.settings import Settings
    from worker import main as worker_main

    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    load_seconds = options.pop("load_seconds", 0.0)
    model = StandIn(**options)
    described = card(model)

    def load(spec: str, **_: Any) -> Any:
        time.sleep(load_seconds)
        return model

    facts = SimpleNamespace(name=described.name, geometry=model.geometry)
    worker_main.describe = lambda spec: facts  # type: ignore[attr-defined]
    worker_main.load_model = load  # type: ignore[attr-defined]
    worker_main.model_card = lambda *_: described
    sys.exit(worker_main.main(Settings()))


if __name__ == "__main__":
    main()
