from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from worker.training import backdrops, scenes
from worker.training.backdrops import BACKDROPS, BACKGROUNDS, LANDSCAPES
from worker.training.scenes import SceneAttributes


def one(
    motion: str,
    shape: str = "square",
    seed: int = 0,
    *,
    background: str = "black",
    second: tuple[str, str] | None = None,
    frame: float = 0,
) -> scenes.Scenes:
    attributes = [SceneAttributes(background, "red", shape, motion, second)] * 8
    return scenes.sample_scenes(attributes, np.random.default_rng(seed), frame=frame)


def rich(frame: float = 0, seed: int = 0) -> scenes.Scenes:
    """A scene with a second object over every backdrop."""
    rng = np.random.default_rng(seed)
    of_each = [[a for a in scenes.training_attributes() if a.background == name] for name in BACKDROPS]
    attributes = [pool[int(rng.integers(len(pool)))] for pool in of_each]
    return scenes.sample_scenes(scenes.accompanied(attributes, rng, 1.0), rng, frame=frame)


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
def test_what_is_fast_is_faster_than_anything_that_is_not(motion: str) -> None:
    slow = one(motion)
    fast = scenes.sample_scenes([replace(a, fast=True) for a in slow.attributes()], np.random.default_rng(0))
    assert all(a.fast for a in fast.attributes())
    ways = []
    for batch in (slow, fast):
        where = scenes.track(batch, torch.arange(2))
        ways.append(torch.hypot(scenes.shortest(where.x.diff()), where.y.diff()) * scenes.FPS)
    assert ways[0].max() <= 0.43
    assert ways[1].max() <= 0.73
    assert scenes.speed(fast).min() > 0.57


@pytest.mark.parametrize("motion", ["pulse", "spin"])
def test_what_stays_in_place_is_never_fast(motion: str) -> None:
    with pytest.raises(ValueError, match="not fast"):
        SceneAttributes("black", "red", "square", motion, fast=True)
    every = [a for a in scenes.all_attributes() if a.motion == motion]
    assert not any(a.fast for a in scenes.hurried(every, np.random.default_rng(0), 1.0))


def test_a_share_of_what_moves_is_fast_in_the_lively_world_alone() -> None:
    for world, share in ((scenes.PLAIN, 0), (scenes.RICH, 0), (scenes.LIVELY, 0.25)):
        moving = [
            a.fast for a in world.sample(3000, np.random.default_rng(0)) if a.motion not in scenes.IN_PLACE
        ]
        assert np.mean(moving) == pytest.approx(share, abs=0.03 if share else 0)
    assert not scenes.RICH.knows(SceneAttributes("black", "red", "square", "left", fast=True))


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


def test_a_crop_of_a_rich_scene_is_cut_out_of_the_whole_frame() -> None:
    batch, frames = rich(frame=600), torch.arange(600, 640, 13)
    whole, covered = scenes.render(batch, frames, 64)
    rng = np.random.default_rng(1)
    left, top = (torch.from_numpy(rng.integers(0, 33, len(batch))).float() for _ in range(2))
    part, alpha = scenes.render(batch, frames, 64, (left, top, 32))
    for row, (x, y) in enumerate(zip(left.int().tolist(), top.int().tolist(), strict=True)):
        assert torch.allclose(part[row], whole[row, :, :, y : y + 32, x : x + 32], atol=1e-4)
        assert torch.allclose(alpha[row], covered[row, :, y : y + 32, x : x + 32], atol=1e-4)


def test_a_larger_frame_shows_the_same_scene() -> None:
    batch, frames = one("spin", "cross"), torch.arange(4)
    small, _ = scenes.render(batch, frames, 64)
    large, _ = scenes.render(batch, frames, 128)
    reduced = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (reduced - small).abs().mean() < 0.01
    small, large = (scenes.render(rich(frame=600), frames + 600, size)[0] for size in (64, 128))
    reduced = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (reduced - small).abs().mean((1, 2, 3, 4)).max() < 0.01


def test_nightfall_begins_at_dusk_and_ends_as_the_night_however_it_is_rendered() -> None:
    batch = one("orbit", background="nightfall", frame=5000)
    length = backdrops.NIGHTFALL_SECONDS * scenes.FPS
    assert (batch.dusk >= 5000 - 1.3 * length).all()
    assert (batch.dusk <= 5000).all()
    frames = torch.arange(4600, 5300, 20)
    paper, _ = scenes.scenery(batch, frames, 32)
    day, night = (
        scenes.scenery(one("orbit", background=name), frames[:1], 32)[0] for name in ("day", "night")
    )
    early, late = (frames <= batch.dusk[:, None]), (frames >= batch.dusk[:, None] + length)
    assert early.any(1).all()
    assert late.any(1).all()
    for clip, before, after in zip(paper, early, late, strict=True):
        assert torch.allclose(clip[:, before], day[0].expand_as(clip[:, before]))
        assert torch.allclose(clip[:, after], night[0].expand_as(clip[:, after]))
        falling = clip[:, ~before & ~after]
        steps = falling.diff(dim=1) * (night - day)[0].sign()
        assert falling.shape[1] >= 11
        assert (steps >= 0).all()
        assert (steps.sum(0) > 0).all()
    frames = torch.arange(4990, 5030)
    whole, _ = scenes.render(batch, frames, 32)
    pieces = torch.cat([scenes.render(batch, piece, 32)[0] for piece in frames.split(7)], 2)
    assert torch.allclose(pieces, whole, atol=1e-6)


def test_a_video_begins_as_night_begins_to_fall() -> None:
    batch = scenes.opening(one("left", background="nightfall", frame=5000))
    paper = scenes.scenery(batch, torch.tensor([0, 24, 240]), 32)[0]
    day, night = (
        scenes.scenery(one("left", background=name), torch.tensor([0]), 32)[0] for name in ("day", "night")
    )
    assert torch.equal(paper[:, :, :1], day)
    assert torch.equal(paper[:, :, 2:], night)
    assert torch.allclose(paper[:, :, 1:2], torch.lerp(day, night, 0.1), atol=1e-6)


@pytest.mark.parametrize("motion", scenes.MOTIONS)
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_second_object_stands_in_its_place_behind_the_first(motion: str, shape: str) -> None:
    batch = one(motion, "cross", second=("green", shape))
    where, alone = scenes.second_track(batch), scenes.second_coverage(batch, 64)
    height, radius = (0.5, 0.10) if motion == "orbit" else (0.80, 0.13)
    assert torch.allclose(where.x, torch.tensor(0.5))
    assert torch.allclose(where.y, torch.tensor(height))
    # One that moves, brought to a stop there.
    margin = radius + 1 / 64
    stopped = replace(
        one("spin", shape),
        radius=torch.full((8,), radius),
        rate=torch.zeros(8),
        phase=torch.zeros(8),
        place_x=torch.full((8,), 0.5),
        place_y=torch.full((8,), (height - margin) / (1 - 2 * margin)),
    )
    assert torch.allclose(alone, scenes.coverage(stopped, torch.tensor([0]), 64), atol=1e-3)
    assert torch.equal(alone, alone.flip(3))

    frames = torch.arange(0, 100, 9)
    pixels, covered = scenes.render(batch, frames, 64)
    moving = scenes.coverage(batch, frames, 64)
    colors = (pixels + 1) / 2
    for name, seen in (("green", (alone == 1) & (moving == 0)), ("red", moving == 1)):
        ink = torch.tensor(scenes.COLORS[name])[:, None]
        assert torch.allclose(colors.movedim(1, 0)[:, seen], ink, atol=1e-5)
    assert torch.equal(covered, torch.maximum(moving, alone.expand_as(moving)))
    hidden = (moving * alone).sum((2, 3)) / alone.sum((2, 3))
    assert (hidden.amin(1) < 0.8).all()
    if motion in ("pulse", "spin"):
        assert hidden.max() < 0.35


def test_what_orbits_a_second_object_is_seen_apart_from_it() -> None:
    for seed in range(8):
        alone, pair = (
            one("orbit", "circle", second=second, seed=seed) for second in (None, ("green", "circle"))
        )
        frames = torch.arange(0, 200, 5)
        overlap = torch.minimum(scenes.coverage(pair, frames, 128), scenes.second_coverage(pair, 128))
        assert overlap.max() == 0
        where, free = scenes.track(pair, frames), scenes.track(alone, frames)
        assert (where.x + where.radius).max() < 1
        assert torch.allclose(where.radius, scenes.AROUND_RADIUS * free.radius)


def test_without_a_second_object_there_is_nothing_on_the_ground() -> None:
    assert scenes.second_coverage(one("orbit"), 64).max() == 0
    plain = scenes.scenery(one("left"), torch.tensor([0]), 64)[0]
    assert torch.allclose(plain.flatten(2).std(2), torch.tensor(0.0), atol=1e-6)


def test_what_pulses_or_spins_makes_room_and_nothing_else_does() -> None:
    for motion in scenes.MOTIONS:
        plain, second = one(motion), one(motion, second=("green", "circle"))
        room = scenes.make_room(plain)
        moved = {
            f.name for f in fields(plain) if not torch.equal(getattr(plain, f.name), getattr(room, f.name))
        }
        assert moved == ({"place_y"} if motion in ("pulse", "spin") else set())
        assert room.place_y.max() <= (scenes.UPPER if moved else 1)
        assert torch.equal(room.place_y, second.place_y)


def test_held_out_combinations_are_never_trained_on_and_contain_every_word() -> None:
    held_out, trained = set(scenes.held_out_attributes()), set(scenes.training_attributes())
    assert not held_out & trained
    assert held_out | trained == set(scenes.all_attributes())
    for column, names in enumerate((BACKDROPS, scenes.COLORS, scenes.SHAPES, scenes.MOTIONS)):
        assert {a.indices()[column] for a in held_out} == set(range(len(names)))
        assert {a.indices()[column] for a in trained} == set(range(len(names)))


def test_a_second_object_does_not_make_a_combination_another() -> None:
    every = scenes.all_attributes()
    second = scenes.accompanied(every, np.random.default_rng(0), 1.0)
    assert [scenes.is_held_out(a) for a in second] == [scenes.is_held_out(a) for a in every]


def test_a_share_of_the_scenes_has_a_second_object_that_can_be_seen() -> None:
    plain = scenes.sample_attributes(4000, np.random.default_rng(0))
    drawn = scenes.accompanied(plain, np.random.default_rng(1), 0.35)
    seconds = [(a.second, a) for a in drawn if a.second]
    assert len(seconds) / len(plain) == pytest.approx(0.35, abs=0.03)
    assert [replace(a, second=None) for a in drawn] == plain
    for second, of in seconds:
        assert scenes.fits(second, of)
        assert second[0] != of.color
        assert (second[0], of.background) not in scenes.EXCLUDED_PAIRS
    counts = Counter(second for second, _ in seconds)
    assert len(counts) == len(scenes.COLORS) * len(scenes.SHAPES)
    assert min(counts.values()) > 0.4 * max(counts.values())
    assert scenes.accompanied(plain, np.random.default_rng(1), 0.35) == drawn
    assert scenes.accompanied(plain, np.random.default_rng(1), 0.0) == plain


def test_attributes_are_those_of_their_indices() -> None:
    every = scenes.all_attributes()
    lively = replace(scenes.LIVELY, second=1.0, fast=1.0).dressed(every, np.random.default_rng(0))
    for attributes in (every, lively):
        assert [SceneAttributes.from_indices(*a.indices()) for a in attributes] == attributes
        assert scenes.sample_scenes(attributes, np.random.default_rng(0)).attributes() == attributes
    assert [SceneAttributes.from_indices(*a.indices()[:4]) for a in every] == every


def test_a_caption_says_all_of_its_scene() -> None:
    rng = np.random.default_rng(0)
    for attributes in replace(scenes.LIVELY, second=0.5).dressed(scenes.all_attributes(), rng):
        told = f" {scenes.caption(attributes, rng)} "
        parts = [(attributes.color,), scenes.SHAPE_WORDS[attributes.shape]]
        parts += [
            scenes.MOTION_WORDS[attributes.motion],
            scenes.BACKGROUND_WORDS[attributes.background],
        ]
        if attributes.background in LANDSCAPES:
            parts.append(scenes.LAND_WORDS)
        assert attributes.fast == any(f" {word} " in told for word in scenes.FAST_WORDS)
        if attributes.second:
            color, shape = attributes.second
            behind = [
                f"{relation} a {color} {word}"
                for relation in scenes.RELATIONS[attributes.motion]
                for word in scenes.SHAPE_WORDS[shape]
            ]
            parts.append(tuple(behind))
        for synonyms in parts:
            assert any(f" {phrase} " in told for phrase in synonyms), told


@pytest.mark.parametrize(
    ("shape", "second"), [("octagon", None), ("square", ("beige", "circle")), ("square", ("green", "star"))]
)
def test_an_unknown_attribute_is_refused(shape: str, second: tuple[str, str] | None) -> None:
    with pytest.raises(ValueError, match=r"octagon|beige|star"):
        SceneAttributes("black", "red", shape, "spin", second)


def test_a_plain_world_has_plain_scenes_of_one_object_and_their_captions() -> None:
    pool = scenes.PLAIN.pool() + scenes.PLAIN.pool(held_out=True)
    assert set(pool) == {a for a in scenes.all_attributes() if a.background in BACKGROUNDS}
    assert {a.background for a in scenes.RICH.pool()} == set(BACKDROPS)
    drawn = scenes.PLAIN.sample(500, np.random.default_rng(0))
    assert all(scenes.PLAIN.knows(a) for a in drawn)
    seen = scenes.RICH.sample(500, np.random.default_rng(0), held_out=True)
    assert all(scenes.RICH.knows(a) and scenes.is_held_out(a) for a in seen)
    assert 0.2 < np.mean([a.second is not None for a in seen]) < 0.5
    assert not all(scenes.PLAIN.knows(a) for a in seen)
