from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch

from tests.worker.training.plain import plain_turns
from worker.evaluation import oracle
from worker.training import backdrops, scenes, turns
from worker.training.backdrops import BACKGROUNDS
from worker.training.scenes import SceneAttributes

BEGIN = 1000.0
"""Frame."""


def turning(before: list[SceneAttributes], after: list[SceneAttributes], length: float = 16) -> turns.Turns:
    """Plain changes from one scene to another, nothing faint or out of shape."""
    begin, ones = torch.full((len(before),), BEGIN), torch.ones(len(before))
    batch = scenes.sample_scenes(before, np.random.default_rng(0))
    return plain_turns(batch, turns.continued(batch, after, begin), begin, length * ones)


def one(
    motion: str,
    color: str = "red",
    shape: str = "square",
    background: str = "black",
    second: tuple[str, str] | None = None,
    *,
    fast: bool = False,
) -> SceneAttributes:
    return SceneAttributes(background, color, shape, motion, second, fast)


def drawn(kind: str, asked: list[SceneAttributes], seed: int = 0) -> turns.Turns:
    """Turns to these scenes whose pasts are all of one kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "PASTS", dict.fromkeys(turns.PASTS, 0.0) | {kind: 1.0})
        patch.setattr(turns, "HALTING_PULSES", 0.0)
        patch.setattr(turns, "ROUNDED_SPINS", 0.0)
        patch.setattr(turns, "STALLED_NIGHTFALLS", float(kind == "stalled"))
        begin = torch.full((len(asked),), BEGIN)
        return turns.sample(asked, begin, np.random.default_rng(seed))


def rich(count: int, seed: int, share: float = 0.35) -> list[SceneAttributes]:
    """Scenes that training may show, this share of them with a second object, some of them fast."""
    rng = np.random.default_rng(seed)
    return replace(scenes.LIVELY, second=share).sample(count, rng)


def test_a_scene_is_the_one_before_its_turn_and_the_other_behind_it() -> None:
    batch = turning([one("orbit"), one("left")], [one("orbit", color="green"), one("spin", shape="cross")])
    for frames, plain in ((torch.arange(990, 1000), batch.before), (torch.arange(1016, 1024), batch.after)):
        turned, covered = turns.render(batch, frames, 64)
        pixels, alpha = scenes.render(plain, frames, 64)
        assert torch.allclose(turned, pixels, atol=2e-3)
        assert torch.allclose(covered, alpha, atol=2e-3)


@pytest.mark.parametrize(("before", "after"), list(permutations(scenes.MOTIONS, 2)))
def test_an_object_whose_motion_changes_goes_on_from_where_it_is(before: str, after: str) -> None:
    batch = turning([one(before)] * 6, [one(after)] * 6)
    pixels, _ = turns.render(batch, torch.arange(980, 1036), 64)
    for clip in pixels:
        track = oracle.measure(oracle.to_uint8(clip[None]))
        across = np.remainder(np.diff(track.x) + 0.5, 1) - 0.5
        assert track.present.all()
        assert np.hypot(across, np.diff(track.y)).max() < oracle.JUMP


@pytest.mark.parametrize("motion", [m for m in scenes.MOTIONS if m not in scenes.IN_PLACE])
@pytest.mark.parametrize("fast", [True, False])
def test_what_becomes_fast_or_slow_goes_on_from_where_it_is(motion: str, *, fast: bool) -> None:
    before, after = one(motion, fast=not fast), one(motion, fast=fast)
    batch = turning([before] * 4, [after] * 4)
    slow, quick = (
        scenes.speed(scene) for scene in sorted((batch.before, batch.after), key=lambda s: int(s.fast[0]))
    )
    assert torch.allclose(quick - slow, torch.full((4,), scenes.FASTER))
    one_, other = batch.tracks(torch.tensor([BEGIN]))
    assert torch.allclose(scenes.shortest(one_.x - other.x), torch.zeros(4, 1), atol=2e-3)
    assert torch.allclose(one_.y, other.y, atol=2e-3)
    then, later = (track.x for track in (one_, batch.tracks(torch.tensor([BEGIN + 1]))[1]))
    moved, would_have = (
        scenes.shortest(later - then),
        scenes.shortest(batch.tracks(torch.tensor([BEGIN + 1]))[0].x - then),
    )
    turned_back = moved.sign() != would_have.sign()
    assert turned_back.float().mean() < 0.3  # at a wall
    pixels, _ = turns.render(batch, torch.arange(904, 1112), 64)
    for clip in pixels:
        frames = oracle.to_uint8(clip[None])
        assert oracle.judge(frames[:96], before).follows
        assert not oracle.judge(frames[:96], after).motion
        assert oracle.judge(frames[112:], after).follows


@pytest.mark.parametrize(("before", "after"), list(permutations([None, ("green", "circle")], 2)))
def test_what_orbits_goes_on_from_where_it_is_when_a_second_object_comes_or_goes(
    before: tuple[str, str] | None, after: tuple[str, str] | None
) -> None:
    batch = turning([one("orbit", second=before)] * 8, [one("orbit", second=after)] * 8)
    was, goes_on = batch.tracks(torch.tensor([BEGIN]))
    now, then = (torch.atan2(track.y - 0.5, track.x - 0.5) for track in (was, goes_on))
    assert torch.allclose(torch.cos(now - then), torch.ones(8, 1), atol=1e-5)
    where = torch.hypot(was.x - goes_on.x, was.y - goes_on.y)
    assert where.max() < 0.1  # widths: from one orbit to the other


@pytest.mark.parametrize(("before", "after"), list(permutations(scenes.MOTIONS, 2)))
def test_frames_rendered_a_few_at_a_time_are_those_rendered_at_once(before: str, after: str) -> None:
    batch = turning([one(before)] * 6, [one(after)] * 6)
    frames = torch.arange(990, 1030)
    whole, alpha = turns.render(batch, frames, 32)
    pieces = torch.cat([turns.render(batch, piece, 32)[0] for piece in frames.split(8)], 2)
    assert torch.allclose(pieces, whole, atol=1e-5)
    assert (alpha.sum((2, 3)) > 20).all()  # pixels: nothing is lost on the way


def test_the_oracle_sees_first_the_one_and_then_the_other() -> None:
    before = [one("bounce"), one("spin", "cyan"), one("right", "white", "cross", "maroon")]
    after = [one("orbit"), one("spin", "yellow"), one("right", "white", "triangle", "teal")]
    batch = turning(before, after)
    for frames, asked in ((torch.arange(900, 1000), before), (torch.arange(1017, 1117), after)):
        for clip, attributes in zip(turns.render(batch, frames, 64)[0], asked, strict=True):
            assert oracle.judge(oracle.to_uint8(clip[None]), attributes).follows


def test_what_is_faint_or_out_of_shape_becomes_the_scene_of_its_caption() -> None:
    plain = turning([one("pulse")], [one("pulse")])
    faint = replace(plain, visible=torch.tensor([0.0]))
    _, alpha = turns.render(faint, torch.tensor([999, 1008, 1016]), 64)
    gone, half, whole = alpha.sum((0, 2, 3)).tolist()
    assert gone == 0
    assert 0.3 * whole < half < 0.7 * whole

    cross = replace(plain, before=replace(plain.before, shape=plain.before.shape + 2))
    mixed = replace(cross, shape_share=torch.tensor([0.5]))
    pixels, _ = turns.render(mixed, torch.arange(1016, 1064), 64)
    assert oracle.judge(oracle.to_uint8(pixels), one("pulse")).follows
    frames = torch.tensor([999])
    between = turns.render(mixed, frames, 64)[1]
    for other in (plain, cross):
        assert (between - turns.render(other, frames, 64)[1]).abs().sum() > 20  # pixels


def test_what_has_swollen_becomes_the_scene_of_its_caption() -> None:
    captions = [one(motion, "yellow", "cross") for motion in ("bounce", "spin", "orbit")]
    batch = drawn("swollen", captions)
    _, alpha = turns.render(batch, torch.tensor([999, 1028]), 64)
    before, after = (alpha > 0.3).sum((2, 3)).unbind(1)  # pixels
    assert (before > after * batch.scale).all()
    pixels, _ = turns.render(batch, torch.arange(1028, 1124), 64)
    for clip, caption in zip(pixels, captions, strict=True):
        assert oracle.judge(oracle.to_uint8(clip[None]), caption).follows


def test_what_has_lost_its_corners_gets_them_back_upright() -> None:
    captions = [one("spin", "yellow", shape) for shape in ("square", "triangle", "cross")]
    batch = drawn("rounded", captions)
    early, late = (turns.render(batch, torch.arange(first, first + 96), 64)[0] for first in (900, 1016))
    for before, after, caption in zip(early, late, captions, strict=True):
        round_ = oracle.judge(oracle.to_uint8(before[None]), caption)
        assert (round_.seen_shape, round_.color, round_.shape) == ("circle", True, False)
        assert oracle.judge(oracle.to_uint8(after[None]), caption).follows
    one_, other = batch.tracks(torch.tensor([BEGIN]))
    whole_turns = torch.stack([one_.angle, other.angle]) / (2 * np.pi)
    assert torch.allclose(whole_turns, whole_turns.round(), atol=1e-3)


def test_what_spins_has_often_lost_its_corners_before_a_turn() -> None:
    asked = [one("spin", shape="cross"), one("left", shape="cross")] * 300
    batch = turns.sample(asked, torch.full((600,), BEGIN), np.random.default_rng(8))
    discs = (batch.before.shape == scenes.SHAPES.index("circle")) & (batch.shape_share == 0)
    assert 0.2 < discs[::2].float().mean() < 0.35
    assert 0.02 < discs[1::2].float().mean() < 0.1


def test_night_falls_as_slowly_as_what_halts() -> None:
    batch = drawn("halting", [one("orbit", background="nightfall")] * 8)
    begin = torch.tensor([BEGIN])
    batch.before.dusk[:] = batch.after.dusk[:] = BEGIN - 120
    pixels, _ = turns.render(batch, torch.tensor([BEGIN - 96, BEGIN, BEGIN + 96]), 32)
    early, then, late = pixels[..., 0, 0].mean(1).unbind(1)
    assert torch.allclose(early - then, (then - late) * batch.pace, atol=2e-3)
    assert torch.allclose(then, scenes.render(batch.after, begin, 32)[0][..., 0, 0].mean(1)[:, 0], atol=1e-3)


def test_a_night_that_has_stopped_falling_falls_on_behind_the_turn_and_all_else_goes_on_before() -> None:
    asked = [one("orbit", background="nightfall"), one("spin", background="nightfall")] * 4
    batch = drawn("stalled", asked)
    assert batch.dusk_pace.max() < 0.6
    assert (batch.pace == 1).all()
    batch.before.dusk[:] = batch.after.dusk[:] = BEGIN - 48
    pixels, _ = turns.render(batch, torch.arange(BEGIN - 48, BEGIN + 96), 64)
    a_frame = 1 / (scenes.FPS * backdrops.NIGHTFALL_SECONDS)  # share of night
    for clip, caption, pace in zip(pixels, asked, batch.dusk_pace.tolist(), strict=True):
        frames = oracle.to_uint8(clip[None])
        night = oracle.measure(frames, caption).night
        assert night[44] - night[4] == pytest.approx(40 * pace * a_frame, abs=0.06)
        assert night[68] == pytest.approx(68 * a_frame, abs=0.06)
        assert night[140] - night[68] == pytest.approx(72 * a_frame, abs=0.06)
        assert oracle.judge(frames, caption).motion


def test_night_has_often_stopped_falling_before_a_turn() -> None:
    asked = [one("left", background="nightfall"), one("left", background="day")] * 300
    batch = turns.sample(asked, torch.full((600,), BEGIN), np.random.default_rng(8))
    stalled = batch.dusk_pace < batch.pace
    assert 0.28 < stalled[::2].float().mean() < 0.42
    assert not stalled[1::2].any()


def halting(motion: str, count: int = 8) -> turns.Turns:
    """Scenes that have slowed down before their turn."""
    return drawn("halting", [one(motion)] * count)


@pytest.mark.parametrize("motion", scenes.MOTIONS)
def test_what_has_slowed_down_goes_on_from_where_it_is_as_its_caption_says(motion: str) -> None:
    batch = halting(motion)
    before, _ = turns.render(batch, torch.arange(988, 1001), 64)
    pixels, _ = turns.render(batch, torch.arange(988, 1112), 64)
    for clip, slow, pace in zip(pixels, before, batch.pace, strict=True):
        track = oracle.measure(oracle.to_uint8(clip[None]))
        assert np.hypot((np.diff(track.x) + 0.5) % 1 - 0.5, np.diff(track.y)).max() < oracle.JUMP
        assert oracle.judge(oracle.to_uint8(clip[None, :, 28:]), one(motion)).follows
        moved = oracle.measure(oracle.to_uint8(slow[None]))
        if motion in ("left", "right"):
            way = abs((moved.x[-1] - moved.x[0] + 0.5) % 1 - 0.5)
            assert way < 0.42 * 0.5 * float(pace) + 0.02
    if motion in ("pulse", "spin"):
        assert (batch.pace < 0.25).any()
    else:
        assert batch.pace.min() >= 0.3


def test_what_has_all_but_ceased_to_pulse_grows_next() -> None:
    batch = halting("pulse", 64)
    _, now = batch.tracks(torch.tensor([BEGIN]))
    _, next_ = batch.tracks(torch.tensor([BEGIN + 1]))
    grows = (next_.radius > now.radius)[:, 0]
    told = (batch.pace >= 0.25) & (batch.swing >= 0.3)  # how it has moved tells how it goes on
    assert grows[~told].all()
    assert 0.2 < grows[told].float().mean() < 0.8
    still = batch.swing < 0.3
    assert torch.allclose(now.radius[still, 0], scenes.REST * batch.after.radius[still], atol=1e-3)
    before, _ = batch.tracks(torch.arange(900, 1000).float())
    swings = (before.radius.amax(1) - before.radius.amin(1)) / before.radius.mean(1)
    assert (swings[still] < 0.25).all()


@pytest.mark.parametrize("motion", scenes.MOTIONS)
def test_an_object_that_is_gone_comes_back_in_one_way(motion: str) -> None:
    """In the center and upright, or on top of its orbit, wherever it was lost; a bounce sets out right and down."""
    count = 16
    asked = [one(motion, shape="cross")] * count
    plain = scenes.sample_scenes(asked, np.random.default_rng(5))
    back = turns.entrance(plain)
    now, soon = (scenes.track(back, torch.tensor([frame])) for frame in (0, 2))
    top = torch.where(back.motion == scenes.MOTIONS.index("orbit"), back.orbit, 0.0)
    assert torch.allclose(now.x[:, 0], torch.full((count,), 0.5), atol=1e-5)
    assert torch.allclose(now.y[:, 0], 0.5 - top, atol=1e-5)
    assert torch.equal(now.angle, torch.zeros(count, 1))
    assert back.attributes() == asked
    assert torch.equal(back.speed, plain.speed)  # as fast and as large as it was
    assert torch.equal(back.radius, plain.radius)
    right, down = (soon.x - now.x) > 5e-3, (soon.y - now.y) > 5e-3
    assert right.all() == (motion in ("bounce", "orbit", "right"))
    assert down.all() == (motion == "bounce")


def test_what_is_gone_before_its_turn_is_the_scene_of_its_caption_from_the_entrance_on() -> None:
    plain_pool = [a for a in scenes.training_attributes() if a.background in BACKGROUNDS]
    asked = scenes.sample_attributes(16, np.random.default_rng(6), plain_pool)
    batch = drawn("gone", asked)
    assert (batch.start == BEGIN).all()
    frames = torch.arange(990, 1062)
    pixels, alpha = turns.render(batch, frames, 64)
    pieces = torch.cat([turns.render(batch, piece, 64)[0] for piece in frames.split(16)], 2)
    for i, caption in enumerate(asked):
        plain = turns.entrance(scenes.sample_scenes([caption], np.random.default_rng(0)))
        assert alpha[i, :11].sum() == 0
        came = batch.start[i] + batch.length[i] - frames[0]
        assert alpha[i, int(came.ceil())].sum() > 100  # pixels: all of it is there
        assert oracle.judge(oracle.to_uint8(pixels[i : i + 1, :, 20:]), caption).follows
        seen = oracle.measure(oracle.to_uint8(pixels[i : i + 1, :, 20:21]))
        where = scenes.track(plain, torch.tensor([20.0 - 10]))
        assert abs(float(seen.x[0]) - float(where.x)) < 0.12  # of the width, whose speeds differ
        assert torch.allclose(pieces[i], pixels[i], atol=1e-5)


def test_a_shape_with_arms_too_many_becomes_one_with_its_own() -> None:
    plain = turning([one("spin", shape="cross")] * 4, [one("spin", shape="cross")] * 4)
    twisted = replace(plain, twist=torch.full((4,), 0.8), shape_share=torch.full((4,), 0.5))
    early, late = torch.arange(940, 1000), torch.arange(1016, 1076)
    for clip in turns.render(twisted, early, 64)[0]:
        track = oracle.measure(oracle.to_uint8(clip[None]))
        crosses = oracle.classify_shapes(track.features) == scenes.SHAPES.index("cross")
        assert crosses.mean() < 0.5
    assert torch.equal(turns.render(twisted, late, 64)[0], turns.render(plain, late, 64)[0])


def test_a_motion_that_is_taken_for_another_has_that_one_as_its_past_more_often() -> None:
    pool = [a for a in scenes.training_attributes() if a.motion in ("bounce", "orbit", "pulse")]
    asked = scenes.sample_attributes(600, np.random.default_rng(3), pool)
    batch = turns.sample(asked, torch.full((600,), 5000.0), np.random.default_rng(4))
    changed = [(a.motion, b.motion) for a, b in zip(batch.before.attributes(), asked, strict=True)]

    def share(past: str, motion: str) -> float:
        pasts = [before for before, after in changed if after == motion != before]
        return pasts.count(past) / len(pasts)

    assert min(share("orbit", "bounce"), share("bounce", "orbit")) > 0.35
    assert max(share("orbit", "pulse"), share("bounce", "pulse")) < 0.35


@pytest.mark.parametrize("kind", turns.PASTS)
def test_behind_every_turn_is_the_scene_of_the_caption_and_nothing_else(kind: str) -> None:
    asked = rich(32, seed=1, share=0.6)
    batch = drawn(kind, asked)
    assert batch.after.attributes() == asked
    frames = torch.tensor([1030.0, 1100.0, 1303.0])
    turned, covered = turns.render(batch, frames, 48)
    whole = replace(batch.after, dusk=batch.after.dusk - batch.start)
    pixels, alpha = scenes.render(whole, frames - batch.start[:, None], 48)
    assert torch.allclose(turned, pixels, atol=2e-3)
    assert torch.allclose(covered, alpha, atol=2e-3)


def test_a_past_that_differs_in_the_second_object_differs_in_nothing_else() -> None:
    asked = rich(400, seed=2, share=0.5)
    pasts = drawn("second", asked).before.attributes()
    assert [replace(past, second=a.second) for past, a in zip(pasts, asked, strict=True)] == asked
    assert all(past.second for past, a in zip(pasts, asked, strict=True) if a.second is None)
    assert all(scenes.fits(past.second, past) for past in pasts)
    there = [(past.second, a.second) for past, a in zip(pasts, asked, strict=True) if a.second]
    gone = [past for past, _ in there if past is None]
    assert 0.4 < len(gone) / len(there) < 0.6
    assert not any(past == second for past, second in there)


def test_a_past_that_differs_in_its_speed_differs_in_nothing_else_where_it_can() -> None:
    asked = rich(300, seed=5)
    for past, a in zip(drawn("fast", asked).before.attributes(), asked, strict=True):
        if a.motion in scenes.IN_PLACE:
            assert past.motion != a.motion
        else:
            assert past == replace(a, fast=not a.fast)


@pytest.mark.parametrize("kind", ["background", "color", "shape", "motion"])
def test_a_past_keeps_the_second_object_where_it_fits(kind: str) -> None:
    asked = rich(60, seed=3, share=1.0)
    pasts = drawn(kind, asked).before.attributes()
    kept = 0
    for past, a in zip(pasts, asked, strict=True):
        fits = scenes.fits(a.second, replace(past, second=None))
        assert past.second == (a.second if fits else None)
        assert past.fast == (a.fast and past.motion not in scenes.IN_PLACE)
        assert getattr(past, kind) != getattr(a, kind)
        kept += fits
    assert kept > 45


def test_night_goes_on_falling_behind_a_turn_and_begins_to_fall_at_one_to_it() -> None:
    nightfall = [a for a in scenes.training_attributes() if a.background == "nightfall"]
    asked = scenes.sample_attributes(40, np.random.default_rng(4), nightfall)
    frames = torch.arange(900, 1241).float()
    for kind in ("color", "motion", "second", "gone", "twisted", "background", "everything"):
        batch = drawn(kind, asked)
        was = torch.tensor([past.background == "nightfall" for past in batch.before.attributes()])
        assert torch.equal(batch.after.dusk, torch.where(was, batch.before.dusk, BEGIN))
        if kind in ("background", "everything"):
            assert (~was).sum() > 30
        else:
            assert was.all()
    batch = drawn("second", asked)
    pixels, alpha = turns.render(batch, frames, 8)
    sky = pixels[:, :, :, 0, 0].mean(1)
    fading = (sky[:, 0] > sky[:, -1]) & (alpha[:, :, 0, 0].amax(1) == 0)
    assert fading.sum() > 10
    assert (sky[fading].diff(dim=1) <= 1e-6).all()
    assert (batch.before.dusk < BEGIN).float().mean() > 0.8  # and so it is dark in part already

    batch = drawn("background", asked)
    night = scenes.scenery(scenes.sample_scenes(asked, np.random.default_rng(0)), torch.tensor([1e6]), 16)[0]
    first, last = (
        scenes.scenery(batch.after, torch.tensor([frame]), 16)[0] for frame in (BEGIN, BEGIN + 240.0)
    )
    assert torch.equal(last, night)
    assert (first - last).abs().amax((1, 2, 3, 4)).min() > 0.2


def test_a_backdrop_that_changes_fades_from_one_to_the_other() -> None:
    batch = turning([one("orbit", background="navy")], [one("orbit", background="sunset")])
    frames = torch.tensor([999.0, 1008.0, 1016.0])
    paper = turns.render(batch, frames, 64)[0][0, :, :, 0, 0]  # a corner that no orbit reaches
    navy, sunset = (
        scenes.scenery(scene, frames[:1], 64)[0][0, :, 0, 0, 0] * 2 - 1
        for scene in (batch.before, batch.after)
    )
    assert torch.allclose(paper, torch.stack([navy, (navy + sunset) / 2, sunset], 1), atol=1e-6)


@pytest.mark.parametrize("motion", ["pulse", "spin"])
def test_a_second_object_that_appears_is_not_hidden(motion: str) -> None:
    asked = [one(motion, background="day", second=("white", "circle"))] * 48
    batch = drawn("second", asked)
    appears = batch.before.second_shape < 0
    assert appears.sum() > 12
    frames = torch.arange(1030, 1130, 4)
    standing = scenes.second_coverage(batch.after, 64)
    hidden = (scenes.coverage(batch.after, frames, 64) * standing).sum((2, 3)) / standing.sum((2, 3))
    assert hidden.max() < 0.3
    _, early = turns.render(batch, torch.tensor([BEGIN]), 64)
    _, late = turns.render(batch, torch.tensor([1060.0]), 64)
    ground = early[:, 0, 51, 32], late[:, 0, 51, 32]  # row and column of the middle of the second
    assert (ground[0][appears] == 0).all()
    assert (ground[1] == 1).all()


def test_turns_are_drawn_alike_from_alike_seeds_and_end_in_what_the_caption_says() -> None:
    asked = rich(200, seed=1)
    begin = torch.full((200,), 5000.0)
    batch, again = (turns.sample(asked, begin, np.random.default_rng(2)) for _ in range(2))
    assert batch.after.attributes() == asked
    assert torch.equal(batch.before.place_x, again.before.place_x)
    assert torch.equal(batch.visible, again.visible)
    differ = [
        sum(getattr(a, f.name) != getattr(b, f.name) for f in fields(SceneAttributes))
        for a, b in zip(batch.before.attributes(), asked, strict=True)
    ]
    slips = (batch.visible < 1) | (batch.shape_share > 0) | (batch.dusk_pace < 1)
    assert ((batch.twist > 0) <= slips).all()
    assert 0.3 < slips.float().mean() < 0.6
    assert all(count > 0 for count, slip in zip(differ, slips, strict=True) if not slip)
    assert sum(count == 1 for count in differ) > 100
    gone = batch.visible == 0
    assert 8 <= gone.sum() <= 32
    assert torch.equal(gone, batch.start == begin)
    assert (batch.start[~gone] == 0).all()
