"""Moving pictures whose frames all differ, made without randomness so that any process makes the same."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from io import BytesIO

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


@pytest.fixture
def moving() -> Callable[..., Frames]:
    """Frames `first` to `first + count` of an endless colour film: (count, height, width, 3)."""

    def make(count: int, first: int = 0, width: int = 64, height: int = 64) -> Frames:
        t, y, x = np.ogrid[first : first + count, 0:height, 0:width]
        red = 128 + 100 * np.sin((x + 3 * t) / 9) + 0 * y
        green = 128 + 100 * np.sin((y + 2 * t) / 7) + 0 * x
        blue = (5 * t + x + y) % 256
        return np.stack([red, green, blue], axis=-1).astype(np.uint8)

    return make


@pytest.fixture
def decode() -> Callable[[bytes], list[tuple[float, str]]]:
    """Time in seconds and hash of the pixels of every frame of an MP4."""

    def frames(data: bytes) -> list[tuple[float, str]]:
        with av.open(BytesIO(data)) as container:
            return [
                (float(frame.time), sha256(frame.to_ndarray().tobytes()).hexdigest())
                for frame in container.decode(video=0)
            ]

    return frames


@pytest.fixture
def film(moving: Callable[..., Frames]) -> Callable[..., tuple[bytes, list[bytes], int]]:
    """An encoded video: initialisation segment, media segments, number of frames."""
    from worker.media.encode import encode_chunk

    def make(lengths: Iterable[int] = (20, 20, 7), fps=24, settings=None) -> tuple[bytes, list[bytes], int]:
        segments, first, init = [], 0, b""
        for index, count in enumerate(lengths):
            chunk = encode_chunk(moving(count, first), index, first, fps, settings)
            init = chunk.init
            segments.append(chunk.segment)
            first += count
        return init, segments, first

    return make
