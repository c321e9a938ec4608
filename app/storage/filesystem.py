"""Objects as files of one folder: the store of a laptop, a test, or a shared network mount.

A key is a path below the root. A write goes to a temporary file under `.tmp`, is flushed to the disk, and
takes its name by rename (or by link, when it must not replace anything), so that no reader and no crash
ever sees a part of an object.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from app.storage.objects import (
    BLOCK_BYTES,
    BlockStream,
    InvalidKey,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    content_type_of,
    validate_expiry,
    validate_key,
    validate_prefix,
    validate_range,
)

# Keys have no segment that begins with a dot, so this folder cannot be one of theirs.
_TEMPORARY = ".tmp"

# Left by a crash once nobody has written to it for this long. A live upload touches its file all the time.
_STALE_SECONDS = 3600.0

_COPY_BYTES = 1024 * 1024

_INSTALL_ATTEMPTS = 20

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP}
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class FilesystemStore:
    """`ObjectStore` on a folder, which is created if missing. Any number of processes may share it.

    Raises:
        StoreMisconfigured: the folder cannot be created or written.
    """

    def __init__(self, root: Path) -> None:
        with _translated("the storage folder"):
            try:
                root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreMisconfigured("the storage folder, or a folder above it, is a file") from error
            self._root = root.resolve(strict=True)
            self._temporary = self._root / _TEMPORARY
            self._temporary.mkdir(exist_ok=True)
            self._remove_stale()

    def put(
        self, key: str, data: bytes | Path, content_type: str | None = None, *, if_absent: bool = False
    ) -> None:
        """See `ObjectStore.put`. The object is on the disk, not only in a cache, on return."""
        del content_type  # A folder cannot keep it; readers get the one of the extension.
        if isinstance(data, Path):
            with data.open("rb") as source:
                self._write(key, source, if_absent)
        else:
            self._write(key, BytesIO(data), if_absent)

    def copy(self, source: str, target: str) -> None:
        """See `ObjectStore.copy`. A file of its own, so that no object's life depends on another's."""
        validate_key(target)
        with _translated(source):
            file = self._open(source)
        with file:
            self._write(target, file, if_absent=False)

    def _write(self, key: str, source: BinaryIO, if_absent: bool) -> None:
        with _translated(key):
            target = self._path(key)
            temporary = self._temporary / secrets.token_hex(16)
            try:
                with temporary.open("xb") as file:
                    shutil.copyfileobj(source, file, _COPY_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                created = self._install(temporary, target, if_absent)
            except FileExistsError as error:
                raise PreconditionFailed(f"the object exists already: {key}") from error
            except (NotADirectoryError, IsADirectoryError) as error:
                raise InvalidKey(f"a folder cannot hold this key beside those it has: {key}") from error
            except FileNotFoundError as error:
                raise StoreMisconfigured("the storage folder is gone") from error
            finally:
                temporary.unlink(missing_ok=True)
            # The object is durable once its entry in the folder is, and the entry of each new folder in its own.
            for folder in (target.parent, *(path.parent for path in created)):
                _sync_folder(folder)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        with self.stream(key, start, end, block_bytes=1 << 40) as blocks:
            return b"".join(blocks)

    def stream(
        self, key: str, start: int = 0, end: int | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> BlockStream:
        """See `ObjectStore.stream`. An object replaced meanwhile is still read as it was at the start."""
        validate_range(start, end)
        with _translated(key):
            file = self._open(key)
            try:
                size = os.fstat(file.fileno()).st_size
                stop = size if end is None else min(end, size)
                if stop <= start and (start, end) != (0, None):
                    raise RangeNotSatisfiable(f"the object has {size} bytes: {key}")
                file.seek(start)
            except BaseException:
                file.close()
                raise

        def read(count: int) -> bytes:
            with _translated(key):
                return file.read(count)

        return BlockStream(read, file.close, stop - start, block_bytes)

    def head(self, key: str) -> ObjectInfo:
        """See `ObjectStore.head`."""
        with _translated(key):
            status = self._path(key).lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ObjectNotFound(f"no such object: {key}")
            return _info(key, status)

    def exists(self, key: str) -> bool:
        """See `ObjectStore.exists`."""
        try:
            self.head(key)
        except ObjectNotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with suppress(ObjectNotFound), _translated(key):
            self._path(key).unlink()

    def delete_prefix(self, prefix: str) -> None:
        """See `ObjectStore.delete_prefix`. Everything disappears at once, by one rename."""
        if not validate_prefix(prefix):
            raise InvalidKey("deleting everything needs a folder's name")
        with _translated(prefix):
            doomed = self._temporary / secrets.token_hex(16)
            try:
                self._path(prefix[:-1]).rename(doomed)
            except (FileNotFoundError, NotADirectoryError):
                return
            if doomed.is_dir() and not doomed.is_symlink():
                # The objects are gone already. What cannot be unlinked now is tried again at the next open.
                shutil.rmtree(doomed, ignore_errors=True)
            else:
                doomed.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`. Shows what existed when each folder was reached."""
        validate_prefix(prefix)
        folder = self._path(prefix[:-1]) if prefix else self._root
        return self._walk(folder, prefix)

    def presign(
        self, key: str, expires_seconds: int, filename: str | None = None, content_type: str | None = None
    ) -> str | None:
        """None: a folder has no server of its own, so the API serves its objects."""
        validate_key(key)
        validate_expiry(expires_seconds)
        return None

    def check(self) -> None:
        """Write, read back, and remove a few bytes."""
        probe = self._temporary / secrets.token_hex(16)
        with _translated("the storage folder"):
            try:
                probe.write_bytes(b"ready")
                if probe.read_bytes() != b"ready":
                    raise StoreUnavailable("the storage folder did not give back what was written")
            except FileNotFoundError as error:
                raise StoreMisconfigured("the storage folder is gone") from error
            finally:
                probe.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self._root / validate_key(key)
        # A link inside the folder must not make the store read or write anywhere else.
        if not path.parent.resolve().is_relative_to(self._root):
            raise StoreMisconfigured("the storage folder holds a link that leads out of it")
        return path

    def _open(self, key: str) -> BinaryIO:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ObjectNotFound(f"no such object: {key}") from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ObjectNotFound(f"no such object: {key}")
        return os.fdopen(descriptor, "rb", buffering=0)

    def _install(self, temporary: Path, target: Path, if_absent: bool) -> Collection[Path]:
        """Give the file its name; returns the folders that had to be made for it."""
        created: dict[Path, None] = {}
        # A concurrent delete_prefix may take the folder away between its creation and the rename.
        for attempt in range(_INSTALL_ATTEMPTS):
            try:
                for folder in _missing_folders(target.parent):
                    with suppress(FileExistsError):  # Another writer was quicker, or an object is in the way.
                        folder.mkdir()
                    created[folder] = None
                if if_absent:
                    os.link(temporary, target, follow_symlinks=False)
                else:
                    temporary.replace(target)
            except FileNotFoundError:
                if attempt == _INSTALL_ATTEMPTS - 1 or not temporary.exists():
                    raise
            else:
                break
        return created

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        with _translated(prefix or "the storage folder"):
            try:
                with os.scandir(folder) as found:
                    entries = [entry for entry in found if not entry.name.startswith(".")]
            except (FileNotFoundError, NotADirectoryError):
                return
        # "a-b" sorts before "a/b" although "a" sorts before "a-b": compare folders as their keys do.
        entries.sort(key=lambda entry: entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""))
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                with suppress(ObjectNotFound):
                    yield self.head(prefix + entry.name)

    def _remove_stale(self) -> None:
        oldest = time.time() - _STALE_SECONDS
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError):
                status = path.lstat()
                # A folder on its way out keeps the times it had as a folder of objects; nobody reads it.
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                elif status.st_mtime < oldest:
                    path.unlink()


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    # A write makes a new file, so the inode and the time in nanoseconds tell any two versions apart.
    return ObjectInfo(
        key=key,
        size=status.st_size,
        etag=f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}",
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
        content_type=content_type_of(key),
    )


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, uppermost first."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.insert(0, folder)
        folder = folder.parent
    return missing


def _sync_folder(folder: Path) -> None:
    # Gone already: somebody deleted it, and that is that.
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn what the operating system says into the store's own errors, without its paths."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise ObjectNotFound(f"no such object: {subject}") from error
        if error.errno in _FULL:
            raise StoreFull("the storage folder's disk is full") from error
        if error.errno in _FORBIDDEN:
            raise StoreMisconfigured("the storage folder cannot be read or written") from error
        if error.errno in _PASSING:
            raise StoreUnavailable("the storage folder does not answer properly") from error
        raise StorageError(f"the storage folder failed: {os.strerror(error.errno or 0)}") from error
