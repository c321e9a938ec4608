"""Keys, media types, and headers."""

import inspect

import pytest

from app.storage import InvalidKey, objects
from app.storage.objects import (
    BlockStream,
    checkpoint_key,
    chunk_key,
    content_disposition,
    content_type_of,
    final_key,
    init_key,
    latents_key,
    manifest_key,
    reference_key,
    spritesheet_key,
    thumbnail_key,
    validate_key,
    video_prefix,
)

KEYS = {
    manifest_key("v"): "videos/v/manifest.json",
    init_key("v"): "videos/v/init.mp4",
    chunk_key("v", 7): "videos/v/chunks/000007.m4s",
    latents_key("v", 7): "videos/v/latents/000007.safetensors",
    checkpoint_key("v", 999_999): "videos/v/checkpoints/999999.safetensors",
    final_key("v"): "videos/v/video.mp4",
    thumbnail_key("v"): "videos/v/thumbnail.jpg",
    spritesheet_key("v"): "videos/v/spritesheet.jpg",
    reference_key("v"): "videos/v/reference.mkv",
}


def test_keys_are_those_of_the_table() -> None:
    for built, expected in KEYS.items():
        assert built == validate_key(expected)
        assert built.startswith(video_prefix("v"))


def test_every_key_function_is_in_the_documented_table() -> None:
    functions = [name for name, _ in inspect.getmembers(objects, inspect.isfunction) if name.endswith("_key")]
    documented = [name for name in functions if f"| `{name}`" in str(objects.__doc__)]
    assert set(functions) - set(documented) == {"validate_key"}
    assert len(documented) == len(KEYS)


@pytest.mark.parametrize(
    "video_id", ["", ".", "..", "a/b", "../a", "a b", "a.b", "-a", "a\n", "ä", "x" * 129]
)
def test_an_id_that_is_no_name_is_refused(video_id: str) -> None:
    with pytest.raises(InvalidKey):
        final_key(video_id)


@pytest.mark.parametrize("index", [-1, 1_000_000])
def test_a_chunk_number_that_would_break_the_order_is_refused(index: int) -> None:
    with pytest.raises(InvalidKey):
        chunk_key("v", index)


def test_the_extension_decides_the_media_type() -> None:
    assert content_type_of(final_key("v")) == "video/mp4"
    assert content_type_of(chunk_key("v", 0)) == "video/iso.segment"
    assert content_type_of(thumbnail_key("v")) == "image/jpeg"
    assert content_type_of(latents_key("v", 0)) == "application/octet-stream"
    assert content_type_of("none") == "application/octet-stream"


def test_a_file_name_cannot_break_out_of_its_header() -> None:
    header = content_disposition('a"; x=\r\nSet-Cookie: b')
    assert "\r" not in header
    assert "\n" not in header
    assert header.count('"') == 2


def test_a_stream_closes_its_source_once_and_before_the_last_block_is_used() -> None:
    closed: list[bool] = []
    stream = BlockStream(lambda count: b"x" * count, lambda: closed.append(True), length=5, block_bytes=2)
    assert list(stream) == [b"xx", b"xx", b"x"]
    stream.close()
    assert list(stream) == []
    assert closed == [True]
