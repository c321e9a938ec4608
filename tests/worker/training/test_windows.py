from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.sampler.window import SamplerConfig, WindowState
from worker.training import scenes, windows
from worker.training.latents import Clips, Latents
from worker.training.recipe import Recipe
from worker.training.run import ConfigError

KINDS = ("steady", "growing", "continued", "shrinking", "context", "single", "single_latents", "turning")
MIXTURE = Recipe.read(Path(windows.__file__).parent / "configs" / "cpu.toml").windows


@pytest.fixture
def data() -> Latents:
    def clips(length: int) -> Clips:
        return Clips(
            torch.randn(4, 2, length, 2, 2), torch.rand(4, length, 2, 2), scenes.training_attributes()[:4]
        )

    turning = replace(clips(17), turn=torch.tensor([[5, 9], [6, 7], [8, 12], [10, 14]]))
    return Latents(clips(16), clips(10), turning, torch.zeros(2), torch.ones(2))


def only(kind: str, **changes: float) -> windows.WindowMixture:
    values = dict.fromkeys(KINDS, 0.0) | {kind: 1.0} | changes
    return windows.WindowMixture(**{**vars(MIXTURE), **values})  # type: ignore[arg-type]


def sampler_windows(context: torch.Tensor | None = None, *, graded: bool = False) -> set[tuple[float, ...]]:
    """Noise levels of every window that the sampler shows the network in a video of eight chunks."""
    config = SamplerConfig(2, 4, 4, 1, 1.0, 1.0, graded=graded)
    state = WindowState.start(config, 0, (2, 2, 2), total=8, context=context)
    seen = set()
    while not state.done:
        seen.add(tuple(round(s, 4) for s in state.view().sigmas[0].tolist()))
        state.advance(torch.zeros(1, *state.shape))
    return seen


@pytest.mark.parametrize("graded", [False, True])
def test_training_on_the_grid_shows_exactly_the_windows_of_the_sampler(data: Latents, graded: bool) -> None:
    rng, shown = np.random.default_rng(0), set()
    for kind in ("steady", "growing", "shrinking"):
        for _ in range(30):
            window = windows.draw(data, only(kind, on_grid=1.0, graded=graded), 4, rng)
            shown |= {tuple(round(s, 4) for s in row) for row in window.sigmas.tolist()}
    assert shown == sampler_windows(graded=graded)


def test_chunks_of_one_latent_have_a_level_each_on_a_ladder_as_long(data: Latents) -> None:
    levels = windows.draw(data, only("single_latents"), 4, np.random.default_rng(0)).sigmas
    assert (levels[:, :2] == 0).all()  # as much context as the sampler has
    assert torch.allclose(levels[:, 2:].diff(dim=1), torch.tensor(1 / 8))
    assert (levels <= 1).all()


def test_a_share_of_the_windows_is_graded(data: Latents) -> None:
    rng = np.random.default_rng(0)
    drawn = [windows.draw(data, only("steady", graded=0.5), 1, rng).sigmas[0, 2:] for _ in range(400)]
    share = sum(bool(levels[4] < levels[5]) for levels in drawn) / len(drawn)
    assert 0.4 < share < 0.6


def test_continuing_an_image_or_a_clip_is_trained_too(data: Latents) -> None:
    rng, shown = np.random.default_rng(0), set()
    for kind in ("steady", "continued", "shrinking"):
        for _ in range(80):
            window = windows.draw(data, only(kind, on_grid=1.0), 8, rng)
            shown |= {tuple(round(s, 4) for s in row) for row in window.sigmas.tolist()}
    for known in (1, 2):
        assert sampler_windows(torch.zeros(1, 2, known, 2, 2)) <= shown


def test_batches_of_short_windows_are_larger(data: Latents) -> None:
    rng = np.random.default_rng(0)
    sizes = [windows.draw(data, MIXTURE, 8, rng).latents.shape for _ in range(60)]
    assert {latents for _, _, latents, _, _ in sizes} >= {2, 4, 6, 8, 10}
    assert all(abs(batch * latents - 80) <= latents for batch, _, latents, _, _ in sizes)


def test_growing_windows_begin_where_the_video_begins(data: Latents) -> None:
    window = windows.draw(data, only("growing"), 4, np.random.default_rng(1))
    length = window.latents.shape[2]
    for row in window.latents:
        assert any(torch.equal(row, clip[:, :length]) for clip in data.start.latents)


def test_what_is_emphasised_is_drawn_more_often(data: Latents) -> None:
    asked = [
        scenes.SceneAttributes("black", "red", shape, motion)
        for shape in ("square", "cross")
        for motion in ("left", "spin")
    ]
    data = replace(data, middle=replace(data.middle, attributes=asked))
    emphasis = replace(MIXTURE, **{**dict.fromkeys(KINDS, 0.0), "steady": 1.0}, emphasis=("spin", "cross"))
    rows = [
        a
        for seed in range(60)
        for a in windows.draw(data, emphasis, 40, np.random.default_rng(seed)).attributes
    ]
    plain, spin, cross, both = (rows.count(a) / len(rows) for a in asked)
    for more, expected in ((spin, 2.5), (cross, 2.5), (both, 6.25)):
        assert more / plain == pytest.approx(expected, rel=0.25)


def test_an_emphasis_that_no_scene_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="cros"):
        replace(MIXTURE, emphasis=("spin", "cros"))


def test_a_turning_window_always_holds_a_part_of_the_turn(data: Latents) -> None:
    rng, begins, contexts = np.random.default_rng(2), set(), set()
    assert data.turning is not None
    assert data.turning.turn is not None
    for _ in range(60):
        window = windows.draw(data, only("turning"), 4, rng)
        contexts.add(len(window.sigmas[0].unique()))
        for row in window.latents:
            clip, begin = next(
                (number, begin)
                for number, latents in enumerate(data.turning.latents)
                for begin in range(8)
                if torch.equal(row, latents[:, begin : begin + 10])
            )
            begun, turned = data.turning.turn[clip].tolist()
            assert begun - 10 < begin < turned
            begins.add(begin - begun)
    assert {-9, -5, 0, 1} <= begins, "from a turn in the newest latent to one that the context has in part"
    assert contexts == {2, 5}, "ladders, and some windows at one level"


@pytest.mark.parametrize(("context_chunks", "longest"), [(0, 9), (1, 10), (2, 12)])
def test_no_window_is_longer_than_the_longest(data: Latents, context_chunks: int, longest: int) -> None:
    rng, mixture = np.random.default_rng(0), replace(MIXTURE, context_chunks=context_chunks, continued=1.0)
    data = replace(data, start=data.middle)
    lengths = {windows.draw(data, mixture, 1, rng).latents.shape[2] for _ in range(100)}
    assert max(lengths) == mixture.longest == longest
