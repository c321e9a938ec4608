"""The object store contract: what a store does, how it fails, and where every object lives.

Key table
=========

Every key is built by a function of this module, and by nothing else.

| function          | key                                           | content                                         |
|-------------------|-----------------------------------------------|-------------------------------------------------|
| `manifest_key`    | `videos/{id}/manifest.json`                   | record and chunk list, rewritten at each commit |
| `init_key`        | `videos/{id}/init.mp4`                        | initialisation segment, one for all chunks      |
| `chunk_key`       | `videos/{id}/chunks/{n:06d}.m4s`              | media segment of chunk n                        |
| `latents_key`     | `videos/{id}/latents/{n:06d}.safetensors`     | clean latents, to extend without a decode       |
| `checkpoint_key`  | `videos/{id}/checkpoints/{n:06d}.safetensors` | what continues bit-equally after chunk n        |
| `final_key`       | `videos/{id}/video.mp4`                       | the finished video, one faststart MP4           |
| `thumbnail_key`   | `videos/{id}/thumbnail.jpg`                   | still picture                                   |
| `spritesheet_key` | `videos/{id}/spritesheet.jpg`                 | grid of stills, evenly spaced in time           |
| `reference_key`   | `videos/{id}/reference.mkv`                   | the uploaded frames that the video begins with  |

`video_prefix(id)`, `videos/{id}/`, holds all of a video and nothing else: deleting it deletes the video.
Chunk numbers have six digits, so that a listing in the order of keys is in the order of time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self
from urllib.parse import quote

# S3 allows 1,024 bytes for the bucket prefix and the key together; file systems allow 255 a segment.
MAX_KEY_CHARACTERS = 512
MAX_SEGMENT_CHARACTERS = 128
MAX_CHUNK_INDEX = 999_999

# Folder of all videos.
VIDEOS = "videos/"

# Size of the pieces in which an object is streamed: large enough to be cheap, small enough that a
# thousand readers fit in memory.
BLOCK_BYTES = 256 * 1024

# One plain alphabet for every key: no character in it needs quoting in a URL, has two Unicode forms,
# or means something to a file system. A segment cannot begin with a dot, which excludes "." and "..",
# and leaves dot names to a store's own files.
_SEGMENT = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_SEGMENT_CHARACTERS - 1}}}", re.ASCII)
_VIDEO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)

_CONTENT_TYPES = {
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "m4s": "video/iso.segment",
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp4": "video/mp4",
    "png": "image/png",
    "webm": "video/webm",
    "webp": "image/webp",
}


class StorageError(Exception):
    """Root of what a store raises. Messages name keys, never secrets, hosts, or paths of the server.

    The original error is chained as `__cause__` for the log; only the message may reach a client.
    """

    code: ClassVar[str] = "storage_error"
    retryable: ClassVar[bool] = False


class ObjectNotFound(StorageError):
    """No object has this key."""

    code = "object_not_found"


class StoreUnavailable(StorageError):
    """Network failure, timeout, throttling, or a fault on the store's side: the same call may work later."""

    code = "storage_unavailable"
    retryable = True


class StoreFull(StorageError):
    """Disk full or quota used up. Nothing was written; works again once there is space."""

    code = "storage_full"
    retryable = True


class RangeNotSatisfiable(StorageError):
    """The byte range is empty or begins behind the object's last byte."""

    code = "range_not_satisfiable"


class PreconditionFailed(StorageError):
    """`put(..., if_absent=True)` found an object under the key. That object is unchanged."""

    code = "precondition_failed"


class StoreMisconfigured(StorageError):
    """The operator has to act: no such bucket or folder, wrong credentials, no permission, bad URL."""

    code = "storage_misconfigured"


class InvalidKey(StorageError, ValueError):
    """The text is not a key, prefix, or video id that a store accepts. A fault of the caller."""

    code = "invalid_key"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of one object without reading it.

    Attributes:
        key: the object's key.
        size: length in bytes.
        etag: changes whenever the bytes do; opaque, without quotes.
        modified: time of the last write, with time zone.
        content_type: media type; in listings, the one of the key's extension.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    content_type: str


class BlockStream(Iterator[bytes]):
    """Bytes of one object in bounded blocks, already open when the caller gets it.

    Opening first means that a missing object is an exception before the first byte of an HTTP answer,
    not in the middle of it. Closes itself at the end; leave early with `close()` or a `with` block.

    Args:
        read: reads up to that many bytes, raising a `StorageError`; empty at the end of the source.
        close: gives the source back; called once.
        length: bytes to deliver in all.
        block_bytes: largest block in bytes.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        close: Callable[[], None],
        length: int,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.length = length
        self._read = read
        self._close: Callable[[], None] | None = close
        self._remaining = length
        self._block_bytes = block_bytes

    def __next__(self) -> bytes:
        if self._close is None or self._remaining == 0:
            self.close()
            raise StopIteration
        try:
            block = self._read(min(self._block_bytes, self._remaining))
            if not block:
                raise StoreUnavailable("the object ended before its recorded length")
        except StorageError:
            self.close()
            raise
        self._remaining -= len(block)
        if self._remaining == 0:
            self.close()
        return block

    def close(self) -> None:
        """Release the file or connection; later calls do nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A client that goes away before the first block leaves a stream nobody iterates.
        if getattr(self, "_close", None) is not None:
            self.close()


class ObjectStore(Protocol):
    """Where video data lives. Safe to share between threads; every call blocks.

    Byte ranges are half-open, `[start, end)`, as in Python; `end=None` means to the end, and an `end`
    behind the last byte is cut. Any method may raise `StoreUnavailable` or `StoreMisconfigured`, and
    `InvalidKey` for a malformed key.
    """

    def put(
        self, key: str, data: bytes | Path, content_type: str | None = None, *, if_absent: bool = False
    ) -> None:
        """Write an object: readers see the old bytes or all of the new ones, never a part.

        Args:
            key: where to.
            data: the bytes, or a file holding them (large objects: memory does not grow with its size).
            content_type: media type to serve it with; default: the one of the key's extension. A folder
                cannot keep one, so the filesystem store always answers with the extension's.
            if_absent: create only. Of concurrent creators one wins on a folder and on Amazon S3; OpenStack
                Swift looks first and writes then, so several may win there. After a lost connection the store
                may have taken the first try, and the retry reports `PreconditionFailed` for the caller's own
                bytes.

        Raises:
            PreconditionFailed: `if_absent` and the key is taken.
            StoreFull: no space; nothing is left behind.
            OSError: the file to take the bytes from cannot be opened.
        """

    def copy(self, source: str, target: str) -> None:
        """Write what `source` holds under `target` too, inside the store, as `put` would; the source stays.

        For objects of up to 5 GiB, which is what S3 copies in one request.

        Raises:
            ObjectNotFound: there is no `source`.
            StoreFull: no space; nothing is left behind.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read an object, or bytes `[start, end)` of it, into memory.

        Raises:
            ObjectNotFound: no such object.
            RangeNotSatisfiable: a range was given that holds no byte of the object.
        """

    def stream(
        self, key: str, start: int = 0, end: int | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> BlockStream:
        """Read like `get`, in blocks of at most `block_bytes`. Raises before it returns, as `get` does."""

    def head(self, key: str) -> ObjectInfo:
        """Describe an object without reading it. Raises `ObjectNotFound`."""

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""

    def delete(self, key: str) -> None:
        """Remove an object; does nothing if there is none."""

    def delete_prefix(self, prefix: str) -> None:
        """Remove every object below a folder such as `videos/abc/`; does nothing if there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below a folder (`""` or a text that ends in `/`) in the order of their keys."""

    def presign(
        self, key: str, expires_seconds: int, filename: str | None = None, content_type: str | None = None
    ) -> str | None:
        """A URL that reads the object without credentials, or None if the API has to serve it itself.

        Does not look whether the object exists.

        Args:
            key: the object.
            expires_seconds: life of the URL in seconds, 1 to 604,800 (seven days, the limit of S3).
            filename: makes browsers save the object under this name.
            content_type: media type to answer with instead of the stored one.
        """

    def check(self) -> None:
        """Return if the store can be used now, within seconds; raise what is wrong otherwise."""


def validate_key(key: str) -> str:
    """Return `key`, or raise `InvalidKey` unless every segment is of letters, digits, and `._-`."""
    if len(key) > MAX_KEY_CHARACTERS or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise InvalidKey(f"not an object key: {_abbreviated(key)}")
    return key


def validate_prefix(prefix: str) -> str:
    """Return `prefix`, or raise `InvalidKey` unless it is empty or a key with a `/` behind it."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidKey(f"a prefix ends in '/': {_abbreviated(prefix)}")
        validate_key(prefix[:-1])
    return prefix


def validate_video_id(video_id: str) -> str:
    """Return `video_id`, or raise `InvalidKey` unless it is 1 to 128 letters, digits, `_` and `-`."""
    if not _VIDEO_ID.fullmatch(video_id):
        raise InvalidKey(f"not a video id: {_abbreviated(video_id)}")
    return video_id


def validate_range(start: int, end: int | None) -> None:
    """Raise `RangeNotSatisfiable` if no object of any size could satisfy `[start, end)`."""
    if start < 0 or (end is not None and end <= start):
        raise RangeNotSatisfiable(f"not a byte range: [{start}, {end})")


def validate_expiry(expires_seconds: int) -> None:
    """Raise ValueError unless a presigned URL may live this many seconds (1 to 604,800)."""
    if not 1 <= expires_seconds <= 7 * 24 * 3600:
        raise ValueError("a presigned URL lives between 1 and 604800 seconds")


def content_type_of(key: str) -> str:
    """Media type of the key's extension; `application/octet-stream` for an unknown one."""
    return _CONTENT_TYPES.get(key.rpartition(".")[2].lower(), "application/octet-stream")


def content_disposition(filename: str) -> str:
    """`Content-Disposition` that saves under `filename`, with the plain and the UTF-8 form of RFC 6266."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename) or "download"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def video_prefix(video_id: str) -> str:
    """Folder of everything that belongs to one video, with the `/` at its end."""
    return f"{VIDEOS}{validate_video_id(video_id)}/"


def manifest_key(video_id: str) -> str:
    """Key of the video's durable record."""
    return video_prefix(video_id) + "manifest.json"


def init_key(video_id: str) -> str:
    """Key of the initialisation segment shared by all chunks."""
    return video_prefix(video_id) + "init.mp4"


def chunk_key(video_id: str, index: int) -> str:
    """Key of the media segment of chunk `index` (from 0)."""
    return f"{video_prefix(video_id)}chunks/{_number(index)}.m4s"


def latents_key(video_id: str, index: int) -> str:
    """Key of the clean latents of chunk `index` (from 0)."""
    return f"{video_prefix(video_id)}latents/{_number(index)}.safetensors"


def checkpoint_key(video_id: str, index: int) -> str:
    """Key of the sampler state with which the video goes on after chunk `index` (from 0)."""
    return f"{video_prefix(video_id)}checkpoints/{_number(index)}.safetensors"


def final_key(video_id: str) -> str:
    """Key of the finished video."""
    return video_prefix(video_id) + "video.mp4"


def thumbnail_key(video_id: str) -> str:
    """Key of the still picture."""
    return video_prefix(video_id) + "thumbnail.jpg"


def spritesheet_key(video_id: str) -> str:
    """Key of the grid of stills."""
    return video_prefix(video_id) + "spritesheet.jpg"


def reference_key(video_id: str) -> str:
    """Key of the frames that were given to begin with, in the size and rate of the video, lossless."""
    return video_prefix(video_id) + "reference.mkv"


def _number(index: int) -> str:
    if not 0 <= index <= MAX_CHUNK_INDEX:
        raise InvalidKey(f"a chunk number is between 0 and {MAX_CHUNK_INDEX}, not {index}")
    return f"{index:06d}"


def _abbreviated(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
