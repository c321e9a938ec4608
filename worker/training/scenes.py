"""Procedural captioned scenes: one moving shape over a plain background, in closed form.

Position, size and angle of the shape are closed-form functions of time, so any frame of an endless video can be
rendered on its own, on any device, at any size. Lengths are fractions of the frame width, times are seconds, angles
are radians; x points right, y points down. Captions come from templates with synonyms; `worker.evaluation.oracle`
reads them back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

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
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.03, 0.03, 0.03),
    "gray": (0.40, 0.40, 0.40),
    "navy": (0.04, 0.06, 0.32),
    "maroon": (0.34, 0.04, 0.08),
    "teal": (0.02, 0.30, 0.28),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
MOTIONS: tuple[str, ...] = ("bounce", "orbit", "left", "right", "pulse", "spin")

EXCLUDED_PAIRS = frozenset({("blue", "navy"), ("red", "maroon"), ("cyan", "teal")})
"""(color, background) pairs that are never rendered: the shape would be hard to see."""

BACKGROUND_WORDS = {
    "black": ("black",),
    "gray": ("gray", "grey"),
    "navy": ("navy",),
    "maroon": ("maroon",),
    "teal": ("teal",),
}
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
TEMPLATES = (
    "a {color} {shape} {motion} on a {background} background",
    "a {color} {shape} {motion} over a {background} background",
    "a {color} {shape} {motion} on {background}",
    "{background} background with a {color} {shape} {motion}",
    "a video of a {color} {shape} {motion} , {background} background",
    "{color} {shape} {motion} , {background} background",
)
"""The last words of a template are never part of a synonym, so that every caption can be parsed."""

REST, SWING = 0.83, 0.27
"""The radius about which a pulse swings, and how far: fractions of the scene's radius."""

FILLER_WORDS = ("please", "show", "the", "with", "and", "is", "it", "large", "small", "very", "clip", "scene")
"""Words without a meaning in these scenes, sprinkled into captions so that they do no harm in a prompt."""


@dataclass(frozen=True)
class SceneAttributes:
    """What a caption says about a scene: keys of BACKGROUNDS, COLORS, and members of SHAPES and MOTIONS."""

    background: str
    color: str
    shape: str
    motion: str

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS or self.color not in COLORS:
            raise ValueError(f"unknown background or color: {self}")
        if self.shape not in SHAPES or self.motion not in MOTIONS:
            raise ValueError(f"unknown shape or motion: {self}")

    def indices(self) -> tuple[int, int, int, int]:
        """Positions of (background, color, shape, motion) in their vocabularies."""
        return (
            list(BACKGROUNDS).index(self.background),
            list(COLORS).index(self.color),
            SHAPES.index(self.shape),
            MOTIONS.index(self.motion),
        )

    @staticmethod
    def from_indices(background: int, color: int, shape: int, motion: int) -> SceneAttributes:
        """The inverse of `indices`."""
        return SceneAttributes(
            list(BACKGROUNDS)[background], list(COLORS)[color], SHAPES[shape], MOTIONS[motion]
        )


def all_attributes() -> list[SceneAttributes]:
    """Every scene that is ever rendered, in a fixed order. A spinning circle is left out: it cannot be seen to spin."""
    return [
        SceneAttributes(b, c, s, m)
        for b, c, s, m in itertools.product(BACKGROUNDS, COLORS, SHAPES, MOTIONS)
        if (c, b) not in EXCLUDED_PAIRS and (s, m) != ("circle", "spin")
    ]


def is_held_out(attributes: SceneAttributes) -> bool:
    """Whether a combination is kept for evaluation (about one in eight, by a hash of its names)."""
    name = f"{attributes.background} {attributes.color} {attributes.shape} {attributes.motion}"
    return hashlib.sha256(name.encode()).digest()[0] < 32


def training_attributes() -> list[SceneAttributes]:
    """The combinations that training may show."""
    return [a for a in all_attributes() if not is_held_out(a)]


def held_out_attributes() -> list[SceneAttributes]:
    """The combinations that training never shows."""
    return [a for a in all_attributes() if is_held_out(a)]


def caption(attributes: SceneAttributes, rng: np.random.Generator, filler: float = 0.0) -> str:
    """A random caption of a scene; with probability `filler` one or two meaningless words are sprinkled in."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    parts = {
        "background": pick(BACKGROUND_WORDS[attributes.background]),
        "color": attributes.color,
        "shape": pick(SHAPE_WORDS[attributes.shape]),
        "motion": pick(MOTION_WORDS[attributes.motion]),
    }
    template = pick(TEMPLATES).split()
    if rng.random() < filler:
        for _ in range(int(rng.integers(1, 3))):
            template.insert(int(rng.integers(len(template) + 1)), pick(FILLER_WORDS))
    return " ".join(template).format(**parts)


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes; every tensor is (B,), on one device."""

    background: Tensor  # index into BACKGROUNDS
    color: Tensor  # index into COLORS
    shape: Tensor  # index into SHAPES
    motion: Tensor  # index into MOTIONS
    radius: Tensor  # widths
    speed: Tensor  # widths per second
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

    def __len__(self) -> int:
        return self.shape.shape[0]

    def attributes(self) -> list[SceneAttributes]:
        """What the captions of the batch say."""
        rows = torch.stack([self.background, self.color, self.shape, self.motion], 1).tolist()
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
    attributes: list[SceneAttributes], rng: np.random.Generator, device: torch.device | str = "cpu"
) -> Scenes:
    """Random trajectories for the given attributes. Drawn with numpy, so equal on every device."""
    count = len(attributes)
    index = torch.tensor([a.indices() for a in attributes], device=device)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count)).float().to(device)

    def sign() -> Tensor:
        return torch.from_numpy(rng.choice([-1.0, 1.0], count)).float().to(device)

    return Scenes(
        background=index[:, 0],
        color=index[:, 1],
        shape=index[:, 2],
        motion=index[:, 3],
        radius=uniform(0.18, 0.21),
        speed=uniform(0.28, 0.42),
        heading=torch.deg2rad(uniform(28, 38)),
        sign_x=sign(),
        sign_y=sign(),
        phase=uniform(0, 2 * math.pi),
        place_x=uniform(0, 1),
        place_y=uniform(0, 1),
        rate=uniform(1.8, 2.2),
        orbit=uniform(0.22, 0.27),
    )


def opening(scenes: Scenes) -> Scenes:
    """The same scenes with frame 0 as a video begins: what spins is upright, what bounces sets out near the center.

    So the first frame of every shape is one picture, turned or not, and tells a bounce from an orbit.
    """
    bounces, spins = scenes.motion == MOTIONS.index("bounce"), scenes.motion == MOTIONS.index("spin")

    def near_center(place: Tensor) -> Tensor:
        return torch.where(bounces, 0.2 + 0.1 * place, place)  # of the way to a wall and back

    return replace(
        scenes,
        place_x=near_center(scenes.place_x),
        place_y=near_center(scenes.place_y),
        phase=torch.where(spins, torch.zeros_like(scenes.phase), scenes.phase),
    )


def _reflect(position: Tensor, length: Tensor) -> Tensor:
    """A point that runs along [0, length] and turns round at both ends."""
    position = torch.remainder(position, 2 * length)
    return torch.where(position > length, 2 * length - position, position)


def track(scenes: Scenes, frames: Tensor) -> Track:
    """Closed-form motion at the given frame indices, (T,) for all scenes or (B, T); `Track` of (B, T)."""
    index = frames if frames.ndim == 2 else frames[None]
    time = index.to(scenes.radius) / FPS  # seconds

    def column(value: Tensor) -> Tensor:
        return value[:, None]

    motion = column(scenes.motion)
    radius0 = column(scenes.radius).expand(-1, time.shape[1])
    margin = radius0 + 1 / 64
    free = 1 - 2 * margin
    distance = column(scenes.speed) * time
    place_x, place_y, phase = column(scenes.place_x), column(scenes.place_y), column(scenes.phase)
    sign_x, rate, orbit = column(scenes.sign_x), column(scenes.rate), column(scenes.orbit)
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


def offsets(
    where: Track, wrapped: Tensor, size: int, crop: tuple[Tensor, Tensor, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Where each pixel lies as seen from the object, along its own axes: x and y in widths, each (B, T, h, w).

    `wrapped`, (B, T) or (B, 1), says where the nearest way may lead round the torus; `crop` as for `coverage`.
    """
    side = size if crop is None else crop[2]
    pixels = torch.arange(side, device=where.x.device, dtype=torch.float32) + 0.5
    left: Tensor | float = 0.0 if crop is None else crop[0][:, None, None, None]
    top: Tensor | float = 0.0 if crop is None else crop[1][:, None, None, None]
    dx = (pixels[None, None, None, :] + left) / size - where.x[..., None, None]
    dy = (pixels[None, None, :, None] + top) / size - where.y[..., None, None]
    dx = torch.where(wrapped[..., None, None], shortest(dx), dx)
    return turned(dx, dy, where.angle[..., None, None])


def coverage(
    scenes: Scenes, frames: Tensor, size: int, crop: tuple[Tensor, Tensor, int] | None = None
) -> Tensor:
    """How much of each pixel the shape covers, (B, T, h, w) in 0..1, antialiased over one pixel.

    `crop` is (left, top, side): pixel offsets (B,) into the size x size frame, and the side of the square to render.
    """
    where = track(scenes, frames)
    dx, dy = offsets(where, wraps(scenes)[:, None], size, crop)
    distance = signed_distance(dx, dy, where.radius[..., None, None], scenes.shape[:, None, None, None])
    return (0.5 - distance * size).clamp(0, 1)


def render(
    scenes: Scenes, frames: Tensor, size: int, crop: tuple[Tensor, Tensor, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, T, h, w) in -1..1 and the coverage (B, T, h, w) they were painted with."""
    alpha = coverage(scenes, frames, size, crop)
    device = alpha.device
    ink = torch.tensor(list(COLORS.values()), device=device)[scenes.color][:, :, None, None, None]
    paper = torch.tensor(list(BACKGROUNDS.values()), device=device)[scenes.background][:, :, None, None, None]
    return (paper + (ink - paper) * alpha[:, None]) * 2 - 1, alpha
