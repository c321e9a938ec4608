from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.sampler.noise import Draw, chunk_noise
from worker.sampler.window import PromptTimeline, SamplerConfig, WindowState, same_shape

Configure = Callable[..., SamplerConfig]
Given = Callable[..., Tensor]
SHAPE = (3, 2, 3)


@dataclass(frozen=True, slots=True)
class PlannedForward:
    """What one forward looks at, in chunk numbers."""

    context: tuple[int, ...]
    active: tuple[tuple[int, int], ...]
    """``(chunk, level before the forward)``, front first."""
    waiting: tuple[int, ...]
    emits: int | None
    """Chunk that is clean after this forward."""


def plan(config: SamplerConfig, total_chunks: int) -> Iterator[PlannedForward]:
    """Every forward of a video of ``total_chunks`` chunks that starts from pure noise, in order.

    In closed form: chunk ``j`` is active from forward ``j*m`` on, for ``S`` forwards (variable length: the
    window grows, then rolls, then shrinks). :class:`WindowState` must walk through the same windows.
    """
    per_shift, levels, slots = config.forwards_per_shift, config.levels, config.chunks_in_flight
    for forward in range(config.forwards(total_chunks)):
        done = max(0, (forward - levels) // per_shift + 1)
        entered = min(total_chunks, forward // per_shift + 1)
        active = tuple((j, levels - (forward - j * per_shift)) for j in range(done, entered))
        shown, missing = config.context_chunks, 0
        if config.constant_shape:
            shown = config.context_chunks + slots - len(active)
            missing = shown - min(shown, done)
        yield PlannedForward(
            context=tuple(range(max(0, done - shown), done)),
            active=active,
            waiting=tuple(range(entered, entered + missing)),
            emits=active[0][0] if active[0][1] == 1 else None,
        )


def walk(state: WindowState) -> list[PlannedForward]:
    """What a state does, told as a plan, with a velocity of zero."""
    forwards, emitted = [], []
    while not state.done:
        sigmas = state.view().sigmas[0]
        size, active = state.config.chunk_latents, tuple((c.number, c.level) for c in state.active)
        begin = state.view().active_from
        end = begin + len(active) * size
        assert torch.equal(sigmas[begin:end], state.config.sigmas()[[level for _, level in active]].flatten())
        context, waiting = begin // size, (len(sigmas) - end) // size
        after = state.advance(torch.zeros(1, *state.shape))
        forwards.append(
            PlannedForward(
                context=tuple(emitted[len(emitted) - context :]),
                active=active,
                waiting=tuple(range(active[-1][0] + 1, active[-1][0] + 1 + waiting)),
                emits=None if after is None else after.chunk,
            )
        )
        emitted += [] if after is None else [after.chunk]
    return forwards


def diffusers_windows(
    config: SamplerConfig, chunks: int
) -> list[tuple[list[int], list[bool], tuple[int, int]]]:
    """Per iteration: level of every chunk, whether it is updated, and the interval of chunks looked at."""
    size, levels = config.chunk_latents, config.levels
    _, index, update, interval = SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix(
        None,
        chunks * size,
        torch.arange(levels, 0, -1),
        config.window_latents,
        ar_step=config.forwards_per_shift,
        causal_block_size=size,
    )
    rows = []
    for row, mask, (start, end) in zip(index, update, interval, strict=True):
        # Index 0 waits at pure noise, index i is forward i of the chunk, levels + 1 is clean.
        steps = [levels if i == 0 else levels + 1 - i for i in row[::size].tolist()]
        rows.append((steps, mask[::size].tolist(), (start // size, end // size)))
    return rows


@pytest.mark.parametrize("chunks", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("constant_shape", [False, True])
@pytest.mark.parametrize("context_chunks", [0, 1, 2])
@pytest.mark.parametrize("graded", [False, True])
def test_a_state_walks_through_the_plan(
    config: Configure, chunks: int, constant_shape: bool, context_chunks: int, graded: bool
) -> None:
    settings = config(constant_shape=constant_shape, context_chunks=context_chunks, graded=graded)
    walked = walk(WindowState.start(settings, 0, SHAPE, total=chunks))
    assert walked == list(plan(settings, chunks))


@pytest.mark.parametrize(("slots", "per_shift"), [(1, 1), (1, 4), (4, 1), (4, 3), (6, 5)])
def test_n_chunks_cost_m_times_n_plus_k_minus_1_forwards_and_each_visits_every_level_once(
    config: Configure, slots: int, per_shift: int
) -> None:
    settings = config(chunks_in_flight=slots, forwards_per_shift=per_shift)
    for chunks in (1, 2, slots, slots + 3):
        forwards = list(plan(settings, chunks))
        assert len(forwards) == per_shift * (chunks + slots - 1) == settings.forwards(chunks)
        for chunk in range(chunks):
            levels = [level for forward in forwards for number, level in forward.active if number == chunk]
            assert levels == list(range(settings.levels, 0, -1))


def test_chunk_j_is_emitted_at_forward_s_plus_j_m(config: Configure) -> None:
    settings = config()
    emitted = {f.emits: at for at, f in enumerate(plan(settings, 7), start=1) if f.emits is not None}
    assert emitted == {j: settings.levels + j * settings.forwards_per_shift for j in range(7)}


@pytest.mark.parametrize("context_chunks", [0, 1, 2])
def test_constant_shape_windows_are_those_of_diffusers(config: Configure, context_chunks: int) -> None:
    settings = config(constant_shape=True, context_chunks=context_chunks)
    rows = diffusers_windows(settings, 9)
    forwards = list(plan(settings, 9))
    assert len(rows) == len(forwards)
    for (levels, updated, (start, end)), forward in zip(rows, forwards, strict=True):
        seen = [*forward.context, *(number for number, _ in forward.active), *forward.waiting]
        assert seen == list(range(start, end))
        assert [(n, levels[n]) for n in range(9) if updated[n]] == list(forward.active)


def test_growing_and_shrinking_windows_update_the_chunks_and_levels_of_diffusers(config: Configure) -> None:
    settings = config()
    rows = diffusers_windows(settings, 9)
    for (levels, updated, (start, end)), forward in zip(rows, plan(settings, 9), strict=True):
        assert [(n, levels[n]) for n in range(9) if updated[n]] == list(forward.active)
        if forward.context and len(forward.active) == settings.chunks_in_flight:
            assert [*forward.context, *(n for n, _ in forward.active)] == list(range(start, end))


def test_constant_shape_has_one_shape_from_first_to_last_forward(config: Configure, latents: Given) -> None:
    for sink in (False, True):
        settings = config(constant_shape=True, sink=sink)
        for context in (None, latents(1), latents(5)):
            for chunks in (1, 3, 9):
                state = WindowState.start(settings, 0, SHAPE, total=chunks, context=context)
                shapes = set()
                while not state.done:
                    view = state.view()
                    assert tuple(view.latents.shape[1:]) == state.shape
                    shapes.add(state.shape)
                    state.advance(torch.zeros(1, *state.shape))
                assert shapes == {(3, settings.window_latents + sink, 2, 3)}


def test_waiting_chunks_show_the_noise_they_will_start_from(config: Configure) -> None:
    state = WindowState.start(config(constant_shape=True), 4, SHAPE, total=9)
    waiting = state.view().latents[:, :, 2:]
    noise = torch.cat([chunk_noise(4, n, (1, 3, 2, 2, 3)) for n in (1, 2, 3, 4)], 2)
    assert torch.equal(waiting, noise)


def test_looking_at_the_window_changes_nothing(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=3)
    first, second = state.view(), state.view()
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.sigmas, second.sigmas)
    assert state.forward == 0


def test_the_forwards_left_count_down_to_zero_whatever_the_start(config: Configure, latents: Given) -> None:
    for state in (
        WindowState.start(config(), 0, SHAPE, total=1),
        WindowState.start(config(), 0, SHAPE, total=6, context=latents(3)),
    ):
        total = state.forwards_total
        assert total is not None
        for done in range(total):
            assert not state.done
            assert state.forwards_left == total - done
            state.advance(torch.zeros(1, *state.shape))
        assert state.done


def test_given_latents_become_the_clean_context(config: Configure, latents: Given) -> None:
    clip = latents(7)
    state = WindowState.start(config(context_chunks=2), 0, SHAPE, total=3, context=clip)
    view = state.view()
    assert torch.equal(view.latents[:, :, :4], clip[:, :, 3:])
    assert view.sigmas[0, :4].tolist() == [0.0] * 4
    assert view.active_from == 4


def test_an_image_is_a_context_of_one_latent_that_emitted_chunks_push_out(
    config: Configure, latents: Given
) -> None:
    image = latents(1)
    state = WindowState.start(config(context_chunks=1), 0, SHAPE, total=3, context=image)
    assert torch.equal(state.view().latents[:, :, :1], image)
    while (emitted := state.advance(torch.zeros(1, *state.shape))) is None:
        assert state.view().active_from == 1
    assert torch.equal(state.view().latents[:, :, :2], emitted.latents)


def test_the_sink_enters_when_the_first_latent_has_left_the_context(config: Configure) -> None:
    state = WindowState.start(config(sink=True), 0, SHAPE, total=6)
    first = None
    while not state.done:
        view, emitted_before = state.view(), state.known_latents // 2
        if emitted_before >= 2:
            assert first is not None
            assert torch.equal(view.latents[:, :, :1], first)
            assert view.sigmas[0, 0] == 0
            assert view.active_from == 1 + 2
        else:
            assert view.active_from == 2 * emitted_before
        emitted = state.advance(torch.full((1, *state.shape), 0.1))
        if emitted is not None and emitted.chunk == 0:
            first = emitted.latents[:, :, :1]


def test_the_sink_of_a_continued_video_is_its_given_first_latent(config: Configure, latents: Given) -> None:
    clip = latents(7)
    state = WindowState.start(config(sink=True), 0, SHAPE, total=2, context=clip)
    assert torch.equal(state.view().latents[:, :, :3], torch.cat([clip[:, :, :1], clip[:, :, 5:]], 2))


def test_noisy_context_carries_its_level_and_the_emitted_chunk_stays_clean(config: Configure) -> None:
    state = WindowState.start(config(context_sigma=0.02), 3, SHAPE, total=3)
    while (emitted := state.advance(torch.zeros(1, *state.shape))) is None:
        pass
    start = chunk_noise(3, 0, (1, 3, 2, 2, 3))
    assert torch.equal(emitted.latents, start)
    view = state.view()
    assert view.sigmas[0, :2].tolist() == [pytest.approx(0.02)] * 2
    noise = chunk_noise(3, 0, (1, 3, 2, 2, 3), Draw.CONTEXT)
    assert torch.equal(view.latents[:, :, :2], 0.98 * start + 0.02 * noise)


def test_the_length_can_change_until_the_window_shrinks(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=3)
    for _ in range(3 * 3):
        assert not state.draining
        state.set_total(5)
        state.set_total(3)
        state.advance(torch.zeros(1, *state.shape))
    assert state.draining
    with pytest.raises(ValueError, match="can no longer change"):
        state.set_total(5)


def test_the_length_cannot_cut_into_the_window(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=9)
    for _ in range(4):
        state.advance(torch.zeros(1, *state.shape))
    with pytest.raises(ValueError, match="2 chunks have entered"):
        state.set_total(1)


def test_an_endless_video_goes_on_until_it_is_finished(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=None)
    emitted = []
    for _ in range(40):
        emitted.append(state.advance(torch.zeros(1, *state.shape)))
        assert state.forwards_total is None
    state.set_total(state.next_chunk)
    while not state.done:
        emitted.append(state.advance(torch.zeros(1, *state.shape)))
    assert [e.chunk for e in emitted if e is not None] == list(range(state.next_chunk))
    assert state.forwards_left == 0


def test_a_checkpoint_survives_a_safetensors_file_bit_for_bit(
    config: Configure, latents: Given, tmp_path: Path
) -> None:
    settings = config(sink=True, context_sigma=0.02, constant_shape=True)
    state = WindowState.start(settings, 2**62 + 1, SHAPE, total=9, context=latents(3))
    for _ in range(17):
        state.advance(torch.randn(1, *state.shape))
    tensors, metadata = state.to_tensors()
    save_file(tensors, tmp_path / "window.safetensors", metadata)
    with safe_open(tmp_path / "window.safetensors", "pt") as file:
        loaded = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        again = WindowState.from_tensors(loaded, file.metadata())
    assert again.to_tensors()[1] == metadata
    assert torch.equal(again.view().latents, state.view().latents)
    assert torch.equal(again.view().sigmas, state.view().sigmas)


def test_a_saved_checkpoint_does_not_change_as_sampling_goes_on(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=6)
    for _ in range(14):
        state.advance(torch.ones(1, *state.shape))
    tensors, _ = state.to_tensors()
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    for _ in range(5):
        state.advance(torch.ones(1, *state.shape))
    assert all(torch.equal(before[key], tensors[key]) for key in before)


def test_a_checkpoint_of_another_schema_or_with_missing_parts_is_refused(config: Configure) -> None:
    tensors, metadata = WindowState.start(config(), 0, SHAPE, total=3).to_tensors()
    facts = json.loads(metadata["window"])
    with pytest.raises(ValueError, match="schema 7"):
        WindowState.from_tensors(tensors, {"window": json.dumps({**facts, "schema": 7})})
    with pytest.raises(ValueError, match="incomplete"):
        WindowState.from_tensors({}, metadata)
    with pytest.raises(ValueError, match="incomplete"):
        WindowState.from_tensors(tensors, {})


def test_the_prompt_of_a_forward_is_that_of_the_newest_chunk(config: Configure) -> None:
    timeline = PromptTimeline(((0, "day"), (3, "dusk"), (4, "night")))
    state = WindowState.start(config(), 0, SHAPE, total=6)
    seen: dict[int, list[str]] = {chunk: [] for chunk in range(6)}
    while not state.done:
        for chunk in state.active:
            seen[chunk.number].append(timeline.at(state.newest_chunk))
        state.advance(torch.zeros(1, *state.shape))
    assert seen[2] == ["day"] * 3 + ["dusk"] * 3 + ["night"] * 6
    assert seen[3] == ["dusk"] * 3 + ["night"] * 9
    assert set(seen[4]) == set(seen[5]) == {"night"}


@pytest.mark.parametrize("changes", [(), ((1, "a"),), ((0, "a"), (0, "b")), ((0, "a"), (5, "b"), (4, "c"))])
def test_a_timeline_that_does_not_begin_at_0_or_does_not_rise_is_refused(
    changes: tuple[tuple[int, str], ...],
) -> None:
    with pytest.raises(ValueError, match="timeline"):
        PromptTimeline(changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chunk_latents", 0),
        ("chunk_latents", 1.5),
        ("chunks_in_flight", 0),
        ("forwards_per_shift", -1),
        ("forwards_per_shift", True),
        ("context_chunks", -1),
        ("sink", "false"),
        ("graded", 1),
        ("constant_shape", None),
        ("time_shift", 0.0),
        ("time_shift", "1"),
        ("guidance_scale", True),
        ("context_sigma", None),
        ("time_shift", float("inf")),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("context_sigma", 1.0),
    ],
)
def test_settings_that_make_no_window_are_refused_by_name(config: Configure, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        config(**{field: value})


def test_given_latents_of_another_shape_or_type_are_refused(config: Configure, latents: Given) -> None:
    for wrong in (latents(2)[0], latents(2)[..., :2], latents(2).double(), latents(2)[:, :, :0]):
        with pytest.raises(ValueError, match="given latents"):
            WindowState.start(config(), 0, SHAPE, total=3, context=wrong)


def test_a_length_below_one_chunk_is_refused(config: Configure) -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        WindowState.start(config(), 0, SHAPE, total=0)


def test_a_velocity_of_another_shape_or_type_is_refused(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=3)
    for wrong in (torch.zeros(1, 3, 3, 2, 3), torch.zeros(1, *state.shape, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="velocity"):
            state.advance(wrong)


def test_a_finished_video_has_no_window(config: Configure) -> None:
    state = WindowState.start(config(), 0, SHAPE, total=1)
    while not state.done:
        state.advance(torch.zeros(1, *state.shape))
    with pytest.raises(ValueError, match="done"):
        state.view()


def test_windows_of_different_shapes_do_not_share_a_forward(config: Configure) -> None:
    young, old = (WindowState.start(config(), 0, SHAPE, total=9) for _ in range(2))
    for _ in range(3):
        old.advance(torch.zeros(1, *old.shape))
    with pytest.raises(ValueError, match="one shape"):
        same_shape([young, old])
    with pytest.raises(ValueError, match="one shape"):
        same_shape([])
