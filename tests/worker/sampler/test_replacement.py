from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.sampler.noise import Draw, add_noise, chunk_noise, sigma_table
from worker.sampler.progressive import sample
from worker.sampler.replacement import sample_by_replacement, steps_per_window
from worker.sampler.window import Emitted, SamplerConfig

Configure = Callable[..., SamplerConfig]
Given = Callable[..., Tensor]


@pytest.mark.parametrize("renoise", [False, True])
@pytest.mark.parametrize("chunks", [1, 3, 4, 6, 12])
def test_a_baseline_costs_as_many_network_evaluations_as_the_progressive_sampler(
    model: Any, config: Configure, chunks: int, renoise: bool
) -> None:
    sample(model, "a", chunks=chunks, seed=0, config=config())
    progressive = len(model.calls)
    model.calls.clear()
    sample_by_replacement(model, "a", chunks=chunks, seed=0, renoise=renoise, config=config())
    assert len(model.calls) == progressive == sum(steps_per_window(config(), chunks))


def test_a_baseline_looks_at_windows_of_the_same_length(model: Any, config: Configure) -> None:
    settings = config(context_chunks=2)
    sample_by_replacement(model, "a", chunks=12, seed=0, renoise=False, config=settings)
    steps = steps_per_window(settings, 12)
    lengths = [call[0].shape[2] for call in model.calls]
    assert lengths == [8] * steps[0] + [settings.window_latents] * (steps[1] + steps[2])


@pytest.mark.parametrize("renoise", [False, True])
def test_new_frames_share_one_level_that_falls_to_zero(model: Any, config: Configure, renoise: bool) -> None:
    settings = config()
    sample_by_replacement(model, "a", chunks=8, seed=0, renoise=renoise, config=settings)
    first, second = steps_per_window(settings, 8)
    table = sigma_table(second, settings.time_shift)
    for level, (_, sigmas, _) in zip(range(second, 0, -1), model.calls[first:], strict=True):
        assert bool((sigmas[:, 2:] == table[level]).all())
        assert bool((sigmas[:, :2] == (table[level] if renoise else 0)).all())


def test_without_noise_the_kept_frames_stay_as_they_were(model: Any, config: Configure) -> None:
    out = sample_by_replacement(model, "a", chunks=8, seed=0, renoise=False, config=config())
    first, _ = steps_per_window(config(), 8)
    for latents, _, _ in model.calls[first:]:
        assert torch.equal(latents[:, :, :2], out[:, :, 6:8])


def test_with_noise_the_kept_frames_are_renoised_to_the_level_of_the_rest(
    model: Any, config: Configure
) -> None:
    settings = config()
    out = sample_by_replacement(model, "a", chunks=8, seed=9, renoise=True, config=settings)
    first, second = steps_per_window(settings, 8)
    table = sigma_table(second, settings.time_shift).tolist()
    noise = chunk_noise(9, 4, (1, 3, 2, 2, 3), Draw.RENOISE)
    for level, (latents, _, _) in zip(range(second, 0, -1), model.calls[first:], strict=True):
        assert torch.equal(latents[:, :, :2], add_noise(out[:, :, 6:8], noise, table[level]))


def test_emitted_chunks_are_never_changed_afterwards(model: Any, config: Configure) -> None:
    seen: list[Emitted] = []
    out = sample_by_replacement(
        model, "a", chunks=10, seed=0, renoise=True, config=config(), on_chunk=seen.append
    )
    assert [emitted.chunk for emitted in seen] == list(range(10))
    assert torch.equal(torch.cat([emitted.latents for emitted in seen], 2), out)


def test_a_frame_wise_network_gives_plain_euler_per_window(frame_wise_model: Any, config: Configure) -> None:
    settings = config()
    out = sample_by_replacement(frame_wise_model, "a", chunks=8, seed=2, renoise=False, config=settings)
    x = torch.cat([chunk_noise(2, n, (1, 3, 2, 2, 3)) for n in range(4, 8)], 2)
    steps = steps_per_window(settings, 8)[1]
    table = sigma_table(steps, settings.time_shift).tolist()
    for level in range(steps, 0, -1):
        velocity = frame_wise_model.velocity(x, torch.full((1, 8), table[level]), torch.zeros(1, 3, 4))
        x = x + (table[level - 1] - table[level]) * velocity
    assert torch.equal(out[:, :, 8:], x)


def test_a_baseline_continues_from_given_latents(model: Any, config: Configure, latents: Given) -> None:
    clip = latents(5)
    out = sample_by_replacement(model, "a", chunks=4, seed=0, renoise=False, config=config(), context=clip)
    assert out.shape[2] == 8
    assert torch.equal(model.calls[0][0][:, :, :2], clip[:, :, 3:])


def test_a_baseline_without_kept_frames_or_chunks_is_refused(model: Any, config: Configure) -> None:
    with pytest.raises(ValueError, match="context_chunks"):
        sample_by_replacement(model, "a", chunks=4, seed=0, renoise=True, config=config(context_chunks=0))
    with pytest.raises(ValueError, match="at least one chunk"):
        sample_by_replacement(model, "a", chunks=0, seed=0, renoise=True, config=config())
