"""Procedural captioned scenes: a shape that moves over a backdrop, perhaps past a second one, in closed form.

Position, size and angle of the shape are closed-form functions of time, so any frame of an endless video can be
rendered on its own, on any device, at any size. The second shape, where there is one, stands still behind the first:
in the middle of an orbit, and else on the ground. Lengths are fractions of the frame width, times are seconds, angles
are radians; x points right, y points down. Captions come from templates with synonyms; `worker.evaluation.oracle`
reads them back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from worker.training import backdrops
from worker.training.backdrops import BACKDROPS, BACKGROUNDS, LANDSCAPES

FPS = 24
"""Frames per second of every rendered video."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.80, 0.15),
    "blue": (0.15, 0.30, 1.00),
    "yellow": (0.95, 0.90, 0.10),
    "purple": (0.70, 0.15, 0.85),
    "cyan": (0.00, 0.90, 0.90),
    "white": (0.95, 0.95, 0.95),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
MOTIONS: tuple[str, ...] = ("bounce", "orbit", "left", "right", "pulse", "spin")
IN_PLACE: tuple[str, ...] = ("pulse", "spin")
"""Motions that do not move the shape; the others may be fast."""

EXCLUDED_PAIRS = frozenset({("blue", "navy"), ("red", "maroon"), ("cyan", "teal")})
"""(color, background) pairs that are never rendered: the shape would be hard to see."""

PLAIN_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black",),
    "gray": ("gray", "grey"),
    "navy": ("navy",),
    "maroon": ("maroon",),
    "teal": ("teal",),
}
LANDSCAPE_WORDS = {
    "day": ("by day", "in daylight", "on a sunny day"),
    "sunset": ("at sunset", "at dusk"),
    "night": ("at night", "by night", "in the moonlight"),
    "nightfall": ("as day turns to night", "while day turns to night", "with day turning to night"),
}
BACKGROUND_WORDS = PLAIN_WORDS | LANDSCAPE_WORDS
SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus sign"),
}
MOTION_WORDS = {
    "bounce": ("bouncing", "bouncing around", "bouncing off the walls", "that bounces"),
    "orbit": ("orbiting", "orbiting the center", "moving in circles", "circling the center"),
    "left": ("drifting to the left", "moving left", "drifting left"),
    "right": ("drifting to the right", "moving right", "drifting right"),
    "pulse": ("pulsing", "pulsing in place", "growing and shrinking"),
    "spin": ("spinning", "spinning in place", "rotating"),
}
FAST_WORDS = ("fast", "quickly")
LAND_WORDS = ("meadow", "field")
RELATIONS = {
    "bounce": ("past", "in front of"),
    "orbit": ("around",),
    "left": ("past", "in front of"),
    "right": ("past", "in front of"),
    "pulse": ("above", "beside"),
    "spin": ("above", "beside"),
}
"""How captions name a second object behind one that moves like this."""

TEMPLATES = (
    "a {color} {shape} {motion} {second} on a {background} background",
    "a {color} {shape} {motion} {second} over a {background} background",
    "a {color} {shape} {motion} {second} on {background}",
    "{background} background with a {color} {shape} {motion} {second}",
    "a video of a {color} {shape} {motion} {second} , {background} background",
    "{color} {shape} {motion} {second} , {background} background",
)
"""Captions of plain scenes."""
LAND_TEMPLATES = (
    "a {color} {shape} {motion} {second} over a {land} {background}",
    "a {color} {shape} {motion} {second} in a {land} {background}",
    "a {land} {background} with a {color} {shape} {motion} {second}",
    "a video of a {color} {shape} {motion} {second} , a {land} {background}",
    "{color} {shape} {motion} {second} , a {land} {background}",
)
"""Captions of scenes with a landscape."""

_IN_PLACE = [MOTIONS.index(motion) for motion in IN_PLACE]

SPEED, FASTER = (0.28, 0.42), 0.30
"""Speed of what moves, widths per second, and by how much it is higher of what is fast."""

ORBIT = (0.22, 0.27)
"""Radius of an orbit around nothing, widths."""

UPPER = 0.38
"""What pulses or spins above a second object does so in this part of its free way."""

REST, SWING = 0.83, 0.27
"""The radius about which a pulse swings, and how far: fractions of the scene's radius."""

SECOND_Y, SECOND_RADIUS, ORBITED_RADIUS = 0.80, 0.13, 0.10
"""Height and size of a second object, widths, and its size in the middle of an orbit."""

AROUND, AROUND_RADIUS = (0.29, 0.31), 0.8
"""Radius of an orbit around a second object, widths, and size of what is on it, as a fraction: they are seen apart."""

FILLER_WORDS = ("please", "show", "the", "with", "and", "is", "it", "large", "small", "very", "clip", "scene")
"""Words without a meaning in these scenes, sprinkled into captions so that they do no harm in a prompt."""


@dataclass(frozen=True)
class SceneAttributes:
    """What a caption says about a scene: members of BACKDROPS, COLORS, SHAPES and MOTIONS."""

    background: str
    color: str
    shape: str
    motion: str
    second: tuple[str, str] | None = None  # color and shape of a second object, which stands still
    fast: bool = False

    def __post_init__(self) -> None:
        if self.background not in BACKDROPS or self.color not in COLORS:
            raise ValueError(f"unknown background or color: {self}")
        if self.shape not in SHAPES or self.motion not in MOTIONS:
            raise ValueError(f"unknown shape or motion: {self}")
        if self.second and (self.second[0] not in COLORS or self.second[1] not in SHAPES):
            raise ValueError(f"unknown second object: {self}")
        if self.fast and self.motion in IN_PLACE:
            raise ValueError(f"what stays in place is not fast: {self}")

    def indices(self) -> tuple[int, int, int, int, int, int, int]:
        """Positions of (background, color, shape, motion, color and shape of the second object, else -1, fast)."""
        color, shape = self.second or (None, None)
        return (
            BACKDROPS.index(self.background),
            list(COLORS).index(self.color),
            SHAPES.index(self.shape),
            MOTIONS.index(self.motion),
            -1 if color is None else list(COLORS).index(color),
            -1 if shape is None else SHAPES.index(shape),
            int(self.fast),
        )

    @staticmethod
    def from_indices(background: int, color: int, shape: int, motion: int, *rest: int) -> SceneAttributes:
        """The inverse of `indices`; what is left out at the end is not there."""
        second_color, second_shape, fast = (*rest, *(-1, -1, 0)[len(rest) :])
        colors = list(COLORS)
        return SceneAttributes(
            BACKDROPS[background],
            colors[color],
            SHAPES[shape],
            MOTIONS[motion],
            (colors[second_color], SHAPES[second_shape]) if second_shape >= 0 else None,
            bool(fast),
        )


def all_attributes() -> list[SceneAttributes]:
    """Every scene of one object that is ever rendered, in a fixed order.

    A spinning circle is left out: it cannot be seen to spin.
    """
    return [
        SceneAttributes(b, c, s, m)
        for b, c, s, m in itertools.product(BACKDROPS, COLORS, SHAPES, MOTIONS)
        if (c, b) not in EXCLUDED_PAIRS and (s, m) != ("circle", "spin")
    ]


@cache
def is_held_out(attributes: SceneAttributes) -> bool:
    """Whether a combination is kept for evaluation (about one in eight, by a hash of its names).

    A second object does not count, nor does speed.
    """
    name = f"{attributes.background} {attributes.color} {attributes.shape} {attributes.motion}"
    return hashlib.sha256(name.encode()).digest()[0] < 32


def training_attributes() -> list[SceneAttributes]:
    """The combinations that training may show."""
    return [a for a in all_attributes() if not is_held_out(a)]


def held_out_attributes() -> list[SceneAttributes]:
    """The combinations that training never shows."""
    return [a for a in all_attributes() if is_held_out(a)]


def fits(second: tuple[str, str] | None, attributes: SceneAttributes) -> bool:
    """Whether this second object is seen beside the first, and on the background."""
    return second is None or (
        second[0] != attributes.color and (second[0], attributes.background) not in EXCLUDED_PAIRS
    )


def accompanied(
    attributes: list[SceneAttributes], rng: np.random.Generator, share: float
) -> list[SceneAttributes]:
    """The same with a second object, of another color, for this share of them."""

    def second(of: SceneAttributes) -> tuple[str, str]:
        fitting = [pair for pair in itertools.product(COLORS, SHAPES) if fits(pair, of)]
        return fitting[int(rng.integers(len(fitting)))]

    if not share:
        return attributes
    return [replace(a, second=second(a)) if rng.random() < share else a for a in attributes]


def hurried(
    attributes: list[SceneAttributes], rng: np.random.Generator, share: float
) -> list[SceneAttributes]:
    """The same, this share of what moves fast."""
    if not share:
        return attributes
    return [replace(a, fast=bool(rng.random() < share) and a.motion not in IN_PLACE) for a in attributes]


@dataclass(frozen=True)
class World:
    """Which scenes there are."""

    landscapes: bool  # beside the plain backgrounds
    second: float  # share of the scenes that have a second object
    fast: float = 0.0  # share of what moves that is fast

    @property
    def lacking(self) -> frozenset[str]:
        """The attributes that no scene has."""
        return frozenset(name for name in ("second", "fast") if not getattr(self, name))

    def knows(self, attributes: SceneAttributes) -> bool:
        """Whether there are such scenes."""
        return (self.landscapes or attributes.background in BACKGROUNDS) and not any(
            getattr(attributes, name) for name in self.lacking
        )

    def dressed(self, attributes: list[SceneAttributes], rng: np.random.Generator) -> list[SceneAttributes]:
        """The same combinations, with second objects and fast motion as often as this world has them."""
        return hurried(accompanied(attributes, rng, self.second), rng, self.fast)

    def pool(self, *, held_out: bool = False) -> list[SceneAttributes]:
        """The combinations that training may show, or the others; without second objects."""
        return [a for a in (held_out_attributes() if held_out else training_attributes()) if self.knows(a)]

    def sample(
        self, count: int, rng: np.random.Generator, *, held_out: bool = False
    ) -> list[SceneAttributes]:
        """`count` combinations, drawn evenly from the pool, with second objects and fast motion."""
        return self.dressed(sample_attributes(count, rng, self.pool(held_out=held_out)), rng)


PLAIN, RICH = World(landscapes=False, second=0.0), World(landscapes=True, second=0.35)
LIVELY = replace(RICH, fast=0.25)
WORLDS = {"plain": PLAIN, "rich": RICH, "lively": LIVELY}
"""Each has the words of those before it."""
WorldName: TypeAlias = Literal["plain", "rich", "lively"]


def caption(attributes: SceneAttributes, rng: np.random.Generator, filler: float = 0.0) -> str:
    """A random caption of a scene; with probability `filler` one or two meaningless words are sprinkled in."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    parts = {
        "background": pick(BACKGROUND_WORDS[attributes.background]),
        "color": attributes.color,
        "shape": pick(SHAPE_WORDS[attributes.shape]),
        "motion": pick(MOTION_WORDS[attributes.motion]),
        "second": "",
    }
    if attributes.fast:
        parts["motion"] += f" {pick(FAST_WORDS)}"
    if attributes.second:
        color, shape = attributes.second
        parts["second"] = f"{pick(RELATIONS[attributes.motion])} a {color} {pick(SHAPE_WORDS[shape])}"
    if attributes.background in LANDSCAPES:
        parts["land"] = pick(LAND_WORDS)
    template = pick(LAND_TEMPLATES if "land" in parts else TEMPLATES).split()
    if rng.random() < filler:
        for _ in range(int(rng.integers(1, 3))):
            template.insert(int(rng.integers(len(template) + 1)), pick(FILLER_WORDS))
    return " ".join(" ".join(template).format(**parts).split())


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes; every tensor is (B,), on one device."""

    background: Tensor  # index into BACKDROPS
    color: Tensor  # index into COLORS
    shape: Tensor  # index into SHAPES
    motion: Tensor  # index into MOTIONS
    radius: Tensor  # widths
    speed: Tensor  # widths per second, of what is not fast
    heading: (
        Tensor  # radians from the horizontal, for `bounce`: at 45 degrees its path would nearly be an orbit
    )
    sign_x: Tensor  # -1 or 1, for `bounce`; what orbits or spins goes clockwise
    sign_y: Tensor
    phase: Tensor  # radians
    place_x: Tensor  # 0..1, start position along the free way
    place_y: Tensor
    rate: Tensor  # radians per second, for `pulse` and `spin`
    orbit: Tensor  # widths, radius of the orbit
    second_color: Tensor  # index into COLORS, -1 for none
    second_shape: Tensor  # index into SHAPES, -1 for none
    fast: Tensor  # 1 for what is fast, else 0
    dusk: Tensor  # frame at which a `nightfall` begins

    def __len__(self) -> int:
        return self.shape.shape[0]

    def attributes(self) -> list[SceneAttributes]:
        """What the captions of the batch say."""
        names = ("background", "color", "shape", "motion", "second_color", "second_shape", "fast")
        rows = torch.stack([getattr(self, name) for name in names], 1).tolist()
        return [SceneAttributes.from_indices(*row) for row in rows]


@dataclass(frozen=True)
class Track:
    """Where the shapes are: each tensor is (B, T)."""

    x: Tensor  # widths
    y: Tensor  # widths
    radius: Tensor  # widths
    angle: Tensor  # radians


def sample_attributes(
    count: int, rng: np.random.Generator, pool: list[SceneAttributes] | None = None
) -> list[SceneAttributes]:
    """`count` combinations drawn evenly from `pool` (by default those that training may show)."""
    pool = training_attributes() if pool is None else pool
    return [pool[int(i)] for i in rng.integers(len(pool), size=count)]


def sample_scenes(
    attributes: list[SceneAttributes],
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
    frame: float | Tensor = 0.0,
) -> Scenes:
    """Random trajectories for the given attributes. Drawn with numpy, so equal on every device.

    A nightfall has begun, some time before `frame`, a number or (B,): nothing in a day tells when its night will fall.
    """
    count = len(attributes)
    index = torch.tensor([a.indices() for a in attributes], device=device)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count)).float().to(device)

    def sign() -> Tensor:
        return torch.from_numpy(rng.choice([-1.0, 1.0], count)).float().to(device)

    drawn = Scenes(
        background=index[:, 0],
        color=index[:, 1],
        shape=index[:, 2],
        motion=index[:, 3],
        radius=uniform(0.18, 0.21),
        speed=uniform(*SPEED),
        heading=torch.deg2rad(uniform(28, 38)),
        sign_x=sign(),
        sign_y=sign(),
        phase=uniform(0, 2 * math.pi),
        place_x=uniform(0, 1),
        place_y=uniform(0, 1),
        rate=uniform(1.8, 2.2),
        orbit=uniform(*ORBIT),
        second_color=index[:, 4],
        second_shape=index[:, 5],
        fast=index[:, 6],
        dusk=torch.zeros(count, device=device),
    )
    if any(a.background == "nightfall" for a in attributes):
        dusk = frame + FPS * uniform(-1.3 * backdrops.NIGHTFALL_SECONDS, 0.0)
        drawn = replace(drawn, dusk=dusk)
    room = make_room(drawn)
    return replace(drawn, place_y=torch.where(drawn.second_shape >= 0, room.place_y, drawn.place_y))


def make_room(scenes: Scenes) -> Scenes:
    """The same scenes where what pulses or spins does so above the ground, and hides no second object there."""
    in_place = torch.isin(scenes.motion, torch.tensor(_IN_PLACE, device=scenes.motion.device))
    return replace(scenes, place_y=torch.where(in_place, UPPER * scenes.place_y, scenes.place_y))


def opening(scenes: Scenes) -> Scenes:
    """The same scenes with frame 0 as a video begins: what spins is upright, what bounces sets out near the center.

    Night begins to fall. So the first frame of every shape is one picture, turned or not, and tells a bounce from an
    orbit.
    """
    bounces, spins = scenes.motion == MOTIONS.index("bounce"), scenes.motion == MOTIONS.index("spin")

    def near_center(place: Tensor) -> Tensor:
        return torch.where(bounces, 0.2 + 0.1 * place, place)  # of the way to a wall and back

    return replace(
        scenes,
        place_x=near_center(scenes.place_x),
        place_y=near_center(scenes.place_y),
        phase=torch.where(spins, torch.zeros_like(scenes.phase), scenes.phase),
        dusk=torch.zeros_like(scenes.dusk),
    )


def _reflect(position: Tensor, length: Tensor) -> Tensor:
    """A point that runs along [0, length] and turns round at both ends."""
    position = torch.remainder(position, 2 * length)
    return torch.where(position > length, 2 * length - position, position)


def ring(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Size of the shape and radius of its orbit, (B,) each, widths: what orbits a second object leaves it free."""
    around = (scenes.motion == MOTIONS.index("orbit")) & (scenes.second_shape >= 0)
    wide = AROUND[0] + (scenes.orbit - ORBIT[0]) * (AROUND[1] - AROUND[0]) / (ORBIT[1] - ORBIT[0])
    return (
        torch.where(around, AROUND_RADIUS * scenes.radius, scenes.radius),
        torch.where(around, wide, scenes.orbit),
    )


def speed(scenes: Scenes) -> Tensor:
    """Speed of what moves, (B,), widths per second."""
    return scenes.speed + FASTER * scenes.fast


def track(scenes: Scenes, frames: Tensor) -> Track:
    """Closed-form motion at the given frame indices, (T,) for all scenes or (B, T); `Track` of (B, T)."""
    index = frames if frames.ndim == 2 else frames[None]
    time = index.to(scenes.radius) / FPS  # seconds

    def column(value: Tensor) -> Tensor:
        return value[:, None]

    motion = column(scenes.motion)
    size, orbit = (column(value) for value in ring(scenes))
    radius0 = size.expand(-1, time.shape[1])
    margin = radius0 + 1 / 64
    free = 1 - 2 * margin
    distance = column(speed(scenes)) * time
    place_x, place_y, phase = column(scenes.place_x), column(scenes.place_y), column(scenes.phase)
    sign_x, rate = column(scenes.sign_x), column(scenes.rate)
    heading = column(scenes.heading)
    turn = phase + distance / orbit
    rest_x, rest_y = margin + place_x * free, margin + place_y * free
    by_motion = {
        "bounce": (
            margin + _reflect(place_x * 2 * free + sign_x * distance * torch.cos(heading), free),
            margin
            + _reflect(place_y * 2 * free + column(scenes.sign_y) * distance * torch.sin(heading), free),
        ),
        "orbit": (0.5 + orbit * torch.cos(turn), 0.5 + orbit * torch.sin(turn)),
        "left": (torch.remainder(place_x - distance, 1), rest_y),
        "right": (torch.remainder(place_x + distance, 1), rest_y),
        "pulse": (rest_x, rest_y),
        "spin": (rest_x, rest_y),
    }
    x, y = torch.zeros_like(radius0), torch.zeros_like(radius0)
    for number, name in enumerate(MOTIONS):
        x = torch.where(motion == number, by_motion[name][0], x)
        y = torch.where(motion == number, by_motion[name][1], y)
    pulsing, spinning = motion == MOTIONS.index("pulse"), motion == MOTIONS.index("spin")
    radius = torch.where(pulsing, radius0 * (REST + SWING * torch.sin(phase + rate * time)), radius0)
    angle = torch.where(spinning, phase + rate * time, torch.zeros_like(radius0))
    return Track(x, y, radius, angle)


def signed_distance(x: Tensor, y: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """Distance to the edge of a shape at the origin, negative inside; the arguments broadcast, lengths in one unit.

    `radius` is the circumscribed size: the four shapes have roughly equal areas.
    """
    ax, ay = x.abs(), y.abs()
    circle = torch.sqrt(x * x + y * y + 1e-12) - 0.95 * radius
    square = torch.maximum(ax, ay) - 0.84 * radius
    inner = 0.66 * radius  # inscribed circle of the triangle
    triangle = torch.maximum(torch.maximum(y - inner, 0.8660254 * ax - 0.5 * y - inner), -y - 2 * inner)
    arm = 0.34 * radius
    cross = torch.minimum(torch.maximum(ax - radius, ay - arm), torch.maximum(ay - radius, ax - arm))
    return torch.where(
        shape == 0, circle, torch.where(shape == 1, square, torch.where(shape == 2, triangle, cross))
    )


def turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Where the point (x, y) lies along axes that are turned by `angle`, radians; the arguments broadcast."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def wraps(scenes: Scenes) -> Tensor:
    """Which scenes run around the torus: an object that leaves on one side comes in on the other. (B,)"""
    return (scenes.motion == MOTIONS.index("left")) | (scenes.motion == MOTIONS.index("right"))


def shortest(way: Tensor) -> Tensor:
    """The shortest of the ways round the torus that lead where this one does, widths."""
    return torch.remainder(way + 0.5, 1) - 0.5


Crop = tuple[Tensor, Tensor, int]
"""(left, top, side): pixel offsets (B,) into a size x size frame, and the side of the square to render."""


def offsets(where: Track, wrapped: Tensor, size: int, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
    """Where each pixel lies as seen from the object, along its own axes: x and y in widths, each (B, T, h, w).

    `wrapped`, (B, T) or (B, 1), says where the nearest way may lead round the torus; all lengths of `crop` in pixels.
    """
    side = size if crop is None else crop[2]
    pixels = torch.arange(side, device=where.x.device, dtype=torch.float32) + 0.5
    left: Tensor | float = 0.0 if crop is None else crop[0][:, None, None, None]
    top: Tensor | float = 0.0 if crop is None else crop[1][:, None, None, None]
    dx = (pixels[None, None, None, :] + left) / size - where.x[..., None, None]
    dy = (pixels[None, None, :, None] + top) / size - where.y[..., None, None]
    dx = torch.where(wrapped[..., None, None], shortest(dx), dx)
    return turned(dx, dy, where.angle[..., None, None])


def coverage(scenes: Scenes, frames: Tensor, size: int, crop: Crop | None = None) -> Tensor:
    """How much of each pixel the moving shape covers, (B, T, h, w) in 0..1."""
    where = track(scenes, frames)
    dx, dy = offsets(where, wraps(scenes)[:, None], size, crop)
    distance = signed_distance(dx, dy, where.radius[..., None, None], scenes.shape[:, None, None, None])
    return backdrops.covered(distance, size)


def second_track(scenes: Scenes) -> Track:
    """Where the second objects stand, (B, 1); of no meaning where there is none."""
    orbited = (scenes.motion == MOTIONS.index("orbit"))[:, None]
    middle = torch.full_like(scenes.radius, 0.5)[:, None]
    return Track(
        x=middle,
        y=torch.where(orbited, middle, SECOND_Y),
        radius=torch.where(orbited, ORBITED_RADIUS, torch.full_like(middle, SECOND_RADIUS)),
        angle=torch.zeros_like(middle),
    )


def second_coverage(scenes: Scenes, size: int, crop: Crop | None = None) -> Tensor:
    """How much of each pixel the second object would cover alone, (B, 1, h, w) in 0..1."""
    where = second_track(scenes)
    still = torch.zeros_like(where.x, dtype=torch.bool)
    dx, dy = offsets(where, still, size, crop)
    distance = signed_distance(
        dx, dy, where.radius[..., None, None], scenes.second_shape[:, None, None, None]
    )
    there = (scenes.second_shape >= 0)[:, None, None, None]
    return backdrops.covered(distance, size) * there


def inks(color: Tensor) -> Tensor:
    """Colors (B,) of COLORS as (B, 3, 1, 1, 1); -1 is of no meaning."""
    return torch.tensor(list(COLORS.values()), device=color.device)[color][:, :, None, None, None]


def scenery(scenes: Scenes, frames: Tensor, size: int, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
    """All but the moving shape: RGB (B, 3, T, h, w) in 0..1, and the second object's coverage of it, (B, 1, h, w)."""
    first, last = (whole[scenes.background] for whole in backdrops.pictures(size, scenes.radius.device))
    if crop is not None:
        left, top, side = crop
        corners = list(zip(left.long().tolist(), top.long().tolist(), strict=True))
        first, last = (
            torch.stack([p[:, y : y + side, x : x + side] for p, (x, y) in zip(whole, corners, strict=True)])
            for whole in (first, last)
        )
    index = frames if frames.ndim == 2 else frames[None]
    night = backdrops.share_of_night(index.to(scenes.dusk), scenes.dusk[:, None], FPS)
    paper = torch.lerp(first[:, :, None], last[:, :, None], night[:, None, :, None, None])
    cover = second_coverage(scenes, size, crop)
    return torch.lerp(paper, inks(scenes.second_color).expand_as(paper), cover[:, None]), cover


def render(scenes: Scenes, frames: Tensor, size: int, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, T, h, w) in -1..1 and how much of each a shape covers, (B, T, h, w)."""
    alpha = coverage(scenes, frames, size, crop)
    paper, second = scenery(scenes, frames, size, crop)
    return (paper + (inks(scenes.color) - paper) * alpha[:, None]) * 2 - 1, torch.maximum(alpha, second)
