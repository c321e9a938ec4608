"""What is particular to a folder: crashes, a full disk, links, and what it leaves behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.storage import (
    InvalidKey,
    ObjectNotFound,
    PreconditionFailed,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
)
from app.storage.filesystem import FilesystemStore
from app.storage.objects import chunk_key, final_key, init_key, manifest_key, video_prefix

KEY = final_key("video_1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root: Path) -> FilesystemStore:
    return FilesystemStore(root)


def _temporary_files(root: Path) -> list[Path]:
    return list((root / ".tmp").iterdir())


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_key_is_the_path_below_the_root(store: FilesystemStore, root: Path) -> None:
    store.put(KEY, b"x")
    assert (root / KEY).read_bytes() == b"x"
    assert _temporary_files(root) == []


def test_a_full_disk_is_reported_and_nothing_is_left_behind(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(4 << 20))
    store = FilesystemStore(small_disk)
    store.put(KEY, b"old")
    for data in (bytes(4 << 20), source):
        with pytest.raises(StoreFull) as caught:
            store.put(KEY, data)
        assert caught.value.retryable
        assert str(small_disk) not in str(caught.value)
    assert _temporary_files(small_disk) == []
    assert store.get(KEY) == b"old"
    store.put(KEY, b"new")
    assert store.get(KEY) == b"new"


def test_a_limit_on_file_size_is_reported_as_full(root: Path) -> None:
    store = FilesystemStore(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(StoreFull):
            store.put(KEY, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert _temporary_files(root) == []
    assert not store.exists(KEY)


def test_a_writer_killed_in_the_middle_leaves_the_old_object_or_the_new_one(root: Path) -> None:
    size = 8 << 20
    program = textwrap.dedent(
        f"""
        import itertools, pathlib
        from app.storage.filesystem import FilesystemStore
        store = FilesystemStore(pathlib.Path({str(root)!r}))
        for value in itertools.count():
            store.put({KEY!r}, bytes([value % 256]) * {size})
            print(flush=True)
        """
    )
    for delay in (0.0, 0.003, 0.011):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay)
            writer.kill()
        data = FilesystemStore(root).get(KEY)
        assert len(data) == size
        assert len(set(data)) == 1


def test_opening_removes_what_a_crash_left_and_spares_a_write_in_progress(
    store: FilesystemStore, root: Path
) -> None:
    old, fresh, doomed = root / ".tmp" / "old", root / ".tmp" / "fresh", root / ".tmp" / "doomed"
    for path in (old, fresh):
        path.write_bytes(b"part")
    (doomed / "chunks").mkdir(parents=True)
    (doomed / "chunks" / "000000.m4s").write_bytes(b"x")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    store.put(KEY, b"x")
    FilesystemStore(root)
    assert _temporary_files(root) == [fresh]
    assert store.get(KEY) == b"x"


@pytest.mark.parametrize("writing", ["bytes", "file"])
def test_a_failed_write_leaves_no_temporary_file(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, writing: str
) -> None:
    source = root.parent / "source"
    source.write_bytes(b"x")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error", str(root))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailable) as caught:
        store.put("a", b"x" if writing == "bytes" else source)
    assert str(root) not in str(caught.value)
    assert _temporary_files(root) == []
    assert not store.exists("a")


def test_of_concurrent_creators_one_wins(store: FilesystemStore) -> None:
    barrier = threading.Barrier(16)

    def create(index: int) -> bool:
        barrier.wait()
        try:
            store.put(KEY, str(index).encode(), if_absent=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = [index for index, success in enumerate(pool.map(create, range(16))) if success]
    assert won == [int(store.get(KEY))]


def test_writing_while_the_folder_is_deleted_neither_fails_nor_brings_a_part_back(
    store: FilesystemStore,
) -> None:
    stop = threading.Event()

    def delete() -> None:
        while not stop.wait(0.0005):
            store.delete_prefix(video_prefix("a"))

    with ThreadPoolExecutor(2) as pool:
        deleting = [pool.submit(delete) for _ in range(2)]
        try:
            for index in range(100):
                store.put(chunk_key("a", index), b"x")
        finally:
            stop.set()
        for one in deleting:
            one.result()
    store.delete_prefix(video_prefix("a"))
    assert list(store.list()) == []


def test_a_stream_goes_on_after_the_object_was_replaced_or_deleted(store: FilesystemStore) -> None:
    store.put(KEY, b"a" * 10_000)
    with store.stream(KEY, block_bytes=1000) as blocks:
        first = next(blocks)
        store.put(KEY, b"b" * 10_000)
        store.delete(KEY)
        assert first + b"".join(blocks) == b"a" * 10_000


def test_a_file_cut_under_a_stream_is_an_error_and_not_a_short_object(
    store: FilesystemStore, root: Path
) -> None:
    store.put(KEY, b"a" * 10_000)
    with store.stream(KEY, block_bytes=1000) as blocks:
        next(blocks)
        os.truncate(root / KEY, 1500)
        with pytest.raises(StoreUnavailable):
            list(blocks)


def test_a_stream_gives_its_file_back(store: FilesystemStore) -> None:
    store.put(KEY, b"a" * 10_000)
    before = _open_files()
    list(store.stream(KEY))
    store.stream(KEY).close()
    store.stream(KEY)
    with store.stream(KEY, block_bytes=10) as blocks:
        next(blocks)
    assert _open_files() == before


def test_a_linked_file_is_not_an_object(store: FilesystemStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    store.put(KEY, b"x")
    (root / init_key("video_1")).symlink_to(tmp_path / "outside")
    for read in (store.get, store.stream, store.head):
        with pytest.raises(ObjectNotFound):
            read(init_key("video_1"))
    assert [info.key for info in store.list()] == [KEY]
    store.put(init_key("video_1"), b"mine")
    assert (tmp_path / "outside").read_text() == "secret"
    assert store.get(init_key("video_1")) == b"mine"


def test_a_linked_folder_does_not_lead_out_of_the_root(
    store: FilesystemStore, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "video.mp4").write_text("secret")
    (root / "videos").mkdir()
    (root / "videos" / "video_1").symlink_to(outside)
    for call in (store.get, store.head, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(StoreMisconfigured) as caught:
            call(KEY)
        assert str(tmp_path) not in str(caught.value)
    assert list(store.list()) == []
    store.delete_prefix(video_prefix("video_1"))
    assert (outside / "video.mp4").read_text() == "secret"
    assert not (root / "videos" / "video_1").is_symlink()


def test_neither_a_pipe_nor_a_folder_is_an_object(store: FilesystemStore, root: Path) -> None:
    (root / "videos" / "folder").mkdir(parents=True)
    os.mkfifo(root / "videos" / "pipe")
    for key in ("videos/folder", "videos/pipe"):
        for read in (store.get, store.stream, store.head):
            with pytest.raises(ObjectNotFound):
                read(key)
    assert list(store.list()) == []


def test_a_key_below_an_object_cannot_be_kept(store: FilesystemStore) -> None:
    store.put("a", b"x")
    for key in ("a/b", "a/b/c"):
        with pytest.raises(InvalidKey):
            store.put(key, b"y")
        with pytest.raises(ObjectNotFound):
            store.get(key)
    store.put("c/d", b"x")
    with pytest.raises(InvalidKey):
        store.put("c", b"y")


def test_the_storage_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    FilesystemStore(tmp_path / "a" / "b" / "c").put(KEY, b"x")
    assert (tmp_path / "a" / "b" / "c" / KEY).is_file()


def test_a_file_in_place_of_the_folder_is_a_matter_for_the_operator(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreMisconfigured):
        FilesystemStore(tmp_path / "file")
    with pytest.raises(StoreMisconfigured):
        FilesystemStore(tmp_path / "file" / "below")


@pytest.fixture
def ordinary_user(tmp_path: Path) -> Iterator[None]:
    """Root may write anywhere; for the time of a test it becomes somebody who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.usefixtures("ordinary_user")
def test_a_folder_without_permission_is_a_matter_for_the_operator(tmp_path: Path) -> None:
    if os.getuid() == os.geteuid():
        tmp_path.chmod(0o500)
    with pytest.raises(StoreMisconfigured):
        FilesystemStore(tmp_path / "objects")


def test_a_folder_that_vanished_fails_the_check_and_every_write(store: FilesystemStore, root: Path) -> None:
    shutil.rmtree(root)
    with pytest.raises(StoreMisconfigured, match="gone"):
        store.check()
    with pytest.raises(StoreMisconfigured, match="gone"):
        store.put(KEY, b"x")
    with pytest.raises(ObjectNotFound):
        store.get(KEY)
    assert not root.exists()


def test_several_processes_may_share_a_folder(store: FilesystemStore, root: Path) -> None:
    store.put(manifest_key("a"), b"{}")
    other = FilesystemStore(root)
    assert other.get(manifest_key("a")) == b"{}"
    other.delete_prefix(video_prefix("a"))
    assert not store.exists(manifest_key("a"))


def test_a_folder_has_no_urls(store: FilesystemStore) -> None:
    assert store.presign(KEY, 60) is None
