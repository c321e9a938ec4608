"""A stand-in for a model, because a real one would be too slow for these tests: it paints what the prompt says.

Everything around it is the product: the worker that samples with it, decodes, encodes and commits, and does what is
asked of a running video.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.models.base import Geometry, SamplerConfig, VideoFrames
from worker.models.registry import ModelDescription

FPS = 24
EXAMPLES = (
    "a red circle bouncing off the walls on a black background",
    "a yellow square orbiting the center on a navy background",
    "a cyan triangle drifting to the left on a maroon background",
    "a white cross spinning in place on a teal background",
)
COLOURS = {
    "red": (235, 48, 40),
    "yellow": (245, 228, 40),
    "cyan": (20, 225, 225),
    "white": (240, 240, 240),
    "green": (40, 205, 60),
    "purple": (180, 60, 215),
}
PAPERS = {
    "black": (10, 10, 12),
    "navy": (12, 18, 84),
    "maroon": (88, 12, 24),
    "teal": (6, 78, 72),
    "gray": (104, 104, 104),
}


class Easel:
    """Implements `worker.models.base.VideoModel`. A latent holds the colours of a disc and of its ground.

    `hold_at` is the second of the video at which it waits, so a test knows what is made, however slow the machine is.
    A prompt with "explode" in it makes numbers that are no picture after the first two seconds.
    """

    name = "easel"
    fingerprint = "of the easel"
    device = torch.device("cpu")
    geometry = Geometry(6, 8, 4, 8, FPS, ((64, 64),), (64, 64))
    sampler = SamplerConfig(
        chunk_latents=2,
        chunks_in_flight=3,
        forwards_per_shift=2,
        context_chunks=1,
        time_shift=3.0,
        guidance_scale=1.0,
    )

    def __init__(self, step_seconds: float = 0.015) -> None:
        self.step_seconds = step_seconds
        self.hold_at = math.inf
        self.newest: EaselDecoder | None = None
        """Of the video that is being made, or was last."""
        self.ending = threading.Event()

    def describe(self) -> ModelDescription:
        return ModelDescription("easel", self.name, "", self.geometry, self.sampler, 1, EXAMPLES)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([_embedding(text) for text in prompts])

    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        time.sleep(self.step_seconds)
        if bool(prompt[:, 0, 6].any()) and self.newest is not None and self.newest.frame > 2 * FPS:
            return torch.full_like(latents, math.nan)
        level = sigmas[:, None, :, None, None]
        wanted = prompt[:, 0, :6, None, None, None]
        return torch.where(level > 0.001, (latents - wanted) / level.clamp_min(0.001), 0.0)

    def open_decoder(self) -> EaselDecoder:
        self.newest = EaselDecoder(self)
        return self.newest

    def encode_video(self, frames: VideoFrames) -> Tensor:
        count = self.geometry.latents_for_frames(len(frames))
        middle, corner = frames[-1, 28:36, 28:36].mean((0, 1)), frames[-1, :8, :8].mean((0, 1))
        colours = torch.from_numpy(np.concatenate([middle, corner]) / 127.5 - 1).float()
        return colours[None, :, None, None, None].expand(1, 6, count, 8, 8).clone()


class EaselDecoder:
    """Moves the disc on from frame to frame, so all latents so far determine its state."""

    memory_latents = 100_000

    def __init__(self, easel: Easel) -> None:
        self._easel = easel
        self.frame = 0

    def push(self, latents: Tensor) -> VideoFrames:
        frames = [self._next(latents[0, :, index]) for index in range(latents.shape[2])]
        while self.frame / FPS > self._easel.hold_at and not self._easel.ending.wait(0.01):
            pass
        return np.concatenate(frames)

    def replay(self, latents: Tensor) -> None:
        for index in range(latents.shape[2]):
            self._next(latents[0, :, index])

    def _next(self, latent: Tensor) -> NDArray[np.uint8]:
        count = self._easel.geometry.temporal_factor if self.frame else 1
        colours = ((latent.mean((1, 2)) + 1) * 127.5).clamp(0, 255).numpy()
        height, width = 8 * latent.shape[1], 8 * latent.shape[2]
        frames = paint(colours, self.frame, count, width, height)
        self.frame += count
        return frames


def _embedding(text: str) -> Tensor:
    """``(1, 7)``: the colours of disc and ground in -1..1, and whether to explode."""
    words = text.lower().split()
    ink = next((COLOURS[word] for word in words if word in COLOURS), COLOURS["green"])
    paper = next((PAPERS[word] for word in words if word in PAPERS), PAPERS["gray"])
    colours = [colour / 127.5 - 1 for colour in (*ink, *paper)]
    return torch.tensor([[*colours, float("explode" in words)]])


def paint(colours: NDArray[np.float32], first: int, count: int, width: int, height: int) -> NDArray[np.uint8]:
    """Frames of a disc that bounces over a plain ground, (count, height, width, 3); (6,) colours, the disc's first."""
    ink, paper = colours[:3], colours[3:]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    radius = 0.2 * height
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for number in range(count):
        seconds = (first + number) / FPS
        middle_x = _bounce(0.3 + 0.31 * seconds, radius / width) * width
        middle_y = _bounce(0.6 + 0.43 * seconds, 0.2) * height
        alpha = np.clip(radius - np.hypot(x - middle_x, y - middle_y) + 0.5, 0, 1)[..., None]
        frames[number] = paper * (1 - alpha) + ink * alpha
    return frames


def _bounce(way: float, margin: float) -> float:
    free = 1 - 2 * margin
    way %= 2 * free
    return margin + min(way, 2 * free - way)
