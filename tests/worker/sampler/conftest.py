"""Networks to sample from: small closed-form stand-ins, so that a test sees the sampler and nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.models.base import Geometry, SamplerConfig, StreamedDecoder, VideoFrames


class StandIn:
    """A stand-in for a network: records what it is asked and answers with a fixed function of it.

    With ``mixing`` each frame's answer depends on all frames of the window, on their levels and on the prompt;
    without, a frame's answer depends on that frame and its level alone.
    """

    name = "stand-in"
    device = torch.device("cpu")
    geometry = Geometry(3, 8, 4, 10, 24, ((24, 16),), (24, 16))
    sampler = SamplerConfig(
        chunk_latents=2,
        chunks_in_flight=4,
        forwards_per_shift=3,
        context_chunks=1,
        time_shift=3.0,
        guidance_scale=1.0,
    )

    def __init__(self, *, mixing: bool = True) -> None:
        self.mixing = mixing
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        rows = [torch.full((3, 4), (zlib.crc32(text.encode()) % 997) / 997) for text in prompts]
        return torch.stack(rows)

    def velocity(self, latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        self.calls.append((latents, sigmas, prompt))
        level = sigmas[:, None, :, None, None]
        if not self.mixing:
            return latents * 0.3 - latents * level * 0.1
        pooled = latents.mean((3, 4)).transpose(1, 2) + sigmas[..., None] + prompt.mean((1, 2))[:, None, None]
        mixed = torch.softmax(pooled @ pooled.transpose(1, 2), -1) @ pooled
        return 0.4 * latents + level + mixed.transpose(1, 2)[..., None, None]

    def open_decoder(self) -> StreamedDecoder:
        raise NotImplementedError

    def encode_video(self, frames: VideoFrames) -> Tensor:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> StandIn:
    """A network in which everything in the window matters."""
    return StandIn()


@pytest.fixture
def frame_wise_model() -> StandIn:
    """A network that treats frames independently."""
    return StandIn(mixing=False)


@pytest.fixture
def config() -> Callable[..., SamplerConfig]:
    """Settings with the given fields changed."""

    def make(**changes: Any) -> SamplerConfig:
        fields: dict[str, Any] = {
            "chunk_latents": 2,
            "chunks_in_flight": 4,
            "forwards_per_shift": 3,
            "context_chunks": 1,
            "time_shift": 3.0,
            "guidance_scale": 1.0,
        }
        return SamplerConfig(**{**fields, **changes})

    return make


@pytest.fixture
def latents() -> Callable[..., Tensor]:
    """``n`` latents that belong to some earlier video."""

    def make(n: int, seed: int = 99) -> Tensor:
        return torch.randn((1, 3, n, 2, 3), generator=torch.Generator().manual_seed(seed))

    return make
