"""Noise levels and noise draws: the two tables a progressive window is made of.

Convention of the whole package (flow matching): ``x = (1 - sigma) * x0 + sigma * noise`` and a model
predicts ``v = noise - x0``. A *level* is an integer in ``0..S``; level 0 is clean, level S is pure noise.
"""

import hashlib
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor


class Draw(IntEnum):
    """What a noise draw is for; part of its key, so that no two uses ever share a draw, and for good."""

    START = 0
    """The pure noise a chunk enters the window with."""
    CONTEXT = 1
    """The little noise kept on context latents (``SamplerConfig.context_sigma``)."""
    RENOISE = 3
    """The noise of the replacement baseline that re-noises its kept frames."""


@lru_cache(maxsize=64)
def sigma_table(levels: int, time_shift: float) -> Tensor:
    """Noise level table ``sigma[0] = 0 < ... < sigma[levels] = 1``, float32, shape ``(levels + 1,)``.

    Linear levels ``u = i / levels`` bent by the time shift ``s * u / (1 + (s - 1) * u)``. Computed in float64
    and rounded once: bfloat16 would already turn a timestep of 966.66 into 968. The table is shared between
    callers, who never write to it.
    """
    return _bent(torch.linspace(0.0, 1.0, levels + 1, dtype=torch.float64), time_shift)


@lru_cache(maxsize=64)
def graded_table(chunks: int, chunk_latents: int, forwards_per_shift: int, time_shift: float) -> Tensor:
    """Noise level of each latent frame of a chunk, float32 ``(S + 1, C)``, as :func:`sigma_table` otherwise.

    The levels of a window of ``K`` chunks rise from latent to latent and fall by ``C`` of these steps between two
    shifts. Chunks still enter as pure noise and leave clean, so the first latent of a chunk is clean a while before
    the last, which stays pure noise a while longer: each is denoised over ``K * C - C + 1`` of the steps.
    """
    levels = torch.arange(chunks * forwards_per_shift + 1, dtype=torch.float64)
    return _bent(graded_levels(levels / forwards_per_shift, chunks, chunk_latents), time_shift)


def graded_levels(shifts: Tensor, chunks: int, chunk_latents: int) -> Tensor:
    """Linear levels ``(..., C)``, 0..1, of the latents of chunks to be clean in ``shifts`` ``(...)`` shifts."""
    behind = torch.arange(chunk_latents, dtype=torch.float64) + 1 - chunk_latents
    u = (chunk_latents * shifts[..., None] + behind) / (chunks * chunk_latents - chunk_latents + 1)
    return u.clamp(0.0, 1.0)


def _bent(u: Tensor, time_shift: float) -> Tensor:
    return (time_shift * u / (1.0 + (time_shift - 1.0) * u)).to(torch.float32)


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...], draw: Draw = Draw.START) -> Tensor:
    """Unit normal noise of one chunk, float32 on the CPU, a function of its arguments alone.

    There is no running generator, so a sampler has no generator state to save, chunks may be drawn in any
    order, and a lengthened video keeps the chunks it has. The key is hashed because neighbouring seeds and
    neighbouring chunks must not share a generator state.
    """
    key = hashlib.blake2b(f"{seed}/{int(draw)}/{chunk}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little"))
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def add_noise(clean: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """``(1 - sigma) * clean + sigma * noise``, any shape, float32."""
    return (1.0 - sigma) * clean + sigma * noise.to(clean.device)
