from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from worker.training import backdrops
from worker.training.backdrops import BACKDROPS, BACKGROUNDS, LANDSCAPES, Color

SIZE = 64
CPU = torch.device("cpu")
LAND = tuple(LANDSCAPES)


def pictures(name: str, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """What this backdrop begins and ends with, (3, size, size) each."""
    first, last = backdrops.pictures(size, CPU)
    return first[BACKDROPS.index(name)], last[BACKDROPS.index(name)]


def apart(picture: Tensor, color: Color) -> Tensor:
    """How far each pixel is from a color, (size, size)."""
    return torch.linalg.vector_norm(picture - torch.tensor(color)[:, None, None], dim=0)


def row(y: float) -> int:
    """The row of pixels at this height in widths."""
    return int(y * SIZE)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_plain_backdrop_is_its_color_everywhere_and_for_ever(name: str) -> None:
    for picture in pictures(name):
        assert apart(picture, BACKGROUNDS[name]).max() == 0


@pytest.mark.parametrize("name", LAND)
def test_a_landscape_has_a_sky_with_a_disc_hills_and_a_field(name: str) -> None:
    for picture, view in zip(pictures(name), LANDSCAPES[name], strict=True):
        assert picture.min() >= 0
        assert picture.max() <= 1

        sky = picture[:, : row(0.52), 2]  # a column that neither sun nor moon reaches
        towards = apart(sky[:, :, None], view.horizon)[:, 0]
        assert apart(sky[:, :1, None], view.top).max() < 0.02
        assert (towards.diff() < 0).all()
        assert towards[-1] < 0.25 * towards[0]

        left, up = view.disc_place
        disc = apart(picture, view.disc) < 0.02
        radius = backdrops.DISC * SIZE  # pixels, the last of which is mixed with the sky
        assert math.pi * (radius - 1) ** 2 < disc.sum() < math.pi * radius**2
        y, x = ((torch.nonzero(disc) + 0.5) / SIZE).mean(0).tolist()
        assert (x, y) == pytest.approx((left, up), abs=1 / SIZE)

        assert apart(picture, view.hills)[row(0.695)].max() < 1e-6  # below every ridge, above the field
        assert apart(picture, view.hills)[row(0.50)].min() > 0.02
        heights = (apart(picture, view.hills) < 1e-6).sum(0)
        assert heights.max() > 1.5 * heights.min()

        far, near = picture[:, row(0.75)], picture[:, -1]
        assert (far.mean(1) - torch.tensor(view.far)).norm() < 0.4 * math.dist(view.far, view.near)
        assert (near.mean(1) - torch.tensor(view.near)).norm() < 0.02
        assert 0.004 < near.std(1).max() < 0.03  # furrows


def test_a_landscape_stays_but_nightfall_leads_from_day_to_night() -> None:
    for name in ("day", "sunset", "night"):
        assert torch.equal(*pictures(name))
    first, last = pictures("nightfall")
    assert torch.equal(first, pictures("day")[0])
    assert torch.equal(last, pictures("night")[0])


def test_no_two_backdrops_look_alike() -> None:
    looks = {name: pictures(name)[0] for name in BACKDROPS if name != "nightfall"}
    for one, other in combinations(looks.values(), 2):
        assert (one - other).norm(dim=0).mean() > 0.15


@pytest.mark.parametrize("name", LAND)
def test_a_larger_picture_is_the_same_landscape(name: str) -> None:
    for small, large in zip(pictures(name), pictures(name, 2 * SIZE), strict=True):
        apart = (torch.nn.functional.avg_pool2d(large, 2) - small).abs()
        assert apart.mean() < 5e-4
        assert apart.max() < 0.1


def test_night_falls_evenly_from_dusk_on_and_stays() -> None:
    seconds = torch.tensor([-100.0, 0.0, 2.5, 5.0, 10.0, 1000.0])
    shares = backdrops.share_of_night(777 + 24 * seconds, torch.tensor(777.0), 24)
    assert torch.allclose(shares, torch.tensor([0, 0, 0.25, 0.5, 1, 1]))
