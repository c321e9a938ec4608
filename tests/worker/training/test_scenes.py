from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.training import scenes
from worker.training.scenes import SceneAttributes


def one(motion: str, shape: str = "square", seed: int = 0) -> scenes.Scenes:
    attributes = [SceneAttributes("black", "red", shape, motion)] * 8
    return scenes.sample_scenes(attributes, np.random.default_rng(seed))


def test_any_frame_of_an_endless_video_is_the_same_however_it_is_reached() -> None:
    batch = one("bounce")
    together, _ = scenes.render(batch, torch.arange(100_000, 100_016), 64)
    alone, _ = scenes.render(batch, torch.tensor([100_009]), 64)
    assert torch.equal(together[:, :, 9], alone[:, :, 0])


@pytest.mark.parametrize("motion", ["bounce", "orbit", "pulse", "spin"])
def test_a_shape_that_does_not_drift_stays_inside_the_frame(motion: str) -> None:
    where = scenes.track(one(motion), torch.arange(0, 5000, 7))
    for place in (where.x, where.y):
        assert (place - where.radius).min() >= 0
        assert (place + where.radius).max() <= 1


def test_a_drifting_shape_leaves_on_one_side_and_enters_on_the_other() -> None:
    area = scenes.coverage(one("left"), torch.arange(0, 240), 64).sum((2, 3))
    assert (
        area.max(1).values - area.min(1).values
    ).max() < 12  # pixels, of some 500: antialiasing at the seam


@pytest.mark.parametrize("motion", ["bounce", "orbit", "left", "right"])
def test_speeds_are_those_of_the_scene(motion: str) -> None:
    batch = one(motion)
    where = scenes.track(batch, torch.arange(0, 400))

    def wrapped(distance: torch.Tensor) -> torch.Tensor:
        return torch.remainder(distance + 0.5, 1) - 0.5

    speed = torch.hypot(wrapped(where.x.diff()), wrapped(where.y.diff())) * scenes.FPS
    assert torch.allclose(speed.median(1).values, batch.speed, rtol=0.02)


def test_a_video_begins_with_what_spins_upright_and_what_bounces_near_the_center() -> None:
    first = torch.tensor([0])
    for shape in ("square", "triangle", "cross"):
        assert (scenes.track(scenes.opening(one("spin", shape)), first).angle == 0).all()
    for seed in range(8):
        bounce, orbit = (scenes.track(scenes.opening(one(m, seed=seed)), first) for m in ("bounce", "orbit"))
        assert max((bounce.x - 0.5).abs().max(), (bounce.y - 0.5).abs().max()) < 0.07
        assert torch.hypot(orbit.x - 0.5, orbit.y - 0.5).min() > 0.2
    for motion in ("orbit", "left", "right", "pulse"):
        plain = scenes.render(one(motion), torch.arange(3), 64)[0]
        assert torch.equal(plain, scenes.render(scenes.opening(one(motion)), torch.arange(3), 64)[0])


def test_a_bounce_is_flatter_than_45_degrees() -> None:
    slant = torch.cat([torch.rad2deg(one("bounce", seed=seed).heading) for seed in range(40)])
    assert 28 <= slant.min() < 30
    assert 36 < slant.max() <= 38


def test_what_orbits_or_spins_goes_clockwise() -> None:
    frames = torch.arange(48)
    for seed in range(8):
        orbit = scenes.track(one("orbit", seed=seed), frames)
        x, y = orbit.x - 0.5, orbit.y - 0.5  # y points down
        assert (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:] > 0).all()
    crosses = scenes.opening(one("spin", "cross"))
    where, alpha = scenes.track(crosses, frames), scenes.coverage(crosses, torch.tensor([4]), 64)[:, 0]
    pixels = (torch.arange(64) + 0.5) / 64
    for clip, x, y in zip(alpha, where.x[:, 0], where.y[:, 0], strict=True):
        upper_arm = clip * (pixels < y - 0.12)[:, None]
        assert (upper_arm.sum(0) * (pixels - x)).sum() / upper_arm.sum() > 0.02  # leans to the right


def test_a_crop_shows_the_same_pixels_as_the_whole_frame() -> None:
    batch, frames = one("orbit", "triangle"), torch.arange(3)
    whole, _ = scenes.render(batch, frames, 64)
    corner = torch.full((8,), 16.0)
    part, _ = scenes.render(batch, frames, 64, (corner, corner + 8, 32))
    assert torch.allclose(part, whole[..., 24:56, 16:48], atol=1e-4)


def test_a_larger_frame_shows_the_same_scene() -> None:
    batch, frames = one("spin", "cross"), torch.arange(4)
    small, _ = scenes.render(batch, frames, 64)
    large, _ = scenes.render(batch, frames, 128)
    reduced = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (reduced - small).abs().mean() < 0.01


def test_held_out_combinations_are_never_trained_on_and_contain_every_word() -> None:
    held_out, trained = set(scenes.held_out_attributes()), set(scenes.training_attributes())
    assert not held_out & trained
    assert held_out | trained == set(scenes.all_attributes())
    for column, names in enumerate((scenes.BACKGROUNDS, scenes.COLORS, scenes.SHAPES, scenes.MOTIONS)):
        assert {a.indices()[column] for a in held_out} == set(range(len(names)))
        assert {a.indices()[column] for a in trained} == set(range(len(names)))


def test_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="octagon"):
        SceneAttributes("black", "red", "octagon", "spin")
