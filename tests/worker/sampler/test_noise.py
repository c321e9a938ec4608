from __future__ import annotations

import pytest
import torch

from worker.sampler.noise import Draw, add_noise, chunk_noise, graded_table, sigma_table


def test_levels_rise_from_clean_to_pure_noise() -> None:
    table = sigma_table(30, 3.686)
    assert table.dtype == torch.float32
    assert table[0] == 0
    assert table[-1] == 1
    assert bool((table.diff() > 0).all())


def test_a_time_shift_of_one_keeps_the_levels_linear() -> None:
    assert torch.equal(sigma_table(16, 1.0), (torch.arange(17) / 16).float())


def test_the_time_shift_bends_the_levels_by_its_formula() -> None:
    expected = [8 * (i / 20) / (1 + 7 * (i / 20)) for i in range(21)]
    assert torch.equal(sigma_table(20, 8.0), torch.tensor(expected, dtype=torch.float64).float())


@pytest.mark.parametrize(("chunks", "latents", "forwards"), [(4, 2, 4), (3, 4, 5), (1, 3, 2), (5, 2, 1)])
def test_graded_levels_fall_from_pure_noise_to_clean_and_go_on_from_chunk_to_chunk(
    chunks: int, latents: int, forwards: int
) -> None:
    table = graded_table(chunks, latents, forwards, 1.0)
    assert table.shape == (chunks * forwards + 1, latents)
    assert (table[0] == 0).all()
    assert (table[-1] == 1).all()
    assert (table.diff(dim=0) >= 0).all()
    window = table[forwards::forwards].flatten()  # behind a shift, front to back
    step = 1 / ((chunks - 1) * latents + 1)
    assert torch.allclose(window, (torch.arange(1, len(window) + 1) * step).clamp(max=1))


def test_graded_levels_of_chunks_of_one_latent_are_the_plain_ones() -> None:
    assert torch.equal(graded_table(8, 1, 2, 3.0)[:, 0], sigma_table(16, 3.0))


def test_noise_is_a_function_of_seed_chunk_and_use_alone() -> None:
    shape = (1, 4, 2, 8, 8)
    first = chunk_noise(5, 3, shape)
    torch.randn(7)
    assert torch.equal(first, chunk_noise(5, 3, shape))
    others = [
        chunk_noise(5, 4, shape),
        chunk_noise(6, 3, shape),
        chunk_noise(3, 5, shape),
        *(chunk_noise(5, 3, shape, draw) for draw in Draw if draw is not Draw.START),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_noise_of_neighbouring_chunks_is_normal_and_uncorrelated() -> None:
    draws = torch.stack([chunk_noise(0, chunk, (20_000,)) for chunk in range(4)])
    assert torch.allclose(draws.mean(1), torch.zeros(4), atol=0.03)
    assert torch.allclose(draws.std(1), torch.ones(4), atol=0.03)
    assert torch.allclose(torch.corrcoef(draws), torch.eye(4), atol=0.03)


def test_adding_noise_goes_from_clean_to_noise() -> None:
    clean, noise = torch.ones(3), torch.full((3,), 5.0)
    assert torch.equal(add_noise(clean, noise, 0.0), clean)
    assert torch.equal(add_noise(clean, noise, 1.0), noise)
    assert torch.equal(add_noise(clean, noise, 0.25), torch.full((3,), 2.0))
