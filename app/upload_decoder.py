"""Decodes one upload, in a process of its own: ``python -m app.upload_decoder FD JSON < upload``.

Whatever an upload does to a decoder, it does it here: the process has bounded memory and time, no file but the upload
(its standard input) and the one it writes (descriptor FD), and cannot open another. JSON is a `Task`. What comes out
is lossless video of exactly the size and frame rate asked for, in RGB, and on stdout a `Decoded` or a `Refused`.

The picture is scaled to cover the size, without distortion, and cropped around its centre. A moving picture is
resampled to the frame rate (each moment shows the frame nearest to it) and cut at the end to whole chunks; one shorter
than a chunk, and a still picture, is held for one chunk.

What a file is, its first bytes say. Only the reader for that is used, so a playlist, a vector drawing or a page with
a picture's name is no picture.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app.upload_contract import UNDECODABLE, Decoded, Refused, Task

# What the libraries load when they first need it; once the process is shut in they can load nothing.
_LATE_MODULES = (
    "av.audio.codeccontext",
    "av.audio.stream",
    "av.sidedata.encparams",
    "av.sidedata.motionvectors",
    "av.sidedata.sidedata",
    "av.subtitles.codeccontext",
    "av.subtitles.stream",
    "av.video.codeccontext",
    "PIL.ExifTags",
    "PIL.JpegImagePlugin",
    "PIL.MpoImagePlugin",  # a JPEG of several, as some cameras make
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",  # reads EXIF
    "PIL.WebPImagePlugin",
)

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "ffv1"}
_PICTURE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"

# A frame's time may be rounded to a millisecond by its container; a quarter of a frame is far more than that.
_TOLERANCE = Fraction(1, 4)

_RGB, _BT709, _UNSPECIFIED, _BT601 = 0, 1, 2, 5
_LIMITED, _FULL = 1, 2
_HD_HEIGHT = 720
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Our own limit is looked at before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

Pixels = NDArray[np.uint8]


class UploadError(Exception):
    """The upload is not taken."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.refused = Refused(code=code, message=message)


def decode(source: BinaryIO, target: BinaryIO, task: Task) -> Decoded:
    """Reads an upload and writes its frames as `task` says. Raises `UploadError`."""
    head = source.read(64)
    source.seek(0)
    with _Writer(target, task) as writer:
        if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4], head[8:12]) == (
            b"RIFF",
            b"WEBP",
        ):
            return _decode_image(source, writer, task)
        if head.startswith(_EBML):
            _require_whole(_matroska_end(source), source)
            return _decode_video(source, "matroska", writer, task)
        if head[4:8] == b"ftyp" and head[8:12] not in _PICTURE_BRANDS:
            _require_whole(_mp4_end(source), source)
            return _decode_video(source, "mov", writer, task)
    raise UploadError(
        "unsupported_media", "The file is not a JPEG, PNG or WebP image, nor an MP4, MOV, WebM or MKV video."
    )


# -- still pictures -----------------------------------------------------------------------------------------


def _decode_image(source: BinaryIO, writer: _Writer, task: Task) -> Decoded:
    try:
        with Image.open(source, formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > task.max_pixels:
                raise _too_many_pixels(image.width, image.height, task.max_pixels)
            image.load()  # of an animation, its first picture
            upright = ImageOps.exif_transpose(image)
            pixels = _covering(_flattened(upright), task)
            size = upright.size
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise  # a fault of ours: the libraries wanted to load something
        raise UploadError("invalid_image", "The image is damaged or incomplete.") from error
    for _ in range(task.first_chunk_frames):
        writer.write(pixels)
    return Decoded(kind="image", width=size[0], height=size[1], frames=writer.finish(pixels))


def _flattened(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows black."""
    if image.mode.startswith("I") or image.mode == "F":
        # Grey of 16 bits, which Pillow would clip to 8 instead of scaling.
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        below = Image.new("RGBA", above.size, (0, 0, 0, 255))
        return Image.alpha_composite(below, above).convert("RGB")
    return image.convert("RGB")


def _covering(image: Image.Image, task: Task, stretch: float = 1.0) -> Pixels:
    """RGB ``(height, width, 3)`` of the task's size. `stretch` is how much wider than high a pixel is shown."""
    shown, wanted = image.width * stretch / image.height, task.width / task.height
    width, height = float(image.width), float(image.height)
    if shown > wanted:
        width = image.height * wanted / stretch
    else:
        height = image.width * stretch / wanted
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    # Far too many pixels are first averaged in blocks, down to three times as many as wanted: quicker, as good.
    size = (task.width, task.height)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def _too_many_pixels(width: int, height: int, limit: int) -> UploadError:
    return UploadError(
        "too_many_pixels", f"A picture has {width}x{height} pixels, {limit} in all are allowed."
    )


# -- moving pictures ----------------------------------------------------------------------------------------


def _decode_video(source: BinaryIO, reader: str, writer: _Writer, task: Task) -> Decoded:
    # The reader gets bytes, no name, and may follow none: no playlist, no file that a track refers to.
    options = {"protocol_whitelist": "", "enable_drefs": "0", "use_absolute_path": "0"}
    if reader == "matroska":
        options = {"protocol_whitelist": ""}
    try:
        with av.open(source, "r", format=reader, options=options) as container:
            if not container.streams.video:
                raise UploadError("unsupported_media", "The file holds no picture.")
            stream = container.streams.video[0]
            return _read(container, stream, writer, task)
    except (av.FFmpegError, ValueError, ArithmeticError, EOFError) as error:
        if isinstance(error, MemoryError):
            raise
        raise UploadError("invalid_video", "The video is damaged or incomplete.") from error


def _read(
    container: av.container.InputContainer, stream: VideoStream, writer: _Writer, task: Task
) -> Decoded:
    context = stream.codec_context
    if context is None or context.codec.canonical_name not in _CODECS:
        raise UploadError(
            "unsupported_media", f"The video's codec must be one of {', '.join(sorted(_CODECS))}."
        )
    if context.width * context.height > task.max_video_pixels:
        raise _too_many_pixels(context.width, context.height, task.max_video_pixels)
    if container.duration is not None and container.duration > (task.max_seconds + 0.5) * av.time_base:
        raise _too_long(task)
    # The decoder looks for itself too: the picture's size in the stream may be another than in the container.
    context.options = {"max_pixels": str(task.max_video_pixels)}
    context.thread_count = 1
    step, stretch = Fraction(1, task.fps), float(stream.sample_aspect_ratio or 1)
    size: tuple[int, int] | None = None
    written = 0
    shown: VideoFrame | None = None
    pixels: Pixels | None = None
    end = Fraction(0)
    for begin, frame in _timed(container, stream, task):
        while shown is not None and written * step < begin - _TOLERANCE * step:
            pixels = _upright(shown, task, stretch)[0] if pixels is None else pixels
            writer.write(pixels)
            written += 1
        shown, pixels = frame, None
        if size is None:
            pixels, size = _upright(frame, task, stretch)
        end = begin + _shown_for(frame, stream, step)
    if shown is None or size is None:
        raise UploadError("invalid_video", "The video has no frame.")
    pixels = _upright(shown, task, stretch)[0] if pixels is None else pixels
    last = min(end, Fraction(task.max_seconds) + step)
    while written == 0 or written * step < last - _TOLERANCE * step:
        writer.write(pixels)
        written += 1
    return Decoded(kind="video", width=size[0], height=size[1], frames=writer.finish(pixels))


def _timed(
    container: av.container.InputContainer, stream: VideoStream, task: Task
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Frames and when they are shown, in seconds since the first, which never goes back."""
    first: Fraction | None = None
    now = Fraction(0)
    for count, frame in enumerate(container.decode(stream)):
        if count >= task.max_frames:
            raise UploadError("too_many_frames", f"The video has more than {task.max_frames} frames.")
        if frame.width * frame.height > task.max_video_pixels:
            raise _too_many_pixels(frame.width, frame.height, task.max_video_pixels)
        if frame.pts is not None and frame.time_base is not None:
            time = frame.pts * frame.time_base
            first = time if first is None else first
            now = max(now, time - first)
        if now > task.max_seconds:
            raise _too_long(task)
        yield now, frame


def _shown_for(frame: VideoFrame, stream: VideoStream, step: Fraction) -> Fraction:
    """Seconds that the last frame is shown."""
    if frame.duration and frame.time_base is not None:
        return frame.duration * frame.time_base
    rate = stream.average_rate
    return 1 / rate if rate else step


def _upright(frame: VideoFrame, task: Task, stretch: float) -> tuple[Pixels, tuple[int, int]]:
    """A frame in the task's size, and the size it is shown in. `stretch` is that of its pixels, as stored."""
    image = Image.fromarray(_rgb(frame))
    if turns := round(frame.rotation / 90) % 4:
        image = image.transpose(
            (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turns - 1]
        )
        stretch = 1 / stretch if turns % 2 else stretch
    return _covering(image, task, stretch), (max(1, round(image.width * stretch)), image.height)


def _rgb(frame: VideoFrame) -> Pixels:
    """A decoded frame in RGB: matrix and range as the file says, or by custom where it does not."""
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    matrix = int(frame.colorspace)
    if matrix in (_RGB, _UNSPECIFIED):  # nothing but RGB is in RGB, and that is settled above
        matrix = _BT709 if frame.height >= _HD_HEIGHT else _BT601
    full = int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")
    converted = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        src_color_range=_FULL if full else _LIMITED,
        dst_color_range=_FULL,
        interpolation=_CONVERSION,
        threads=1,
    )
    return converted.to_ndarray().astype(np.uint8, copy=False)


def _too_long(task: Task) -> UploadError:
    return UploadError("video_too_long", f"The video is longer than {task.max_seconds:g} s.")


# -- whether a file is all there ----------------------------------------------------------------------------


def _require_whole(end: int | None, source: BinaryIO) -> None:
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    if end is not None and end > size:
        raise UploadError("invalid_video", "The video is incomplete: the end of the file is missing.")


def _mp4_end(source: BinaryIO) -> int:
    """Where the last box of an MP4 says that it ends. ISO/IEC 14496-12, 4.2."""
    at = 0
    while True:
        source.seek(at)
        header = source.read(16)
        if len(header) < 8:
            return at
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:])
        if length < 8:
            return at  # 0: to the end of the file; anything else is for the reader to refuse
        at += length


def _matroska_end(source: BinaryIO) -> int | None:
    """Where a Matroska segment says that it ends; None when it does not say. RFC 8794."""
    data = source.read(4096)
    at = len(_EBML)
    length, taken = _ebml_length(data, at)
    at += taken + (length or 0)
    if data[at : at + 4] != _SEGMENT:
        return None
    length, taken = _ebml_length(data, at + 4)
    return None if length is None else at + 4 + taken + length


def _ebml_length(data: bytes, at: int) -> tuple[int | None, int]:
    """The length written at `at`, None for an unknown one, and how many bytes it is written in."""
    first = data[at] if at < len(data) else 0
    taken = 9 - first.bit_length()
    if taken > 8:
        return None, taken
    value = int.from_bytes(data[at : at + taken]) & ((1 << 7 * taken) - 1)
    return (None if value == (1 << 7 * taken) - 1 else value), taken


# -- what is written ----------------------------------------------------------------------------------------


class _Writer:
    """Lossless video of whole chunks: a chunk is written once it is whole."""

    def __init__(self, target: BinaryIO, task: Task) -> None:
        self._task, self._target = task, target
        self._pending: list[Pixels] = []
        self._written = 0

    def __enter__(self) -> _Writer:
        self._container = av.open(self._target, "w", format="matroska", options={"fflags": "+bitexact"})
        stream = self._container.add_stream("ffv1", rate=self._task.fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = self._task.width, self._task.height, "bgr0"
        stream.codec_context.thread_count = 1
        self._stream = stream
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def write(self, pixels: Pixels) -> None:
        self._pending.append(pixels)
        due = self._task.chunk_frames if self._written else self._task.first_chunk_frames
        if len(self._pending) < due:
            return
        for picture in self._pending:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self._written, Fraction(1, self._task.fps)
            self._container.mux(self._stream.encode(frame.reformat(format="bgr0")))
            self._written += 1
        self._pending.clear()

    def finish(self, last: Pixels) -> int:
        """Frames written. The rest of a chunk is dropped, except that of the first, which `last` fills up."""
        while not self._written:
            self.write(last)
        self._pending.clear()
        return self._written


# -- the process --------------------------------------------------------------------------------------------


def _shut_in(task: Task, output_bytes: int) -> None:
    """From here on: no more memory, time or file than this process may have."""
    signal.setitimer(signal.ITIMER_REAL, task.wall_seconds)  # its default action ends the process
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, task.memory_bytes),
        (resource.RLIMIT_CPU, task.cpu_seconds),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def main() -> int:
    """Exit code 0 with an answer on stdout; any other way to end means that decoding took too much."""
    target = os.fdopen(int(sys.argv[1]), "rb+")
    task = Task.model_validate_json(sys.argv[2])
    # FFV1 is never much larger than what it codes.
    frames = task.max_seconds * task.fps + task.chunk_frames + 1
    for name in _LATE_MODULES:
        importlib.import_module(name)
    Image.preinit()
    _shut_in(task, int(frames * task.width * task.height * 4.5) + 2**20)
    answer: Decoded | Refused
    try:
        answer = decode(sys.stdin.buffer, target, task)
        target.flush()
    except UploadError as error:
        answer = error.refused
        print(repr(error.__cause__ or error), file=sys.stderr)  # noqa: T201 - for the log
    except MemoryError:
        answer = UNDECODABLE
    print(type(answer).__name__, answer.model_dump_json())  # noqa: T201 - for the process that asked
    return 0


if __name__ == "__main__":
    sys.exit(main())
