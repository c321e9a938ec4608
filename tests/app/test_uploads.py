"""Uploads: what is taken and what becomes of it, what is refused, and that nothing an upload does gets any further.

Hostile files go the whole way, over HTTP into the process that decodes them. What a good file becomes is looked at
in the decoder itself, which is the same code without the walls.
"""

from __future__ import annotations

import base64
import io
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from app.settings import Settings
from app.storage.objects import reference_key, video_prefix
from app.upload_contract import Decoded, Task
from app.upload_decoder import UploadError, decode
from tests.app.conftest import Api, running_api
from worker.media.encode import ordinary_priority

RED, GREEN, BLUE = (200, 40, 30), (30, 190, 60), (40, 50, 210)


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {
        "width": 64,
        "height": 64,
        "fps": 24,
        "first_chunk_frames": 17,
        "chunk_frames": 20,
        "max_pixels": 1_000_000,
        "max_video_pixels": 500_000,
        "max_seconds": 10.0,
        "max_frames": 400,
        "memory_bytes": 2**31,
        "cpu_seconds": 20,
        "wall_seconds": 20.0,
    }
    return Task(**(given | changes))


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].average_rate == 24
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def decoded(data: bytes, **changes: Any) -> tuple[Decoded, np.ndarray]:
    target = io.BytesIO()
    found = decode(io.BytesIO(data), target, task(**changes))
    frames = frames_of(target.getvalue())
    assert len(frames) == found.frames
    return found, frames


def refused(data: bytes, **changes: Any) -> str:
    with pytest.raises(UploadError) as caught:
        decode(io.BytesIO(data), io.BytesIO(), task(**changes))
    return caught.value.refused.code


def image(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color: tuple[int, int, int], width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def quarters(width: int = 64, height: int = 64) -> np.ndarray:
    """Red at the top left, green at the top right, blue at the bottom left, grey at the bottom right."""
    picture = plain((128, 128, 128), width, height)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    return picture


def video(
    pictures: list[np.ndarray],
    *,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 24,
    times: list[int] | None = None,
    matrix: int = 5,
    full: bool = False,
    tagged: bool = True,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    ratio: Fraction | None = None,
    audio: bool = False,
) -> bytes:
    """A clip. `times` are in milliseconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as out:
        quality = {"crf": "8"} if codec in ("libx264", "libx265") else {}
        if codec == "libx265":
            quality["x265-params"] = "log-level=none"
        stream: Any = out.add_stream(codec, rate=rate, options=quality)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = pixels, 20_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        if tagged:
            stream.codec_context.colorspace = matrix
            stream.codec_context.color_range = 2 if full else 1
        with ordinary_priority():
            stream.codec_context.open()
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixels,
                dst_colorspace=matrix,
                src_color_range=2,
                dst_color_range=2 if full else 1,
                interpolation="BICUBIC",
            )
            frame.pts = times[number] if times else round(1000 * number / rate)
            frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def moving(count: int) -> list[np.ndarray]:
    """Every frame a grey of its own: 20, 24, 28, ..."""
    return [plain((20 + 4 * n,) * 3) for n in range(count)]


def greys(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 20) / 4) for frame in frames]


# -- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_of_the_right_size_is_kept_exactly_and_held_for_a_chunk(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found, frames = decoded(image(noise, kind, lossless=True))
    assert (found.kind, found.width, found.height, found.frames) == ("image", 64, 64, 17)
    assert all(np.array_equal(frame, noise) for frame in frames)


def test_a_picture_is_scaled_to_cover_and_cropped_around_its_centre() -> None:
    wide = plain(GREEN, 400, 100)
    wide[:, :150], wide[:, 250:] = RED, BLUE  # only the 100 in the middle are seen
    found, frames = decoded(image(wide))
    assert (found.width, found.height) == (400, 100)
    assert np.abs(frames[0].astype(int) - GREEN).max() <= 12
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    assert np.abs(decoded(image(tall))[1][0].astype(int) - GREEN).max() <= 12


def test_a_large_picture_is_scaled_down_without_aliasing() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(decoded(image(stripes))[1][0].astype(int) - 128).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(orientation: int) -> None:
    upright = Image.fromarray(quarters(64, 64))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = decoded(image(stored, "JPEG", quality=95, subsampling=0, exif=exif))[1][0]
    assert np.abs(frame[8:24, 8:24].astype(int) - RED).mean() < 6
    assert np.abs(frame[8:24, 40:56].astype(int) - GREEN).mean() < 6
    assert np.abs(frame[40:56, 8:24].astype(int) - BLUE).mean() < 6


def test_every_kind_of_pixel_becomes_rgb() -> None:
    glass = np.zeros((64, 64, 4), np.uint8)
    glass[:, :32] = (*RED, 255)
    glass[:, 32:] = (255, 255, 255, 0)
    for kind in ("PNG", "WEBP"):
        frame = decoded(image(Image.fromarray(glass, "RGBA"), kind, lossless=True))[1][0]
        assert frame[9, 9].tolist() == list(RED)
        assert frame[9, 50].tolist() == [0, 0, 0]
    grey16 = Image.fromarray(np.full((64, 64), 128 * 257, np.uint16))
    assert decoded(image(grey16))[1][0][5, 5].tolist() == [128, 128, 128]
    palette = Image.fromarray(plain(BLUE)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(decoded(image(palette))[1][0][5, 5].astype(int) - BLUE).max() <= 2
    cmyk = Image.fromarray(plain(GREEN)).convert("CMYK")
    assert np.abs(decoded(image(cmyk, "JPEG", quality=95))[1][0][5, 5].astype(int) - GREEN).max() <= 8
    assert decoded(image(Image.fromarray(plain((77, 77, 77))).convert("L")))[1][0][5, 5].tolist() == [77] * 3


def test_of_an_animation_the_first_picture_counts() -> None:
    first, second = Image.fromarray(plain(RED)), Image.fromarray(plain(BLUE))
    for kind in ("PNG", "WEBP"):
        data = image(first, kind, save_all=True, append_images=[second], duration=100, lossless=True)
        assert decoded(data)[1][0][5, 5].tolist() == list(RED)


# -- clips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "mov", "yuv444p"),
        ("libx265", "mp4", "yuv420p10le"),
        ("libvpx", "webm", "yuv420p"),
        ("libvpx-vp9", "webm", "yuv420p"),
        ("libsvtav1", "matroska", "yuv420p"),
        ("mpeg4", "mov", "yuv420p"),
        ("prores_ks", "mov", "yuv422p10le"),
        ("mjpeg", "matroska", "yuvj420p"),
        ("ffv1", "matroska", "bgr0"),
    ],
)
def test_common_clips_are_taken_frame_by_frame_and_cut_to_whole_chunks(
    codec: str, container: str, pixels: str
) -> None:
    full = codec in ("mjpeg", "ffv1")
    data = video(
        moving(40), codec=codec, container=container, pixels=pixels, full=full, tagged=codec != "ffv1"
    )
    found, frames = decoded(data)
    assert (found.kind, found.width, found.height) == ("video", 64, 64)
    assert greys(frames) == list(range(37))  # 17 and 20


@pytest.mark.parametrize("matrix", [1, 5], ids=["BT.709", "BT.601"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_are_read_as_the_clip_was_written(matrix: int, full: bool) -> None:
    for color in (RED, GREEN, BLUE, (255, 255, 255), (0, 0, 0)):
        frame = decoded(video([plain(color)] * 3, matrix=matrix, full=full))[1][0]
        assert np.abs(frame[32, 32].astype(int) - color).max() <= 5, color


def test_a_clip_that_does_not_say_is_read_as_is_usual_for_its_size() -> None:
    small = decoded(video([plain(RED)], matrix=5, tagged=False))[1][0]
    assert np.abs(small[32, 32].astype(int) - RED).max() <= 5
    large = video([plain(RED, 1280, 720)], matrix=1, tagged=False)
    assert np.abs(decoded(large, max_video_pixels=1_000_000)[1][0][32, 32].astype(int) - RED).max() <= 5


def test_other_and_variable_rates_become_that_of_the_video() -> None:
    assert greys(decoded(video(moving(24), rate=12))[1]) == [n // 2 for n in range(37)]
    every_other = greys(decoded(video(moving(50), rate=48))[1])
    assert every_other == [2 * n for n in range(17)]
    # 0.5 s of the first frame, then six of 50 ms, then a second of the last but one.
    times = [0, 500, 550, 600, 650, 700, 750, 1750]
    shown = greys(decoded(video(moving(8), times=times))[1])
    assert shown[:12] == [0] * 12
    assert shown[18:37] == [6] * 19
    assert sorted(shown) == shown


def test_a_clip_shorter_than_a_chunk_is_held() -> None:
    assert greys(decoded(video(moving(5)))[1]) == [0, 1, 2, 3, *[4] * 13]
    assert greys(decoded(video(moving(1)))[1]) == [0] * 17


def test_a_clip_that_was_filmed_sideways_is_turned() -> None:
    data = bytearray(video([quarters(96, 64)] * 2))
    at = data.index(b"tkhd") + 4 + 40
    # The matrix of ISO/IEC 14496-12: shown a quarter of a turn clockwise.
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    found, frames = decoded(bytes(data))
    assert (found.width, found.height) == (64, 96)
    assert np.abs(frames[0][8:24, 40:56].astype(int) - RED).mean() < 12
    assert np.abs(frames[0][8:24, 8:24].astype(int) - BLUE).mean() < 12
    assert np.abs(frames[0][40:56, 40:56].astype(int) - GREEN).mean() < 12


def test_pixels_that_are_not_square_are_shown_in_their_shape() -> None:
    wide = plain(GREEN, 64, 64)
    wide[:, :12], wide[:, 52:] = RED, BLUE  # twice as wide as high: a quarter at each side is cut away
    found, frames = decoded(video([wide], ratio=Fraction(2, 1)))
    assert (found.width, found.height) == (128, 64)
    assert np.abs(frames[0].astype(int) - GREEN).mean() < 8


# -- hostile files ------------------------------------------------------------------------------------------


def png_that_says(width: int, height: int) -> bytes:
    """A whole, tiny PNG with a huge picture in it: all zeros compress by a thousand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(1 + width)) for _ in range(min(height, 4000)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", rows + compressor.flush())
        + chunk(b"IEND", b"")
    )


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=48000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


GOOD_PNG = image(quarters())
GOOD_MP4 = video(moving(30))
FRAGMENTED = video(moving(30), options={"movflags": "frag_keyframe+empty_moov"})
GOOD_MKV = video(moving(30), container="matroska")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'

HOSTILE: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "unsupported_media"),
    ("text", b"hello", "unsupported_media"),
    ("a page", b"<html><script>alert(1)</script></html>", "unsupported_media"),
    ("SVG", SVG, "unsupported_media"),
    ("SVG with a declaration", b'<?xml version="1.0"?>' + SVG, "unsupported_media"),
    ("a playlist", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "unsupported_media"),
    ("a concat script", b"ffconcat version 1.0\nfile /etc/passwd\n", "unsupported_media"),
    ("an archive", b"PK\x03\x04" + bytes(100), "unsupported_media"),
    ("PDF", b"%PDF-1.7\n", "unsupported_media"),
    ("GIF", image(quarters(), "GIF"), "unsupported_media"),
    ("BMP", image(quarters(), "BMP"), "unsupported_media"),
    ("TIFF", image(quarters(), "TIFF"), "unsupported_media"),
    ("AVIF by its brand", b"\0\0\0\x1cftypavif" + bytes(200), "unsupported_media"),
    ("AVI", b"RIFF\0\0\0\0AVI LIST" + bytes(100), "unsupported_media"),
    ("sound alone", sound(), "unsupported_media"),
    ("another codec", video(moving(3), codec="rawvideo", container="mov", pixels="yuyv422"), "unsupported_media"),
    ("half a PNG", GOOD_PNG[: len(GOOD_PNG) // 2], "invalid_image"),
    ("a PNG's first bytes", GOOD_PNG[:20], "invalid_image"),
    ("a JPEG's first bytes", b"\xff\xd8\xff\xe0", "invalid_image"),
    ("half a JPEG", image(quarters(), "JPEG")[:500], "invalid_image"),
    ("half a WebP", image(quarters(), "WEBP")[:60], "invalid_image"),
    ("a page behind a JPEG's first bytes", b"\xff\xd8\xff<script>alert(1)</script>", "invalid_image"),
    ("a PNG bomb", png_that_says(100_000, 100_000), "too_many_pixels"),
    ("half an MP4", GOOD_MP4[: len(GOOD_MP4) // 2], "invalid_video"),
    ("an MP4 that lacks its last bytes", FRAGMENTED[: FRAGMENTED.rindex(b"mdat") + 40], "invalid_video"),
    ("half a Matroska file", GOOD_MKV[: len(GOOD_MKV) // 2], "invalid_video"),
    ("an MP4's first box", GOOD_MP4[:28], "invalid_video"),
    ("a Matroska header alone", GOOD_MKV[:40], "invalid_video"),
    ("noise in an MP4", GOOD_MP4[:28] + bytes(range(256)) * 40, "invalid_video"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_what_is_no_picture_is_refused_with_a_reason(data: bytes, code: str) -> None:
    assert refused(data) == code


def test_damage_of_any_kind_ends_in_a_picture_or_a_reason() -> None:
    chance = random.Random(0)
    whole = [GOOD_PNG, image(quarters(), "JPEG"), image(quarters(), "WEBP"), GOOD_MP4, FRAGMENTED, GOOD_MKV]
    reasons = set()
    for _ in range(400):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            assert decode(io.BytesIO(data), io.BytesIO(), task()).frames >= 17
        except UploadError as error:
            reasons.add(error.refused.code)
        except MemoryError:  # what the process turns into a reason of its own
            reasons.add("decoding_failed")
    assert {"invalid_image", "invalid_video", "unsupported_media"} <= reasons


def test_limits_hold_for_what_is_in_the_file() -> None:
    big = image(plain(RED, 300, 300))
    assert refused(big, max_pixels=89_999) == "too_many_pixels"
    assert decoded(big, max_pixels=90_000)[0].width == 300
    assert refused(GOOD_MP4, max_video_pixels=64 * 64 - 1) == "too_many_pixels"
    assert refused(GOOD_MP4, max_seconds=0.5) == "video_too_long"
    assert refused(GOOD_MP4, max_frames=29) == "too_many_frames"
    assert decoded(GOOD_MP4, max_frames=30, max_seconds=1.3)[0].frames == 17


def test_a_clip_that_lies_about_its_length_or_size_is_found_out() -> None:
    data = bytearray(video([plain(RED)] * 5, times=[0, 40, 80, 120, 60_000]))
    at = data.index(b"mvhd") + 4 + 16
    data[at : at + 4] = struct.pack(">I", 1)
    assert refused(bytes(data)) == "video_too_long"
    small = bytearray(video([plain(RED, 640, 480)] * 2))
    for box, offset in ((b"avc1", 24), (b"tkhd", 76)):
        where = small.index(box) + 4 + offset
        small[where : where + 4] = (
            struct.pack(">HH", 64, 64) if box == b"avc1" else struct.pack(">I", 64 << 16)
        )
    assert refused(bytes(small), max_video_pixels=64 * 64) in ("too_many_pixels", "invalid_video")


def test_a_clip_that_points_elsewhere_reads_nothing_from_there(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.mp4"
    elsewhere.write_bytes(video([plain(BLUE)] * 5))
    data = bytearray(video([plain(RED)] * 5))
    # The sample description says that its frames are in another file, by an absolute path.
    at = data.index(b"url ") - 4
    location = str(elsewhere).encode() + b"\0"
    entry = struct.pack(">I", 12 + len(location)) + b"url \0\0\0\0" + location
    grown = len(entry) - 12
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        where = data.index(box) - 4
        data[where : where + 4] = struct.pack(">I", struct.unpack_from(">I", data, where)[0] + grown)
    data[at : at + 12] = entry
    _, frames = decoded(bytes(data))
    assert np.abs(frames[0][32, 32].astype(int) - RED).max() <= 5


# -- the process --------------------------------------------------------------------------------------------


def send(api: Api, data: bytes, **fields: Any) -> Any:
    form = {"prompt": "A red ball", "seconds": "2", **fields}
    return api.http.post("/v1/videos", data=form, files={"input_reference": ("a.png", data, "image/png")})


def references(api: Api) -> list[str]:
    return [info.key for info in api.worker.objects.list("videos/") if info.key.endswith("reference.mkv")]


@pytest.mark.parametrize(
    "name", ["a page", "SVG", "a playlist", "sound alone", "half a PNG", "a PNG bomb", "half an MP4"]
)
def test_a_hostile_file_gets_a_clear_answer_and_makes_nothing(api: Api, name: str) -> None:
    ((data, code),) = (case[1:] for case in HOSTILE if case[0] == name)
    before = references(api)
    message = api.error(send(api, data), 400, code, "input_reference")
    assert len(message) < 200
    assert api.http.get("/v1/videos").json()["data"] == []
    assert references(api) == before


def test_a_file_that_takes_too_much_ends_its_process_and_nothing_else(
    settings: Callable[..., Settings],
) -> None:
    # A picture of a size that is allowed, which needs more memory than is allowed.
    hungry = png_that_says(20_000, 20_000)
    limits = {"max_upload_pixels": 10**9, "upload_memory_bytes": 768 * 2**20, "upload_cpu_seconds": 20}
    with running_api(settings(**limits)) as api:
        api.worker.register()
        api.error(send(api, hungry), 400, "decoding_failed", "input_reference")
        assert send(api, GOOD_PNG).status_code == 200
    with running_api(settings(upload_wall_seconds=0.001)) as api:
        api.worker.register()
        api.error(send(api, GOOD_PNG), 400, "decoding_failed", "input_reference")


def test_the_decoder_is_shut_in(tmp_path: Path) -> None:
    code = (
        "import resource, socket\nfrom app.upload_decoder import _shut_in\nfrom tests.app.test_uploads import task\n"
        "_shut_in(task(), 1000)\n"
        "for act in (lambda: open('/etc/hostname'), socket.socket, lambda: bytearray(2**32)):\n"
        "    try: act()\n    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
        "try: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); print('raised')\n"
        "except (ValueError, OSError): print('kept')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    root = resource.getrlimit(
        resource.RLIMIT_NOFILE
    )  # read here to show that the limits are the child's alone
    assert root[0] > 100
    assert done.stdout.split()[:3] == ["OSError", "OSError", "MemoryError"]


# -- the request --------------------------------------------------------------------------------------------


def test_an_upload_that_waits_too_long_for_its_turn_is_told_to_come_back(
    settings: Callable[..., Settings],
) -> None:
    with running_api(settings(uploads_at_once=1, upload_queue_seconds=0)) as api:
        api.worker.register()
        api.context._decoding._value = 0  # as while another upload is being decoded
        api.error(send(api, GOOD_PNG), 503, "uploads_busy")
        api.context._decoding.release()
        assert send(api, GOOD_PNG).status_code == 200


def test_an_image_and_a_clip_begin_a_video(api: Api) -> None:
    answer = send(api, image(quarters(200, 100), "JPEG"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_reference"] == {"kind": "image", "width": 200, "height": 100, "frames": 17}
    stored = api.worker.videos.get(answer.json()["id"])
    assert stored is not None
    assert (stored.spec.given_chunks, stored.spec.frames) == (1, 48)
    frames = frames_of(api.worker.objects.get(reference_key(stored.id)))
    assert frames.shape == (17, 64, 64, 3)

    clip = send(api, GOOD_MP4, seconds="3", size="128x128").json()
    assert clip["input_reference"] == {"kind": "video", "width": 64, "height": 64, "frames": 17}
    assert frames_of(api.worker.objects.get(reference_key(clip["id"]))).shape == (17, 128, 128, 3)
    assert api.create()["input_reference"] is None
    assert api.http.delete(f"/v1/videos/{clip['id']}").status_code == 200
    assert list(api.worker.objects.list(video_prefix(clip["id"]))) == []


def test_a_data_url_is_a_file(api: Api) -> None:
    url = "data:text/html;base64," + base64.b64encode(GOOD_PNG).decode()  # its type is only a claim
    as_json = api.create(input_reference={"image_url": url})
    assert as_json["input_reference"]["kind"] == "image"
    form = {"prompt": "x", "seconds": "2", "input_reference[image_url]": url}
    as_form = api.http.post("/v1/videos", files={name: (None, text) for name, text in form.items()})
    assert as_form.json()["input_reference"] == as_json["input_reference"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"image_url": "https://example.com/a.png"}, "fetches nothing"),
        ({"image_url": "file:///etc/passwd"}, "fetches nothing"),
        ({"image_url": "data:image/png,abc"}, "base64"),
        ({"image_url": "data:image/png;base64,????"}, "base64"),
        ({"image_url": 7}, "image_url"),
        ({"file_id": "file-1"}, "image_url"),
        ({"image_url": "data:,", "file_id": "file-1"}, "nothing else"),
        ({}, "image_url"),
        ("data:image/png;base64,AA==", "object with an image_url"),
        ([], "image_url"),
    ],
)
def test_a_reference_that_is_none_is_refused(api: Api, reference: Any, words: str) -> None:
    body = {"prompt": "x", "seconds": 2, "input_reference": reference}
    answer = api.http.post("/v1/videos", json=body)
    assert words in api.error(answer, 400, "invalid_value", "input_reference")


def test_a_reference_must_leave_something_to_be_made(api: Api) -> None:
    message = api.error(send(api, GOOD_PNG, seconds="0.5"), 400, "reference_too_long", "seconds")
    assert "0.708333 s are given" in message
    assert send(api, GOOD_PNG, seconds="0.75").status_code == 200


def test_a_file_above_the_limit_is_refused(settings: Callable[..., Settings]) -> None:
    limits = {"max_upload_bytes": 100_000, "max_body_bytes": 10_000, "max_data_url_bytes": 1000}
    with running_api(settings(**limits)) as api:
        api.worker.register()
        api.error(send(api, bytes(100_001)), 413, "file_too_large", "input_reference")
        api.error(send(api, bytes(200_000)), 413, "body_too_large")
        assert (
            send(api, GOOD_PNG + bytes(99_000)).status_code == 200
        )  # what follows a picture does not matter
        long = {"prompt": "x", "input_reference": {"image_url": "data:;base64," + "A" * 2000}}
        api.error(api.http.post("/v1/videos", json=long), 413, "file_too_large", "input_reference")
        text = {"prompt": (None, "x" * 20_000), "input_reference": ("a", GOOD_PNG)}
        api.error(api.http.post("/v1/videos", files=text), 413, "body_too_large")


def test_an_idempotency_key_covers_the_file_and_a_repetition_leaves_nothing_behind(api: Api) -> None:
    def ask(data: bytes) -> Any:
        return api.http.post(
            "/v1/videos",
            data={"prompt": "x", "seconds": "2", "seed": "1"},
            files={"input_reference": ("a", data)},
            headers={"Idempotency-Key": "upload"},
        )

    first = ask(GOOD_PNG)
    stored = references(api)
    again = ask(GOOD_PNG)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    api.error(ask(image(plain(RED))), 422, "idempotency_mismatch", "Idempotency-Key")
    assert references(api) == stored


def test_a_repeated_upload_is_not_decoded_again(settings: Callable[..., Settings]) -> None:
    with running_api(settings(uploads_at_once=1, upload_queue_seconds=0)) as api:
        api.worker.register()
        url = "data:image/png;base64," + base64.b64encode(GOOD_PNG).decode()
        body = {"prompt": "x", "seconds": 2, "input_reference": {"image_url": url}}
        key = {"Idempotency-Key": "upload"}
        first = api.http.post("/v1/videos", json=body, headers=key)
        assert first.status_code == 200, first.text
        api.context._decoding._value = 0  # as while another upload is being decoded
        api.error(api.http.post("/v1/videos", json=body), 503, "uploads_busy")
        again = api.http.post("/v1/videos", json=body, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert again.headers["Idempotent-Replayed"] == "true"


def test_a_full_queue_leaves_nothing_behind(settings: Callable[..., Settings]) -> None:
    with running_api(settings(max_queued=1)) as api:
        api.worker.register()
        api.create()
        api.error(send(api, GOOD_PNG), 429, "queue_full")
        assert references(api) == []
