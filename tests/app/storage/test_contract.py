"""What every object store does alike, on a folder, on moto, and on OpenStack Swift."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.storage import (
    InvalidKey,
    ObjectNotFound,
    ObjectStore,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
)
from app.storage.objects import chunk_key, final_key, init_key, manifest_key, video_prefix

KEY = chunk_key("video_1", 0)
TEXT = b"0123456789"


def test_an_object_comes_back_as_it_was_written(store: ObjectStore) -> None:
    data = os.urandom(300_000)
    store.put(KEY, data)
    assert store.get(KEY) == data


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put(KEY, b"")
    assert store.get(KEY) == b""
    assert list(store.stream(KEY)) == []
    assert store.head(KEY).size == 0


def test_writing_again_replaces_the_bytes_and_the_etag(store: ObjectStore) -> None:
    store.put(KEY, b"first")
    before = store.head(KEY)
    store.put(KEY, b"again")
    assert store.get(KEY) == b"again"
    assert store.head(KEY).etag != before.etag


@pytest.mark.parametrize("size", [1_000, 20 * 1024 * 1024], ids=["one request", "multipart"])
def test_a_file_is_stored_without_its_name(store: ObjectStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    source = tmp_path / "secret name"
    source.write_bytes(data)
    store.put(final_key("video_1"), source)
    assert store.get(final_key("video_1")) == data
    assert store.head(final_key("video_1")).content_type == "video/mp4"
    assert source.read_bytes() == data


def test_a_file_can_be_created_only_if_absent(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(TEXT)
    store.put(KEY, source, if_absent=True)
    with pytest.raises(PreconditionFailed):
        store.put(KEY, source, if_absent=True)
    assert store.get(KEY) == TEXT


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_copy_has_the_bytes_and_outlives_its_source(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    store.put(KEY, data)
    target = chunk_key("video_2", 3)
    store.put(target, b"what was there before")
    store.copy(KEY, target)
    assert store.get(KEY) == store.get(target) == data
    assert store.head(target).content_type == store.head(KEY).content_type == "video/iso.segment"
    store.delete_prefix(video_prefix("video_1"))
    assert store.get(target) == data
    store.copy(target, KEY)
    store.put(target, b"changed")
    assert store.get(KEY) == data


def test_what_is_not_there_cannot_be_copied(store: ObjectStore) -> None:
    target = chunk_key("video_2", 0)
    with pytest.raises(ObjectNotFound):
        store.copy(KEY, target)
    assert not store.exists(target)
    with pytest.raises(InvalidKey):
        store.copy(KEY, "../elsewhere")


def test_a_missing_source_file_is_the_callers_error(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put(KEY, tmp_path / "missing")


def test_if_absent_leaves_what_is_there(store: ObjectStore) -> None:
    store.put(KEY, b"mine", if_absent=True)
    with pytest.raises(PreconditionFailed) as caught:
        store.put(KEY, b"theirs", if_absent=True)
    assert caught.value.code == "precondition_failed"
    assert store.get(KEY) == b"mine"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, TEXT), (3, None, b"3456789"), (0, 1, b"0"), (2, 5, b"234"), (9, 10, b"9"), (7, 99, b"789")],
)
def test_a_range_is_half_open_and_cut_at_the_end(
    store: ObjectStore, start: int, end: int | None, expected: bytes
) -> None:
    store.put(KEY, TEXT)
    assert store.get(KEY, start, end) == expected
    with store.stream(KEY, start, end) as blocks:
        assert blocks.length == len(expected)
        assert b"".join(blocks) == expected


@pytest.mark.parametrize(("start", "end"), [(10, None), (10, 12), (99, None), (5, 5), (5, 3), (-1, None)])
def test_a_range_without_a_byte_is_not_satisfiable(store: ObjectStore, start: int, end: int | None) -> None:
    store.put(KEY, TEXT)
    with pytest.raises(RangeNotSatisfiable):
        store.get(KEY, start, end)
    with pytest.raises(RangeNotSatisfiable):
        store.stream(KEY, start, end)


def test_a_stream_delivers_bounded_blocks(store: ObjectStore) -> None:
    data = os.urandom(10_000)
    store.put(KEY, data)
    blocks = list(store.stream(KEY, block_bytes=4096))
    assert b"".join(blocks) == data
    assert max(len(block) for block in blocks) <= 4096


def test_streams_may_be_left_early(store: ObjectStore) -> None:
    store.put(KEY, os.urandom(300_000))
    for _ in range(20):
        with store.stream(KEY, block_bytes=1024) as blocks:
            next(blocks)
    assert store.exists(KEY)


def test_a_missing_object_is_reported_before_the_first_block(store: ObjectStore) -> None:
    for read in (store.get, store.stream, store.head):
        with pytest.raises(ObjectNotFound) as caught:
            read(KEY)
        assert caught.value.code == "object_not_found"
        assert not caught.value.retryable
    assert not store.exists(KEY)


def test_head_tells_size_time_and_type(store: ObjectStore) -> None:
    store.put(manifest_key("video_1"), b"{}")
    info = store.head(manifest_key("video_1"))
    assert (info.key, info.size, info.content_type) == (manifest_key("video_1"), 2, "application/json")
    assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
    assert info.etag
    assert '"' not in info.etag


def test_deleting_is_idempotent(store: ObjectStore) -> None:
    store.put(KEY, TEXT)
    store.delete(KEY)
    store.delete(KEY)
    assert not store.exists(KEY)


def test_deleting_a_folder_spares_its_neighbours(store: ObjectStore) -> None:
    mine = [init_key("a"), manifest_key("a"), *(chunk_key("a", index) for index in range(5))]
    others = [init_key("ab"), init_key("a-b")]
    for key in mine + others:
        store.put(key, TEXT)
    store.delete_prefix(video_prefix("a"))
    store.delete_prefix(video_prefix("a"))
    assert sorted(info.key for info in store.list()) == sorted(others)
    store.put(init_key("a"), TEXT)
    assert store.exists(init_key("a"))


def test_everything_at_once_cannot_be_deleted(store: ObjectStore) -> None:
    with pytest.raises(InvalidKey):
        store.delete_prefix("")


def test_a_listing_is_in_the_order_of_keys(store: ObjectStore) -> None:
    keys = [init_key("a"), init_key("a-b"), init_key("ab"), *(chunk_key("a", index) for index in (10, 2, 0))]
    for key in keys:
        store.put(key, TEXT)
    assert [info.key for info in store.list()] == sorted(keys)
    inside = list(store.list("videos/a/chunks/"))
    assert [info.key for info in inside] == [chunk_key("a", index) for index in (0, 2, 10)]
    assert {info.size for info in inside} == {len(TEXT)}
    assert {info.content_type for info in inside} == {"video/iso.segment"}
    assert inside[0].etag == store.head(inside[0].key).etag
    assert list(store.list("videos/none/")) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "videos//a",
        "videos/",
        "../a",
        "videos/../../a",
        "videos/./a",
        "videos/..",
        ".tmp/a",
        "videos/.hidden",
        "videos\\a",
        "videos/a\0b",
        "videos/a b",
        "videos/a\n",
        "videos/ä",
        "videos/%2e%2e/a",
        "x" * 200,
        "x/" * 300 + "x",
    ],
)
def test_a_malformed_key_is_refused_by_every_method(store: ObjectStore, key: str) -> None:
    calls = [
        lambda: store.put(key, TEXT),
        lambda: store.get(key),
        lambda: store.stream(key),
        lambda: store.head(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.presign(key, 60),
        lambda: store.delete_prefix(key + "/"),
        lambda: store.list(key + "/"),
    ]
    for call in calls:
        with pytest.raises(InvalidKey):
            call()
    assert issubclass(InvalidKey, ValueError)
    assert issubclass(InvalidKey, StorageError)


def test_a_prefix_is_a_folder(store: ObjectStore) -> None:
    with pytest.raises(InvalidKey):
        store.list("videos/a")
    with pytest.raises(InvalidKey):
        store.delete_prefix("videos/a")


def test_a_working_store_passes_its_check_and_shows_nothing_of_it(store: ObjectStore) -> None:
    store.check()
    assert list(store.list()) == []


@pytest.mark.parametrize("seconds", [0, -1, 7 * 24 * 3600 + 1])
def test_a_presigned_url_lives_at_most_seven_days(store: ObjectStore, seconds: int) -> None:
    with pytest.raises(ValueError, match="604800"):
        store.presign(KEY, seconds)


def test_a_reader_sees_whole_versions_only(store: ObjectStore) -> None:
    versions = [bytes([value]) * 200_000 for value in range(4)]
    store.put(KEY, versions[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                store.put(KEY, version)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(30):
                assert store.get(KEY) in versions
        finally:
            stop.set()
        writing.result()


def test_one_store_serves_many_threads(store: ObjectStore) -> None:
    def write_and_read(index: int) -> bool:
        data = bytes([index]) * 50_000
        store.put(chunk_key("a", index), data)
        return store.get(chunk_key("a", index)) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(24)))
    assert len(list(store.list("videos/a/"))) == 24
