"""Chunks as CMAF segments: exact in time, equal in every process, independent of each other."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from hashlib import sha256
from io import BytesIO

import av
import numpy as np
import pytest

from app.media_container import fragments, timescale, top_level_boxes
from worker.media.encode import (
    EncoderSettings,
    EncodingError,
    encode_chunk,
    ordinary_priority,
)

CODECS = ["h264", "av1", "vp9", "hevc"]
RATES = [24, 16, 30, Fraction(24000, 1001), Fraction(25, 2)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_video_of_chunks_decodes_to_its_frames_at_their_times(film, decode, codec: str) -> None:
    init, segments, count = film((20, 20, 1, 7), settings=EncoderSettings(codec))
    decoded = decode(init + b"".join(segments))
    assert len(decoded) == count == 48
    assert [time for time, _ in decoded] == pytest.approx([number / 24 for number in range(48)], abs=1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_frames_give_the_same_bytes(moving, codec: str) -> None:
    settings = EncoderSettings(codec)
    chunks = {encode_chunk(moving(12, 5), 3, 60, 24, settings) for _ in range(4)}
    assert len(chunks) == 1


def test_another_process_writes_the_same_bytes(moving) -> None:
    program = (
        "import sys, hashlib, numpy as np\n"
        "from worker.media.encode import encode_chunk\n"
        "frames = np.frombuffer(sys.stdin.buffer.read(), dtype=np.uint8).reshape(20, 96, 128, 3)\n"
        "chunk = encode_chunk(frames, 4, 80, 24)\n"
        "print(hashlib.sha256(chunk.init + chunk.segment).hexdigest())"
    )
    frames = moving(20, 80, width=128, height=96)
    chunk = encode_chunk(frames, 4, 80, 24)
    result = subprocess.run(
        [sys.executable, "-c", program], input=frames.tobytes(), capture_output=True, check=True
    )
    assert result.stdout.decode().strip() == sha256(chunk.init + chunk.segment).hexdigest()
    assert result.stderr == b""


@pytest.mark.parametrize("codec", CODECS)
def test_the_initialisation_segment_is_the_same_for_every_chunk(moving, codec: str) -> None:
    settings = EncoderSettings(codec)
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    black = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    chunks = [
        encode_chunk(moving(20), 0, 0, 24, settings),
        encode_chunk(noise, 1, 20, 24, settings),
        encode_chunk(black, 999_999, 10**8, 24, settings),
    ]
    assert len({chunk.init for chunk in chunks}) == 1
    assert [kind for kind, _ in top_level_boxes(chunks[0].init)] == [b"ftyp", b"moov"]
    for chunk in chunks:
        assert [kind for kind, _ in top_level_boxes(chunk.segment)][-2:] == [b"moof", b"mdat"]


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_decode_times_are_contiguous_in_exact_ticks(film, fps: int | Fraction) -> None:
    init, segments, count = film((20, 20, 1, 7), fps=fps)
    ticks = timescale(init) / Fraction(fps)
    assert ticks.denominator == 1
    expected = 0
    for index, segment in enumerate(segments):
        (part,) = fragments(segment)
        assert part.sequence == index + 1
        assert part.decode_time == expected
        assert part.duration == part.samples * ticks
        expected += part.duration
    assert expected == count * ticks


@pytest.mark.parametrize("codec", CODECS)
def test_any_run_of_segments_decodes(film, decode, codec: str) -> None:
    init, segments, _ = film((6, 6, 6, 6), settings=EncoderSettings(codec))
    whole = decode(init + b"".join(segments))
    for first in range(4):
        for last in range(first, 4):
            run = decode(init + b"".join(segments[first : last + 1]))
            assert [picture for _, picture in run] == [
                picture for _, picture in whole[6 * first : 6 * last + 6]
            ]


def test_times_stay_exact_after_weeks_of_video(moving) -> None:
    chunk = encode_chunk(moving(3), 999_999, 10**8, 24)
    (part,) = fragments(chunk.segment)
    assert part.decode_time == 10**8 * timescale(chunk.init) // 24


def test_the_duration_is_that_of_the_frames(moving) -> None:
    chunk = encode_chunk(moving(7), 0, 0, Fraction(24000, 1001))
    assert (chunk.frames, chunk.duration_seconds) == (7, pytest.approx(7 * 1001 / 24000))


@pytest.mark.parametrize("codec", CODECS)
def test_colours_come_back_and_are_marked_as_bt709(codec: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (40, 90, 200)]
    for colour in colours:
        chunk = encode_chunk(
            np.full((2, 64, 64, 3), colour, dtype=np.uint8), 0, 0, 24, EncoderSettings(codec)
        )
        with av.open(BytesIO(chunk.init + chunk.segment)) as container:
            context = container.streams.video[0].codec_context
            marks = (context.color_range, context.colorspace, context.color_primaries, context.color_trc)
            frame = next(container.decode(video=0))
        assert marks == (1, 1, 1, 1)
        assert frame.colorspace == 1
        shown = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(axis=0)
        assert shown == pytest.approx(np.array(colour), abs=4)


def test_the_picture_is_close_to_the_frames(moving) -> None:
    # Grey, as 4:2:0 keeps a quarter of the colour and that is not the encoder's doing.
    frames = np.repeat(moving(12, width=256, height=128)[..., :1], 3, axis=3)
    chunk = encode_chunk(frames, 0, 0, 24)
    with av.open(BytesIO(chunk.init + chunk.segment)) as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    error = ((shown.astype(float) - frames) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 38


def test_a_smaller_quality_number_takes_more_bytes(moving) -> None:
    frames = moving(12, width=256, height=128)
    sizes = [
        len(encode_chunk(frames, 0, 0, 24, EncoderSettings(quality=quality)).segment)
        for quality in (10, 20, 35)
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (64, 64), (70, 50), (1280, 720)], ids=str)
def test_any_even_size_is_kept(moving, size: tuple[int, int]) -> None:
    width, height = size
    chunk = encode_chunk(moving(2, width=width, height=height), 0, 0, 24)
    with av.open(BytesIO(chunk.init + chunk.segment)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == size


def test_frames_may_be_a_view(moving) -> None:
    frames = moving(4)
    flipped = frames[:, :, ::-1]
    assert not flipped.flags.c_contiguous
    assert encode_chunk(flipped, 0, 0, 24) == encode_chunk(np.ascontiguousarray(flipped), 0, 0, 24)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), "at least one frame"),
        (np.zeros((1, 63, 64, 3), np.uint8), "even numbers"),
        (np.zeros((1, 64, 63, 3), np.uint8), "64x64|63x64"),
        (np.zeros((1, 64, 64, 4), np.uint8), "shape"),
        (np.zeros((64, 64, 3), np.uint8), "shape"),
        (np.zeros((1, 64, 64, 3), np.float32), "uint8"),
    ],
)
def test_frames_that_are_no_video_are_refused(frames, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        encode_chunk(frames, 0, 0, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 24), "from 0"),
        ((0, -1, 24), "from 0"),
        ((0, 0, 0), "frame rate"),
        ((0, 0, -24), "frame rate"),
    ],
)
def test_numbers_out_of_range_are_refused(moving, arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        encode_chunk(moving(1), *arguments)


def test_an_unknown_codec_is_refused_with_the_known_ones(moving) -> None:
    with pytest.raises(EncodingError, match="known are h264"):
        encode_chunk(moving(1), 0, 0, 24, EncoderSettings("mpeg2"))


def test_an_encoder_that_refuses_is_an_encoding_error(moving) -> None:
    with pytest.raises(EncodingError, match="av1 cannot encode"):
        encode_chunk(moving(1, width=16, height=16), 0, 0, 24, EncoderSettings("av1", quality=9999))


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="only root may have real-time threads, and only on Linux",
)
def test_real_time_threads_that_an_encoder_makes_of_root_are_undone() -> None:
    """SVT-AV1 does what `encoder` does here."""
    up, end = threading.Event(), threading.Event()
    policies = []

    def work() -> None:
        up.set()
        end.wait(10)
        policies.append(os.sched_getscheduler(0))

    def encoder() -> None:
        before = os.sched_getscheduler(0)
        thread = threading.Thread(target=work)
        with suppress(RuntimeError), ordinary_priority():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
            thread.start()
            up.wait(10)
            raise RuntimeError
        end.set()
        thread.join()
        policies.extend([before, os.sched_getscheduler(0)])

    caller = threading.Thread(target=encoder)
    caller.start()
    caller.join()
    assert policies == [os.SCHED_OTHER] * 3


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_leaves_the_priority_of_its_thread_as_it_was(moving, codec: str) -> None:
    encode_chunk(moving(2), 0, 0, 24, EncoderSettings(codec))
    if sys.platform == "linux":
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
