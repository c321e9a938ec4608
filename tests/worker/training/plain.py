"""Turns without any of the defects that training gives the past of a video."""

from __future__ import annotations

from torch import Tensor

from worker.training.scenes import Scenes
from worker.training.turns import Turns


def plain_turns(before: Scenes, after: Scenes, begin: Tensor, length: Tensor) -> Turns:
    """Changes of B scenes from frame `begin` on, over `length` frames, (B,): nothing faint, out of shape or slow."""
    ones = begin.new_ones(len(before))
    return Turns(
        before=before,
        after=after,
        begin=begin,
        length=length,
        visible=ones,
        shape_share=0 * ones,
        scale=ones,
        twist=0 * ones,
        pace=ones,
        swing=ones,
        dusk_pace=ones,
        start=0 * ones,
    )
