from __future__ import annotations

import pytest

from worker.models.base import Geometry

GEOMETRY = Geometry(16, 8, 4, 25, 24, ((960, 544),), (960, 544))


def test_the_first_latent_is_one_frame_and_every_other_is_four() -> None:
    assert [GEOMETRY.frames_for_latents(n) for n in (0, 1, 2, 25)] == [0, 1, 5, 97]


def test_frames_need_the_fewest_latents_that_hold_them() -> None:
    assert [GEOMETRY.latents_for_frames(n) for n in (0, 1, 2, 5, 6, 97, 98)] == [0, 1, 2, 2, 3, 25, 26]


def test_a_latent_frame_has_the_size_divided_by_the_spatial_factor() -> None:
    assert GEOMETRY.latent_shape(960, 544) == (16, 68, 120)


@pytest.mark.parametrize("size", [(961, 544), (960, 540), (0, 544), (-8, 8)])
def test_a_size_without_whole_latents_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no multiple of 8"):
        GEOMETRY.latent_shape(*size)
