"""The finished video: every frame of the segments, nothing else, playable from its first bytes."""

import subprocess
import sys
import textwrap
from fractions import Fraction
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from app.media_container import top_level_boxes
from app.storage import StoreUnavailable
from worker.media.assemble import AssemblyError, assemble_final, probe, spritesheet
from worker.media.encode import EncoderSettings

CODECS = ["h264", "av1", "vp9", "hevc"]


@pytest.mark.parametrize("codec", CODECS)
def test_the_final_video_has_the_pictures_of_its_segments(film, decode, tmp_path: Path, codec: str) -> None:
    init, segments, count = film((20, 20, 1, 7), settings=EncoderSettings(codec))
    out = tmp_path / "video.mp4"
    info = assemble_final(init, segments, out, count, 24)
    final = decode(out.read_bytes())
    assert final == decode(init + b"".join(segments))
    assert [time for time, _ in final] == pytest.approx([number / 24 for number in range(48)], abs=1e-6)
    assert (info.frames, info.fps, info.duration_seconds) == (48, 24, 2.0)
    assert info.codec == codec
    assert (info.width, info.height, info.size) == (64, 64, out.stat().st_size)


def test_the_index_comes_before_the_pictures(film, tmp_path: Path) -> None:
    init, segments, count = film()
    out = tmp_path / "video.mp4"
    assemble_final(init, segments, out, count, 24)
    kinds = [kind for kind, _ in top_level_boxes(out.read_bytes())]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert b"moof" not in kinds
    assert b"elst" not in out.read_bytes()


@pytest.mark.parametrize("fps", [24, 16, Fraction(24000, 1001)], ids=str)
def test_time_is_exact_from_the_first_frame_to_the_last(film, tmp_path: Path, fps: int | Fraction) -> None:
    init, segments, count = film((20, 20, 1, 7), fps=fps)
    out = tmp_path / "video.mp4"
    info = assemble_final(init, segments, out, count, fps)
    assert info.fps == fps
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.start_time == 0
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == count / Fraction(fps)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.pts * stream.time_base for packet in packets] == [
            n / Fraction(fps) for n in range(count)
        ]
        assert {packet.duration * stream.time_base for packet in packets} == {1 / Fraction(fps)}
        # One key frame a chunk: a player can seek to each.
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 20, 40, 41]


def test_segments_may_come_in_small_blocks(film, tmp_path: Path) -> None:
    init, segments, count = film()
    data = b"".join(segments)
    blocks = (data[start : start + 100] for start in range(0, len(data), 100))
    whole, small = tmp_path / "whole.mp4", tmp_path / "small.mp4"
    assemble_final(init, segments, whole, count, 24)
    assemble_final(init, blocks, small, count, 24)
    assert whole.read_bytes() == small.read_bytes()


def test_a_video_of_one_frame_is_a_video(film, tmp_path: Path) -> None:
    init, segments, count = film((1,))
    info = assemble_final(init, segments, tmp_path / "video.mp4", count, 24)
    assert (info.frames, info.fps) == (1, 24)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1], "hold 40 frames, not 47"),
        ([0, 2], "frame 20 begins at"),
        ([1, 2], "frame 0 begins at"),
        ([0, 1, 1, 2], "frame 40 begins at"),
        ([0, 2, 1], "frame 20 begins at"),
        ([], "frame|read|not 47"),
    ],
)
def test_a_gap_a_repetition_and_a_missing_end_are_found(
    film, tmp_path: Path, order: list[int], message: str
) -> None:
    init, segments, count = film((20, 20, 7))
    with pytest.raises(AssemblyError, match=message):
        assemble_final(init, [segments[index] for index in order], tmp_path / "video.mp4", count, 24)
    assert list(tmp_path.iterdir()) == []


def test_more_frames_than_expected_are_found(film, tmp_path: Path) -> None:
    init, segments, count = film()
    with pytest.raises(AssemblyError, match="more than 46"):
        assemble_final(init, segments, tmp_path / "video.mp4", count - 1, 24)
    assert list(tmp_path.iterdir()) == []


def test_another_frame_rate_than_the_segments_have_is_found(film, tmp_path: Path) -> None:
    init, segments, count = film()
    with pytest.raises(AssemblyError, match="frame 1 begins"):
        assemble_final(init, segments, tmp_path / "video.mp4", count, 25)


@pytest.mark.parametrize("damage", ["noise", "cut", "no init"])
def test_damaged_bytes_are_an_assembly_error(film, tmp_path: Path, damage: str) -> None:
    init, segments, count = film()
    noise = np.random.default_rng(0).bytes(5000)
    cases = {
        "noise": (init, [noise]),
        "cut": (init, [segments[0][:-500]]),
        "no init": (b"", segments),
    }
    with pytest.raises(AssemblyError):
        assemble_final(*cases[damage], tmp_path / "video.mp4", count, 24)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_in_the_middle_is_reported_as_itself(film, tmp_path: Path) -> None:
    init, segments, count = film()
    failure = StoreUnavailable("the store is away")

    def read():
        yield segments[0]
        raise failure

    with pytest.raises(StoreUnavailable) as caught:
        assemble_final(init, read(), tmp_path / "video.mp4", count, 24)
    assert caught.value is failure
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_hold_the_video_is_reported_as_such(film, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from worker.media.assemble import assemble_final
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        folder = Path(sys.argv[1])
        init, segment, out = (folder / "init").read_bytes(), (folder / "segment").read_bytes(), folder / "o.mp4"
        try:
            assemble_final(init, [segment], out, 20, 24)
        except OSError as error:
            print("OSError", error.errno, out.exists())
        """
    )
    init, segments, _ = film()
    (tmp_path / "init").write_bytes(init)
    (tmp_path / "segment").write_bytes(segments[0])
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert result.stdout == "OSError 27 False\n"


def test_memory_does_not_grow_with_the_length_of_the_video(film, moving, tmp_path: Path) -> None:
    """Ten minutes take as much as one: measured in a process of its own, by its peak."""
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from worker.media.assemble import assemble_final, spritesheet
        from worker.media.encode import encode_chunk
        seconds, out = int(sys.argv[1]), Path(sys.argv[2])
        frames = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
        init = encode_chunk(frames, 0, 0, 24).init
        segments = (encode_chunk(frames, index, 24 * index, 24).segment for index in range(seconds))
        assemble_final(init, segments, out, 24 * seconds, 24)
        spritesheet(out)
        print(out.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )

    def peak(seconds: int) -> tuple[int, int]:
        out = tmp_path / f"{seconds}.mp4"
        command = [sys.executable, "-c", program, str(seconds), out]
        size, kibibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(size), int(kibibytes)

    short_size, short_peak = peak(60)
    long_size, long_peak = peak(600)
    assert long_size > 9 * short_size > 18_000_000
    assert long_peak < short_peak + 6_000


def test_probe_counts_the_frames_of_a_fragmented_file(film, tmp_path: Path) -> None:
    init, segments, count = film((20, 7))
    path = tmp_path / "fragmented.mp4"
    path.write_bytes(init + b"".join(segments))
    info = probe(path)
    assert (info.codec, info.frames, info.fps) == ("h264", count, 24)


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_probe_refuses_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.mp4"
    path.write_bytes(content)
    with pytest.raises(AssemblyError) as caught:
        probe(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_spritesheet_shows_stills_in_the_order_of_time(tmp_path: Path) -> None:
    from worker.media.encode import encode_chunk

    # Frame k is a grey of level k, so a tile tells the frame it was taken from.
    count = 200
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 64, 128, 3))
    chunks = [encode_chunk(frames[at : at + 20], at // 20, at, 24) for at in range(0, count, 20)]
    out = tmp_path / "video.mp4"
    assemble_final(chunks[0].init, [chunk.segment for chunk in chunks], out, count, 24)
    sheet = np.asarray(Image.open(BytesIO(spritesheet(out, columns=5, rows=4, tile_width=32))).convert("L"))
    assert sheet.shape == (4 * 16, 5 * 32)
    tiles = sheet.reshape(4, 16, 5, 32).transpose(0, 2, 1, 3).reshape(20, -1).mean(axis=1)
    assert tiles == pytest.approx([5 + 10 * place for place in range(20)], abs=3)


def test_a_spritesheet_of_a_short_video_repeats_frames(film, tmp_path: Path) -> None:
    init, segments, count = film((2,))
    out = tmp_path / "video.mp4"
    assemble_final(init, segments, out, count, 24)
    assert Image.open(BytesIO(spritesheet(out))).size == (800, 800)


def test_assembly_is_deterministic(film, tmp_path: Path) -> None:
    init, segments, count = film()
    hashes = set()
    for name in ("a.mp4", "b.mp4"):
        assemble_final(init, segments, tmp_path / name, count, 24)
        hashes.add(sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
