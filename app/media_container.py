"""Boxes of fragmented MP4 (ISO/IEC 14496-12), in plain Python: what the API does to media without a media library.

A video is stored as one initialisation segment (`ftyp` + `moov`) and one media segment (`moof` + `mdat`) per
chunk. The initialisation segment followed by any run of media segments is a valid MP4.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction


class MediaFormatError(ValueError):
    """The bytes are not the fragmented MP4 that this service writes."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One `moof` box of a media segment.

    Attributes:
        sequence: number of the fragment (`mfhd`), from 1.
        decode_time: decode time of the first sample (`tfdt`), in ticks of the track's timescale.
        duration: sum of the samples' durations, in ticks.
        samples: number of samples; for video, of frames.
    """

    sequence: int
    decode_time: int
    duration: int
    samples: int


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    start: int
    body: int
    end: int


def timescale(init: bytes) -> int:
    """Ticks per second of the (only) track that an initialisation segment announces.

    Raises:
        MediaFormatError: `init` is not an initialisation segment.
    """
    box = _find(init, b"moov", b"trak", b"mdia", b"mdhd")
    # Two times, of 8 bytes each in version 1 and 4 in version 0, precede the timescale (8.4.2).
    return _unpack(">I", init, box.body + (20 if _version(init, box) == 1 else 12))


def fragments(segment: bytes) -> list[Fragment]:
    """The fragments of a media segment, in order.

    Raises:
        MediaFormatError: `segment` holds none, or is damaged.
    """
    found = [_fragment(segment, box) for box in _boxes(segment) if box.kind == b"moof"]
    if not found:
        raise MediaFormatError("a media segment has a moof box")
    return found


def top_level_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type (four bytes) and bytes, header included, of each box of a file, in order.

    Raises:
        MediaFormatError: a box reaches past the end of the data.
    """
    for box in _boxes(data):
        yield box.kind, data[box.start : box.end]


def standalone_chunk(init: bytes, segment: bytes) -> bytes:
    """One chunk as an MP4 of its own that starts at time zero and knows its duration.

    The fragments are renumbered from 1 and moved to time zero; the compressed frames stay as they are.

    Args:
        init: the video's initialisation segment.
        segment: the chunk's media segment.

    Raises:
        MediaFormatError: either is not what it should be.
    """
    parts = fragments(segment)
    moved = bytearray(segment)
    moofs = [box for box in _boxes(segment) if box.kind == b"moof"]
    for number, (box, part) in enumerate(zip(moofs, parts, strict=True), start=1):
        struct.pack_into(">I", moved, _find(segment, b"mfhd", within=box).body + 4, number)
        decode_time = _find(segment, b"traf", b"tfdt", within=box)
        form = ">Q" if _version(segment, decode_time) == 1 else ">I"
        struct.pack_into(form, moved, decode_time.body + 4, part.decode_time - parts[0].decode_time)
    duration = Fraction(sum(part.duration for part in parts), timescale(init))
    return _with_duration(init, duration) + bytes(moved)


def partial_header(init: bytes, segments: Sequence[tuple[int, float]]) -> bytes:
    """What precedes the segments of an unfinished video: an initialisation segment that knows the total, and an index.

    With the index (`sidx`, 8.16.3) a player shows the right duration and seeks by byte ranges without reading it all.

    Args:
        init: the video's initialisation segment.
        segments: length in bytes and duration in seconds of each media segment that follows, from chunk 0 without a
            gap.

    Raises:
        MediaFormatError: `init` is not an initialisation segment.
    """
    ticks = timescale(init)
    track = _find(init, b"moov", b"trak", b"tkhd")
    track_id = _unpack(">I", init, track.body + (20 if _version(init, track) == 1 else 12))
    # The count of references has 16 bits; a video of more segments gets one reference for several.
    together = max(1, math.ceil(len(segments) / 0xFFFF))
    references = bytearray()
    for first in range(0, len(segments), together):
        group = segments[first : first + together]
        duration = round(sum(seconds for _, seconds in group) * ticks)
        # The last field says that the segment starts with a key frame (stream access point of type 1).
        references += struct.pack(">III", sum(size for size, _ in group), duration, 0x90000000)
    count = len(references) // 12
    size = 40 + len(references)
    index = struct.pack(">I4sIIIQQHH", size, b"sidx", 1 << 24, track_id, ticks, 0, 0, 0, count) + references
    return _with_duration(init, sum(seconds for _, seconds in segments)) + index


def _with_duration(init: bytes, duration_seconds: float | Fraction) -> bytes:
    """The initialisation segment with the duration of what follows (`mehd`, 8.8.2), which players otherwise guess."""
    movie, extends = _find(init, b"moov"), _find(init, b"moov", b"mvex")
    header = _find(init, b"moov", b"mvhd")
    movie_timescale = _unpack(">I", init, header.body + (20 if _version(init, header) == 1 else 12))
    # Rounded up to a millisecond, so that the last frame is not cut.
    box = struct.pack(">I4sIQ", 20, b"mehd", 1 << 24, math.ceil(duration_seconds * movie_timescale))
    grown = bytearray(init)
    grown[extends.body : extends.body] = box
    for container in (movie, extends):
        struct.pack_into(">I", grown, container.start, container.end - container.start + len(box))
    return bytes(grown)


def _fragment(segment: bytes, moof: _Box) -> Fragment:
    sequence = _unpack(">I", segment, _find(segment, b"mfhd", within=moof).body + 4)
    header = _find(segment, b"traf", b"tfhd", within=moof)
    time = _find(segment, b"traf", b"tfdt", within=moof)
    run = _find(segment, b"traf", b"trun", within=moof)

    # tfhd (8.8.7): flags say which optional fields precede the default sample duration.
    flags, at = _flags(segment, header), header.body + 8
    at += 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2)
    default_duration = _unpack(">I", segment, at) if flags & 0x8 else 0

    # trun (8.8.8): up to four 4-byte fields a sample, the duration first.
    flags, at = _flags(segment, run), run.body + 8
    at += 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
    samples = _unpack(">I", segment, run.body + 4)
    if flags & 0x100:
        step = 4 * (flags & 0xF00).bit_count()
        duration = sum(_unpack(">I", segment, at + step * sample) for sample in range(samples))
    else:
        duration = default_duration * samples
    decode_time = _unpack(">Q" if _version(segment, time) == 1 else ">I", segment, time.body + 4)
    return Fragment(sequence, decode_time, duration, samples)


def _boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[_Box]:
    at, end = start, len(data) if end is None else end
    while at < end:
        size, kind, body = _unpack(">I", data, at), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, body = _unpack(">Q", data, at + 8), at + 16
        if size < body - at or at + size > end:
            raise MediaFormatError("an MP4 box does not end where it should")
        yield _Box(kind, at, body, at + size)
        at += size


def _find(data: bytes, *path: bytes, within: _Box | None = None) -> _Box:
    start, end = (0, len(data)) if within is None else (within.body, within.end)
    for depth, kind in enumerate(path):
        found = next((box for box in _boxes(data, start, end) if box.kind == kind), None)
        if found is None:
            raise MediaFormatError(f"there is no {kind.decode()} box")
        if depth == len(path) - 1:
            return found
        start, end = found.body, found.end
    raise ValueError("a path names at least one box")


def _version(data: bytes, box: _Box) -> int:
    return _unpack(">B", data, box.body)


def _flags(data: bytes, box: _Box) -> int:
    return _unpack(">I", data, box.body) & 0xFFFFFF


def _unpack(form: str, data: bytes, at: int) -> int:
    try:
        value: int = struct.unpack_from(form, data, at)[0]
    except struct.error as error:
        raise MediaFormatError("the MP4 data ends too early") from error
    return value
