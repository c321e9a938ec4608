from __future__ import annotations

import io
from dataclasses import replace
from itertools import permutations
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.evaluation import figures, oracle
from worker.training import backdrops, scenes
from worker.training.backdrops import BACKGROUNDS
from worker.training.scenes import SceneAttributes

FRAMES = 96
BOUNCING = SceneAttributes("black", "red", "square", "bounce")
SPINNING = SceneAttributes("navy", "yellow", "triangle", "spin")
PULSING = SceneAttributes("gray", "green", "circle", "pulse")


def video(
    attributes: SceneAttributes, seed: int = 0, size: int = 64, frames: int = FRAMES
) -> NDArray[np.uint8]:
    batch = scenes.sample_scenes([attributes], np.random.default_rng(seed))
    pixels, _ = scenes.render(batch, torch.arange(frames) + 300, size)
    return oracle.to_uint8(pixels)


def through_h264(frames: NDArray[np.uint8], crf: int = 20) -> NDArray[np.uint8]:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=scenes.FPS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": str(crf), "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("seed", range(2))
def test_true_videos_pass_also_after_h264(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = scenes.sample_attributes(14, rng, scenes.all_attributes())
    for attributes in scenes.hurried(pool, rng, 0.5):
        frames = video(attributes, seed)
        for shown in (frames, through_h264(frames)):
            verdict = oracle.judge(shown, attributes)
            assert verdict.follows, (attributes, verdict)
            assert verdict.jumps == 0


def test_the_size_of_the_frame_does_not_matter() -> None:
    for attributes in (BOUNCING, SPINNING, PULSING):
        assert oracle.judge(video(attributes, size=128, frames=60), attributes).follows


def rich(
    attributes: SceneAttributes, seed: int = 0, frames: int = FRAMES, opening: bool = True, **changes: float
) -> NDArray[np.uint8]:
    """A true scene of 128 pixels, as a video begins or in the middle of one."""
    first = 0 if opening else 300
    batch = scenes.sample_scenes([attributes], np.random.default_rng(seed), frame=float(first))
    batch = scenes.opening(batch) if opening else batch
    batch = replace(batch, **{name: torch.tensor([value]) for name, value in changes.items()})
    return oracle.to_uint8(scenes.render(batch, torch.arange(frames) + first, 128)[0])


def degraded(frames: NDArray[np.uint8], rng: np.random.Generator, sigma: float = 4) -> NDArray[np.uint8]:
    """Blurred, and with noise of so many levels."""
    blurred = np.stack([cv2.blur(frame, (3, 3)) for frame in frames])
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * sigma
    shown: NDArray[np.uint8] = np.clip(blurred + noise, 0, 255).round().astype(np.uint8)
    return shown


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_true_rich_scenes_pass_also_blurred_and_noisy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = scenes.accompanied(scenes.sample_attributes(50, rng, scenes.all_attributes()), rng, 0.6)
    for number, attributes in enumerate(drawn):
        frames = rich(attributes, 100 * seed + number, opening=number % 2 == 0)
        shown = degraded(frames, rng) if number % 4 > 1 else frames
        verdict = oracle.judge(shown, attributes)
        assert verdict.follows, (seed, number, attributes, verdict)


@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("background", backdrops.LANDSCAPES)
def test_true_rich_scenes_of_ten_seconds_pass_with_much_noise(background: str, opening: bool) -> None:
    attributes = SceneAttributes(background, "yellow", "cross", "orbit", ("cyan", "triangle"))
    frames = degraded(rich(attributes, frames=240, opening=opening), np.random.default_rng(0), 10)  # 28 dB
    verdict = oracle.judge(frames, attributes)
    assert verdict.follows, verdict


LANDSCAPE = SceneAttributes("sunset", "cyan", "square", "pulse")
ACCOMPANIED = SceneAttributes("night", "red", "cross", "orbit", ("white", "square"))
PASSING = SceneAttributes("gray", "red", "circle", "left", ("blue", "triangle"))


@pytest.mark.parametrize("asked", backdrops.LANDSCAPES)
@pytest.mark.parametrize("shown", backdrops.BACKDROPS)
def test_a_wrong_background_is_named(asked: str, shown: str) -> None:
    frames = rich(replace(LANDSCAPE, background=shown), frames=48, dusk=-60.0)
    wrong = oracle.judge(frames, replace(LANDSCAPE, background=asked))
    right = asked == shown or (asked, shown) == ("nightfall", "night")  # it has fallen
    assert (wrong.background, wrong.color, wrong.shape) == (right, True, True)
    if shown in backdrops.BACKGROUNDS:
        assert oracle.judge(frames, replace(LANDSCAPE, background=shown)).background


@pytest.mark.parametrize("background", ["day", "sunset", "night"])
def test_a_landscape_without_hills_or_washed_out_is_wrong(background: str) -> None:
    attributes = replace(LANDSCAPE, background=background)
    batch, times = scenes.sample_scenes([attributes], np.random.default_rng(0)), torch.arange(48)
    alpha = scenes.coverage(batch, times, 128)[:, None]
    paper = scenes.scenery(batch, times, 128)[0]
    bare = paper.clone()
    bare[..., 67:91, :] = paper[..., 66:67, :1]  # the sky down to the field

    def frames(behind: torch.Tensor) -> NDArray[np.uint8]:
        return oracle.to_uint8(torch.lerp(behind, scenes.inks(batch.color), alpha) * 2 - 1)

    washed = (paper + paper.mean((3, 4), keepdim=True)) / 2
    found = [oracle.judge(frames(one), attributes).background for one in (paper, bare, washed)]
    assert found == [True, False, False]


@pytest.mark.parametrize("background", backdrops.LANDSCAPES)
def test_a_landscape_without_its_sun_or_moon_is_wrong(background: str) -> None:
    attributes = replace(LANDSCAPE, background=background, motion="left")  # past the sun of the evening
    batch, times = scenes.sample_scenes([attributes], np.random.default_rng(0)), torch.arange(192)
    alpha = scenes.coverage(batch, times, 128)[:, None]
    night = backdrops.share_of_night(times, torch.tensor(-48), scenes.FPS)[:, None, None]
    found = []
    for discs in (True, False):
        first, last = (
            one[backdrops.BACKDROPS.index(background)][None, :, None]
            for one in backdrops.pictures(128, torch.device("cpu"), discs)
        )
        frames = torch.lerp(torch.lerp(first, last, night), scenes.inks(batch.color), alpha)
        verdict = oracle.judge(oracle.to_uint8(frames * 2 - 1), attributes)
        found.append((verdict.background, verdict.follows))
    assert found == [(True, True), (False, False)]


def test_night_must_fall_and_not_go_back() -> None:
    attributes = replace(LANDSCAPE, background="nightfall")
    falling = rich(attributes, frames=144)
    shown = {
        "falls": falling,
        "has fallen": rich(attributes, dusk=-300.0),
        "stays day": rich(attributes, dusk=1e6),
        "stops": falling[np.minimum(np.arange(144), 40)],
        "goes back": falling[::-1],
        "goes back late": np.concatenate([falling[:90], falling[89:50:-1]]),
    }
    for words, frames in shown.items():
        assert oracle.judge(frames, attributes).background == (words in ("falls", "has fallen")), words


def test_a_night_that_begins_anew_is_seen_from_clip_to_clip() -> None:
    attributes = replace(LANDSCAPE, background="nightfall")
    first = oracle.judge(rich(attributes, frames=144), attributes)
    assert first.night is not None
    assert first.night > 0.4
    again = rich(attributes, frames=144)
    assert oracle.judge(again, attributes).background
    assert not oracle.judge(again, attributes, night=first.night).background
    assert oracle.judge(rich(attributes, dusk=-300.0), attributes, night=first.night).background
    assert oracle.judge(rich(LANDSCAPE), LANDSCAPE).night is None


@pytest.mark.parametrize("attributes", [ACCOMPANIED, PASSING])
def test_a_wrong_second_object_is_seen_and_nothing_else_is_wrong(attributes: SceneAttributes) -> None:
    assert attributes.second is not None
    color, shape = attributes.second
    frames, gone = rich(attributes), rich(replace(attributes, second=None))
    vanishing = np.concatenate([frames[:48], gone[48:]])
    wrong = {"gone": gone, "vanishing": vanishing}
    wrong |= {one: rich(replace(attributes, second=(one, shape))) for one in ("green", "yellow")}
    wrong |= {one: rich(replace(attributes, second=(color, one))) for one in scenes.SHAPES if one != shape}
    assert oracle.judge(frames, attributes).follows
    for words, shown in wrong.items():
        verdict = oracle.judge(shown, attributes)
        assert (verdict.second, verdict.background, verdict.follows) == (False, True, False), (words, verdict)
        assert verdict.motion, (words, verdict)
        assert (verdict.color, verdict.shape) == (True, True), (words, verdict)
    unasked = oracle.judge(frames, replace(attributes, second=None))
    assert (unasked.second, unasked.follows) == (None, False)
    assert unasked.stray > 0.5


@pytest.mark.parametrize("background", ["maroon", "day"])
def test_a_third_object_is_seen(background: str) -> None:
    attributes = SceneAttributes(background, "cyan", "circle", "orbit", ("yellow", "cross"))
    frames = rich(attributes)
    frames[:, 4:28, 4:28] = 255 * np.array(scenes.COLORS["purple"])
    assert oracle.judge(frames, attributes).stray > 0.8


def test_each_wrong_attribute_is_named() -> None:
    frames = video(SPINNING)
    wrong = {
        "background": SceneAttributes("teal", "yellow", "triangle", "spin"),
        "color": SceneAttributes("navy", "green", "triangle", "spin"),
        "shape": SceneAttributes("navy", "yellow", "cross", "spin"),
        "motion": SceneAttributes("navy", "yellow", "triangle", "orbit"),
    }
    for name, attributes in wrong.items():
        verdict = oracle.judge(frames, attributes)
        seen = {field: getattr(verdict, field) for field in wrong}
        assert seen == {field: field != name for field in wrong}


def test_the_other_direction_is_another_motion() -> None:
    left = SceneAttributes("black", "white", "cross", "left")
    assert not oracle.judge(video(left)[::-1], left).motion


@pytest.mark.parametrize("motion", [m for m in scenes.MOTIONS if m not in scenes.IN_PLACE])
def test_a_wrong_speed_is_seen(motion: str) -> None:
    for seed, second in enumerate((None, ("green", "square"))):
        slow = SceneAttributes("gray", "yellow", "cross", motion, second)
        fast = replace(slow, fast=True)
        for shown, other in ((slow, fast), (fast, slow)):
            frames = video(shown, seed)
            right, wrong = oracle.judge(frames, shown), oracle.judge(frames, other)
            assert right.follows, right
            assert (wrong.seen_motion, wrong.motion, wrong.shape, wrong.background) == (
                motion,
                False,
                True,
                True,
            )


def test_a_jump_is_seen() -> None:
    frames = video(BOUNCING)
    frames[50:] = np.roll(frames[50:], 20, axis=2)
    assert oracle.judge(frames, BOUNCING).jumps > 0


@pytest.mark.parametrize("attributes", [BOUNCING, SPINNING, PULSING])
def test_a_freeze_is_seen(attributes: SceneAttributes) -> None:
    frames = video(attributes)
    frames[40:] = frames[40]
    assert not oracle.judge(frames, attributes).motion


@pytest.mark.parametrize("motion", scenes.MOTIONS)
def test_a_short_freeze_is_seen_wherever_it_is_and_no_true_scene_stands_still(motion: str) -> None:
    for seed, (shape, encoded) in enumerate((("triangle", False), ("square", True), ("cross", False))):
        attributes = SceneAttributes("black", "cyan", shape, motion)
        frames = video(attributes, seed, frames=240)
        freezes = {"end": (-24, None), "long end": (-48, None), "middle": (100, 124)}
        for name, (first, end) in {"none": (0, 0), **freezes}.items():
            shown = frames.copy()
            shown[first:end] = shown[first]
            verdict = oracle.judge(through_h264(shown) if encoded else shown, attributes)
            assert verdict.follows == (name == "none"), (name, attributes, verdict)
            assert (verdict.still > oracle.STILL_SECONDS) == (name != "none"), (name, attributes, verdict)


def test_a_shape_that_vanishes_is_seen() -> None:
    frames = video(BOUNCING)
    frames[60:] = frames[0, 0, 0]
    verdict = oracle.judge(frames, BOUNCING)
    assert verdict.present == pytest.approx(60 / FRAMES)
    assert not verdict.follows


def test_a_video_without_a_shape_follows_nothing() -> None:
    verdict = oracle.judge(np.zeros((FRAMES, 64, 64, 3), np.uint8), BOUNCING)
    assert verdict.present == 0
    assert (verdict.color, verdict.shape, verdict.motion) == (False, False, False)
    assert verdict.color_error is None  # nothing has a color to be wrong


def test_jitter_is_seen() -> None:
    frames = video(BOUNCING)
    rng = np.random.default_rng(0)
    shaken = np.stack([np.roll(f, tuple(rng.integers(-2, 3, 2)), axis=(0, 1)) for f in frames])
    assert oracle.judge(frames, BOUNCING).jitter < 0.003
    assert oracle.judge(shaken, BOUNCING).jitter > figures.JITTERY


def test_a_drift_of_shape_is_seen() -> None:
    frames, other = video(SPINNING), video(SceneAttributes("navy", "yellow", "cross", "spin"))
    frames[48:] = other[48:]
    early, late = oracle.judge(frames[:48], SPINNING), oracle.judge(frames[48:], SPINNING)
    assert (early.shape, early.seen_shape) == (True, "triangle")
    assert (late.shape, late.seen_shape) == (False, "cross")


def test_a_second_shape_of_the_same_color_is_seen() -> None:
    frames = video(BOUNCING)
    twice = np.maximum(frames, np.roll(frames, 32, axis=2))
    assert not oracle.judge(twice, BOUNCING).follows


@pytest.mark.parametrize("radius", [0.07, 0.09])
@pytest.mark.parametrize("attributes", [BOUNCING, SPINNING, PULSING])
def test_a_dot_of_the_same_color_beside_the_shape_is_seen(attributes: SceneAttributes, radius: float) -> None:
    frames = video(attributes)
    y, x = (np.mgrid[0:64, 0:64] + 0.5) / 64
    track = oracle.measure(frames)
    for frame, left, top in zip(frames, track.x, track.y, strict=True):
        away = [
            np.remainder(one - centre, 1) - 0.5 for one, centre in ((x, left), (y, top))
        ]  # opposite of the shape
        frame[np.hypot(*away) < radius] = 255 * np.array(scenes.COLORS[attributes.color])
    assert oracle.judge(frames, attributes).stray > 0.8
    assert not oracle.judge(frames, attributes).follows


def drawn(x: Any, y: Any, radius: Any = 0.19, angle: Any = 0.0, shape: str = "square") -> NDArray[np.uint8]:
    """A red shape on black along a path of FRAMES frames, round the torus."""
    places, sizes, angles = (
        [torch.from_numpy(np.broadcast_to(one, FRAMES).astype(np.float32).copy())[None] for one in group]
        for group in ((x, y), (radius,), (angle,))
    )
    where = scenes.Track(*places, *sizes, *angles)
    dx, dy = scenes.offsets(where, torch.ones(1, 1, dtype=torch.bool), 64)
    kind = torch.tensor(scenes.SHAPES.index(shape))
    edge = scenes.signed_distance(dx, dy, where.radius[..., None, None], kind)
    alpha = (0.5 - edge * 64).clamp(0, 1).numpy()[0, ..., None]
    frames: NDArray[np.uint8] = (255 * alpha * np.array(scenes.COLORS["red"])).astype(np.uint8)
    return frames


TIME = np.arange(FRAMES) / scenes.FPS


@pytest.mark.parametrize(
    ("frames", "seen"),
    [
        (drawn(0.1 + 0.33 * TIME, 0.3 + 0.02 * TIME), "right"),
        (drawn(0.5 + 0.25 * np.cos(1.4 * TIME), 0.5 + 0.25 * np.sin(1.4 * TIME)), "orbit"),
        (drawn(0.4, 0.6, 0.19 * (0.83 + 0.27 * np.sin(2 * TIME))), "pulse"),
        (drawn(0.4, 0.6, angle=2 * TIME), "spin"),
        (drawn(0.1 + 0.3 * TIME, 0.1 + 0.2 * TIME), None),  # round the torus: it never bounces
        (
            drawn(0.42 + 0.2 * np.cos(1.4 * TIME), 0.4 + 0.2 * np.sin(1.4 * TIME)),
            None,
        ),  # circles beside the center
        (drawn(0.4, 0.6, 0.12 * np.exp(0.15 * TIME)), None),  # grows and grows
        (drawn(0.1 + 0.33 * TIME, 0.3, 0.21 * np.exp(-0.15 * TIME)), None),  # shrinks as it goes
        (drawn(0.1 + 0.33 * TIME, 0.3, angle=2 * TIME), None),  # spins as it goes
    ],
)
def test_a_motion_is_seen_for_what_it_is_and_what_is_none_for_none(
    frames: NDArray[np.uint8], seen: str | None
) -> None:
    assert oracle.judge(frames, BOUNCING).seen_motion == seen


def test_a_clip_measured_in_pieces_is_the_clip_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = video(BOUNCING)[:20]
    pieces = oracle.measure(frames)
    monkeypatch.setattr(oracle, "MEASURED_AT_ONCE", 100)
    whole = oracle.measure(frames)
    for field in ("x", "area", "stray", "features", "background", "fourfold"):
        assert np.allclose(getattr(pieces, field), getattr(whole, field))


def with_another(attributes: SceneAttributes, color: str, scale: float) -> NDArray[np.uint8]:
    """A scene and, in front of it, an orbiting circle of another color."""
    other = SceneAttributes(attributes.background, color, "circle", "orbit")
    batch = scenes.sample_scenes([other], np.random.default_rng(1))
    alpha = scenes.coverage(replace(batch, radius=batch.radius * scale), torch.arange(24), 64)[0, ..., None]
    ink = 255 * np.array(scenes.COLORS[color])
    mixed: NDArray[np.uint8] = (
        video(attributes, frames=24) * (1 - alpha.numpy()) + ink * alpha.numpy()
    ).astype(np.uint8)
    return mixed


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_second_shape_of_another_color_is_seen(background: str) -> None:
    colors = [color for color in scenes.COLORS if (color, background) not in scenes.EXCLUDED_PAIRS]
    for color, other in permutations(colors, 2):
        attributes = SceneAttributes(background, color, "circle", "bounce")
        for scale in (1, 0.6):
            verdict = oracle.judge(with_another(attributes, other, scale), attributes)
            assert verdict.stray > 0.8, (attributes, other, verdict)
            assert not verdict.follows


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_shape_that_is_elsewhere_after_a_blink_has_jumped(background: str) -> None:
    for color in scenes.COLORS:
        if (color, background) in scenes.EXCLUDED_PAIRS:
            continue
        attributes = SceneAttributes(background, color, "circle", "bounce")
        frames = video(attributes, frames=240)
        paper = (255 * np.array(BACKGROUNDS[background])).astype(np.uint8)
        blinks = [40, 80, 120, 160, 200]
        for first in blinks:
            frames[first] = paper
        assert oracle.judge(frames, attributes).jumps == 0
        for first in blinks:
            frames[first:] = np.roll(frames[first:], 13, axis=2)
        assert oracle.judge(frames, attributes).jumps > figures.JUMPY


def test_a_shape_that_stops_and_goes_is_seen() -> None:
    frames = video(SceneAttributes("black", "white", "cross", "left"))
    stuttering = frames[np.arange(FRAMES) // 24 * 24]
    verdict = oracle.judge(stuttering, SceneAttributes("black", "white", "cross", "left"))
    assert not verdict.motion
    assert verdict.jumps > 0


def test_a_drift_of_color_is_seen() -> None:
    frames = video(BOUNCING)
    tinted = video(SceneAttributes("black", "purple", "square", "bounce"))
    share = np.linspace(0, 1, FRAMES)[:, None, None, None]
    drifting = (frames * (1 - share) + tinted * share).astype(np.uint8)
    early, late = oracle.judge(drifting[:48], BOUNCING), oracle.judge(drifting[48:], BOUNCING)
    assert not oracle.judge(drifting, BOUNCING).color
    assert early.color_error is not None
    assert late.color_error is not None
    assert late.color_error > early.color_error + 0.2


def test_a_drift_of_the_background_is_seen() -> None:
    frames = video(BOUNCING).astype(int)
    bright = np.clip(frames + np.linspace(0, 120, FRAMES)[:, None, None, None], 0, 255).astype(np.uint8)
    assert not oracle.judge(bright, BOUNCING).background


def test_noise_is_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 64, 3), dtype=np.uint8)
    assert not oracle.judge(noise, BOUNCING).follows


def test_frames_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        oracle.judge(np.zeros((4, 64, 64, 3)), BOUNCING)  # type: ignore[arg-type]


def test_every_caption_can_be_parsed() -> None:
    rng = np.random.default_rng(0)
    for attributes in scenes.all_attributes():
        lively = replace(scenes.LIVELY, second=1.0, fast=0.5)
        for one in (attributes, *lively.dressed([attributes], rng)):
            for filler in (0.0, 1.0):
                caption = scenes.caption(one, rng, filler)
                assert oracle.parse_prompt(caption) == one, caption


def test_prompts_in_other_words_can_be_parsed() -> None:
    assert oracle.parse_prompt("A RED ball, bouncing on black!") == SceneAttributes(
        "black", "red", "circle", "bounce"
    )
    assert oracle.parse_prompt("a red ball rapidly bouncing on black") == SceneAttributes(
        "black", "red", "circle", "bounce", fast=True
    )
    assert oracle.parse_prompt("a red box spinning fast on black") == SceneAttributes(
        "black", "red", "square", "spin"
    )
    assert oracle.parse_prompt("On teal: a white plus sign that rotates.") == SceneAttributes(
        "teal", "white", "cross", "spin"
    )


@pytest.mark.parametrize(
    ("words", "background"),
    [
        ("as day turns to night", "nightfall"),
        ("with day turning into night", "nightfall"),
        ("at nightfall", "nightfall"),
        ("under a sunset sky", "sunset"),
        ("over a meadow at dusk", "sunset"),
        ("over a sunny meadow", "day"),
        ("in bright daylight", "day"),
        ("on a moonlit field", "night"),
    ],
)
def test_a_landscape_in_other_words_can_be_parsed(words: str, background: str) -> None:
    for text in (
        f"a red ball bouncing next to the green box {words}",
        f"{words}, a red ball bouncing near a green box",
    ):
        assert oracle.parse_prompt(text) == SceneAttributes(
            background, "red", "circle", "bounce", ("green", "square")
        )


def test_a_second_object_alone_is_no_scene() -> None:
    assert oracle.parse_prompt("bouncing past a green square on black") is None


@pytest.mark.parametrize(
    ("words", "motion"),
    [
        ("spinning on the left", "spin"),
        ("moving right, not left", "right"),
        ("on the right, bouncing", "bounce"),
    ],
)
def test_a_direction_is_a_motion_where_no_other_is_named(words: str, motion: str) -> None:
    parsed = oracle.parse_prompt(f"a red square {words}, black background")
    assert parsed is not None
    assert parsed.motion == motion


@pytest.mark.parametrize("prompt", ["", "a cat", "a red ball on black", "a ball bouncing on black"])
def test_a_prompt_that_leaves_something_open_is_not_parsed(prompt: str) -> None:
    assert oracle.parse_prompt(prompt) is None
