"""Training windows: the states that a progressive sampler meets, drawn from encoded videos.

K chunks of C latents are in flight; slot j (0 in front) is at noise level (j + u) / K with one u for the whole window,
which covers every number of forwards per shift; or its latents are at graded levels (`worker.sampler.noise`). Source:
Xie et al., arXiv 2410.08151v2, sections 3.2 and 4, whose random shift of the ladder is here uniform over a whole step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.sampler.noise import graded_levels
from worker.training.backdrops import BACKDROPS
from worker.training.latents import Clips, Latents
from worker.training.run import ConfigError, Count, Share, Whole
from worker.training.scenes import COLORS, MOTIONS, SHAPES, SceneAttributes

EMPHASIS = 2.5
TURNING_AT_ONE_LEVEL = 0.15
"""Share of the turning windows that are as the replacement baseline has them."""


@dataclass(frozen=True)
class WindowMixture:
    """The window of the sampler, and the probability of each kind of training window."""

    chunk_latents: Count
    chunks_in_flight: Count
    context_chunks: Whole
    forwards_per_shift: Count
    on_grid: Share  # share of windows whose u is one that `forwards_per_shift` visits
    steady: Share  # full window behind clean context
    steady_start: Share  # share of those whose context is the very start of a video
    growing: Share  # the first windows of a video: no context, noisiest slots only
    continued: Share  # the first windows behind a given image or clip
    shrinking: Share  # the last windows: context and the cleanest slots
    context: Share  # clean context and one common level (replacement without noise)
    single: Share  # one common level, no context
    single_latents: Share  # chunks of one latent (the ablation without chunks)
    turning: Share = 0.0  # as `steady` or `context`, behind another past than the caption says
    graded: Share = 0.0  # share of the progressive windows whose levels rise within a chunk, too
    emphasis: tuple[str, ...] = ()  # shapes, motions...: each makes what has it EMPHASIS times as frequent

    def __post_init__(self) -> None:
        unknown = {*self.emphasis} - {*BACKDROPS, *COLORS, *SHAPES, *MOTIONS}
        if unknown:
            raise ConfigError(f"emphasis: no scene has {sorted(unknown)}")
        if not self.kinds():
            raise ConfigError("no kind of window has a probability")
        if self.shrinking and self.chunks_in_flight == 1:
            raise ConfigError("shrinking: a window of one chunk cannot shrink")

    @property
    def longest(self) -> int:
        """Latents of the longest window."""
        slots = self.chunk_latents * self.chunks_in_flight
        return max(slots + self.chunk_latents * self.context_chunks, slots + bool(self.continued))

    def kinds(self) -> dict[str, float]:
        """Probability by kind."""
        names = (
            "steady",
            "growing",
            "continued",
            "shrinking",
            "context",
            "single",
            "single_latents",
            "turning",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True)
class Window:
    """A batch of B windows of n latents."""

    kind: str
    latents: Tensor  # (B, z, n, h, w), clean and normalised
    sigmas: Tensor  # (B, n): 0 marks clean context, which carries no loss
    near: Tensor  # (B, n, h, w) in 0..1
    attributes: list[SceneAttributes]


def _cut(
    clips: Clips,
    batch: int,
    length: int,
    rng: np.random.Generator,
    *,
    at_start: bool,
    emphasis: tuple[str, ...],
) -> tuple[Tensor, Tensor, list[SceneAttributes]]:
    weights = np.array([EMPHASIS ** len({*vars(a).values()} & {*emphasis}) for a in clips.attributes])
    rows = rng.choice(len(weights), batch, p=weights / weights.sum())
    last = clips.latents.shape[2] - length
    if at_start:
        begins = np.zeros(batch, dtype=int)
    elif clips.turn is not None:
        # Somewhere in the window it turns: what is ahead of a window that has not turned yet is another prompt's.
        begun, turned = clips.turn[rows].numpy().T
        first = np.clip(begun - length + 1, 0, last)
        begins = rng.integers(first, np.clip(turned - 1, first, last) + 1)
    else:
        begins = rng.integers(0, last + 1, batch)
    pairs = list(zip(rows.tolist(), begins.tolist(), strict=True))
    return (
        torch.stack([clips.latents[r, :, b : b + length] for r, b in pairs]),
        torch.stack([clips.near[r, b : b + length] for r, b in pairs]),
        [clips.attributes[r] for r in rows],
    )


def draw(data: Latents, mixture: WindowMixture, batch: int, rng: np.random.Generator) -> Window:
    """A random batch; short windows come in larger batches, so that every batch has about as many latents.

    `batch` is the number of windows of full length.
    """
    chunk, slots, context = mixture.chunk_latents, mixture.chunks_in_flight, mixture.context_chunks
    names, weights = zip(*mixture.kinds().items(), strict=True)
    kind = str(rng.choice(names, p=np.array(weights) / sum(weights)))
    full = chunk * (slots + context)
    first, clean, at_start, one_level = 0, chunk * context, False, kind in ("context", "single")
    if kind == "steady":
        at_start = rng.random() < mixture.steady_start
        active = slots
    elif kind == "growing":
        active = int(rng.integers(1, slots + 1))
        first, clean, at_start = slots - active, 0, True
    elif kind == "continued":
        active = int(rng.integers(1, slots + 1))
        first, at_start = slots - active, rng.random() < 0.5
        clean = 1 if at_start else clean
    elif kind == "shrinking":
        active = int(rng.integers(1, slots))
    else:
        active = slots
        if kind == "turning":
            one_level = rng.random() < TURNING_AT_ONE_LEVEL
        elif kind == "single":
            active, clean, at_start = slots + context, 0, rng.random() < 0.6
        elif kind == "single_latents":
            chunk, slots = 1, slots * chunk
            active = slots
    length = clean + active * chunk
    batch = max(1, round(batch * full / length))
    u = rng.uniform(0, 1, (batch, 1))
    grid = rng.integers(1, mixture.forwards_per_shift + 1, (batch, 1)) / mixture.forwards_per_shift
    u = np.where(rng.random((batch, 1)) < mixture.on_grid, grid, u)
    if one_level:
        levels = np.repeat(np.maximum(u, 1e-3), active * chunk, 1)
    elif chunk > 1 and mixture.graded and rng.random() < mixture.graded:
        shifts = torch.from_numpy(np.arange(first, first + active)[None] + u)
        levels = graded_levels(shifts, slots, chunk).flatten(1).numpy()
    else:
        levels = np.maximum((np.arange(first, first + active)[None] + u) / slots, 1e-3)
        levels = np.repeat(levels, chunk, 1)
    sigmas = np.concatenate([np.zeros((batch, clean)), levels], 1)
    clips = data.start if at_start else data.turning if kind == "turning" else data.middle
    assert clips is not None, "a set without clips that turn has no windows of them"
    latents, near, attributes = _cut(clips, batch, length, rng, at_start=at_start, emphasis=mixture.emphasis)
    return Window(kind, latents, torch.from_numpy(sigmas).float().to(latents.device), near, attributes)
