"""Python client of a longtake service, synchronous and asynchronous.

    with LongtakeClient("http://127.0.0.1:8000") as client:
        video = client.create("a red ball rolls over grass", seconds=60)
        for chunk in client.chunks(video.id):
            print(chunk.start_seconds, chunk.url)
        client.download(video.id, "out.mp4")

Everything but the waiting is written once, in `_Client`: an operation is a generator (a *flow*) that yields what it
wants done - a request, a pause, an item for the caller - and is resumed with the outcome. Two small drivers perform
these steps, one by blocking and one by awaiting. `_One` and `_Each` make a flow a method of both clients: what is
`client.retrieve(id)` of one is `await client.retrieve(id)` of the other, and `for` is `async for`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, field
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    BinaryIO,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from app import __version__
from app.jobs.job import Priority, Status, WebhookEvent
from app.retry_after import retry_after_seconds
from app.schemas import (
    ChunkList,
    ChunkObject,
    ModelList,
    ModelObject,
    VideoDeleted,
    VideoList,
    VideoObject,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookSecret,
)

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")
M = TypeVar("M", bound=BaseModel)

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # the client runs on Windows, too
    _LOCKS = False
else:
    _LOCKS = True

DEFAULT_URL = "http://127.0.0.1:8000"

_PASSING_STATUSES = frozenset({408, 429, 502, 503, 504})
_REFUSED = 429
"""The one of them that tells that nothing was done; behind the others the request may have been carried out."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_UPLOAD_SECONDS = 180.0
"""Above what an upload may take by the service's defaults: 30 s until it is its turn, and 120 s to decode it."""
_TERMINAL_EVENTS = frozenset({"completed", "failed", "cancelled"})

Variant = Literal["video", "thumbnail", "spritesheet"]
Upload: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""An image or a clip: where it is, what is in it, or an open file."""


class LongtakeError(Exception):
    """Base of everything this client raises; the message is one line for a person."""


class ServiceUnreachable(LongtakeError):
    """No answer: nobody listens there, or the network or the service was away for longer than the client waits."""


class ServiceError(LongtakeError):
    """An answer other than success: its stable `code`, and `param`, the field at fault.

    `repeated` tells that the request had been sent before, without an answer of the service, and may have been carried
    out.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.repeated = False


class InvalidRequest(ServiceError):
    """400, 413, 415, 422: the request asks for something that cannot be; `param` names the field."""


class IdempotencyMismatch(InvalidRequest):
    """422: the idempotency key was used before for another request."""


class NotAuthorized(ServiceError):
    """401, 403: no API key, not a valid one, or one that may only look."""


class NotFound(ServiceError):
    """404: no such video, or it is not yours."""


class NotReady(NotFound):
    """404: the video is there, and what was asked for is not made (yet)."""


class Conflict(ServiceError):
    """409: the video is not in a state that allows this."""


class VideoEnded(Conflict):
    """409: the video has completed, failed or been cancelled already."""


class VideoEnding(Conflict):
    """409: the end of the video is settled, so its length and prompts are too."""


class TooManyRequests(ServiceError):
    """429: a limit is reached, and stayed so for as long as the client waits; `code` tells which."""


class ServiceUnavailable(ServiceError):
    """5xx: the service cannot answer at the moment."""


_BY_STATUS: Mapping[int, type[ServiceError]] = {
    401: NotAuthorized,
    403: NotAuthorized,
    404: NotFound,
    409: Conflict,
    429: TooManyRequests,
}
_BY_CODE: Mapping[str | None, type[ServiceError]] = {
    "idempotency_mismatch": IdempotencyMismatch,
    "video_not_ready": NotReady,
    "chunk_not_found": NotReady,
    "video_ending": VideoEnding,
    **dict.fromkeys(("video_completed", "video_failed", "video_cancelled"), VideoEnded),
}


class WaitTimeout(LongtakeError, TimeoutError):
    """The video was not finished in the time given; `video` is its latest state. It goes on being made."""

    def __init__(self, video: VideoObject) -> None:
        super().__init__(f"{video.id} is still {video.status.value} at {video.progress} %")
        self.video = video


class DerivedRequest(TypedDict, total=False):
    """What can be asked for a video that is made from another; all else is as in that one."""

    priority: Priority
    metadata: Mapping[str, str]
    webhook_url: str
    webhook_events: Sequence[WebhookEvent]


class VideoRequest(DerivedRequest, total=False):
    """What `create` can ask for beside the prompt; what is left out is chosen by the service."""

    model: str
    prompts: Sequence[Mapping[str, Any]]
    seconds: float | str
    size: str
    seed: int
    negative_prompt: str
    guidance_scale: float
    num_inference_steps: int
    input_reference: Upload


@dataclass(frozen=True, slots=True)
class VideoEvent:
    """One event of a video: `status`, `progress`, `prompt`, `chunk`, `completed`, `failed` or `cancelled`.

    `id` continues the stream after this event, see `events(after=)`.
    """

    type: str
    id: str
    data: Mapping[str, Any]

    @property
    def terminal(self) -> bool:
        """Whether this is the video's last event."""
        return self.type in _TERMINAL_EVENTS

    @property
    def video(self) -> VideoObject | None:
        """The video as it was then, for the events that carry it."""
        return VideoObject.model_validate(self.data) if self.data.get("object") == "video" else None

    @property
    def chunk(self) -> ChunkObject | None:
        """The chunk that has become ready; None for other events."""
        return ChunkObject.model_validate(self.data) if self.type == "chunk" else None


@dataclass(slots=True)
class EventParser:
    """Server-sent events from bytes that arrive in pieces (WHATWG HTML, section 9.2.6)."""

    retry_seconds: float | None = None
    _rest: bytearray = field(default_factory=bytearray)
    _fields: dict[str, str] = field(default_factory=dict)
    _last_id: str = ""

    def feed(self, data: bytes) -> Iterator[VideoEvent]:
        """The events that `data` completes."""
        if not (b"\n" in data or b"\r" in data or self._rest.endswith(b"\r")):
            self._rest += data
            return
        # A carriage return at the very end may be half of a line end, so it waits for what follows.
        buffer = bytes(self._rest) + data
        held = b"\r" if buffer.endswith(b"\r") else b""
        text = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = bytearray(rest + held)
        for line in lines:
            if not line:
                if (event := self._dispatch()) is not None:
                    yield event
                continue
            name, _, value = line.decode(errors="replace").partition(":")
            self._take(name, value.removeprefix(" "))

    def _take(self, name: str, value: str) -> None:
        if name == "data":
            self._fields[name] = f"{self._fields[name]}\n{value}" if name in self._fields else value
        elif name == "event":
            self._fields[name] = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = int(value) / 1000

    def _dispatch(self) -> VideoEvent | None:
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        try:
            data = json.loads(fields["data"])
        except ValueError:
            return None
        return VideoEvent(
            fields.get("event", "message"), self._last_id, data if isinstance(data, dict) else {}
        )


# -- what a flow can ask for ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Send:
    """A request. With `stream` the body of a success is left to `_Read`. Resumed with a `_Body`."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] | None = None
    file: tuple[str, bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False


@dataclass(slots=True)
class _Body:
    """An answer and, when streamed, what is left of its body."""

    response: httpx.Response
    iterator: Any = None


@dataclass(frozen=True, slots=True)
class _Read:
    """The next bytes of a streamed body; resumed with b"" at its end."""

    body: _Body


@dataclass(frozen=True, slots=True)
class _Close:
    body: _Body


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Block:
    """A call that may block for a moment (the disk); resumed with what it returns."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Emit(Generic[T]):
    """An item for the caller; the result of an operation that has only one."""

    item: T


_Bodies: TypeAlias = list[_Body]  # named here: inside the clients `list` is a method
_Step: TypeAlias = "_Send | _Read | _Close | _Pause | _Block"
_Items: TypeAlias = Generator["_Step | _Emit[T]", Any, None]
_Part: TypeAlias = Generator["_Step | _Emit[Any]", Any, T]


# -- what makes a flow a method of both clients ---------------------------------------------------------------------


class _One(Generic[P, T]):
    """An operation with one result, which its flow returns."""

    def __init__(self, flow: Callable[Concatenate[_Client, P], _Part[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., _Part[T]]: ...

    @overload
    def __get__(self, client: LongtakeClient, owner: Any) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AsyncLongtakeClient, owner: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: Any) -> Any:
        if client is None:
            return self._flow

        @wraps(self._flow)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._one(self._flow(client, *args, **kwargs))

        return method


class _Each(Generic[P, T]):
    """An operation with any number of results, which its flow emits."""

    def __init__(self, flow: Callable[Concatenate[_Client, P], _Items[T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., _Items[T]]: ...

    @overload
    def __get__(self, client: LongtakeClient, owner: Any) -> Callable[P, Generator[T]]: ...

    @overload
    def __get__(self, client: AsyncLongtakeClient, owner: Any) -> Callable[P, AsyncGenerator[T]]: ...

    def __get__(self, client: Any, owner: Any) -> Any:
        if client is None:
            return self._flow

        @wraps(self._flow)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._each(self._flow(client, *args, **kwargs))

        return method


def _emitting(part: _Part[T]) -> _Items[T]:
    yield _Emit((yield from part))


class _Client:
    """Every operation as a flow, and how failures are met."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience_seconds: float = 10.0,
        reconnect_seconds: float = 120.0,
        timeout_seconds: float = 60.0,
    ) -> None:
        """A client of the service at `url`.

        Args:
            url: origin of the service, with the path it is mounted at if there is one.
            api_key: sent as a bearer token, to the service and nobody it redirects to.
            patience_seconds: how long a call is tried again while the service is away or busy.
            reconnect_seconds: the same once a video is being waited for, streamed or downloaded.
            timeout_seconds: longest silence on a connection; above the service's heartbeat of 15 s. An upload is
                answered when it is decoded, and waited for three minutes at least.

        Raises:
            ValueError: `url` is no http or https URL, or holds a password; `api_key` is not printable ASCII.
        """
        parsed = _address(url)
        # Files and variables often end with a line break.
        api_key = (api_key or "").strip()
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("an API key is printable ASCII, and this one is not")
        self.url = url.rstrip("/")
        self._patience_seconds = patience_seconds
        self._reconnect_seconds = reconnect_seconds
        headers = {"User-Agent": f"longtake-python/{__version__}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        options: dict[str, Any] = {
            "base_url": self.url + "/",
            "headers": headers,
            "timeout": httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            "follow_redirects": True,
            # No proxy of the environment leads to this machine itself.
            "trust_env": parsed.host not in _LOOPBACK,
        }
        self._open(options)

    def _open(self, options: dict[str, Any]) -> None:
        raise NotImplementedError

    # -- videos ---------------------------------------------------------------------------------------------

    @_One
    def create(
        self,
        prompt: str | None = None,
        *,
        idempotency_key: str | None = None,
        **request: Unpack[VideoRequest],
    ) -> _Part[VideoObject]:
        """Asks for a video of `prompt`, or of the timeline `prompts`.

        A lost answer never makes a second video: the request carries `idempotency_key`, a random one by default.
        `input_reference` is the image or clip to begin with: its path, its bytes, or an open file. `seconds` may be
        `"endless"`: until `finish`.
        """
        return self._create(prompt, idempotency_key, request)

    @_One
    def create_and_poll(
        self,
        prompt: str | None = None,
        *,
        timeout_seconds: float | None = None,
        idempotency_key: str | None = None,
        **request: Unpack[VideoRequest],
    ) -> _Part[VideoObject]:
        """`create`, then `wait`."""
        video = yield from self._create(prompt, idempotency_key, request)
        return (yield from self._wait(video.id, timeout_seconds, video))

    @_One
    def extend(
        self,
        video_id: str,
        prompt: str,
        *,
        seconds: float | str,
        seed: int | None = None,
        idempotency_key: str | None = None,
        **request: Unpack[DerivedRequest],
    ) -> _Part[VideoObject]:
        """A new video that begins with a finished one and goes on with `prompt`; `seconds` is the whole."""
        body = {"video": {"id": video_id}, "prompt": prompt, "seconds": seconds, "seed": seed, **request}
        return self._ask(VideoObject, "POST", "v1/videos/extensions", body, idempotency_key=idempotency_key)

    @_One
    def remix(
        self,
        video_id: str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **request: Unpack[DerivedRequest],
    ) -> _Part[VideoObject]:
        """A new video with the seed and settings of another, and this prompt."""
        body = {"prompt": prompt, **request}
        path = f"{_video(video_id)}/remix"
        return self._ask(VideoObject, "POST", path, body, idempotency_key=idempotency_key)

    @_One
    def retrieve(self, video_id: str) -> _Part[VideoObject]:
        """The video as it is now."""
        return self._ask(VideoObject, "GET", _video(video_id))

    @_Each
    def list(
        self,
        *,
        status: Status | str | None = None,
        order: Literal["asc", "desc"] = "desc",
        page_size: int = 50,
        after: str | None = None,
    ) -> _Items[VideoObject]:
        """Your videos by time of creation, newest first by default; pages are fetched as they are needed."""
        query = {"status": status, "order": order, "limit": page_size, "after": after}
        return self._pages(VideoList, "v1/videos", query)

    @_One
    def update(
        self,
        video_id: str,
        *,
        seconds: float | str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> _Part[VideoObject]:
        """Makes a video longer or shorter, or `"endless"`, or labels it anew.

        Raises `VideoEnding` when its last chunk is begun, `VideoEnded` after its end.
        """
        return self._ask(VideoObject, "PATCH", _video(video_id), {"seconds": seconds, "metadata": metadata})

    @_One
    def steer(self, video_id: str, text: str, *, at: float | None = None) -> _Part[VideoObject]:
        """Changes what a video shows from the next chunk on, or from second `at`.

        A lost answer may ask twice, which shows the same. Raises `VideoEnding` and `VideoEnded`.
        """
        return self._ask(VideoObject, "POST", f"{_video(video_id)}/prompts", {"text": text, "at": at})

    @_One
    def finish(self, video_id: str) -> _Part[VideoObject]:
        """Lets a video end with the chunks that are begun. Raises `Conflict` when none is."""
        return self._ask(VideoObject, "POST", f"{_video(video_id)}/finish")

    @_One
    def pause(self, video_id: str) -> _Part[VideoObject]:
        """Pauses a video, a running one after its next chunk. Raises `VideoEnded`."""
        return self._ask(VideoObject, "POST", f"{_video(video_id)}/pause")

    @_One
    def resume(self, video_id: str) -> _Part[VideoObject]:
        """Lets a paused video go on. Raises `Conflict` when it is not paused."""
        try:
            return (yield from self._ask(VideoObject, "POST", f"{_video(video_id)}/resume"))
        except Conflict as error:
            if not (error.repeated and error.code == "video_not_paused"):
                raise
            return (yield from self._ask(VideoObject, "GET", _video(video_id)))

    @_One
    def cancel(self, video_id: str) -> _Part[VideoObject]:
        """Stops a video; its finished chunks stay. Raises `VideoEnded` when it has ended otherwise already."""
        return self._ask(VideoObject, "POST", f"{_video(video_id)}/cancel")

    @_One
    def delete(self, video_id: str) -> _Part[bool]:
        """Stops a video if it runs, and removes everything of it."""
        try:
            return (yield from self._ask(VideoDeleted, "DELETE", _video(video_id))).deleted
        except NotFound as error:
            if not error.repeated:
                raise
            return True

    @_One
    def wait(self, video_id: str, *, timeout_seconds: float | None = None) -> _Part[VideoObject]:
        """Polls, as often as the service suggests, until the video is completed, failed or cancelled.

        Look at `status` and `error` of what it returns. Raises `WaitTimeout` after `timeout_seconds`, or, if the
        service has told nothing of the video by then, the reason for that.
        """
        return self._wait(video_id, timeout_seconds)

    # -- watching -------------------------------------------------------------------------------------------

    @_Each
    def events(self, video_id: str, *, after: str | None = None) -> _Items[VideoEvent]:
        """Events up to the terminal one, without gap or repeat over lost connections and restarts of the service.

        Of those that the service does not keep any more there are the chunks, and then one `status`.
        `after` is the id of the last event already seen; None starts with the first.
        """

        def hand_over(event: VideoEvent) -> _Part[None]:
            yield _Emit(event)

        return self._listen(video_id, after, hand_over)

    @_Each
    def chunks(self, video_id: str, *, start: int = 0) -> _Items[ChunkObject]:
        """Chunks in order from index `start`, each as soon as it is ready; ends with the video."""
        following = start

        # Events tell that there is more; the list has what the event stream no longer holds.
        def hand_over(event: VideoEvent) -> _Part[None]:
            nonlocal following
            chunk = event.chunk
            if chunk is not None and chunk.index == following:
                yield _Emit(chunk)
                following += 1
            elif event.terminal or (chunk is not None and chunk.index > following):
                path, query = f"{_video(video_id)}/chunks", {"after": following - 1}
                last = yield from self._pages(ChunkList, path, query, self._reconnect_seconds)
                following = following if last is None else last + 1

        return self._listen(video_id, None, hand_over)

    @_One
    def retrieve_chunk(self, video_id: str, index: int) -> _Part[ChunkObject]:
        """What is known of a finished chunk. Raises `NotReady`."""
        return self._ask(ChunkObject, "GET", f"{_video(video_id)}/chunks/{index}")

    @_One
    def read_playlist(self, video_id: str) -> _Part[str]:
        """The live playlist (HLS) as it is now; players take `playlist_url` themselves. Raises `NotReady`."""
        return (yield from self._read(f"{_video(video_id)}/stream.m3u8", {})).decode()

    # -- files ----------------------------------------------------------------------------------------------

    @_One
    def download(
        self,
        video_id: str,
        path: str | os.PathLike[str],
        *,
        variant: Variant = "video",
        so_far: bool = False,
    ) -> _Part[Path]:
        """Writes the finished file to `path`, which appears complete or not at all.

        A lost connection is continued where it broke; so is an earlier call that was interrupted. With `so_far` it is
        the part of the video that is made by now. A link is followed; a pipe or a device is written to once all has
        arrived. Raises `NotReady`.
        """
        target, content = Path(path), _content(video_id, variant, so_far)
        if target.exists() and not target.is_file():
            with tempfile.TemporaryFile() as spool:
                yield from self._fetch(*content, spool)
                yield _Block(partial(_pour, spool, target))
            return target
        place = target.resolve()
        # What arrives is kept beside the target, and continued by the next call. A part that is still growing is not:
        # the rest of it would be that of another file.
        name = f".{quote(video_id, safe='')}.{variant}{'.so-far' if so_far else ''}"
        part, sink = _open_part(place.parent, name)
        locked = part.name == f"{name}.part"
        with ExitStack() as stack:
            if not locked:
                stack.callback(part.unlink, missing_ok=True)  # once it is closed, for Windows
            stack.enter_context(sink)
            try:
                if so_far:
                    _restart(sink)
                yield from self._fetch(*content, sink)
                yield _Block(partial(_install, sink, part, place, locked=locked))
            finally:
                if locked and _is_at(part, sink) and (so_far or not sink.tell()):
                    part.unlink()
        return target

    @_One
    def read(self, video_id: str, *, variant: Variant = "video", so_far: bool = False) -> _Part[bytes]:
        """The finished file as bytes, or the part of the video that is made by now. Raises `NotReady`."""
        return self._read(*_content(video_id, variant, so_far))

    @_One
    def read_chunk(self, video_id: str, index: int, *, form: Literal["mp4", "m4s"] = "mp4") -> _Part[bytes]:
        """One chunk as an MP4 that plays by itself, or as the bare segment, which plays after `read_init`."""
        return self._read(f"{_video(video_id)}/chunks/{index}/content", {"format": form})

    @_One
    def read_init(self, video_id: str) -> _Part[bytes]:
        """What a player reads before any bare segment of the video."""
        return self._read(f"{_video(video_id)}/init.mp4", {})

    # -- models and webhooks --------------------------------------------------------------------------------

    @_One
    def models(self) -> _Part[Sequence[ModelObject]]:
        """Models the service can make videos with."""
        return (yield from self._ask(ModelList, "GET", "v1/models")).data

    @_One
    def model(self, name: str) -> _Part[ModelObject]:
        """One model."""
        return self._ask(ModelObject, "GET", f"v1/models/{quote(name)}")

    @_Each
    def webhook_deliveries(self, video_id: str) -> _Items[WebhookDelivery]:
        """What was sent to the video's `webhook_url` and how it went, the newest first."""
        return self._pages(WebhookDeliveryList, f"{_video(video_id)}/webhook_deliveries", {})

    @_One
    def retry_webhook(self, video_id: str, delivery_id: str) -> _Part[WebhookDelivery]:
        """Sends a webhook again, at once and as often as a new one."""
        path = f"{_video(video_id)}/webhook_deliveries/{quote(delivery_id, safe='')}/retry"
        return self._ask(WebhookDelivery, "POST", path)

    @_One
    def webhook_secret(self) -> _Part[WebhookSecret]:
        """What your webhooks are signed with."""
        return self._ask(WebhookSecret, "GET", "v1/webhook_secret")

    @_One
    def rotate_webhook_secret(self, *, overlap_seconds: int | None = None) -> _Part[WebhookSecret]:
        """A new secret. The old one signs beside it for a while, the service's default if None.

        A lost answer may rotate once more; the last secret is the one that is returned.
        """
        body = {"overlap_seconds": overlap_seconds}
        return self._ask(WebhookSecret, "POST", "v1/webhook_secret/rotate", body)

    # -- what operations are made of ------------------------------------------------------------------------

    def _ask(
        self,
        kind: type[M],
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> _Part[M]:
        """One request with a JSON body and its answer. What is None is left out."""
        send = _Send(
            method,
            path,
            json=None if body is None else _given(body, lambda value: value),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())} if method == "POST" else {},
        )
        return _parse(kind, _told((yield from self._send(send))))

    def _create(
        self, prompt: str | None, idempotency_key: str | None, request: VideoRequest
    ) -> _Part[VideoObject]:
        fields: dict[str, Any] = {"prompt": prompt, **request}
        upload: Upload | None = fields.pop("input_reference", None)
        if upload is None:
            return (
                yield from self._ask(
                    VideoObject, "POST", "v1/videos", fields, idempotency_key=idempotency_key
                )
            )
        # Read at once: a request that is sent again needs all of it again.
        name, data = yield _Block(partial(_uploaded, upload))
        send = _Send(
            "POST",
            "v1/videos",
            form=_given(fields, lambda value: value if isinstance(value, str) else json.dumps(value)),
            file=(name, data),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        )
        return _parse(VideoObject, _told((yield from self._send(send))))

    def _pages(
        self,
        kind: type[VideoList] | type[ChunkList] | type[WebhookDeliveryList],
        path: str,
        query: Mapping[str, Any],
        patience_seconds: float | None = None,
    ) -> _Part[Any]:
        """Emits the items of all pages, and returns where they ended: the last id or index, None if there is none."""
        params, last = _given(query, str), None
        while True:
            answer = yield from self._send(_Send("GET", path, params=params), patience_seconds)
            page = _parse(kind, _told(answer))
            for item in page.data:
                yield _Emit(item)
            if page.data:
                last = page.last_index if isinstance(page, ChunkList) else page.last_id
            if not page.has_more or not page.data:
                return last
            params = {**params, "after": str(last)}

    def _wait(
        self, video_id: str, timeout_seconds: float | None, video: VideoObject | None = None
    ) -> _Part[VideoObject]:
        """`video` is its latest known state."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        patience = self._patience_seconds
        while True:
            left = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                answer = yield from self._send(_Send("GET", _video(video_id)), min(patience, left))
            except (ServiceUnreachable, ServiceError) as error:
                passing = isinstance(error, ServiceUnreachable) or error.status in _PASSING_STATUSES
                if video is None or not passing or left > patience:
                    raise
                pause = left
            else:
                patience = self._reconnect_seconds
                video = _parse(VideoObject, _told(answer))
                if video.status.terminal:
                    return video
                pause = float(answer.response.headers.get("openai-poll-after-ms", 1000)) / 1000
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(video)
                pause = min(pause, left)
            yield _Pause(pause)

    def _read(self, path: str, params: Mapping[str, str]) -> _Part[bytes]:
        sink = BytesIO()
        yield from self._fetch(path, params, sink)
        return sink.getvalue()

    def _listen(
        self, video_id: str, after: str | None, hand_over: Callable[[VideoEvent], _Part[None]]
    ) -> _Items[Any]:
        """Reads events up to the terminal one; connects again after the last one seen when a connection ends."""
        pause, failures, heard = 2.0, 0, time.monotonic()
        patience = self._patience_seconds
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
            send = _Send("GET", f"{_video(video_id)}/events", headers=headers, stream=True)
            body = yield from self._send(send, patience)
            if body.response.status_code == 204:  # the last event was seen before
                return
            patience = self._reconnect_seconds
            parser = EventParser()
            lost: httpx.RequestError | None = None
            try:
                while data := (yield _Read(body)):
                    failures, heard = 0, time.monotonic()
                    for event in parser.feed(data):
                        yield from hand_over(event)
                        heard = time.monotonic()  # what the caller did meanwhile was no silence
                        after = event.id or after
                        if event.terminal:
                            yield _Close(body)
                            return
            except httpx.RequestError as error:
                lost = error
            yield _Close(body)
            if time.monotonic() - heard > patience:
                raise ServiceUnreachable(f"{self.url} ends every event stream at once") from lost
            pause = pause if parser.retry_seconds is None else parser.retry_seconds
            yield _Pause(min(_LONGEST_PAUSE_SECONDS, pause * 2**failures))
            failures += 1

    def _fetch(self, path: str, params: Mapping[str, str], sink: BinaryIO) -> _Part[None]:
        """Reads an object into `sink` from the sink's end on, over as many connections as it takes."""
        etag: str | None = None
        failures = furthest = 0
        patience = self._patience_seconds
        while True:
            have = sink.tell()
            headers = {"Accept-Encoding": "identity"}
            if have:
                headers |= {"Range": f"bytes={have}-", **({"If-Range": etag} if etag else {})}
            try:
                body = yield from self._send(
                    _Send("GET", path, params=params, headers=headers, stream=True), patience
                )
            except ServiceError as error:
                if error.status != 416 or failures > 1:
                    raise
                failures += 1  # more is here than there: what is here belongs to something else
                _restart(sink)
                continue
            patience = self._reconnect_seconds
            begin, total = _extent(body.response)
            if begin != have:
                _restart(sink)
                if begin != 0:
                    yield _Close(body)
                    continue
            etag = body.response.headers.get("ETag")
            lost: httpx.RequestError | None = None
            try:
                while data := (yield _Read(body)):
                    yield _Block(partial(sink.write, data))
                    if sink.tell() > furthest:
                        failures, furthest = 0, sink.tell()
            except httpx.RequestError as error:
                lost = error
            yield _Close(body)
            if sink.tell() == total or (total is None and lost is None):
                return
            if failures > 5:
                raise ServiceUnreachable(f"{self.url} ends every download too early") from lost
            yield _Pause(_pause_seconds(failures))
            failures += 1

    def _send(self, send: _Send, patience_seconds: float | None = None) -> _Part[_Body]:
        """Sends, and sends again for `patience_seconds` while the service is away or busy.

        Every request of this client may be repeated: reading changes nothing, what makes a video carries an
        idempotency key, and what was cancelled or deleted stays so; an error tells whether it was `repeated`.
        Raises `ServiceError` and `ServiceUnreachable`.
        """
        patience = self._patience_seconds if patience_seconds is None else patience_seconds
        deadline = time.monotonic() + patience
        failures, lost = 0, False
        while True:
            pause = _pause_seconds(failures)
            failure: LongtakeError
            try:
                body: _Body = yield send
            except httpx.RequestError as error:
                failure, lost = self._unreachable(error), True
            else:
                if body.response.request.method != send.method:
                    raise self._moved(body.response, send)
                if not body.response.is_error:
                    return body
                problem = _problem(body.response)
                problem.repeated = lost
                if problem.status not in _PASSING_STATUSES:
                    raise problem
                lost = lost or problem.status != _REFUSED
                pause = max(pause, problem.retry_after_seconds or 0.0)
                failure = problem
            if time.monotonic() + pause > deadline:
                raise failure
            yield _Pause(pause)
            failures += 1

    def _unreachable(self, error: httpx.RequestError) -> ServiceUnreachable:
        return ServiceUnreachable(f"no answer from {self.url}: {_words(error)}")

    def _moved(self, response: httpx.Response, send: _Send) -> ServiceError:
        """What a redirect makes a GET of has not been asked for."""
        there = str(response.url.copy_with(query=None)).removesuffix(f"/{send.path}")
        return ServiceError(
            f"{self.url} redirects to {there}, which is the address to use",
            status=response.history[0].status_code,
        )


class LongtakeClient(_Client):
    """Synchronous client; a context manager. Operations raise the errors of this module and nothing of httpx."""

    _http: httpx.Client

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> LongtakeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _one(self, part: _Part[T]) -> T:
        with closing(self._each(_emitting(part))) as items:
            return next(items)

    def _each(self, flow: _Items[T]) -> Generator[T]:
        bodies: _Bodies = []
        resume: Callable[[], _Step | _Emit[T]] = partial(next, flow)
        try:
            while True:
                try:
                    step = resume()
                except StopIteration:
                    return
                if isinstance(step, _Emit):
                    yield step.item
                    resume = partial(flow.send, None)
                    continue
                try:
                    outcome = self._perform(step, bodies)
                except httpx.RequestError as error:
                    resume = partial(flow.throw, error)
                else:
                    resume = partial(flow.send, outcome)
        finally:
            flow.close()
            for body in bodies:
                body.response.close()

    def _perform(self, step: _Step, bodies: _Bodies) -> Any:
        match step:
            case _Send():
                response = self._http.send(_build(self._http, step), stream=True)
                body = _Body(response)
                bodies.append(body)
                if step.stream and not response.is_error:
                    body.iterator = response.iter_bytes()
                else:
                    response.read()
                    bodies.remove(body)
                return body
            case _Read(body):
                return next(body.iterator, b"")
            case _Close(body):
                bodies.remove(body)
                return body.response.close()
            case _Pause(seconds):
                return time.sleep(seconds)
            case _Block(call):
                return call()


class AsyncLongtakeClient(_Client):
    """The same for asyncio; an asynchronous context manager."""

    _http: httpx.AsyncClient

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncLongtakeClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _one(self, part: _Part[T]) -> T:
        async with aclosing(self._each(_emitting(part))) as items:
            return await anext(items)

    async def _each(self, flow: _Items[T]) -> AsyncGenerator[T]:
        bodies: _Bodies = []
        resume: Callable[[], _Step | _Emit[T]] = partial(next, flow)
        try:
            while True:
                try:
                    step = resume()
                except StopIteration:
                    return
                if isinstance(step, _Emit):
                    yield step.item
                    resume = partial(flow.send, None)
                    continue
                try:
                    outcome = await self._perform(step, bodies)
                except httpx.RequestError as error:
                    resume = partial(flow.throw, error)
                else:
                    resume = partial(flow.send, outcome)
        finally:
            flow.close()
            for body in bodies:
                await body.response.aclose()

    async def _perform(self, step: _Step, bodies: _Bodies) -> Any:
        match step:
            case _Send():
                response = await self._http.send(_build(self._http, step), stream=True)
                body = _Body(response)
                bodies.append(body)
                if step.stream and not response.is_error:
                    body.iterator = response.aiter_bytes()
                else:
                    await response.aread()
                    bodies.remove(body)
                return body
            case _Read(body):
                return await anext(body.iterator, b"")
            case _Close(body):
                bodies.remove(body)
                return await body.response.aclose()
            case _Pause(seconds):
                return await asyncio.sleep(seconds)
            case _Block(call):
                return await asyncio.to_thread(call)


def _address(url: str) -> httpx.URL:
    """The URL of a service. Raises ValueError for what is none; without the URL where that may hold a password."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError("not an http:// or https:// URL") from None
    if parsed.userinfo:
        raise ValueError("the URL of a service takes no user name and no password")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"not an http:// or https:// URL: {url}")
    return parsed


def _video(video_id: str) -> str:
    return f"v1/videos/{quote(video_id, safe='')}"


def _content(video_id: str, variant: str, so_far: bool) -> tuple[str, dict[str, str]]:
    query = {"variant": variant, **({"partial": "true"} if so_far else {})}
    return f"{_video(video_id)}/content", query


def _given(fields: Mapping[str, Any], write: Callable[[Any], V]) -> dict[str, V]:
    """The fields that have a value, each as `write` writes it."""
    return {name: write(value) for name, value in fields.items() if value is not None}


def _uploaded(upload: Upload) -> tuple[str, bytes]:
    """Name and content of a file."""
    if isinstance(upload, bytes):
        return "input_reference", upload
    if isinstance(upload, str | os.PathLike):
        path = Path(upload)
        return path.name, path.read_bytes()
    return Path(str(getattr(upload, "name", "input_reference"))).name, upload.read()


def _build(http: httpx.Client | httpx.AsyncClient, send: _Send) -> httpx.Request:
    timeout = http.timeout
    if send.file is not None:
        read = max(timeout.read or 0.0, _UPLOAD_SECONDS)
        timeout = httpx.Timeout(**(timeout.as_dict() | {"read": read}))
    return http.build_request(
        send.method,
        send.path,
        params=dict(send.params),
        json=send.json,
        data=None if send.form is None else dict(send.form),
        files=None if send.file is None else {"input_reference": send.file},
        headers=dict(send.headers),
        timeout=timeout,
    )


def _told(body: _Body) -> dict[str, Any]:
    """The JSON object of an answer."""
    try:
        told = body.response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ServiceError(f"{body.response.url} is no longtake service", status=body.response.status_code)
    return told


def _parse(kind: type[M], told: Any) -> M:
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise LongtakeError(
            f"an answer this client does not understand: {error.errors()[0]['msg']}"
        ) from error


def _pause_seconds(failures: int) -> float:
    """Grows with the failures in a row, and differs between clients that failed together."""
    return float(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**failures))


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """First byte of an answer's body within the object, and the object's size in bytes when the answer tells."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
        return (int(match[1]), int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _open_part(folder: Path, name: str) -> tuple[Path, BinaryIO]:
    """A file for what arrives, and where it is: `name`.part, locked, or a new one if somebody writes to that already.

    It is a new one, too, where nobody can tell whether somebody does.
    """
    if _LOCKS:
        part = folder / f"{name}.part"
        sink = part.open("ab")
        try:
            flock(sink, LOCK_EX | LOCK_NB)
            # Who had it until now has made it the finished file, or removed it.
            mine = _is_at(part, sink)
        except OSError:  # it is taken, or this file system knows no locks
            mine = False
        if mine:
            return part, sink
        sink.close()
    private = folder / f"{name}.{uuid.uuid4().hex}.part"
    return private, private.open("xb")


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _install(sink: BinaryIO, part: Path, place: Path, *, locked: bool) -> None:
    sink.flush()
    os.fsync(sink.fileno())
    # Windows moves no file that is open. A lock is kept, or somebody would go on with what is finished.
    if not locked:
        sink.close()
    part.replace(place)


def _pour(source: BinaryIO, target: Path) -> None:
    source.seek(0)
    with target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _restart(sink: BinaryIO) -> None:
    sink.seek(0)
    sink.truncate()


def _problem(response: httpx.Response) -> ServiceError:
    """The error that an answer tells of, whoever gave it (a proxy's has no JSON)."""
    try:
        told = response.json()["error"]
        message, code, param = str(told["message"]), told.get("code"), told.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = (
            f"the service answered {response.status_code} {response.reason_phrase}",
            None,
            None,
        )
    otherwise = InvalidRequest if response.is_client_error else ServiceUnavailable
    kind = _BY_CODE.get(code) or _BY_STATUS.get(response.status_code, otherwise)
    return kind(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=response.headers.get("x-request-id"),
        retry_after_seconds=retry_after_seconds(response.headers.get("Retry-After")),
    )


def _words(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "cannot connect"
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    return " ".join(str(error).split()) or type(error).__name__
