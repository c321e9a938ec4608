"""Frames of one chunk to one CMAF segment, by an encoder of its own.

Nothing of an encoder outlives its chunk: each begins with a key frame and refers to no other, timestamps are
absolute, and the initialisation segment is the same bytes for every chunk. So a worker that takes a video over
needs the number of the next chunk and of its first frame, nothing else, and writing a chunk twice writes the same
bytes. Segments follow CMAF (ISO/IEC 23000-19): one `moof` + `mdat`, `default-base-is-moof`, `tfdt` in each.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from app.media_container import MediaFormatError, fragments, top_level_boxes

# Ticks per frame where a frame lasts 1/fps with a whole fps: enough for players that round to their own clock.
_TICKS_PER_FRAME = 512

# SVT-AV1 writes a page about itself to stderr for every chunk, unless told before it is loaded: errors only.
os.environ.setdefault("SVT_LOG", "1")

# ITU-R BT.709 for matrix, primaries, and transfer; limited ("tv") range. Code points of ISO/IEC 23091-2.
_BT709 = 1
_LIMITED_RANGE = 1

# libswscale picks its routines by what the CPU can do; these flags make all of them agree to the bit.
_CONVERSION = "bilinear+full_chroma_inp+accurate_rnd+bitexact"


class EncodingError(Exception):
    """The frames cannot be encoded with these settings: wrong shape, unknown codec, or the encoder refused."""


class EncoderUnusable(Exception):
    """An encoder does not work on this machine, which may lack its GPU or its library. Another may have it."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How frames are compressed. Every field changes the bytes, so all chunks of a video use the same settings.

    Attributes:
        codec: `h264` (plays everywhere), `av1` (half the bytes, slower), `vp9`, `hevc` (needs a licence and, for
            most browsers, hardware), or `h264_nvenc`, `hevc_nvenc`, `av1_nvenc` on a GPU that has an encoder.
        quality: constant rate factor, smaller is better and larger; None is the codec's default below.
        threads: encoder threads. Fixed, never the number of cores, which would make bytes depend on the host.
    """

    codec: str = "h264"
    quality: int | None = None
    threads: int = 2


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """One chunk, compressed.

    Attributes:
        init: initialisation segment (`ftyp` + `moov`), byte-identical for all chunks of a video.
        segment: media segment (`styp` + `moof` + `mdat`) with absolute timestamps.
        frames: number of frames.
        duration_seconds: `frames` divided by the frame rate.
    """

    init: bytes
    segment: bytes
    frames: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class _Codec:
    encoder: str
    quality: int
    options: Callable[[int], Mapping[str, str]]
    tag: str | None = None


def _x264(quality: int) -> dict[str, str]:
    # No B-frames and no lookahead: decode order is display order, and a frame leaves as soon as it is in.
    # cpu-independent keeps x264 from choosing algorithms by CPU, as a chunk may be redone on another host.
    return {
        "preset": "veryfast",
        "crf": str(quality),
        "bf": "0",
        "x264-params": "scenecut=0:open-gop=0:rc-lookahead=0:sync-lookahead=0:cpu-independent=1",
    }


def _x265(quality: int) -> dict[str, str]:
    return {
        "preset": "veryfast",
        "crf": str(quality),
        # With the default blocks of 64 pixels x265 4.1 codes a 64x64 frame differently from run to run.
        "x265-params": "bframes=0:scenecut=0:open-gop=0:rc-lookahead=1:ctu=32:frame-threads=1:pools=none"
        ":info=0:log-level=none",
    }


def _svt_av1(quality: int) -> dict[str, str]:
    return {"preset": "9", "crf": str(quality), "svtav1-params": "pred-struct=1:lookahead=0:scd=0"}


def _vp9(quality: int) -> dict[str, str]:
    return {
        "deadline": "good",
        "cpu-used": "5",
        "crf": str(quality),
        "b": "0",
        "lag-in-frames": "0",
        "auto-alt-ref": "0",
        "row-mt": "1",
    }


def _nvenc(quality: int) -> dict[str, str]:
    return {"preset": "p4", "rc": "vbr", "cq": str(quality), "b": "0", "bf": "0", "no-scenecut": "1"}


_CODECS = {
    "h264": _Codec("libx264", 20, _x264),
    "hevc": _Codec("libx265", 23, _x265, tag="hvc1"),
    "av1": _Codec("libsvtav1", 32, _svt_av1),
    "vp9": _Codec("libvpx-vp9", 30, _vp9),
    "h264_nvenc": _Codec("h264_nvenc", 22, _nvenc),
    "hevc_nvenc": _Codec("hevc_nvenc", 25, _nvenc, tag="hvc1"),
    "av1_nvenc": _Codec("av1_nvenc", 30, _nvenc),
}


def check_encoder(settings: EncoderSettings, width: int, height: int, fps: int) -> None:
    """Encodes a black frame. Raises `EncoderUnusable`: found later, it costs a video all that was sampled of it."""
    try:
        encode_chunk(np.zeros((1, height, width, 3), np.uint8), 0, 0, fps, settings)
    except EncodingError as error:
        raise EncoderUnusable(f"at {width}x{height}: {error}") from error


def encode_chunk(
    frames: NDArray[np.uint8],
    index: int,
    first_frame: int,
    fps: int | Fraction,
    settings: EncoderSettings | None = None,
) -> EncodedChunk:
    """Encode the frames of one chunk. The same arguments give the same bytes, in any process.

    Args:
        frames: RGB, shape (count, height, width, 3), 0 to 255, at least one frame, even height and width.
        index: number of the chunk in its video, from 0.
        first_frame: number of its first frame in the video, from 0.
        fps: frames per second, exact: 24, or `Fraction(24000, 1001)`.
        settings: how to compress; None is H.264 with the defaults.

    Raises:
        EncodingError: the frames or settings cannot be encoded.
    """
    settings = settings or EncoderSettings()
    if settings.codec not in _CODECS:
        raise EncodingError(f"unknown codec {settings.codec!r}; known are {', '.join(_CODECS)}")
    _validate(frames, index, first_frame, fps)
    rate = Fraction(fps)
    try:
        file = _write(frames, index, first_frame, rate, settings)
        init, segment = _split(file)
        parts = fragments(segment)
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, MediaFormatError) as error:
        raise EncodingError(f"{settings.codec} cannot encode these frames: {error}") from error
    if len(parts) != 1 or parts[0].samples != len(frames):
        raise EncodingError(f"{settings.codec} did not make one fragment of {len(frames)} frames")
    return EncodedChunk(init, segment, len(frames), float(len(frames) / rate))


def _validate(frames: NDArray[np.uint8], index: int, first_frame: int, fps: int | Fraction) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise EncodingError(
            f"frames are uint8 of shape (count, height, width, 3), not {frames.dtype} {frames.shape}"
        )
    count, height, width, _ = frames.shape
    if count == 0 or height == 0 or width == 0:
        raise EncodingError("a chunk has at least one frame, and a frame at least one pixel")
    if height % 2 or width % 2:
        # 4:2:0 has one colour sample for 2x2 pixels; padding would change the size that was asked for.
        raise EncodingError(f"width and height are even numbers of pixels, not {width}x{height}")
    if index < 0 or first_frame < 0:
        raise EncodingError("chunks and frames are counted from 0")
    if fps <= 0:
        raise EncodingError("the frame rate is above 0")


def _write(
    frames: NDArray[np.uint8], index: int, first_frame: int, rate: Fraction, settings: EncoderSettings
) -> bytes:
    codec, buffer = _CODECS[settings.codec], BytesIO()
    options = {
        "movflags": "+cmaf+empty_moov+default_base_moof+frag_keyframe+frag_discont+skip_trailer",
        "fflags": "+bitexact",
        "fragment_index": str(index + 1),
        "video_track_timescale": str(_timescale(rate)),
        "use_editlist": "0",
        "avoid_negative_ts": "disabled",
    }
    _, height, width, _ = frames.shape
    with av.open(buffer, "w", format="mp4", options=options) as container:
        quality = codec.quality if settings.quality is None else settings.quality
        stream = container.add_stream(codec.encoder, rate=rate, options=dict(codec.options(quality)))
        if not isinstance(stream, VideoStream):
            raise EncodingError(f"{codec.encoder} does not encode video")
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = 1 / rate
        context.gop_size = 1_000_000  # The first frame is the only key frame.
        context.thread_count, context.thread_type = settings.threads, "FRAME"
        context.color_range, context.colorspace = _LIMITED_RANGE, _BT709
        context.color_primaries, context.color_trc = _BT709, _BT709
        if codec.tag:
            context.codec_tag = codec.tag
        convert = _converter(width, height)

        with ordinary_priority():
            context.open()

        def mux(packets: list[Any]) -> None:
            for packet in packets:
                packet.pts += first_frame
                packet.dts += first_frame
                packet.duration = 1
                container.mux(packet)

        for number, frame in enumerate(frames):
            picture = convert(frame)
            picture.pts, picture.time_base = number, 1 / rate
            mux(stream.encode(picture))
        mux(stream.encode(None))
    return buffer.getvalue()


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Undoes that opening SVT-AV1 as root makes this thread and the encoder's own real-time threads.

    They come before every other thread of the machine: two that wait for a lock by trying again keep the one that
    holds it from ever running. A thread that had such a priority before keeps it.
    """
    if sys.platform != "linux":
        yield
        return
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        now = os.sched_getscheduler(0)
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()] if now != before else []
        for thread in threads:
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) == now:
                    os.sched_setscheduler(thread, before, parameters)


def _converter(width: int, height: int) -> Callable[[NDArray[np.uint8]], Any]:
    """RGB to 4:2:0 in BT.709, the same to the bit on every CPU."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add("buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base=1/1")
    scale = graph.add("scale", f"{width}:{height}:flags={_CONVERSION}:out_color_matrix=bt709:out_range=tv")
    layout = graph.add("format", "yuv420p")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(layout)
    layout.link_to(sink)
    graph.configure()

    def convert(frame: NDArray[np.uint8]) -> Any:
        graph.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        return graph.pull()

    return convert


def _timescale(rate: Fraction) -> int:
    # 24000/1001 has 24000 ticks a second, 1001 a frame: exact, and what broadcast tools expect.
    return int(rate) * _TICKS_PER_FRAME if rate.denominator == 1 else rate.numerator


def _split(file: bytes) -> tuple[bytes, bytes]:
    """Initialisation segment and media segment; an index (`sidx`, `mfra`) belongs to neither and is dropped."""
    init, segment = bytearray(), bytearray()
    for kind, box in top_level_boxes(file):
        if kind in (b"ftyp", b"moov"):
            init += box
        elif kind in (b"styp", b"moof", b"mdat"):
            segment += box
    return bytes(init), bytes(segment)
