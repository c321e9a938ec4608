"""The body of a POST as one nested dict, whether it came as JSON, multipart or urlencoded.

Form field names nest as the OpenAI SDKs write them: `a[b]` is a member, `a[]` an element, `a[][b]` a member of an
element. Nothing is guessed and nothing is dropped: a body that is cut off, repeats a field or is not UTF-8 is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.errors import APIError, body_too_large, invalid, quoted

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_FIELDS = 1000
_MAX_DEPTH = 4
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


@dataclass(frozen=True, slots=True)
class FilePart:
    """An uploaded file. It has no name on the disk and is gone when it is closed.

    What the client calls it, and what type it says it has, are not kept: only its bytes count.
    """

    file: IO[bytes]
    sha256: str

    def close(self) -> None:
        self.file.close()


@asynccontextmanager
async def read_body(
    request: Request, *, max_file_bytes: int | None = None, max_text_bytes: int | None = None
) -> AsyncIterator[dict[str, Any]]:
    """The fields of a request's body. Form scalars stay strings; files are `FilePart`s, closed in the end.

    A thread reads what is large: other requests do not wait for that.
    The limits are for the files of a form, and for what is beside them and in memory; None: the body's own limit is
    enough. Raises `APIError`: 400 for a malformed body, 413 for a larger one, 415 for another media type.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    match media_type.lower():
        case b"application/json":
            yield await run_in_threadpool(_from_json, await request.body())
        case b"multipart/form-data":
            parts = _Parts(max_file_bytes, max_text_bytes)
            try:
                yield await _from_multipart(request, options.get(b"boundary", b""), parts)
            finally:
                parts.close()
        case b"application/x-www-form-urlencoded":
            yield await run_in_threadpool(_from_urlencoded, await request.body())
        case _:
            raise APIError(
                415,
                "The body must be application/json or multipart/form-data.",
                code="unsupported_media_type",
                param="Content-Type",
            )


def nested(fields: Iterable[tuple[str, str | FilePart]]) -> dict[str, Any]:
    """Fields with bracketed names as nested dicts and lists, in the order given."""
    root: dict[str, Any] = {}
    for name, value in fields:
        match = _NAME.fullmatch(name)
        path = [match[1], *(part[:-1] for part in match[2].split("[")[1:])] if match else []
        if not match or len(path) > _MAX_DEPTH:
            raise invalid(f"Malformed field name: {quoted(name)}.", param=None)
        _insert(root, path, value, name)
    return root


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def json_value(text: str, *, constant: Callable[[str], Any] = _refuse_constant) -> Any:
    """Parses JSON strictly: no NaN or Infinity, unless `constant` takes them, no member given twice.

    Raises ValueError.
    """
    try:
        return json.loads(
            text, parse_constant=constant, parse_int=_whole_number, object_pairs_hook=_once_each
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole_number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit
        raise ValueError(f"a number has {len(digits)} digits") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is given twice")
    return members


def _malformed(message: str) -> APIError:
    return invalid(message, param=None, code="malformed_body")


def _from_json(body: bytes) -> dict[str, Any]:
    try:
        value = json_value(body.decode())
    except UnicodeDecodeError as error:
        raise _malformed("The JSON body is not UTF-8.") from error
    except ValueError as error:
        raise _malformed(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise _malformed("The JSON body must be an object.")
    return value


def _from_urlencoded(body: bytes) -> dict[str, Any]:
    try:
        fields = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError as error:
        raise _malformed("The urlencoded body is malformed.") from error
    return nested(fields)


async def _from_multipart(request: Request, boundary: bytes, parts: _Parts) -> dict[str, Any]:
    if not boundary:
        raise _malformed("The Content-Type of the multipart body names no boundary.")
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for block in request.stream():
            # A disk can be slow; the other requests do not wait for it.
            await run_in_threadpool(parser.write, block)
        if not parts.ended:
            raise _malformed("The multipart body ends too early.")
        if parts.max_text_bytes is not None and parts.too_much_text:
            raise body_too_large(parts.max_text_bytes)
        if parts.too_large is not None:
            raise APIError(
                413,
                f"The file is larger than {parts.max_file_bytes} bytes.",
                code="file_too_large",
                param=parts.too_large,
            )
        return nested(parts.fields)
    except FormParserError as error:
        raise _malformed("The multipart body is malformed.") from error


class _Parts:
    """Collects the parts of a multipart body: text in memory, as the body is limited, files on the disk."""

    def __init__(self, max_file_bytes: int | None, max_text_bytes: int | None) -> None:
        self.fields: list[tuple[str, str | FilePart]] = []
        self.ended = False
        self.too_large: str | None = None
        """Name of a file above the limit. The rest of it is read all the same, so that the client sees the answer."""
        self.max_file_bytes = max_file_bytes
        self.max_text_bytes = max_text_bytes
        self._name = ""
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._file_bytes = self._text_bytes = 0
        self._headers: dict[str, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._data = bytearray()

    @property
    def too_much_text(self) -> bool:
        """Whether the text is above the limit. Its rest is read all the same, too."""
        return self.max_text_bytes is not None and self._text_bytes > self.max_text_bytes

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._data = bytearray()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers(self) -> None:
        if len(self.fields) >= _MAX_FIELDS:
            raise _malformed(f"The form has more than {_MAX_FIELDS} fields.")
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise _malformed("A part of the multipart body has no name.")
        try:
            self._name = options[b"name"].decode()
        except UnicodeDecodeError as error:
            raise _malformed("A field's name in the multipart body is not UTF-8.") from error
        if b"filename" in options:
            self._file, self._digest = tempfile.TemporaryFile(), hashlib.sha256()  # noqa: SIM115 - closed by `close`

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._text_bytes += end - start
            if not self.too_much_text:
                self._data += data[start:end]
            return
        self._file_bytes += end - start
        if self.max_file_bytes is not None and self._file_bytes > self.max_file_bytes:
            self.too_large = self.too_large or self._name
            return
        block = memoryview(data)[start:end]
        self._file.write(block)
        self._digest.update(block)

    def _on_part_end(self) -> None:
        if self._file is not None:
            self._file.flush()
            self.fields.append((self._name, FilePart(self._file, self._digest.hexdigest())))
            self._file = None
            return
        if self.too_much_text:
            return
        try:
            self.fields.append((self._name, self._data.decode()))
        except UnicodeDecodeError as error:
            raise _malformed("A field of the multipart body is not UTF-8.") from error

    def close(self) -> None:
        """Gives up the files."""
        if self._file is not None:
            self._file.close()
        for _, value in self.fields:
            if isinstance(value, FilePart):
                value.close()

    def _on_end(self) -> None:
        self.ended = True


def _insert(root: dict[str, Any], path: list[str], value: str | FilePart, name: str) -> None:
    node: Any = root
    for at, part in enumerate(path):
        inner = path[at + 1] if at + 1 < len(path) else None
        if part == "":
            node = _append(node, inner, value, name)
        elif not isinstance(node, dict):
            raise _conflicting(name)
        elif inner is None:
            if part in node:
                raise invalid(f"The field {quoted(name)} is given more than once.", param=path[0])
            node[part] = value
        else:
            node = node.setdefault(part, [] if inner == "" else {})


def _append(node: Any, inner: str | None, value: str | FilePart, name: str) -> Any:
    if not isinstance(node, list):
        raise _conflicting(name)
    if inner is None:
        node.append(value)
        return None
    # Members may come element by element (x, y, x, y) or, as from the OpenAI SDKs, member by member (x, x, y, y): each
    # goes to the first element that lacks it. That is unambiguous as long as all elements have the same members.
    for element in node:
        if isinstance(element, dict) and inner not in element:
            return element
    node.append([] if inner == "" else {})
    return node[-1]


def _conflicting(name: str) -> APIError:
    return invalid(f"The field {quoted(name)} contradicts another field of the form.", param=None)
