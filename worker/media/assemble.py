"""Segments to the finished video, without decoding: one faststart MP4, its stills, and what is in it."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

_JPEG_QUALITY = 85


class AssemblyError(Exception):
    """The segments are not the video they should be: a gap, a repetition, a wrong count, or damaged bytes."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        codec: name of the codec, such as `h264`.
        width: in pixels.
        height: in pixels.
        fps: frames per second, exact.
        frames: number of frames.
        duration_seconds: `frames / fps`.
        size: length of the file in bytes.
    """

    codec: str
    width: int
    height: int
    fps: Fraction
    frames: int
    duration_seconds: float
    size: int


def assemble_final(
    init: bytes, segments: Iterable[bytes], out_path: Path, expected_frames: int, fps: int | Fraction
) -> VideoInfo:
    """Write the segments of a whole video as one MP4 whose index comes first, so that it plays while it loads.

    Compressed frames are copied, not coded again. Segments are read one at a time, so memory holds one segment and
    the index of the frames (tens of bytes each), whatever the length of the video.

    Args:
        init: the initialisation segment.
        segments: media segments of chunks 0, 1, 2, ..., each whole or in blocks; read lazily.
        out_path: file to write; not there afterwards if this fails.
        expected_frames: number of frames the video has.
        fps: frames per second, exact.

    Raises:
        AssemblyError: frame k does not begin at k / fps for every k below `expected_frames`, or there are more.
        OSError: the file cannot be written, for example because the disk is full.
        Exception: whatever `segments` raises passes through.
    """
    source = _SegmentReader(init, segments)
    try:
        frames = _remux(source, out_path, expected_frames, Fraction(fps))
        if frames != expected_frames:
            raise AssemblyError(f"the segments hold {frames} frames, not {expected_frames}")
        return probe(out_path)
    except BaseException as error:
        out_path.unlink(missing_ok=True)
        if source.failure is not None and error is not source.failure:
            raise source.failure from None
        # What FFmpeg reports as an error of the operating system is the disk's: the input is not a file.
        if isinstance(error, av.FFmpegError) and not isinstance(error, OSError):
            raise AssemblyError(f"the segments cannot be read as a video: {error.strerror}") from error
        raise


def probe(path: Path) -> VideoInfo:
    """Describe a video file, fragmented or not, without decoding it.

    Raises:
        AssemblyError: the file holds no video that can be read.
    """
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            fps = stream.average_rate or stream.guessed_rate
            # A fragmented file announces no count; its packets have to be counted.
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            context = stream.codec_context
            if not fps or not frames:
                raise AssemblyError("the file holds no frame")
            return VideoInfo(
                codec=context.codec.canonical_name,
                width=context.width,
                height=context.height,
                fps=fps,
                frames=frames,
                duration_seconds=float(frames / fps),
                size=path.stat().st_size,
            )
    except av.FFmpegError as error:
        raise AssemblyError(f"the file cannot be read as a video: {error.strerror}") from error


def spritesheet(path: Path, columns: int = 5, rows: int = 5, tile_width: int = 160) -> bytes:
    """A grid of stills of a finished video as JPEG: the middle frames of `columns * rows` equal stretches of time.

    A video with fewer frames than tiles repeats frames. Reads around each still only, so neither time nor memory
    grows with the length of the video.

    Args:
        path: a file that `assemble_final` wrote.
        columns: stills side by side; they run from left to right, then from top to bottom.
        rows: rows of stills.
        tile_width: width of a still in pixels; its height keeps the shape of the video.

    Raises:
        AssemblyError: the file cannot be read.
    """
    info = probe(path)
    tile = _scaled(info.width, info.height, tile_width)
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]))
    count = columns * rows
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            for place in range(count):
                number = (2 * place + 1) * info.frames // (2 * count)
                still = _frame_at(container, stream, number, info.fps)
                picture = Image.fromarray(still).resize(tile, Image.Resampling.LANCZOS)
                sheet.paste(picture, (place % columns * tile[0], place // columns * tile[1]))
    except av.FFmpegError as error:
        raise AssemblyError(f"the file cannot be decoded: {error.strerror}") from error
    return _jpeg(sheet)


class _SegmentReader(RawIOBase):
    """The segments as one unseekable file, of which one piece at a time is in memory."""

    def __init__(self, init: bytes, segments: Iterable[bytes]) -> None:
        self.failure: BaseException | None = None
        self._pieces = _joined(init, segments)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._piece:
                self._piece = memoryview(next(self._pieces))
        except StopIteration:
            return b""
        except BaseException as error:
            # FFmpeg may turn this into its own end of file; the caller of assemble_final gets the original.
            self.failure = error
            raise
        size = len(self._piece) if size < 0 else size
        block, self._piece = bytes(self._piece[:size]), self._piece[size:]
        return block


def _joined(init: bytes, segments: Iterable[bytes]) -> Iterator[bytes]:
    yield init
    yield from segments


def _remux(source: _SegmentReader, out_path: Path, expected_frames: int, fps: Fraction) -> int:
    options = {
        "movflags": "+faststart",
        "fflags": "+bitexact",
        "use_editlist": "0",
        "avoid_negative_ts": "disabled",
    }
    with av.open(source, "r", format="mov") as fragmented:
        stream = _video_stream(fragmented)
        if stream.time_base is None:
            raise AssemblyError("the initialisation segment has no timescale")
        step = 1 / (fps * stream.time_base)
        options["video_track_timescale"] = str(stream.time_base.denominator)
        with av.open(str(out_path), "w", format="mp4", options=options) as final:
            target = final.add_stream_from_template(stream, opaque=True)
            frames = 0
            for packet in fragmented.demux(stream):
                if not packet.size:
                    continue
                if packet.pts != frames * step or packet.dts != packet.pts:
                    raise AssemblyError(f"frame {frames} begins at tick {packet.pts}, not {frames * step}")
                if frames == expected_frames:
                    raise AssemblyError(f"the segments hold more than {expected_frames} frames")
                packet.stream = target
                final.mux(packet)
                frames += 1
    if source.failure is not None:
        raise source.failure
    return frames


def _frame_at(
    container: InputContainer, stream: VideoStream, number: int, fps: Fraction
) -> NDArray[np.uint8]:
    if stream.time_base is None:
        raise AssemblyError("the file has no timescale")
    wanted = round(number / (fps * stream.time_base))
    container.seek(wanted, stream=stream)
    # PyAV leaks a packet when the iterator is dropped before its end; closing it frees the packet.
    iterator = cast("Generator[Packet[VideoStream]]", container.demux(stream))
    with closing(iterator) as packets:
        for packet in packets:
            for frame in packet.decode():
                if frame.pts is not None and frame.pts >= wanted:
                    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    raise AssemblyError(f"the file ends before frame {number}")


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise AssemblyError("the file holds no video")
    return container.streams.video[0]


def _scaled(width: int, height: int, to_width: int) -> tuple[int, int]:
    return to_width, max(1, round(height * to_width / width))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
