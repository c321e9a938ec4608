"""`app.media_container` on what the encoder writes: chunks and unfinished videos that play by themselves."""

import struct
from fractions import Fraction
from io import BytesIO

import av
import pytest

from app.media_container import (
    MediaFormatError,
    fragments,
    partial_header,
    standalone_chunk,
    timescale,
    top_level_boxes,
)
from worker.media.encode import EncoderSettings


@pytest.mark.parametrize("codec", ["h264", "av1", "vp9", "hevc"])
def test_a_chunk_of_its_own_starts_at_zero_and_shows_the_same_pictures(film, decode, codec: str) -> None:
    init, segments, _ = film((6, 6, 5), settings=EncoderSettings(codec))
    whole = decode(init + b"".join(segments))
    alone = decode(standalone_chunk(init, segments[2]))
    assert [time for time, _ in alone] == pytest.approx([number / 24 for number in range(5)], abs=1e-6)
    assert [picture for _, picture in alone] == [picture for _, picture in whole[12:]]


@pytest.mark.parametrize("fps", [24, Fraction(24000, 1001)], ids=str)
def test_a_chunk_of_its_own_knows_its_duration(film, fps: int | Fraction) -> None:
    init, segments, _ = film((6, 5), fps=fps)
    chunk = standalone_chunk(init, segments[1])
    (part,) = fragments(chunk)
    assert (part.sequence, part.decode_time) == (1, 0)
    with av.open(BytesIO(chunk)) as container:
        assert container.duration / 1e6 == pytest.approx(float(5 / Fraction(fps)), abs=0.002)


def test_the_stored_bytes_are_not_changed(film) -> None:
    init, segments, _ = film((6, 5))
    before = (bytes(init), bytes(segments[1]))
    standalone_chunk(init, segments[1])
    assert (init, segments[1]) == before


def test_several_fragments_keep_their_distance(film, decode) -> None:
    init, segments, _ = film((6, 5, 4))
    chunk = standalone_chunk(init, segments[1] + segments[2])
    assert [(part.sequence, part.samples) for part in fragments(chunk)] == [(1, 5), (2, 4)]
    assert [time for time, _ in decode(chunk)] == pytest.approx(
        [number / 24 for number in range(9)], abs=1e-6
    )


@pytest.mark.parametrize("fps", [24, Fraction(24000, 1001)], ids=str)
def test_the_part_made_so_far_is_a_video_of_known_duration(film, decode, fps: int | Fraction) -> None:
    init, segments, _ = film((6, 5, 4), fps=fps)
    seconds = [float(count / Fraction(fps)) for count in (6, 5)]
    header = partial_header(
        init, [(len(segment), second) for segment, second in zip(segments, seconds, strict=False)]
    )
    part = header + b"".join(segments[:2])
    assert len(part) == len(header) + len(segments[0]) + len(segments[1])
    assert [time for time, _ in decode(part)] == pytest.approx([n / float(fps) for n in range(11)], abs=1e-6)
    with av.open(BytesIO(part)) as container:
        assert container.duration / 1e6 == pytest.approx(11 / float(fps), abs=0.002)


def test_the_index_of_an_unfinished_video_leads_to_each_chunk(film, decode) -> None:
    init, segments, _ = film((6, 5, 4))
    header = partial_header(
        init, [(len(segment), count / 24) for segment, count in zip(segments, (6, 5, 4), strict=True)]
    )
    kinds = dict(top_level_boxes(header))
    assert list(kinds) == [b"ftyp", b"moov", b"sidx"]
    references = struct.iter_unpack(">III", kinds[b"sidx"][40:])
    assert [(size, ticks) for size, ticks, _ in references] == [
        (len(segment), count * 512) for segment, count in zip(segments, (6, 5, 4), strict=True)
    ]
    part = header + b"".join(segments)
    with av.open(BytesIO(part)) as container:
        container.seek(11 * 512, stream=container.streams.video[0])
        assert next(container.decode(video=0)).pts == 11 * 512


def test_the_header_of_a_very_long_video_stays_valid(film) -> None:
    init, _, _ = film((1,))
    header = partial_header(init, [(1000, 0.5)] * 200_000)
    index = dict(top_level_boxes(header))[b"sidx"]
    references = list(struct.iter_unpack(">III", index[40:]))
    assert struct.unpack_from(">H", index, 38)[0] == len(references) <= 0xFFFF
    assert sum(size for size, _, _ in references) == 200_000_000
    assert sum(ticks for _, ticks, _ in references) == 100_000 * timescale(init)


def test_a_bare_initialisation_segment_makes_a_playable_video_too(film, decode) -> None:
    init, segments, _ = film((6, 5, 4))
    assert len(decode(init + b"".join(segments))) == 15


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, 60, 200])
def test_bytes_cut_short_are_a_format_error(film, size: int) -> None:
    init, segments, _ = film((6,))
    with pytest.raises(MediaFormatError):
        standalone_chunk(init, segments[0][:size])
    with pytest.raises(MediaFormatError):
        standalone_chunk(init[:size], segments[0])


def test_the_wrong_way_round_is_a_format_error(film) -> None:
    init, segments, _ = film((6,))
    with pytest.raises(MediaFormatError, match="moof"):
        standalone_chunk(segments[0], init)
    with pytest.raises(MediaFormatError, match="moov"):
        timescale(segments[0])
    with pytest.raises(MediaFormatError):
        list(top_level_boxes(b"\0\0\0\4free"))


def test_every_flipped_byte_is_survived(film) -> None:
    """No damage of the boxes leads to anything but a result or a `MediaFormatError`."""
    init, segments, _ = film((3,))
    head = 400
    for source in ("init", "segment"):
        data = init if source == "init" else segments[0]
        for at in range(min(head, len(data))):
            broken = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
            try:
                standalone_chunk(*((broken, segments[0]) if source == "init" else (init, broken)))
            except MediaFormatError:
                continue
