from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.models.base import VideoModel
from worker.sampler.noise import chunk_noise
from worker.sampler.progressive import guided_velocity, sample, step
from worker.sampler.window import Emitted, PromptTimeline, SamplerConfig, WindowState

Configure = Callable[..., SamplerConfig]
Given = Callable[..., Tensor]
SHAPE = (3, 2, 3)
PROMPT, NEGATIVE = torch.full((1, 3, 4), 0.3), torch.zeros(1, 3, 4)


def finish(model: Any, state: WindowState, prompt: Tensor = PROMPT) -> list[Tensor]:
    """The chunks a state still emits, each forward on its own."""
    chunks = []
    while not state.done:
        (emitted,) = step(model, [state], [prompt], [NEGATIVE])
        chunks += [] if emitted is None else [emitted.latents]
    return chunks


def equal(ours: list[Tensor], others: list[Tensor]) -> bool:
    return len(ours) == len(others) and all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("graded", [False, True])
def test_a_frame_wise_network_gives_plain_euler_per_chunk_bit_for_bit(
    frame_wise_model: Any, config: Configure, graded: bool
) -> None:
    settings = config(sink=True, graded=graded)
    chunks = finish(frame_wise_model, WindowState.start(settings, 7, SHAPE, total=6))
    table = settings.sigmas()
    for number, chunk in enumerate(chunks):
        x = chunk_noise(7, number, (1, 3, 2, 2, 3))
        for level in range(settings.levels, 0, -1):
            step = (table[level - 1] - table[level])[:, None, None]
            x = x + step * frame_wise_model.velocity(x, table[level : level + 1], PROMPT)
        assert torch.equal(chunk, x)


def test_graded_levels_rise_from_latent_to_latent_through_every_window(model: Any, config: Configure) -> None:
    settings = config(graded=True, time_shift=1.0, forwards_per_shift=4)
    sample(model, "a", chunks=9, seed=0, config=settings)
    steady = [sigmas[0].tolist() for _, sigmas, _ in model.calls[20:24]]
    sevenths = [  # context, then eight latents; half a step of the ladder for each forward
        [0, 0, 1, 2, 3, 4, 5, 6, 7, 7],
        [0, 0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7],
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5],
    ]
    assert steady == [pytest.approx([level / 7 for level in row]) for row in sevenths]


def test_a_video_costs_m_times_n_plus_k_minus_1_network_evaluations(model: Any, config: Configure) -> None:
    for chunks in (1, 2, 4, 7):
        model.calls.clear()
        sample(model, "a", chunks=chunks, seed=0, config=config())
        assert len(model.calls) == 3 * (chunks + 4 - 1)


@pytest.mark.parametrize("constant_shape", [False, True])
def test_a_longer_video_begins_with_the_chunks_of_a_shorter_one(
    model: Any, config: Configure, constant_shape: bool
) -> None:
    settings = config(constant_shape=constant_shape)
    short = finish(model, WindowState.start(settings, 1, SHAPE, total=7))
    long = finish(model, WindowState.start(settings, 1, SHAPE, total=10))
    assert equal(short[: 7 - 4 + 1], long[: 7 - 4 + 1])
    assert not torch.equal(short[-1], long[6])


def test_a_video_lengthened_before_its_last_append_equals_one_planned_longer(
    model: Any, config: Configure
) -> None:
    planned = finish(model, WindowState.start(config(), 1, SHAPE, total=10))
    state, chunks = WindowState.start(config(), 1, SHAPE, total=7), []
    while state.newest_chunk < 6:
        (emitted,) = step(model, [state], [PROMPT], [NEGATIVE])
        chunks += [] if emitted is None else [emitted.latents]
    for _ in range(2):
        (emitted,) = step(model, [state], [PROMPT], [NEGATIVE])
        chunks += [] if emitted is None else [emitted.latents]
    state.set_total(10)
    assert equal(chunks + finish(model, state), planned)


def test_an_endless_video_that_is_finished_equals_one_planned_at_that_length(
    model: Any, config: Configure
) -> None:
    state, chunks = WindowState.start(config(), 1, SHAPE, total=None), []
    while state.newest_chunk < 6:
        (emitted,) = step(model, [state], [PROMPT], [NEGATIVE])
        chunks += [] if emitted is None else [emitted.latents]
    state.set_total(state.next_chunk)
    planned = finish(model, WindowState.start(config(), 1, SHAPE, total=7))
    assert equal(chunks + finish(model, state), planned)


@pytest.mark.parametrize("changes", [{}, {"constant_shape": True, "sink": True, "context_sigma": 0.02}])
def test_resuming_after_any_forward_is_bit_equal(
    model: Any, config: Configure, latents: Given, changes: dict[str, Any]
) -> None:
    settings = config(chunks_in_flight=3, forwards_per_shift=2, **changes)

    def start() -> WindowState:
        return WindowState.start(settings, 1, SHAPE, total=5, context=latents(1))

    whole = finish(model, start())
    total = start().forwards_total
    assert total is not None
    state, chunks = start(), []
    for _ in range(total):
        resumed = WindowState.from_tensors(*state.to_tensors())
        assert equal(chunks + finish(model, resumed), whole)
        (emitted,) = step(model, [state], [PROMPT], [NEGATIVE])
        chunks += [] if emitted is None else [emitted.latents]


def test_videos_at_different_stages_share_a_forward_and_agree_with_each_alone(
    model: Any, config: Configure
) -> None:
    calm, keen = config(), config(guidance_scale=4.0, time_shift=1.0)

    def videos() -> tuple[WindowState, WindowState]:
        return (
            WindowState.start(calm, 1, SHAPE, total=9),
            WindowState.start(keen, 2, SHAPE, total=9),
        )

    other_prompt = torch.full((1, 3, 4), 0.8)
    first, second = videos()
    alone = [finish(model, first), finish(model, second, other_prompt)]

    first, second = videos()
    shared: list[list[Tensor]] = [[], []]

    def keep(row: int, emitted: Emitted | None) -> None:
        shared[row] += [] if emitted is None else [emitted.latents]

    for _ in range(13):  # one video is in its steady window, the other catches up to another stage of it
        keep(0, step(model, [first], [PROMPT], [NEGATIVE])[0])
    for _ in range(17):
        keep(1, step(model, [second], [other_prompt], [NEGATIVE])[0])
    assert (first.stage, second.stage) == (1, 2)
    model.calls.clear()
    for _ in range(10):
        rows = step(model, [first, second], [PROMPT, other_prompt], [NEGATIVE, NEGATIVE])
        for row, emitted in enumerate(rows):
            keep(row, emitted)
    assert len(model.calls) == 10
    shared[0] += finish(model, first)
    shared[1] += finish(model, second, other_prompt)
    for ours, others in zip(shared, alone, strict=True):
        assert torch.allclose(torch.cat(ours, 2), torch.cat(others, 2), atol=1e-5)


def test_guidance_in_one_batch_equals_two_separate_evaluations_per_row(model: Any) -> None:
    latents, sigmas = torch.randn(3, 3, 4, 2, 3), torch.rand(3, 4)
    prompts, negatives = torch.rand(3, 3, 4), torch.rand(3, 3, 4)
    together = guided_velocity(model, latents, sigmas, prompts, negatives, scales=[5.0, 1.0, 0.5])
    assert [len(call[0]) for call in model.calls] == [5]
    for row, scale in enumerate([5.0, 1.0, 0.5]):
        one = slice(row, row + 1)
        positive = model.velocity(latents[one], sigmas[one], prompts[one])
        negative = model.velocity(latents[one], sigmas[one], negatives[one])
        assert torch.allclose(together[one], negative + scale * (positive - negative), atol=1e-5)


def test_without_guidance_no_negative_prompt_is_evaluated(model: Any, config: Configure) -> None:
    sample(model, "a", chunks=2, seed=0, config=config(guidance_scale=1.0))
    assert {len(call[0]) for call in model.calls} == {1}


def test_windows_of_different_shapes_or_too_few_prompts_are_refused(model: Any, config: Configure) -> None:
    young, old = (WindowState.start(config(), seed, SHAPE, total=9) for seed in (0, 1))
    for _ in range(3):
        step(model, [old], [PROMPT], [NEGATIVE])
    with pytest.raises(ValueError, match="one shape"):
        step(model, [young, old], [PROMPT] * 2, [NEGATIVE] * 2)
    with pytest.raises(ValueError, match="1 windows, 2 prompts"):
        step(model, [young], [PROMPT] * 2, [NEGATIVE])


def test_every_forward_sees_the_levels_of_its_window_in_float32(model: Any, config: Configure) -> None:
    settings = config()
    sample(model, "a", chunks=5, seed=0, config=settings)
    latents, sigmas, _ = model.calls[13]
    assert latents.dtype == sigmas.dtype == torch.float32
    assert torch.equal(sigmas[0], settings.sigmas()[[0, 2, 5, 8, 11]].flatten())


def test_the_prompt_changes_at_the_forward_its_chunk_enters(model: Any, config: Configure) -> None:
    sample(model, PromptTimeline(((0, "day"), (2, "night"))), chunks=4, seed=0, config=config())
    day, night = model.encode_prompt(["day", "night"])
    seen = [call[2][0] for call in model.calls]
    assert all(torch.equal(prompt, day if at < 2 * 3 else night) for at, prompt in enumerate(seen))


def test_sampling_reports_each_chunk_and_returns_them_joined(model: Any, config: Configure) -> None:
    chunks: list[Emitted] = []
    latents = sample(model, "a", chunks=5, seed=3, config=config(), size=(48, 32), on_chunk=chunks.append)
    assert latents.shape == (1, 3, 10, 4, 6)
    assert [chunk.chunk for chunk in chunks] == list(range(5))
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks], 2), latents)
    assert torch.equal(latents, sample(model, "a", chunks=5, seed=3, config=config(), size=(48, 32)))


def test_a_continued_video_depends_on_the_latents_it_continues(
    model: Any, config: Configure, latents: Given
) -> None:
    runs = [
        sample(model, "a", chunks=2, seed=3, config=config(), context=context)
        for context in (None, latents(2), latents(2, seed=5))
    ]
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[1], runs[2])


def test_the_settings_of_the_model_are_the_default(model: VideoModel) -> None:
    own = replace(model.sampler)
    assert torch.equal(
        sample(model, "a", chunks=2, seed=3), sample(model, "a", chunks=2, seed=3, config=own, size=(24, 16))
    )
