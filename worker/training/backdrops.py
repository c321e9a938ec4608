"""What is behind the objects of the procedural scenes: plain colors, and landscapes under a sky, in closed form.

Lengths are fractions of the frame width, x points right and y down, colors are RGB in 0..1. A landscape is one still
picture; `nightfall` fades from that of the day to that of the night.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Color = tuple[float, float, float]

BACKGROUNDS: dict[str, Color] = {
    "black": (0.03, 0.03, 0.03),
    "gray": (0.40, 0.40, 0.40),
    "navy": (0.04, 0.06, 0.32),
    "maroon": (0.34, 0.04, 0.08),
    "teal": (0.02, 0.30, 0.28),
}
"""Plain backgrounds."""


@dataclass(frozen=True)
class Landscape:
    """A sky from top to horizon with a sun or moon, hills, and a field with furrows."""

    top: Color
    horizon: Color
    disc: Color
    disc_place: tuple[float, float]
    hills: Color
    far: Color  # the field at its far end
    near: Color


_DAY = Landscape(
    top=(0.34, 0.50, 0.70),
    horizon=(0.62, 0.72, 0.78),
    disc=(0.92, 0.88, 0.66),
    disc_place=(0.80, 0.16),
    hills=(0.36, 0.46, 0.42),
    far=(0.36, 0.44, 0.24),
    near=(0.24, 0.34, 0.16),
)
_SUNSET = Landscape(
    top=(0.28, 0.16, 0.38),
    horizon=(0.84, 0.48, 0.26),
    disc=(0.98, 0.74, 0.44),
    disc_place=(0.30, 0.50),
    hills=(0.32, 0.17, 0.24),
    far=(0.24, 0.15, 0.14),
    near=(0.14, 0.09, 0.08),
)
_NIGHT = Landscape(
    top=(0.03, 0.04, 0.14),
    horizon=(0.12, 0.16, 0.34),
    disc=(0.72, 0.74, 0.78),
    disc_place=(0.80, 0.16),
    hills=(0.06, 0.09, 0.16),
    far=(0.06, 0.12, 0.10),
    near=(0.03, 0.06, 0.05),
)
LANDSCAPES: dict[str, tuple[Landscape, Landscape]] = {
    "day": (_DAY, _DAY),
    "sunset": (_SUNSET, _SUNSET),
    "night": (_NIGHT, _NIGHT),
    "nightfall": (_DAY, _NIGHT),
}
"""The picture that a landscape begins with, and the one that it fades to."""

BACKDROPS: tuple[str, ...] = (*BACKGROUNDS, *LANDSCAPES)
"""Every background by name."""

NIGHTFALL_SECONDS = 10.0
"""How long a landscape fades."""

DISC = 0.06
"""Radius of sun and moon."""


SOFTEST = 1.5 / 128
"""Width of an edge where pixels are smaller than that, widths: what an autoencoder can be asked for."""


def covered(distance: Tensor, size: int) -> Tensor:
    """How much of a pixel, in frames of `size` pixels, an edge covers at this distance: widths, negative inside."""
    return (0.5 - distance * min(size, 1 / SOFTEST)).clamp(0, 1)


def _painted(view: Landscape, size: int, disc: bool) -> Tensor:
    """A landscape as (3, size, size), with its sun or moon or without."""
    places = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    y, x = torch.meshgrid(places, places, indexing="ij")

    def ink(color: Color) -> Tensor:
        return torch.tensor(color)[:, None, None]

    def over(picture: Tensor, color: Tensor, distance: Tensor) -> Tensor:
        """The picture with this color where the distance to an edge is negative."""
        return torch.lerp(picture, color.expand_as(picture), covered(distance, size))

    picture = torch.lerp(
        ink(view.top).expand(3, size, size), ink(view.horizon), (y / 0.66).clamp(0, 1).expand(3, -1, -1)
    )
    left, up = view.disc_place
    if disc:
        picture = over(picture, ink(view.disc), torch.hypot(x - left, y - up) - DISC)
    ridge = 0.60 + 0.05 * torch.sin(2 * math.pi * x + 1) + 0.025 * torch.sin(4 * math.pi * x + 2.2)
    picture = over(picture, ink(view.hills), ridge - y)
    depth = ((y - 0.72) / 0.28).clamp(0, 1)
    furrows = 0.02 * torch.sin(2 * math.pi * 1.6 * (x - 0.5) / (y - 0.5).clamp(min=0.2)) * (0.4 + depth)
    field = torch.lerp(ink(view.far).expand(3, size, size), ink(view.near), depth.expand(3, -1, -1)) + furrows
    return over(picture, field.clamp(0, 1), 0.72 + 0.012 * torch.sin(2 * math.pi * x) - y)


@lru_cache(maxsize=8)
def pictures(size: int, device: torch.device, discs: bool = True) -> tuple[Tensor, Tensor]:
    """What every backdrop begins and ends with: two tensors (len(BACKDROPS), 3, size, size).

    `discs` says whether there are a sun and a moon.
    """
    plain = [torch.tensor(color)[:, None, None].expand(3, size, size) for color in BACKGROUNDS.values()]
    first, last = (
        torch.stack([*plain, *(_painted(views[number], size, discs) for views in LANDSCAPES.values())]).to(
            device
        )
        for number in (0, 1)
    )
    return first, last


def share_of_night(frames: Tensor, dusk: Tensor, fps: float) -> Tensor:
    """How far a nightfall that begins at frame `dusk` has come at these frames, 0..1; the arguments broadcast."""
    return ((frames - dusk) / (NIGHTFALL_SECONDS * fps)).clamp(0, 1)
