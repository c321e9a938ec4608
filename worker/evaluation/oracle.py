"""Judges a clip of a procedural scene against what its prompt says, from pixels alone.

`parse_prompt` reads the attributes out of a prompt, `judge` measures a clip and compares. Nothing is learned: the
paper is the median color or the landscape that is nearest, with the second object that the prompt asks for; the shape
is what differs from it, its kind comes from rotation-invariant moments, its motion from the track of its centroid. The
torus that drifting shapes wrap around is taken into account. Lengths are fractions of the frame width, so any frame
size will do; larger frames are shrunk to MEASURED_WIDTH. Colors are RGB in 0..1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.training import backdrops, scenes
from worker.training.backdrops import BACKGROUNDS
from worker.training.scenes import SceneAttributes

Array = NDArray[np.floating[Any]]

PRESENT_CONTRAST = 0.2
"""Distance between shape and background color from which a shape counts as seen."""
PRESENT_AREA = (0.01, 0.2)
"""Smallest and largest area of a shape, in frame areas; the scenes have 0.025 to 0.14."""
MOVING = 0.10
"""Speed of a shape that moves, widths per second; the scenes have 0.28 to 0.42, and 0.58 to 0.72."""
FAST = 0.5
"""Speed from which a motion is fast, widths per second."""
TURNING = 0.6
"""Speed of a shape that spins, radians per second; the scenes have 1.6 to 2.4."""
BENDING = 0.6
"""Change of heading of a shape that orbits, radians per second; the scenes have 0.9 to 3.3. A bounce is straight."""
ROUND = 0.25
"""Largest relative deviation of the distance between an orbiting shape and the center; the scenes have none."""
PULSING = 0.12
"""Relative change of area within a second; the scenes have at least 0.25."""
PERIOD_SECONDS = 3.5
"""The longest period of a pulse in the scenes."""
GROWING = (0.15, 0.85)
"""Share of the time that a pulse grows, in a clip of a period or more; in the scenes about half."""
SWELLING = 2.0
"""Largest ratio of the areas of a shape that does not pulse, from second to second; the scenes have 1."""
JUMP = 0.06
"""Displacement between two frames that no motion explains, widths; the scenes have at most 0.03."""
SHAKEN = 0.85
"""Share of the changes of step that jitter is no less than: a chunk joint in every second latent makes a quarter of
them, the walls that what bounces fast meets make a tenth."""
FASTEST = 0.75
"""How far a shape may go in a second in which it is not seen, widths; the scenes have at most 0.72."""
STRAY_CONTRAST = 0.3
"""Distance of a pixel from all mixtures of background and shape color from which it is of neither."""
STRAY_BREADTH = 3 / 64
"""Narrower stripes of such pixels, widths, are the edges that H.264 and autoencoders smear."""
STRAY_AREA = 0.01
"""Area of such pixels, or of a second shape of the same color, from which there is something else in a frame, in frame
areas."""
STILL_STEP = 0.02
"""Displacement below which a shape has not moved, widths."""
STILL_TURN = 0.15
"""Turn below which it has not turned, radians."""
STILL_GROWTH = 0.04
"""Relative change of area below which it has neither grown nor shrunk."""
MEASURED_AT_ONCE = 8
"""Frames: what is measured takes some 72 bytes a pixel while it is."""
STILL_SECONDS = 0.75
"""Longest standstill of a shape that moves. A pulse at its largest seems to stand for 0.6 s, all else for 0.2 s."""
MOST = 0.75
"""Share of a clip that must show a property."""
LAG = 4
"""Frames over which velocities are taken."""
MEASURED_WIDTH = 64
"""Wider frames are shrunk to this width, pixels, by the means of areas."""
BLOCKS = 32
"""Landscapes are compared by the means of so many areas in each direction: noise and blur hardly change these."""
AWAY = 0.12
"""Distance to the landscape asked for from which an area of it is wrong."""
AWAY_SPREAD = 0.6
"""The same as a fraction of how far the areas of the landscape are from their mean, if that is less."""
AWAY_SHARE = 0.05
"""Share of a landscape that may be wrong; its hills are 0.12 of it."""
CONTRAST = (0.7, 1.4)
"""Smallest and largest contrast of a landscape, of that of the one asked for."""
FLAT = 0.3
"""Contrast up to which a picture is no landscape at all."""
LIT = 0.5
"""Share of the light of sun or moon that must be seen where they stand, if more than half of it is free of objects."""
NIGHT = 0.9
"""Share of night from which a nightfall is over."""
NIGHT_BACK = 0.08
"""How far a share of night may go back."""
NIGHT_PACE = 0.45
"""How fast night must fall, as a fraction of the scenes' pace."""
RIM = 3 / 64
"""What lies this far from the shape, widths, is not said to be free of it."""
UNCOVERED = 0.25
"""Share of a second object that must be free of the moving shape to tell of it."""
TOLD_TOGETHER = 12
"""Frames of a second object from which its shape is told at once."""

_MOTION_PATTERNS = {
    "bounce": (r"bounc\w*",),
    "orbit": (r"orbit\w*", "circling", "in circles"),
    "pulse": (r"puls\w*", "growing and shrinking"),
    "spin": (r"spin\w*", r"rotat\w*"),
}
_BACKGROUND_PATTERNS = {
    **{name: scenes.BACKGROUND_WORDS[name] for name in BACKGROUNDS},
    "day": ("by day", "daylight", "daytime", r"sunny"),
    "sunset": ("sunset", "dusk"),
    "night": ("night", "moonlight", "moonlit"),
}
_NIGHTFALL = re.compile(r"\b(?:day(?:light)? \w+ (?:in)?to night|nightfall|night falls|night falling)\b")
_FAST = re.compile(rf"\b(?:{'|'.join(scenes.FAST_WORDS)}|rapidly)\b")
_SECOND = re.compile(
    r"\b(?:past|in front of|around|above|beside|near|next to) (?:(?:a|the) )?"
    rf"({'|'.join(scenes.COLORS)}) ({'|'.join(word for words in scenes.SHAPE_WORDS.values() for word in words)})\b"
)


@dataclass(frozen=True)
class Verdict:
    """What a clip of a scene shows, against what it should show."""

    background: bool
    color: bool
    shape: bool
    motion: bool
    second: bool | None  # whether the second object is there as asked; None if none is asked for
    present: float  # share of frames that show a shape of a plausible size
    stray: float  # share of frames that show something else, too
    still: float  # longest stretch in which the shape neither moves nor turns nor changes its size, seconds
    jumps: float  # share of steps from one sight of the shape to the next that no motion explains
    jitter: float  # typical change of the step from frame to frame, widths; the scenes have at most 0.004
    color_error: float | None  # mean distance to the color asked for, RGB 0..1; None if no shape is seen
    background_error: float
    seen_color: str | None
    seen_shape: str | None
    seen_motion: str | None
    seen_speed: float  # widths per second
    night: float | None  # share of night at the end of a nightfall; None if none is asked for

    @property
    def follows(self) -> bool:
        """Everything the prompt says is there, all the time, and nothing else."""
        told = self.background and self.color and self.shape and self.motion and self.second is not False
        return told and self.present >= 0.95 and self.stray <= 0.05


@dataclass(frozen=True)
class Track:
    """Per-frame measurements, each with T rows."""

    background: Array  # (T, 3) median color
    color: Array  # (T, 3) color of the shape
    present: NDArray[np.bool_]  # (T,)
    x: Array  # centroid, widths
    y: Array
    area: Array  # frame areas
    stray: Array  # area of what is neither background nor the shape, frame areas
    features: Array  # (T, 3) rotation-invariant moments
    threefold: Array  # orientation of a triangle, radians in a third of a turn
    fourfold: Array  # orientation of a square or cross, radians in a quarter of a turn
    fits: NDArray[np.bool_]  # whether the background is the one asked for
    night: Array  # share of night in a landscape of day and night
    background_error: Array  # mean distance to the background asked for
    second_free: Array  # share of the second object that the shape leaves free
    second_color: NDArray[
        np.intp
    ]  # index into COLORS of what stands there, len(COLORS) where it is the background
    second_errors: (
        Array  # (T, 4) squared distances to what each of SHAPES would look like there, over free pixels
    )


def parse_prompt(text: str) -> SceneAttributes | None:
    """The attributes that a prompt names, or None if one of them is missing or not of these scenes."""
    plain = " ".join(re.sub(r"[^\w\s]+", " ", text.lower()).split())

    def find(words: Mapping[str, Iterable[str]]) -> str | None:
        """The name whose pattern of a whole word comes first."""
        hits = [
            (match.start(), name)
            for name, synonyms in words.items()
            for synonym in synonyms
            if (match := re.search(rf"\b{synonym}\b", plain))
        ]
        return min(hits)[1] if hits else None

    second = _SECOND.search(plain)
    if second:
        plain = f"{plain[: second.start()]}{plain[second.end() :]}"
    background = "nightfall" if _NIGHTFALL.search(plain) else find(_BACKGROUND_PATTERNS)
    color = find({name: (name,) for name in scenes.COLORS})
    shape = find(scenes.SHAPE_WORDS)
    # "Left" and "right" may also say where something is.
    motion = find(_MOTION_PATTERNS) or find({name: (name,) for name in ("left", "right")})
    if background is None or color is None or shape is None or motion is None:
        return None
    fast = motion not in scenes.IN_PLACE and _FAST.search(plain) is not None
    if second is None:
        return SceneAttributes(background, color, shape, motion, fast=fast)
    (kind,) = (name for name, words in scenes.SHAPE_WORDS.items() if second[2] in words)
    return SceneAttributes(background, color, shape, motion, (second[1], kind), fast)


def _wrapped(distance: Array) -> Array:
    """The shortest way round the torus, widths."""
    shortest: Array = np.remainder(distance + 0.5, 1) - 0.5
    return shortest


def _broad(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which pixels of masks (T, H, W) remain when a rim of half of STRAY_BREADTH is taken away."""
    side = max(3, round(STRAY_BREADTH * mask.shape[2]))
    kernel = np.ones((side, side), np.uint8)
    return np.stack([cv2.erode(one, kernel) for one in mask.astype(np.uint8)]).astype(np.bool_)


def _apart(alpha: Array, x: Array, y: Array) -> Array:
    """Area of what has the color of the shape but is not joined to it, frame areas; from coverage (T, H, W)."""
    _, height, width = alpha.shape
    areas = []
    for cover, left, top in zip(alpha, x, y, strict=True):
        # With the shape in the middle, nothing of it is cut off by the border of the torus.
        middle = (round(height * (0.5 - float(top))), round(width * (0.5 - float(left))))
        mask = np.roll(cover > 0.5, middle, axis=(0, 1)).astype(np.uint8)
        _, _, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        parts = found[1:, cv2.CC_STAT_AREA]
        areas.append((parts.sum() - parts.max()) / (height * width) if len(parts) else 0.0)
    return np.array(areas)


def _joined(alpha: Array) -> NDArray[np.bool_]:
    """The largest part of one coverage (H, W) on the torus, and RIM around it."""
    _, labels, found, _ = cv2.connectedComponentsWithStats((alpha > 0.5).astype(np.uint8), connectivity=8)
    areas = found[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    groups = np.arange(len(areas))
    for one, other in ((labels[:, 0], labels[:, -1]), (labels[0], labels[-1])):
        for first, last in {*zip(one[(one > 0) & (other > 0)], other[(one > 0) & (other > 0)], strict=True)}:
            groups[groups == groups[last]] = groups[first]
    sizes = np.bincount(groups, weights=areas)
    rim = max(1, round(RIM * alpha.shape[1]))
    body = np.pad((groups == sizes.argmax())[labels] & (labels > 0), rim, mode="wrap").astype(np.uint8)
    around: NDArray[np.bool_] = cv2.dilate(body, np.ones((2 * rim + 1,) * 2, np.uint8))[
        rim:-rim, rim:-rim
    ].astype(np.bool_)
    return around


def _shrunk(frames: Array, height: int, width: int) -> Array:
    """Frames (T, H, W) or (T, H, W, C), float32, as means of areas: (T, height, width) or (T, height, width, C)."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


@dataclass(frozen=True)
class _Setting:
    """What a clip is measured against, for frames of one size."""

    asked: str | None  # the background
    views: Array  # (3, H, W, 3): sunset, day, night
    blocks: Array  # (3, N, 3): means of areas of these
    lights: Array  # (3, N, 3): what sun and moon add to these means
    covers: (
        Array | None
    )  # (4, H, W) how much of each pixel a second object of each shape covers; None: no object
    second: int  # its shape as asked, index into SHAPES
    ink: Array  # (3,) its color as asked
    own: int  # color of the moving shape as asked, index into COLORS

    @property
    def cover(self) -> Array | None:
        return None if self.covers is None else self.covers[self.second]


def _in_blocks(frames: Array) -> Array:
    """Frames (T, H, W) or (T, H, W, C) as means of areas, (T, N) or (T, N, C)."""
    count, height, width = frames.shape[:3]
    side = min(BLOCKS, width)
    means = _shrunk(frames, max(1, round(height * side / width)), side)
    return means.reshape(count, -1, *frames.shape[3:])


@lru_cache(maxsize=8)
def _setting(attributes: SceneAttributes | None, height: int, width: int) -> _Setting:
    """For frames of this size, pixels, before they are shrunk."""
    size = _measured_size(height, width)

    def fitted(pictures: torch.Tensor) -> Array:
        """Square pictures (n, side, side, ...) at the size that is measured."""
        if height != width:
            return np.stack([cv2.resize(one, size[::-1]) for one in pictures.numpy()])
        return _shrunk(pictures.numpy(), *size)

    sunset, day, night = (backdrops.BACKDROPS.index(name) for name in ("sunset", "day", "night"))
    views, bare = (
        fitted(torch.stack([first[sunset], first[day], last[night]]).permute(0, 2, 3, 1).contiguous())
        for first, last in (backdrops.pictures(width, torch.device("cpu"), discs) for discs in (True, False))
    )
    second = attributes.second if attributes else None
    covers = None
    if attributes and second:
        each = [replace(attributes, second=(second[0], shape)) for shape in scenes.SHAPES]
        standing = scenes.sample_scenes(each, np.random.default_rng(0))
        covers = fitted(scenes.second_coverage(standing, width)[:, 0])
    return _Setting(
        asked=attributes.background if attributes else None,
        views=views,
        blocks=_in_blocks(views),
        lights=_in_blocks(views) - _in_blocks(bare),
        covers=covers,
        second=scenes.SHAPES.index(second[1]) if second else 0,
        ink=np.array(scenes.COLORS[second[0]] if second else (0, 0, 0), np.float32),
        own=list(scenes.COLORS).index(attributes.color) if attributes else 0,
    )


def _measured_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which frames are measured, pixels."""
    if width <= MEASURED_WIDTH:
        return height, width
    return max(1, round(height * MEASURED_WIDTH / width)), MEASURED_WIDTH


def measure(frames: NDArray[np.uint8], attributes: SceneAttributes | None = None) -> Track:
    """Per-frame measurements of a clip, uint8 (T, H, W, 3).

    `attributes` is what it is asked to show; None knows plain backgrounds and one object alone.
    """
    setting = _setting(attributes, *frames.shape[1:3])
    pieces = [
        _measure(frames[first : first + MEASURED_AT_ONCE], setting)
        for first in range(0, len(frames), MEASURED_AT_ONCE)
    ]
    return Track(*(np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(Track)))


def _share_of_night(blocks: Array, day: Array, night: Array) -> Array:
    """The share of night that fits best, (T,) in 0..1: means of areas (T, N, 3), of pictures (N, 3)."""
    change = night - day
    weight = (change**2).sum(1)
    shares = ((blocks - day) * change).sum(2) / weight
    rough = np.median(shares, axis=1).clip(0, 1)
    off = np.linalg.norm(blocks - day - rough[:, None, None] * change, axis=2)
    weights = weight * (off <= np.maximum(AWAY, np.median(off, axis=1))[:, None])
    share: Array = ((shares * weights).sum(1) / weights.sum(1)).clip(0, 1)
    return share


def _landscape(
    blocks: Array, background: Array, setting: _Setting
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.intp]]:
    """What is behind the objects: share of night (T,), means of areas of day and night with that share (T, N, 3), the
    plain background that is nearest (T,), and which is nearest of all (T,): 0 plain, 1 sunset, 2 day and night.
    """
    sunset, day, night = setting.blocks
    share = _share_of_night(blocks, day, night)
    fading = day + share[:, None, None] * (night - day)
    plain = _nearest(background, BACKGROUNDS)
    known = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    distances = [np.linalg.norm(background - known[plain], axis=1)]
    for one in (np.broadcast_to(sunset, fading.shape), fading):
        away = np.linalg.norm(blocks - one, axis=2)
        like = _contrast(blocks, one, away < 2 * AWAY) > FLAT
        distances.append(np.where(like, np.median(away, axis=1), np.inf))
    return share, fading, plain, np.stack(distances).argmin(0)


def _contrast(blocks: Array, wanted: Array, among: NDArray[np.bool_]) -> Array:
    """Contrast of pictures (T, N, 3), as a fraction of that of others, among some of their areas (T, N): (T,)."""
    weights = among[..., None] / np.maximum(among.sum(1), 1)[:, None, None]
    seen, asked = (
        (one - (one * weights).sum(1, keepdims=True)) * among[..., None] for one in (blocks, wanted)
    )
    contrast: Array = (seen * asked).sum((1, 2)) / np.maximum((asked**2).sum((1, 2)), 1e-6)
    return contrast


def _fit(blocks: Array, asked: Array, free: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Array]:
    """Whether a landscape is as asked, and its mean distance, each (T,), by its free areas (T, N)."""
    count = np.maximum(free.sum(1), 1)
    difference = blocks - asked
    offset = np.stack(
        [
            np.median(one[here], axis=0) if here.any() else np.zeros(3)
            for one, here in zip(difference, free, strict=True)
        ]
    )
    spread = np.sqrt(((asked - asked.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    least = np.minimum(AWAY, AWAY_SPREAD * spread)[:, None]
    share = ((np.linalg.norm(difference - offset[:, None], axis=2) > least) & free).sum(1) / count
    away = np.linalg.norm(difference, axis=2)
    contrast = _contrast(blocks, asked, free)
    fits = (
        (share < AWAY_SHARE)
        & (np.linalg.norm(offset, axis=1) < AWAY)
        & (contrast > CONTRAST[0])
        & (contrast < CONTRAST[1])
    )
    return fits, (away * free).sum(1) / count


def _lit(blocks: Array, asked: Array, light: Array, free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether sun or moon are where they should be, or cannot be told, (T,): means of areas (T, N, 3)."""
    power = (light**2).sum(2)
    told = (power * free).sum(1)
    seen = (((blocks - asked + light) * light).sum(2) * free).sum(1)
    lit: NDArray[np.bool_] = (told < 0.5 * power.sum(1)) | (seen > LIT * told)
    return lit


def _second_ink(frame: Array, base: Array, setting: _Setting) -> Array | None:
    """The color of the second object in one frame (H, W, 3) before its background, or None where that is seen."""
    assert setting.cover is not None
    core = setting.cover > 0.9
    seen = frame[core]
    away = [np.linalg.norm(seen - np.array(color), axis=1) for color in scenes.COLORS.values()]
    away.append(np.linalg.norm(seen - base[core], axis=1))
    nearest = np.argmin(away, axis=0)
    votes = np.bincount(nearest, minlength=len(away))
    votes[setting.own] = 0
    most = int(votes.argmax())
    if most == len(scenes.COLORS):
        return None
    return np.median(seen[nearest == most], axis=0) if votes[most] > 0.2 * len(seen) else setting.ink


def _second(
    pixels: Array, base: Array, free: NDArray[np.bool_], setting: _Setting
) -> tuple[Array, NDArray[np.intp], Array]:
    """`second_free`, `second_color` and `second_errors` of a :class:`Track`; pixels (T, H, W, 3), free (T, H, W)."""
    count = len(pixels)
    none = len(scenes.COLORS)
    if setting.covers is None or setting.cover is None:
        return np.zeros(count), np.full(count, none, np.intp), np.zeros((count, len(scenes.SHAPES)))
    core = setting.cover > 0.9
    known = np.array(list(scenes.COLORS.values()), dtype=np.float32)
    around = cv2.dilate(setting.covers.max(0), np.ones((5, 5), np.uint8)) > 0
    covers = setting.covers[:, around][..., None]  # (4, n, 1)
    share, colors, errors = [], [], []
    for frame, paper, open_ in zip(pixels, base, free, strict=True):
        inside = core & open_
        share.append(inside.sum() / core.sum())
        if not inside.any():
            colors.append(none)
            errors.append(np.zeros(len(covers)))
            continue
        ink = np.median(frame[inside], axis=0)
        distances = [*np.linalg.norm(known - ink, axis=1)]
        distances.append(np.median(np.linalg.norm(frame[inside] - paper[inside], axis=1)))
        colors.append(int(np.argmin(distances)))
        expected = paper[around] + covers * (ink - paper[around])
        errors.append((((frame[around] - expected) ** 2).sum(2) * open_[around]).sum(1))
    return np.array(share), np.array(colors, np.intp), np.stack(errors)


def _measure(frames: NDArray[np.uint8], setting: _Setting) -> Track:
    count = len(frames)
    height, width = _measured_size(*frames.shape[1:3])
    picture = _shrunk(frames.astype(np.float32) / 255, height, width)
    pixels = picture.reshape(count, -1, 3)
    background = np.median(pixels, axis=1)
    blocks = _in_blocks(picture)
    night, fading, plain, kind = _landscape(blocks, background, setting)
    if setting.asked is None:
        kind[:] = 0
    base = np.broadcast_to(background[:, None], pixels.shape).copy()
    sunset, day, dark = setting.views.reshape(3, -1, 3)
    for number in np.flatnonzero(kind):
        view = sunset if kind[number] == 1 else day + night[number] * (dark - day)
        base[number] = view + np.median(pixels[number] - view, axis=0)
    paper = base
    if setting.cover is not None:
        paper = base.copy()
        cover = setting.cover.reshape(-1, 1)
        for place, one in enumerate(base):
            ink = _second_ink(picture[place], one.reshape(height, width, 3), setting)
            if ink is not None:
                paper[place] = one + cover * (ink - one)
    difference = pixels - paper
    strength = np.linalg.norm(difference, axis=2)
    core = max(1, round(height * width * 0.0146))  # 60 of 64 x 64 pixels: less than the smallest shape
    elsewhere = strength if setting.covers is None else strength * (setting.covers.max(0).reshape(-1) < 0.1)
    strongest = np.argpartition(elsewhere, -core, axis=1)[:, -core:]
    color = np.median(np.take_along_axis(pixels, strongest[..., None], axis=1), axis=1)
    contrast = color[:, None] - paper
    size = (contrast**2).sum(2)
    alpha = np.clip((difference * contrast).sum(2) / np.maximum(size, 1e-4), 0, 1)
    rest = np.linalg.norm(difference - alpha[..., None] * contrast, axis=2)
    size = np.median(np.take_along_axis(size, strongest, axis=1), axis=1)
    alpha[alpha < 0.15] = 0
    alpha = alpha.reshape(count, height, width)
    whole = alpha
    near = np.stack([_joined(one) for one in alpha])
    if setting.cover is not None or kind.any():
        alpha = alpha * near
    total = np.maximum(alpha.sum((1, 2)), 1e-3)
    columns = (np.arange(width, dtype=np.float32) + 0.5) / width
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height

    def centre(profile: Array, places: Array) -> tuple[Array, Array]:
        """Centroid on the circle and distances to it, from (T, n) weights."""
        turn = np.exp(2j * np.pi * places)
        middle = np.remainder(np.angle((profile * turn).sum(1)) / (2 * np.pi), 1)
        for _ in range(3):
            middle = np.remainder(middle + (profile * _wrapped(places - middle[:, None])).sum(1) / total, 1)
        return middle, _wrapped(places - middle[:, None])

    x, dx = centre(alpha.sum(1), columns)
    y, dy = centre(alpha.sum(2), rows)
    offset = dx[:, None, :] * width + 1j * dy[:, :, None] * height  # pixels
    second = (alpha * np.abs(offset) ** 2).sum((1, 2)) / total**2
    third = (alpha * offset**3).sum((1, 2)) / total**2.5
    fourth = (alpha * offset**4).sum((1, 2)) / total**3
    area = total / (height * width)
    fits, away = _background_as_asked(blocks, near, background, (night, fading, plain, kind), setting)
    free, second_color, second_errors = _second(picture, base.reshape(picture.shape), ~near, setting)
    return Track(
        background=background,
        color=color,
        present=(np.sqrt(size) > PRESENT_CONTRAST) & (area > PRESENT_AREA[0]) & (area < PRESENT_AREA[1]),
        x=x,
        y=y,
        area=area,
        stray=_broad(rest.reshape(count, height, width) > STRAY_CONTRAST).mean((1, 2)) + _apart(whole, x, y),
        features=np.stack([4 * second, 30 * np.abs(third), 30 * np.abs(fourth)], 1),
        threefold=np.angle(third) / 3,
        fourfold=np.angle(fourth) / 4,
        fits=fits,
        night=night,
        background_error=away,
        second_free=free,
        second_color=second_color,
        second_errors=second_errors,
    )


def _background_as_asked(
    blocks: Array,
    near: NDArray[np.bool_],
    background: Array,
    seen: tuple[Array, Array, NDArray[np.intp], NDArray[np.intp]],
    setting: _Setting,
) -> tuple[NDArray[np.bool_], Array]:
    """`fits` and `background_error` of a :class:`Track`.

    `near` (T, H, W) is the moving shape; `seen` are the share of night, the nearest of day and night (T, N, 3), the
    nearest plain background and the nearest of all, as `_landscape` finds them.
    """
    night, fading, plain, kind = seen
    asked = setting.asked
    if asked is None:
        return np.zeros(len(blocks), np.bool_), np.zeros(len(blocks))
    if asked in BACKGROUNDS:
        away = np.linalg.norm(background - np.array(BACKGROUNDS[asked]), axis=1)
        return (kind == 0) & (plain == list(BACKGROUNDS).index(asked)), away
    hidden = near.astype(np.float32)
    if setting.cover is not None:
        hidden = np.maximum(hidden, cv2.dilate(setting.cover, np.ones((5, 5), np.uint8)))
    free = _in_blocks(hidden) == 0
    if asked == "nightfall":
        _, day, dark = setting.lights
        wanted, light = fading, day + night[:, None, None] * (dark - day)
    else:
        number = ("sunset", "day", "night").index(asked)
        wanted, light = (
            np.broadcast_to(one[number], blocks.shape) for one in (setting.blocks, setting.lights)
        )
    fits, away = _fit(blocks, wanted, free)
    fits &= _lit(blocks, wanted, light, free) & (kind == (1 if asked == "sunset" else 2))
    return fits, away


def to_uint8(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) in -1..1 to uint8 (B * T, H, W, 3)."""
    whole = pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    frames: NDArray[np.uint8] = whole.permute(0, 2, 3, 4, 1).flatten(0, 1).numpy()
    return frames


@lru_cache(maxsize=1)
def _shape_statistics() -> tuple[Array, Array]:
    """Mean (4, 3) and inverse covariance (4, 3, 3) of the features of each shape, over rendered scenes."""
    rng = np.random.default_rng(7)
    means, inverses = [], []
    for shape in scenes.SHAPES:
        pool = [a for a in scenes.all_attributes() if a.shape == shape and a.background in BACKGROUNDS]
        batch = scenes.sample_scenes(scenes.sample_attributes(64, rng, pool), rng)
        features = measure(to_uint8(scenes.render(batch, torch.tensor([3, 40]), 64)[0])).features
        means.append(features.mean(0))
        inverses.append(np.linalg.inv(np.cov(features.T) + 2e-3 * np.eye(3)))
    return np.stack(means), np.stack(inverses)


def classify_shapes(features: Array) -> NDArray[np.intp]:
    """Index into SHAPES for each row of (T, 3) features."""
    means, inverses = _shape_statistics()
    away = features[:, None] - means[None]
    nearest: NDArray[np.intp] = np.einsum("tsi,sij,tsj->ts", away, inverses, away).argmin(1)
    return nearest


def _nearest(colors: Array, palette: dict[str, tuple[float, float, float]]) -> NDArray[np.intp]:
    known = np.array(list(palette.values()), dtype=np.float32)
    nearest: NDArray[np.intp] = np.linalg.norm(colors[:, None] - known, axis=2).argmin(1)
    return nearest


def _majority(votes: NDArray[np.intp], names: tuple[str, ...], share: float) -> str | None:
    """The name that at least this share of the votes is for."""
    if not len(votes):
        return None
    counts = np.bincount(votes, minlength=len(names))
    return names[int(counts.argmax())] if counts.max() >= share * len(votes) else None


def _orientation(track: Track, shape: str | None) -> tuple[Array, int]:
    """The angle of a shape and its symmetry: it is known up to a turn / symmetry."""
    return (track.threefold, 3) if shape == "triangle" else (track.fourfold, 4)


def _turning_speed(angles: Array, symmetry: int, fps: float) -> Array:
    """Radians per second of an orientation that is known up to a turn / `symmetry`, over LAG frames."""
    turns = np.unwrap(angles, period=2 * np.pi / symmetry)
    return (turns[LAG:] - turns[:-LAG]) / LAG * fps


def _motion_in_place(track: Track, shape: str | None, fps: float) -> str | None:
    pulses = [np.ptp(part) / part.mean() > PULSING for part in _by_second(track.area, fps)]
    if np.mean(pulses) >= MOST:
        growing = np.mean(track.area[LAG:] > track.area[:-LAG])
        whole = len(track.area) >= PERIOD_SECONDS * fps
        return "pulse" if not whole or GROWING[0] < growing < GROWING[1] else None
    return "spin" if _spins(track, shape, fps) else None


def _by_second(values: Array, fps: float) -> list[Array]:
    """The values of each second; half a second or less at the end is left out."""
    second = max(2, round(fps))
    return [values[i : i + second] for i in range(0, len(values) - second // 2, second)]


def _spins(track: Track, shape: str | None, fps: float) -> bool:
    if shape in (None, "circle"):
        return False
    speed = _turning_speed(*_orientation(track, shape), fps)
    same_way = np.sign(speed) == np.sign(np.median(speed))
    return bool(np.mean(same_way & (np.abs(speed) > TURNING)) >= MOST)


def _circles(track: Track, vx: Array, vy: Array, fps: float, centre: tuple[float, float]) -> bool:
    """Whether the shape goes round a point one way, on a curve, at about one distance."""
    away_x, away_y = track.x - centre[0], track.y - centre[1]
    distance = np.hypot(away_x, away_y)
    around = (away_x[LAG:] * vy - away_y[LAG:] * vx) > 0
    one_way = max(around.mean(), 1 - around.mean())
    bend = np.median(np.abs(_turning_speed(np.arctan2(vy, vx), 1, fps)))
    return bool(one_way > 0.95 and bend > BENDING and distance.std() < ROUND * distance.mean())


def classify_motion(track: Track, shape: str | None, fps: float) -> str | None:
    """One of MOTIONS, or None if the track fits none. Clips of two seconds or more."""
    if len(track.x) <= 2 * LAG:
        return None
    vx = _wrapped(track.x[LAG:] - track.x[:-LAG]) / LAG * fps
    vy = _wrapped(track.y[LAG:] - track.y[:-LAG]) / LAG * fps
    moving = np.hypot(vx, vy) > MOVING
    motion = _motion_in_place(track, shape, fps) if np.mean(~moving) >= MOST else None
    sizes = [float(np.median(part)) for part in _by_second(track.area, fps)]
    if motion == "pulse":
        return motion
    if max(sizes) > SWELLING * min(sizes):
        return None
    if motion is not None or np.mean(moving) < MOST or _spins(track, shape, fps):
        return motion
    if np.median(np.abs(vy)) < 0.06 and np.mean(np.sign(vx) == np.sign(np.median(vx))) > 0.9:
        return "left" if np.median(vx) < 0 else "right"
    if _circles(track, vx, vy, fps, (0.5, 0.5)):
        return "orbit"
    slanted = min(np.median(np.abs(vx)), np.median(np.abs(vy))) > 0.05
    ways = [np.cumsum(_wrapped(np.diff(place))) for place in (track.x, track.y)]  # unwrapped
    between_walls = max(np.ptp(way) for way in ways) < 1
    beside = (float(track.x.mean()), float(track.y.mean()))
    return "bounce" if slanted and between_walls and not _circles(track, vx, vy, fps, beside) else None


def speed(track: Track, fps: float) -> float:
    """Typical speed of the shape, widths per second; 0 of clips that are too short to tell."""
    if len(track.x) <= LAG:
        return 0.0
    way = [_wrapped(place[LAG:] - place[:-LAG]) for place in (track.x, track.y)]
    return float(np.median(np.hypot(*way))) / LAG * fps


def standstill(track: Track, shape: str | None, fps: float) -> float:
    """The longest stretch, seconds, in which the shape is seen and stays as it is in the first frame of the stretch."""
    angle, symmetry = _orientation(track, shape)
    period = 2 * np.pi / symmetry
    alike = track.present  # from frame i to frame i + lag
    for lag in range(1, len(alike)):
        way = np.hypot(_wrapped(track.x[lag:] - track.x[:-lag]), _wrapped(track.y[lag:] - track.y[:-lag]))
        growth = np.abs(np.log(track.area[lag:] / track.area[:-lag]))
        alike = alike[:-1] & track.present[lag:] & (way < STILL_STEP) & (growth < STILL_GROWTH)
        if shape not in (None, "circle"):
            turn = np.abs(np.remainder(angle[lag:] - angle[:-lag] + period / 2, period) - period / 2)
            alike &= turn < STILL_TURN
        if not alike.any():
            return (lag - 1) / fps
    return (len(track.x) - 1) / fps


def _jumps(track: Track, fps: float) -> float:
    """Share of steps from one sight of the shape to the next that are longer than any motion, gaps included."""
    seen = np.flatnonzero(track.present)
    if len(seen) < 2:
        return 0.0
    way = np.hypot(_wrapped(np.diff(track.x[seen])), _wrapped(np.diff(track.y[seen])))
    return float((way > JUMP + FASTEST * (np.diff(seen) - 1) / fps).mean())


def _night(track: Track) -> Array:
    """The share of night without what a frame or two have of their own."""
    window = min(len(track.night), 5)
    smooth: Array = np.median(np.lib.stride_tricks.sliding_window_view(track.night, window), axis=1)
    return smooth


def _falls(night: Array, before: float, fps: float) -> bool:
    """Whether night falls, or has fallen, and never goes back, not behind what it was `before` the clip either."""
    if (np.maximum(np.maximum.accumulate(night), before) - night).max() > NIGHT_BACK:
        return False
    expected = (len(night) - 1) / fps / backdrops.NIGHTFALL_SECONDS
    return bool(night[-1] > NIGHT or night[-1] - night[0] >= NIGHT_PACE * expected)


def _stands(track: Track, second: tuple[str, str]) -> bool:
    """Whether the second object is there, in its color and shape, in nearly all frames that leave it free."""
    telling = np.flatnonzero(track.second_free > UNCOVERED)
    if not len(telling):
        return False
    inked = track.second_color[telling] == list(scenes.COLORS).index(second[0])
    sums = np.add.reduceat(track.second_errors[telling], np.arange(0, len(telling), TOLD_TOGETHER))
    shaped = sums.argmin(1) == scenes.SHAPES.index(second[1])
    return bool(inked.mean() >= 0.95 and shaped.mean() >= MOST)


def judge(
    frames: NDArray[np.uint8], attributes: SceneAttributes, fps: float = scenes.FPS, *, night: float = 0.0
) -> Verdict:
    """Compares a clip, uint8 (T, H, W, 3) of some two to ten seconds, with the attributes of its prompt.

    `night`: `Verdict.night` of the clip before it, where a nightfall goes on.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    track = measure(frames, attributes)
    seen = track.present
    color = _majority(_nearest(track.color[seen], scenes.COLORS), tuple(scenes.COLORS), 0.9)
    shape = _majority(classify_shapes(track.features[seen]), scenes.SHAPES, 0.6)
    motion = classify_motion(track, shape, fps) if seen.mean() >= MOST else None
    dx, dy = _wrapped(np.diff(track.x)), _wrapped(np.diff(track.y))
    still, pace = standstill(track, shape, fps), speed(track, fps)
    changes = np.hypot(np.diff(dx), np.diff(dy))[seen[2:] & seen[1:-1] & seen[:-2]]
    wanted = np.array(scenes.COLORS[attributes.color])
    fits = bool(track.fits.mean() >= 0.9)
    dusk = _night(track) if attributes.background == "nightfall" else None
    return Verdict(
        background=fits and (dusk is None or _falls(dusk, night, fps)),
        color=color == attributes.color,
        shape=shape == attributes.shape,
        motion=motion == attributes.motion and still <= STILL_SECONDS and attributes.fast == (pace > FAST),
        second=_stands(track, attributes.second) if attributes.second else None,
        present=float(seen.mean()),
        stray=float((track.stray > STRAY_AREA).mean()),
        still=still,
        jumps=_jumps(track, fps),
        jitter=float(np.quantile(changes, SHAKEN)) if len(changes) else 0.0,
        color_error=float(np.linalg.norm(track.color[seen] - wanted, axis=1).mean()) if seen.any() else None,
        background_error=float(track.background_error.mean()),
        seen_color=color,
        seen_shape=shape,
        seen_motion=motion,
        seen_speed=pace,
        night=None if dusk is None else float(dusk[-1]),
    )
