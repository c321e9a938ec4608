"""The engine: shared forwards, turns, backpressure, and what an error costs. Windows are real, networks small."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engine import Conditioning, Emission, Engine, Stopped, Track
from worker.models.base import InvalidOutput
from worker.models.registry import load_model
from worker.sampler.progressive import sample, step
from worker.sampler.window import PromptTimeline, WindowState


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def start(model: Any, batch: int = 1) -> Engine:
        started.append(Engine(model, batch=batch))
        return started[-1]

    yield start
    assert all(engine.close() for engine in started)


def join(
    engine: Engine,
    *,
    seed: int = 1,
    chunks: int = 6,
    prompt: str = "a circle",
    size: tuple[int, int] | None = None,
    capacity: int = 2,
) -> Track:
    model = engine.model
    shape = model.geometry.latent_shape(*(size or model.geometry.default_size))
    state = WindowState.start(model.sampler, seed, shape, total=chunks)
    timeline = PromptTimeline(((0, prompt),))
    return engine.add(state, Conditioning.encode(model.encode_prompt, timeline, ""), capacity=capacity)


def drain(track: Track) -> list[Emission]:
    found = []
    while (emission := track.take()) is not None:
        found.append(emission)
    return found


def drain_together(*tracks: Track) -> list[list[Emission]]:
    found: list[list[Emission]] = [[] for _ in tracks]

    def work(place: int) -> None:
        found[place] = drain(tracks[place])

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(tracks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


def joined(emissions: list[Emission]) -> Tensor:
    assert [emission.chunk for emission in emissions] == list(range(len(emissions)))
    return torch.cat([emission.latents for emission in emissions], dim=2)


def counted(folder: Path) -> tuple[Any, list[int]]:
    """A model with real attention, whatever the weights, and the number of videos in each of its forwards."""
    network: Any = load_model(str(folder))
    forwards: list[int] = []
    velocity = network.velocity

    def counting(latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        forwards.append(len(latents) // 2)
        return velocity(latents, sigmas, prompt)

    network.velocity = counting
    return network, forwards


def test_two_videos_made_together_equal_each_made_alone(tiny_folder: Path, engines: Any) -> None:
    network, forwards = counted(tiny_folder)
    wanted = (("a circle", 1), ("a square", 2))
    alone = [sample(network, prompt, chunks=12, seed=seed) for prompt, seed in wanted]
    forwards.clear()
    engine = engines(network, batch=2)
    with engine.lock:  # the engine looks for work when both are there, and there is room for all they make
        tracks = [join(engine, seed=seed, chunks=12, prompt=prompt, capacity=12) for prompt, seed in wanted]
    together = [joined(emissions) for emissions in drain_together(*tracks)]
    for one, other in zip(together, alone, strict=True):
        assert (one - other).abs().max() < 1e-5
    assert set(forwards) == {2}, "they shared every forward"
    assert not torch.allclose(alone[0], alone[1])


def test_videos_at_different_stages_of_their_shift_share_forwards(tiny_folder: Path, engines: Any) -> None:
    model, forwards = counted(tiny_folder)
    config, (prompt, negative) = model.sampler, (model.encode_prompt([text]) for text in ("a circle", ""))
    engine, tracks, begun = engines(model, batch=2), [], []
    for seed, ahead in ((1, 0), (2, 1)):
        shape = model.geometry.latent_shape(*model.geometry.default_size)
        state = WindowState.start(config, seed, shape, total=6)
        for _ in range(config.levels + ahead):
            step(model, [state], [prompt], [negative])
        begun.append(state)
    stages = {state.forward % config.forwards_per_shift for state in begun}
    timeline = PromptTimeline(((0, "a circle"),))
    forwards.clear()
    with engine.lock:
        for state in begun:
            conditioning = Conditioning(timeline, {"a circle": prompt}, negative)
            tracks.append(engine.add(state, conditioning, capacity=6))
    shared = [emissions[0] for emissions in drain_together(*tracks)]
    assert len(stages) == 2
    assert forwards.count(2) >= 2 * config.forwards_per_shift, "as long as both windows are full"
    for seed, emission in zip((1, 2), shared, strict=True):
        alone = sample(model, "a circle", chunks=6, seed=seed)
        first = emission.chunk * config.chunk_latents
        assert emission.chunk == 1
        wanted = alone[:, :, first : first + config.chunk_latents]
        assert (emission.latents - wanted).abs().max() < 1e-5


def test_one_video_equals_the_plain_loop_to_the_bit_and_carries_its_state(
    stand_in: Any, engines: Any
) -> None:
    model = stand_in.StandIn()
    emissions = drain(join(engines(model), seed=5, chunks=6))
    assert torch.equal(joined(emissions), sample(model, "a circle", chunks=6, seed=5))
    config = model.sampler
    assert [e.forward for e in emissions] == [config.levels + n * config.forwards_per_shift for n in range(6)]
    for emission in emissions[:-1]:
        state = WindowState.from_tensors(*emission.state)
        engine = engines(model)
        timeline = PromptTimeline(((0, "a circle"),))
        rest = drain(engine.add(state, Conditioning.encode(model.encode_prompt, timeline, ""), capacity=2))
        assert [e.chunk for e in rest] == list(range(emission.chunk + 1, 6))
        for one, other in zip(rest, emissions[emission.chunk + 1 :], strict=True):
            assert torch.equal(one.latents, other.latents)


def test_a_video_that_nobody_takes_from_stops_sampling_and_goes_on_when_taken(
    stand_in: Any, engines: Any, eventually: Any
) -> None:
    model = stand_in.StandIn()
    track = join(engines(model), chunks=20, capacity=2)
    full = model.sampler.levels + model.sampler.forwards_per_shift
    eventually(lambda: len(model.rows) == full)
    time.sleep(0.1)
    assert len(model.rows) == full
    track.take()
    eventually(lambda: len(model.rows) == full + model.sampler.forwards_per_shift)
    assert len(drain(track)) == 19


def test_videos_of_different_shapes_take_turns_by_chunks(stand_in: Any, engines: Any) -> None:
    model = stand_in.StandIn()
    order: list[int] = []
    velocity = model.velocity

    def noted(latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        order.append(latents.shape[-1])
        answer: Tensor = velocity(latents, sigmas, prompt)
        return answer

    model.velocity = noted
    engine = engines(model, batch=2)
    model.hold.clear()
    threading.Timer(0.2, model.hold.set).start()
    tracks = [join(engine, chunks=8, capacity=20), join(engine, chunks=8, size=(32, 16), capacity=20)]
    drain_together(*tracks)
    assert set(model.rows) == {1}
    switches = [place for place in range(1, len(order)) if order[place] != order[place - 1]]
    # Each runs until it has given a chunk, the first of each after six forwards, the others after two.
    assert order[:16] == [2] * 6 + [4] * 6 + [2] * 2 + [4] * 2
    assert len(switches) == 15


def test_an_error_in_a_shared_forward_fails_only_the_video_at_fault(stand_in: Any, engines: Any) -> None:
    model = stand_in.StandIn()
    engine = engines(model, batch=3)
    model.hold.clear()
    threading.Timer(0.2, model.hold.set).start()
    good = join(engine, seed=1)
    bad = join(engine, seed=2, prompt="error")
    nan = join(engine, seed=3, prompt="nan")
    results: list[list[Emission]] = []
    thread = threading.Thread(target=lambda: results.append(drain(good)), daemon=True)
    thread.start()
    with pytest.raises(RuntimeError):
        drain(bad)
    with pytest.raises(InvalidOutput):
        drain(nan)
    thread.join(20)
    assert (joined(results[0]) - sample(model, "a circle", chunks=6, seed=1)).abs().max() < 1e-5


def test_no_forward_runs_any_more_on_a_gpu_that_has_failed(stand_in: Any, engines: Any) -> None:
    model = stand_in.StandIn()
    engine = engines(model, batch=2)
    with engine.lock:
        tracks = [join(engine, seed=1, prompt="gpu"), join(engine, seed=2), join(engine, seed=3)]
    for track in tracks[:2]:
        with pytest.raises(torch.AcceleratorError):
            drain(track)
    assert engine.call(lambda _: len(model.rows)) == 1
    assert not tracks[2].over
    assert engine.alive


def test_videos_too_many_for_the_memory_go_on_alone_and_then_in_smaller_company(
    stand_in: Any, engines: Any
) -> None:
    """A GPU that has room for two videos at once is made up: what a forward holds is one tensor in its frame."""
    model = stand_in.StandIn()
    held: list[weakref.ref[Tensor]] = []
    left_over: list[bool] = []
    velocity = model.velocity

    def cramped(latents: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
        activations = latents.clone()
        left_over.append(any(one() is not None for one in held))
        held.append(weakref.ref(activations))
        answer: Tensor = velocity(latents, sigmas, prompt)
        if len(activations) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return answer

    model.velocity = cramped
    engine = engines(model, batch=4)
    with engine.lock:
        tracks = [join(engine, seed=seed, capacity=6) for seed in (1, 2, 3, 4)]
    for seed, emissions in enumerate(drain_together(*tracks), start=1):
        assert (
            joined(emissions) - sample(stand_in.StandIn(), "a circle", chunks=6, seed=seed)
        ).abs().max() < 1e-5
    assert not any(left_over)
    assert model.rows[:5] == [4, 1, 1, 1, 1]
    assert max(model.rows[5:]) == engine.batch == 2


def test_the_prompts_of_a_video_are_encoded_together_and_only_those_that_are_new(stand_in: Any) -> None:
    model, asked = stand_in.StandIn(), list[list[str]]()

    def embed(texts: Sequence[str]) -> Tensor:
        asked.append(list(texts))
        embeddings: Tensor = model.encode_prompt(texts)
        return embeddings

    timeline = PromptTimeline(((0, "a circle"), (2, "a square"), (4, "a circle")))
    first = Conditioning.encode(embed, timeline, "blur")
    later = PromptTimeline(((0, "a circle"), (2, "a square"), (5, "a star")))
    second = Conditioning.encode(embed, later, "blur", since=2, known=first)
    same = Conditioning.encode(embed, later, "blur", since=2, known=second)
    assert asked == [["a circle", "a square", "blur"], ["a star"]]
    for text, embedding in (*first.embeddings.items(), *same.embeddings.items(), ("blur", same.negative)):
        assert torch.equal(embedding, model.encode_prompt([text]))
    assert Conditioning.encode(embed, timeline, "a square").negative.shape == (1, 3, 4)
    assert asked[-1] == ["a circle", "a square"]


def test_a_held_video_begins_no_chunk_and_goes_on_as_directed(
    stand_in: Any, engines: Any, eventually: Any
) -> None:
    model = stand_in.StandIn()
    engine = engines(model)
    other = join(engine, seed=2, chunks=40, capacity=100)
    model.hold.clear()
    track = join(engine, chunks=100, capacity=100)
    free = track.hold()
    model.hold.set()
    assert len(drain(other)) == 40  # it does not wait for the one that is held
    assert track.hold() == free == track.state.next_chunk
    assert track.undecided
    timeline = PromptTimeline(((0, "a circle"), (free, "a square")))
    known = track.conditioning
    conditioning = Conditioning.encode(model.encode_prompt, timeline, "", since=free - 1, known=known)
    engine.call(lambda _: track.direct(free + 4, conditioning, settled=True))
    assert torch.equal(joined(drain(track)), sample(model, timeline, chunks=free + 4, seed=1))
    assert not track.undecided
    later = Conditioning.encode(model.encode_prompt, timeline, "", since=free, known=conditioning)
    assert list(later.embeddings) == ["a square"], "what is not needed any more takes no memory"


def test_a_video_with_an_open_length_waits_with_its_last_chunk_begun(
    stand_in: Any, engines: Any, eventually: Any
) -> None:
    model = stand_in.StandIn()
    engine = engines(model)
    shape = model.geometry.latent_shape(16, 16)
    state = WindowState.start(model.sampler, 1, shape, total=4)
    conditioning = join(engine, chunks=1).conditioning
    wake = threading.Event()
    track = engine.add(state, conditioning, capacity=100, settled=False, wake=wake)
    assert wake.wait(10)
    eventually(lambda: track.state.shifts_next)
    time.sleep(0.05)
    assert (track.state.next_chunk, track.state.draining, track.undecided) == (4, False, True)
    engine.call(lambda _: track.direct(7, conditioning, settled=False))
    wake.clear()
    assert wake.wait(10)
    eventually(lambda: track.undecided)
    engine.call(lambda _: track.direct(7, conditioning, settled=True))
    assert torch.equal(joined(drain(track)), sample(model, "a circle", chunks=7, seed=1))


def test_how_much_there_is_to_do_does_not_change_in_the_middle_of_a_forward(
    stand_in: Any, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, shift = engines(stand_in.StandIn()), WindowState._shift
    told: list[tuple[int, int | None]] = []
    own: set[int | None] = set()

    def watched(state: WindowState) -> Any:
        told.append((track.forwards_done, track.forwards_total))
        own.add(state.forwards_total)
        return shift(state)

    monkeypatch.setattr(WindowState, "_shift", watched)
    with engine.lock:
        track = join(engine, chunks=6, capacity=6)
    drain(track)
    total = engine.model.sampler.forwards(6)
    assert [done for done, _ in told] == list(range(1, total, 2))
    assert {wanted for _, wanted in told} == {total}
    assert own != {total}, "the window itself is between two states there"
    assert (track.forwards_done, track.forwards_total) == (total, total)


def test_a_stopped_video_runs_no_further_forward(stand_in: Any, engines: Any, eventually: Any) -> None:
    model = stand_in.StandIn(step_seconds=0.01)
    engine = engines(model)
    track = join(engine, chunks=1000, capacity=2000)
    eventually(lambda: len(model.rows) > 3)
    track.stop()
    forwards = len(model.rows)
    with pytest.raises(Stopped):
        track.take()
    time.sleep(0.1)
    assert len(model.rows) <= forwards + 1
    assert drain(join(engine, chunks=1))


def test_an_idle_engine_does_nothing_at_all(stand_in: Any, engines: Any) -> None:
    engine = engines(stand_in.StandIn())
    looks: list[int] = []
    look = engine._begin_next_group
    engine._begin_next_group = lambda: (looks.append(1), look())[1]
    time.sleep(0.3)
    assert len(looks) <= 1
    assert engine.busy_seconds() == 0.0


def test_the_engine_knows_how_long_a_forward_takes(stand_in: Any, engines: Any, eventually: Any) -> None:
    model = stand_in.StandIn()
    model.hold.clear()
    track = join(engines(model))
    engine = track._engine
    eventually(lambda: engine.busy_seconds() > 0.05)
    model.hold.set()
    assert len(drain(track)) == 6
    eventually(lambda: engine.busy_seconds() == 0.0)


def test_a_call_is_answered_between_forwards_and_its_error_is_the_callers(
    stand_in: Any, engines: Any
) -> None:
    engine = engines(stand_in.StandIn())
    assert engine.call(lambda model: model.name) == "stand-in"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda model: 1 / 0)


def test_closing_lets_go_of_everyone(stand_in: Any, engines: Any) -> None:
    engine = engines(stand_in.StandIn(step_seconds=0.01))
    track = join(engine, chunks=1000)
    assert engine.close()
    with pytest.raises(Stopped):
        drain(track)
    with pytest.raises(Stopped):
        engine.call(lambda model: model)


def test_a_video_that_is_to_rest_leaves_at_a_chunk_boundary_and_goes_on_from_there(
    tiny_folder: Path, engines: Any
) -> None:
    engine = engines(load_model(str(tiny_folder)))
    whole = joined(drain(join(engine)))
    track = join(engine)
    emissions = [track.take(), track.take()]
    track.rest_after(3)
    while (emission := track.take()) is not None:
        emissions.append(emission)
    assert track.resting
    found = [emission for emission in emissions if emission is not None]
    assert [emission.chunk for emission in found] == list(range(len(found)))
    assert 4 <= len(found) <= 5
    model = engine.model
    state = WindowState.from_tensors(*found[-1].state, model.device)
    rest = engine.add(state, track.conditioning, capacity=2)
    assert torch.equal(torch.cat([e.latents for e in [*found, *drain(rest)]], dim=2), whole)
    assert not rest.resting


def test_a_video_with_no_room_for_another_chunk_rests_at_once_and_a_finished_one_has_finished(
    tiny_folder: Path, engines: Any
) -> None:
    engine = engines(load_model(str(tiny_folder)))
    full = join(engine, capacity=1)
    waited = time.monotonic() + 30
    while full.runnable and time.monotonic() < waited:
        time.sleep(0.005)
    full.rest_after(0)
    assert [emission.chunk for emission in drain(full)] == [0]
    assert full.resting
    done = join(engine, chunks=2)
    done.rest_after(1)
    assert len(drain(done)) == 2
    assert not done.resting
