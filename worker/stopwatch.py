"""How long a decoder or encoder has been at what it is at: what hangs in there cannot be interrupted, only seen."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from torch import Tensor

from worker.models.base import StreamedDecoder, VideoFrames


class Stopwatch:
    """Runs in each thread from `with stopwatch:` to the end of the block."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        self._since[threading.get_ident()] = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._since[threading.get_ident()]

    @property
    def seconds(self) -> float:
        """The longest that a thread has been in a block that it has not left; 0 when none is in one."""
        return max((time.monotonic() - since for since in self._since.copy().values()), default=0.0)


class TimedDecoder:
    """A decoder whose every call runs a stopwatch."""

    def __init__(self, decoder: StreamedDecoder, stopwatch: Stopwatch) -> None:
        self._decoder, self._stopwatch = decoder, stopwatch

    @property
    def memory_latents(self) -> int:
        return self._decoder.memory_latents

    def push(self, latents: Tensor) -> VideoFrames:
        with self._stopwatch:
            return self._decoder.push(latents)

    def replay(self, latents: Tensor) -> None:
        with self._stopwatch:
            self._decoder.replay(latents)
