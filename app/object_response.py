"""Stored objects as HTTP answers: ranges, conditions, bounded blocks. RFC 9110, sections 8.8, 13 and 14."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.errors import APIError
from app.storage import BlockStream, ObjectStore, StorageError

log = logging.getLogger(__name__)

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"

_REFUSED = re.compile(r"q=0(\.0*)?")
_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?", re.ASCII | re.IGNORECASE)


class Part(NamedTuple):
    """An object and its length in bytes, or bytes in memory; a body is one or several of them in a row."""

    source: str | bytes
    size: int


def object_response(
    request: Request,
    objects: ObjectStore,
    parts: Sequence[Part],
    *,
    media_type: str,
    etag: str,
    cache_control: str,
    modified: datetime | None = None,
    filename: str | None = None,
) -> Response:
    """An answer to GET or HEAD with the parts as its body. Blocks: the first part is opened here.

    Raises `StorageError` before anything is sent, and `APIError` 416 for a range behind the end.
    """
    size = sum(part.size for part in parts)
    headers = _headers(
        size,
        media_type=media_type,
        etag=etag,
        cache_control=cache_control,
        filename=filename,
        modified=modified,
    )
    early = _without_body(request, size, headers)
    if isinstance(early, Response):
        return early
    status, start, end = early
    stream = _Stream(objects, _cut(parts, start, end))
    stream.open()
    return _BlocksResponse(stream, status, headers)


def bytes_response(
    request: Request,
    data: bytes,
    *,
    media_type: str,
    etag: str,
    cache_control: str,
    filename: str | None = None,
) -> Response:
    """Like `object_response` for bytes in memory."""
    headers = _headers(
        len(data), media_type=media_type, etag=etag, cache_control=cache_control, filename=filename
    )
    early = _without_body(request, len(data), headers)
    if isinstance(early, Response):
        return early
    status, start, end = early
    return Response(data[start:end], status, headers)


def not_modified(request: Request, etag: str) -> bool:
    """Whether the client's copy, named in `If-None-Match`, is still good."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    names = {name.strip().removeprefix("W/") for name in given.split(",")}
    return given.strip() == "*" or etag.removeprefix("W/") in names


def accepts_gzip(request: Request) -> bool:
    """Whether the client takes an answer in gzip (RFC 9110, 12.5.3)."""
    items = ",".join(request.headers.getlist("accept-encoding")).lower().replace(" ", "").split(",")
    parameters = {name: parameter for name, _, parameter in (item.partition(";") for item in items)}
    weight = parameters.get("gzip", parameters.get("*", "q=0"))
    return not _REFUSED.fullmatch(weight)


def inline_disposition(filename: str) -> str:
    """`Content-Disposition` of what a browser may show, and saves under `filename` (plain ASCII)."""
    return f'inline; filename="{filename}"'


def _headers(
    size: int,
    *,
    media_type: str,
    etag: str,
    cache_control: str,
    filename: str | None,
    modified: datetime | None = None,
) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": media_type,
        "Content-Length": str(size),
        "ETag": etag,
        "Cache-Control": cache_control,
    }
    if modified is not None:
        headers["Last-Modified"] = format_datetime(modified.astimezone(UTC), usegmt=True)
    if filename is not None:
        headers["Content-Disposition"] = inline_disposition(filename)
    return headers


def _without_body(request: Request, size: int, headers: dict[str, str]) -> Response | tuple[int, int, int]:
    """The whole answer if it has no body; else its status and its range `[start, end)`, put into the headers."""
    if not_modified(request, headers["ETag"]):
        kept = {k: v for k, v in headers.items() if k not in ("Content-Length", "Content-Type")}
        return Response(status_code=304, headers=kept)
    if request.method == "HEAD":
        return Response(headers=headers)
    wanted = _range(request, size, headers)
    if wanted is None:
        return 200, 0, size
    start, end = wanted
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return 206, start, end


def _range(request: Request, size: int, headers: Mapping[str, str]) -> tuple[int, int] | None:
    """The one range asked for, as `[start, end)`; None for the whole, also when several or a malformed one is."""
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    condition = request.headers.get("if-range")
    if not match or condition not in (None, headers["ETag"], headers.get("Last-Modified")):
        return None
    first, last = match.groups()
    if first is None:
        if last is None:
            return None
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), size if last is None else min(size, int(last) + 1)
        if last is not None and int(last) < start:
            return None
    if start >= end:
        raise APIError(
            416,
            f"The range lies behind the end of the file, which has {size} bytes.",
            code="range_not_satisfiable",
            param="Range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


_Piece = tuple[str | bytes, int, int]


def _cut(parts: Sequence[Part], start: int, end: int) -> list[_Piece]:
    """The pieces of parts that make up bytes `[start, end)` of all parts in a row."""
    pieces, at = [], 0
    for part in parts:
        low, high = max(start, at), min(end, at + part.size)
        if low < high:
            pieces.append((part.source, low - at, high - at))
        at += part.size
    return pieces


class _Stream:
    """Blocks of pieces of objects, one object open at a time. Blocking; used in threads, one call at a time."""

    def __init__(self, objects: ObjectStore, pieces: Sequence[_Piece]) -> None:
        self._objects = objects
        self._pieces: Iterator[_Piece] = iter(pieces)
        self._current: BlockStream | Iterator[bytes] | None = None

    def open(self) -> bool:
        """Opens the next object; False when there is none."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        source, start, end = piece
        if isinstance(source, bytes):
            self._current = iter((source[start:end],))
            return True
        self._current = stream = self._objects.stream(source, start, end)
        if stream.length != end - start:
            stream.close()
            raise StorageError(f"the object has another length than recorded: {source}")
        return True

    def next_block(self) -> bytes:
        """The next bytes, empty at the end."""
        while self._current is not None:
            block = next(self._current, b"")
            if block:
                return block
            self._current = None
            if not self.open():
                break
        return b""

    def close(self) -> None:
        if isinstance(self._current, BlockStream):
            self._current.close()


class _BlocksResponse(Response):
    """Sends a stream block by block, and stops reading when the client has left."""

    def __init__(self, stream: _Stream, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=status)
        self._stream = stream
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = False

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True

        watcher = asyncio.create_task(watch())
        try:
            await send(_start(self))
            while not left and (block := await run_in_threadpool(self._stream.next_block)):
                await send({"type": "http.response.body", "body": block, "more_body": True})
            if not left:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except StorageError as error:
            # The status line is gone. The server closes the connection before the announced length is reached,
            # by which clients know that something is missing.
            log.warning("a download was cut off: %s", error)
        finally:
            watcher.cancel()
            self._stream.close()


def _start(response: Response) -> Message:
    return {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
