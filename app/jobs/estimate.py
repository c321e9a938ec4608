"""When a waiting video will be ready, from measured speed and what competes with it. Pure; knows no Redis.

Nothing is made up: without a measured speed, a live slot or a known end there is no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.jobs.job import ModelCard


@dataclass(frozen=True, slots=True)
class Place:
    """Where a waiting video stands: how many are taken before it, and seconds until its end if they can be told."""

    position: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class Contender:
    """A video that runs or waits: its rank (1 is the most urgent) and the seconds a slot of its own would take.

    ``inf`` seconds: it has no end. None: nothing was measured that tells.
    """

    video_id: str
    rank: int
    seconds: float | None


def chunks_needed(frames: int, card: ModelCard) -> int:
    """Chunks of a video with so many frames."""
    latents = 1 + -(-max(0, frames - 1) // card.temporal_factor)
    return -(-latents // card.chunk_latents)


def forwards_needed(
    frames: int, card: ModelCard, num_inference_steps: int | None = None, *, given_chunks: int = 0
) -> int:
    """Forwards of a whole video: ``m * (N + K - 1)`` for N chunks (`worker.sampler.window.SamplerConfig.forwards`).

    Given chunks are not sampled.
    """
    chunks = chunks_needed(frames, card) - given_chunks
    if chunks <= 0:
        return 0
    per_shift = (num_inference_steps or card.levels) // card.chunks_in_flight
    return per_shift * (chunks + card.chunks_in_flight - 1)


class Lineup:
    """Those that wait, in the order in which they are taken, and those that run.

    What is more urgent is made first; equals take turns of `turn_seconds`, so a short video does not wait for the
    end of a long one. The work of others is spread over the live slots. New videos may always come before these. When
    the `blocked` last of those that wait will begin is not told: they wait for videos of their own owners.
    """

    def __init__(
        self,
        waiting: Sequence[Contender],
        running: Sequence[Contender],
        *,
        slots: int,
        turn_seconds: float,
        blocked: int = 0,
    ) -> None:
        self._waiting, self._running = waiting, running
        self._ready = len(waiting) - blocked
        self._slots, self._turn_seconds = slots, turn_seconds
        self._positions = {contender.video_id: position for position, contender in enumerate(waiting)}

    def place(self, video_id: str) -> Place | None:
        """The place of a waiting video, in time that grows with the length of the line; None if it does not wait."""
        position = self._positions.get(video_id)
        if position is None:
            return None
        if position >= self._ready:
            return Place(position, None)
        everyone = [*self._running, *self._waiting]
        mine, ahead = self._waiting[position], len(self._running) + position
        return Place(position, _eta(mine, everyone, ahead, self._slots, self._turn_seconds))


def _eta(
    mine: Contender, everyone: Sequence[Contender], ahead: int, slots: int, turn_seconds: float
) -> float | None:
    """`ahead`: where `mine` stands among `everyone`."""
    if mine.seconds is None or not math.isfinite(mine.seconds) or slots < 1:
        return None
    others, competing = 0.0, 0
    for place, other in enumerate(everyone):
        if place == ahead or other.rank > mine.rank:
            continue
        most = math.inf if other.rank < mine.rank else _share(mine.seconds, turn_seconds, place < ahead)
        if most == 0:
            continue
        if other.seconds is None and math.isinf(most):
            return None
        others += most if other.seconds is None else min(other.seconds, most)
        competing += 1
    if math.isinf(others):
        return None
    return mine.seconds + (others / slots if competing >= slots else 0.0)


def _share(seconds: float, turn_seconds: float, first: bool) -> float:
    """The most that an equal runs until a video of `seconds` is done: a turn for each of its turns.

    One that stands behind it (not `first`) comes in between its turns only.
    """
    if turn_seconds <= 0:
        return seconds
    turns = max(1, math.ceil(seconds / turn_seconds))
    return (turns if first else turns - 1) * turn_seconds
