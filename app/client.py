"""Python client of a longtake service, synchronous and asynchronous.

    with LongtakeClient("http://127.0.0.1:8000") as client:
        video = client.create("a red ball rolls over grass", seconds=60)
        for chunk in client.chunks(video.id):
            print(chunk.start_seconds, chunk.url)
        client.download(video.id, "out.mp4")

Everything but the waiting is written once: an operation is a generator (a *flow*) that yields what it wants done - a
request, a pause, an item for the caller - and is resumed with the outcome. Two small drivers perform these steps, one
by blocking and one by awaiting.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack
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
    VideoList,
    VideoObject,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookSecret,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"

_PASSING_STATUSES = frozenset({408, 429, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_TERMINAL_EVENTS = frozenset({"completed", "failed", "cancelled"})

Variant = Literal["video", "thumbnail"]


class LongtakeError(Exception):
    """Base of everything this client raises; the message is one line for a person."""


class ServiceUnreachable(LongtakeError):
    """No answer: nobody listens there, or the network or the service was away for longer than the client waits."""


class ServiceError(LongtakeError):
    """An answer other than success."""

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


class InvalidRequest(ServiceError):
    """400, 413, 415, 422: the request asks for something that cannot be; `param` names the field."""


class NotAuthorized(ServiceError):
    """401, 403: no API key, or not a valid one."""


class NotFound(ServiceError):
    """404: no such video, or it is not ready, see `code`."""


class Conflict(ServiceError):
    """409: the video is not in a state that allows this."""


class TooManyRequests(ServiceError):
    """429: a limit is reached, and stayed so for as long as the client waits."""


class ServiceUnavailable(ServiceError):
    """5xx: the service cannot answer at the moment."""


class WaitTimeout(LongtakeError, TimeoutError):
    """The video was not finished in the time given; `video` is its latest state. It goes on being made."""

    def __init__(self, video: VideoObject) -> None:
        super().__init__(f"{video.id} is still {video.status.value} at {video.progress} %")
        self.video = video


class VideoRequest(TypedDict, total=False):
    """What `create` can ask for beside the prompt; what is left out is chosen by the service."""

    model: str
    prompts: Sequence[Mapping[str, Any]]
    seconds: float | str
    size: str
    seed: int
    negative_prompt: str
    guidance_scale: float
    num_inference_steps: int
    priority: Priority
    metadata: Mapping[str, str]
    webhook_url: str
    webhook_events: Sequence[WebhookEvent]


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
_Flow: TypeAlias = Generator["_Step | _Emit[T]", Any, None]
_Part: TypeAlias = Generator["_Step | _Emit[Any]", Any, T]


class _Flows:
    """Every operation as a flow, and how failures are met."""

    def __init__(self, url: str, patience_seconds: float, reconnect_seconds: float) -> None:
        self.url = url
        self.patience_seconds = patience_seconds
        self.reconnect_seconds = reconnect_seconds

    def create(self, body: Mapping[str, Any], idempotency_key: str | None) -> _Flow[VideoObject]:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = yield from self._send(_Send("POST", "v1/videos", json=dict(body), headers=headers))
        yield _Emit(_parse(VideoObject, _told(answer)))

    def retrieve(self, video_id: str) -> _Flow[VideoObject]:
        answer = yield from self._send(_Send("GET", _video(video_id)))
        yield _Emit(_parse(VideoObject, _told(answer)))

    def videos(self, params: Mapping[str, Any]) -> _Flow[VideoObject]:
        query = {name: str(value) for name, value in params.items() if value is not None}
        while True:
            answer = yield from self._send(_Send("GET", "v1/videos", params=query))
            page = _parse(VideoList, _told(answer))
            for video in page.data:
                yield _Emit(video)
            if not page.has_more or not page.data:
                return
            query["after"] = page.data[-1].id

    def cancel(self, video_id: str) -> _Flow[VideoObject]:
        answer = yield from self._send(_Send("POST", f"{_video(video_id)}/cancel"))
        yield _Emit(_parse(VideoObject, _told(answer)))

    def pause(self, video_id: str) -> _Flow[VideoObject]:
        answer = yield from self._send(_Send("POST", f"{_video(video_id)}/pause"))
        yield _Emit(_parse(VideoObject, _told(answer)))

    def resume(self, video_id: str) -> _Flow[VideoObject]:
        answer = yield from self._send(_Send("POST", f"{_video(video_id)}/resume"))
        yield _Emit(_parse(VideoObject, _told(answer)))

    def delete(self, video_id: str) -> _Flow[bool]:
        answer = yield from self._send(_Send("DELETE", _video(video_id)))
        yield _Emit(bool(_told(answer).get("deleted")))

    def models(self) -> _Flow[Sequence[ModelObject]]:
        answer = yield from self._send(_Send("GET", "v1/models"))
        yield _Emit(_parse(ModelList, _told(answer)).data)

    def webhook_deliveries(self, video_id: str) -> _Flow[WebhookDelivery]:
        query: dict[str, str] = {}
        while True:
            send = _Send("GET", f"{_video(video_id)}/webhook_deliveries", params=query)
            page = _parse(WebhookDeliveryList, _told((yield from self._send(send))))
            for delivery in page.data:
                yield _Emit(delivery)
            if not page.has_more or not page.data:
                return
            query["after"] = page.data[-1].id

    def retry_webhook(self, video_id: str, delivery_id: str) -> _Flow[WebhookDelivery]:
        path = f"{_video(video_id)}/webhook_deliveries/{quote(delivery_id, safe='')}/retry"
        answer = yield from self._send(_Send("POST", path))
        yield _Emit(_parse(WebhookDelivery, _told(answer)))

    def webhook_secret(self) -> _Flow[WebhookSecret]:
        answer = yield from self._send(_Send("GET", "v1/webhook_secret"))
        yield _Emit(_parse(WebhookSecret, _told(answer)))

    def rotate_webhook_secret(self, overlap_seconds: int | None) -> _Flow[WebhookSecret]:
        query = {} if overlap_seconds is None else {"overlap_seconds": str(overlap_seconds)}
        answer = yield from self._send(_Send("POST", "v1/webhook_secret/rotate", params=query))
        yield _Emit(_parse(WebhookSecret, _told(answer)))

    def wait(self, video_id: str, timeout_seconds: float | None) -> _Flow[VideoObject]:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        patience = self.patience_seconds
        while True:
            answer = yield from self._send(_Send("GET", _video(video_id)), patience)
            patience = self.reconnect_seconds
            video = _parse(VideoObject, _told(answer))
            if video.status.terminal:
                yield _Emit(video)
                return
            pause = float(answer.response.headers.get("openai-poll-after-ms", 1000)) / 1000
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(video)
                pause = min(pause, left)
            yield _Pause(pause)

    def events(self, video_id: str, after: str | None) -> _Flow[VideoEvent]:
        def hand_over(event: VideoEvent) -> _Part[None]:
            yield _Emit(event)

        return self._listen(video_id, after, hand_over)

    def chunks(self, video_id: str, start: int) -> _Flow[ChunkObject]:
        """Events tell that there is more; the list has what the event stream no longer holds."""
        following = start

        def hand_over(event: VideoEvent) -> _Part[None]:
            nonlocal following
            chunk = event.chunk
            if chunk is not None and chunk.index == following:
                yield _Emit(chunk)
                following += 1
            elif event.terminal or (chunk is not None and chunk.index > following):
                for missed in (yield from self._chunk_list(video_id, following)):
                    yield _Emit(missed)
                    following = missed.index + 1

        return self._listen(video_id, None, hand_over)

    def download(self, path: str, params: Mapping[str, str]) -> _Flow[bytes]:
        sink = BytesIO()
        yield from self._fetch(path, params, sink)
        yield _Emit(sink.getvalue())

    def download_file(self, path: str, params: Mapping[str, str], target: Path, tag: str) -> _Flow[Path]:
        """What arrives is kept beside the target under a name with `tag`, and continued by the next call."""
        part = target.with_name(f".{target.name}.{tag}.part")

        def install() -> None:
            sink.flush()
            os.fsync(sink.fileno())
            sink.close()
            part.replace(target)

        with part.open("ab") as sink:
            try:
                yield from self._fetch(path, params, sink)
                yield _Block(install)
            finally:
                if part.exists() and not part.stat().st_size:
                    part.unlink()
        yield _Emit(target)

    def _chunk_list(self, video_id: str, start: int) -> _Part[Sequence[ChunkObject]]:
        found: list[ChunkObject] = []
        after = start - 1
        while True:
            params = {"after": str(after)} if after >= 0 else {}
            send = _Send("GET", f"{_video(video_id)}/chunks", params=params)
            page = _parse(ChunkList, _told((yield from self._send(send, self.reconnect_seconds))))
            found += page.data
            if not page.has_more or not page.data:
                return found
            after = page.data[-1].index

    def _listen(
        self, video_id: str, after: str | None, hand_over: Callable[[VideoEvent], _Part[None]]
    ) -> _Flow[Any]:
        """Reads events up to the terminal one; connects again after the last one seen when a connection ends."""
        pause, failures, heard = 2.0, 0, time.monotonic()
        patience = self.patience_seconds
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
            send = _Send("GET", f"{_video(video_id)}/events", headers=headers, stream=True)
            body = yield from self._send(send, patience)
            if body.response.status_code == 204:  # the last event was seen before
                return
            patience = self.reconnect_seconds
            parser = EventParser()
            lost: httpx.RequestError | None = None
            try:
                while data := (yield _Read(body)):
                    failures, heard = 0, time.monotonic()
                    for event in parser.feed(data):
                        yield from hand_over(event)
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
        failures = 0
        patience = self.patience_seconds
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
            patience = self.reconnect_seconds
            begin, total = _extent(body.response)
            if begin != have:
                _restart(sink)
                if begin != 0:
                    yield _Close(body)
                    continue
            etag = body.response.headers.get("ETag")
            try:
                while data := (yield _Read(body)):
                    yield _Block(partial(sink.write, data))
                    failures = 0
            except httpx.RequestError as error:
                if failures > 5:
                    raise self._unreachable(error) from error
            yield _Close(body)
            if total is None or sink.tell() >= total:
                return
            yield _Pause(_pause_seconds(failures))
            failures += 1

    def _send(self, send: _Send, patience_seconds: float | None = None) -> _Part[_Body]:
        """Sends, and sends again for `patience_seconds` while the service is away or busy.

        Every request of this client may be repeated: reading changes nothing, `create` carries an idempotency key,
        and what was cancelled or deleted stays so. Raises `ServiceError` and `ServiceUnreachable`.
        """
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        deadline = time.monotonic() + patience
        failures = 0
        while True:
            pause = _pause_seconds(failures)
            failure: LongtakeError
            try:
                body: _Body = yield send
            except httpx.RequestError as error:
                failure = self._unreachable(error)
            else:
                if not body.response.is_error:
                    return body
                problem = _problem(body.response)
                if problem.status not in _PASSING_STATUSES:
                    raise problem
                pause = max(pause, problem.retry_after_seconds or 0.0)
                failure = problem
            if time.monotonic() + pause > deadline:
                raise failure
            yield _Pause(pause)
            failures += 1

    def _unreachable(self, error: httpx.RequestError) -> ServiceUnreachable:
        return ServiceUnreachable(f"no answer from {self.url}: {_words(error)}")


class _Client:
    """What both clients are told."""

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
            api_key: sent as a bearer token.
            patience_seconds: how long a call is tried again while the service is away or busy.
            reconnect_seconds: the same once a video is being waited for, streamed or downloaded.
            timeout_seconds: longest silence on a connection; above the service's heartbeat of 15 s.

        Raises:
            ValueError: `url` is no http or https URL.
        """
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"not an http:// or https:// URL: {url}")
        self.url = url.rstrip("/")
        self._flows = _Flows(self.url, patience_seconds, reconnect_seconds)
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


class LongtakeClient(_Client):
    """Synchronous client; a context manager. Methods raise the errors of this module and nothing of httpx."""

    _http: httpx.Client

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def create(
        self,
        prompt: str | None = None,
        *,
        idempotency_key: str | None = None,
        **request: Unpack[VideoRequest],
    ) -> VideoObject:
        """Asks for a video of `prompt`, or of the timeline `prompts`.

        A lost answer never makes a second video: the request carries `idempotency_key`, a random one by default.
        """
        return self._one(self._flows.create(_request_body(prompt, request), idempotency_key))

    def retrieve(self, video_id: str) -> VideoObject:
        """The video as it is now."""
        return self._one(self._flows.retrieve(video_id))

    def list(
        self,
        *,
        status: Status | str | None = None,
        order: Literal["asc", "desc"] = "desc",
        page_size: int = 50,
        after: str | None = None,
    ) -> Generator[VideoObject]:
        """Your videos by time of creation, newest first by default; pages are fetched as they are needed."""
        return self._each(self._flows.videos(_list_params(status, order, page_size, after)))

    def cancel(self, video_id: str) -> VideoObject:
        """Stops a video; its finished chunks stay. Raises `Conflict` when it has ended otherwise already."""
        return self._one(self._flows.cancel(video_id))

    def pause(self, video_id: str) -> VideoObject:
        """Pauses a video, a running one after its next chunk. Raises `Conflict` when it has ended."""
        return self._one(self._flows.pause(video_id))

    def resume(self, video_id: str) -> VideoObject:
        """Lets a paused video go on. Raises `Conflict` when it is not paused."""
        return self._one(self._flows.resume(video_id))

    def delete(self, video_id: str) -> bool:
        """Stops a video if it runs, and removes everything of it."""
        return self._one(self._flows.delete(video_id))

    def wait(self, video_id: str, *, timeout_seconds: float | None = None) -> VideoObject:
        """Polls, as often as the service suggests, until the video is completed, failed or cancelled.

        Look at `status` and `error` of what it returns. Raises `WaitTimeout` after `timeout_seconds`.
        """
        return self._one(self._flows.wait(video_id, timeout_seconds))

    def events(self, video_id: str, *, after: str | None = None) -> Generator[VideoEvent]:
        """Events up to the terminal one, without gap or repeat over lost connections and restarts of the service.

        `after` is the id of the last event already seen; None starts with the first.
        """
        return self._each(self._flows.events(video_id, after))

    def chunks(self, video_id: str, *, start: int = 0) -> Generator[ChunkObject]:
        """Chunks in order from index `start`, each as soon as it is ready; ends with the video."""
        return self._each(self._flows.chunks(video_id, start))

    def download(
        self,
        video_id: str,
        path: str | os.PathLike[str],
        *,
        variant: Variant = "video",
    ) -> Path:
        """Writes the finished file to `path`, which appears complete or not at all.

        A lost connection is continued where it broke; so is an earlier call that was interrupted.
        """
        return self._one(
            self._flows.download_file(*_content(video_id, variant), Path(path), f"{video_id}.{variant}")
        )

    def read(self, video_id: str, *, variant: Variant = "video") -> bytes:
        """The finished file as bytes."""
        return self._one(self._flows.download(*_content(video_id, variant)))

    def read_chunk(self, video_id: str, index: int) -> bytes:
        """One chunk as an MP4 that plays by itself."""
        return self._one(self._flows.download(f"{_video(video_id)}/chunks/{index}/content", {}))

    def models(self) -> Sequence[ModelObject]:
        """Models the service can make videos with."""
        return self._one(self._flows.models())

    def webhook_deliveries(self, video_id: str) -> Generator[WebhookDelivery]:
        """What was sent to the video's `webhook_url` and how it went, the newest first."""
        return self._each(self._flows.webhook_deliveries(video_id))

    def retry_webhook(self, video_id: str, delivery_id: str) -> WebhookDelivery:
        """Sends a webhook again, at once and as often as a new one."""
        return self._one(self._flows.retry_webhook(video_id, delivery_id))

    def webhook_secret(self) -> WebhookSecret:
        """What your webhooks are signed with."""
        return self._one(self._flows.webhook_secret())

    def rotate_webhook_secret(self, *, overlap_seconds: int | None = None) -> WebhookSecret:
        """A new secret. The old one signs beside it for a while, the service's default if None.

        A lost answer may rotate once more; the last secret is the one that is returned.
        """
        return self._one(self._flows.rotate_webhook_secret(overlap_seconds))

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

    def _one(self, flow: _Flow[T]) -> T:
        with closing(self._each(flow)) as items:
            return next(items)

    def _each(self, flow: _Flow[T]) -> Generator[T]:
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
    """The same for asyncio; an asynchronous context manager. Each method does what its namesake above does."""

    _http: httpx.AsyncClient

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def create(
        self,
        prompt: str | None = None,
        *,
        idempotency_key: str | None = None,
        **request: Unpack[VideoRequest],
    ) -> VideoObject:
        return await self._one(self._flows.create(_request_body(prompt, request), idempotency_key))

    async def retrieve(self, video_id: str) -> VideoObject:
        return await self._one(self._flows.retrieve(video_id))

    def list(
        self,
        *,
        status: Status | str | None = None,
        order: Literal["asc", "desc"] = "desc",
        page_size: int = 50,
        after: str | None = None,
    ) -> AsyncGenerator[VideoObject]:
        return self._each(self._flows.videos(_list_params(status, order, page_size, after)))

    async def cancel(self, video_id: str) -> VideoObject:
        return await self._one(self._flows.cancel(video_id))

    async def pause(self, video_id: str) -> VideoObject:
        return await self._one(self._flows.pause(video_id))

    async def resume(self, video_id: str) -> VideoObject:
        return await self._one(self._flows.resume(video_id))

    async def delete(self, video_id: str) -> bool:
        return await self._one(self._flows.delete(video_id))

    async def wait(self, video_id: str, *, timeout_seconds: float | None = None) -> VideoObject:
        return await self._one(self._flows.wait(video_id, timeout_seconds))

    def events(self, video_id: str, *, after: str | None = None) -> AsyncGenerator[VideoEvent]:
        return self._each(self._flows.events(video_id, after))

    def chunks(self, video_id: str, *, start: int = 0) -> AsyncGenerator[ChunkObject]:
        return self._each(self._flows.chunks(video_id, start))

    async def download(
        self, video_id: str, path: str | os.PathLike[str], *, variant: Variant = "video"
    ) -> Path:
        content = _content(video_id, variant)
        return await self._one(self._flows.download_file(*content, Path(path), f"{video_id}.{variant}"))

    async def read(self, video_id: str, *, variant: Variant = "video") -> bytes:
        return await self._one(self._flows.download(*_content(video_id, variant)))

    async def read_chunk(self, video_id: str, index: int) -> bytes:
        return await self._one(self._flows.download(f"{_video(video_id)}/chunks/{index}/content", {}))

    async def models(self) -> Sequence[ModelObject]:
        return await self._one(self._flows.models())

    def webhook_deliveries(self, video_id: str) -> AsyncGenerator[WebhookDelivery]:
        return self._each(self._flows.webhook_deliveries(video_id))

    async def retry_webhook(self, video_id: str, delivery_id: str) -> WebhookDelivery:
        return await self._one(self._flows.retry_webhook(video_id, delivery_id))

    async def webhook_secret(self) -> WebhookSecret:
        return await self._one(self._flows.webhook_secret())

    async def rotate_webhook_secret(self, *, overlap_seconds: int | None = None) -> WebhookSecret:
        return await self._one(self._flows.rotate_webhook_secret(overlap_seconds))

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

    async def _one(self, flow: _Flow[T]) -> T:
        async with aclosing(self._each(flow)) as items:
            return await anext(items)

    async def _each(self, flow: _Flow[T]) -> AsyncGenerator[T]:
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


def _video(video_id: str) -> str:
    return f"v1/videos/{quote(video_id, safe='')}"


def _content(video_id: str, variant: str) -> tuple[str, dict[str, str]]:
    return f"{_video(video_id)}/content", {"variant": variant}


def _request_body(prompt: str | None, request: VideoRequest) -> dict[str, Any]:
    return {name: value for name, value in {"prompt": prompt, **request}.items() if value is not None}


def _list_params(status: str | None, order: str, page_size: int, after: str | None) -> dict[str, Any]:
    return {"status": status, "order": order, "limit": page_size, "after": after}


def _build(http: httpx.Client | httpx.AsyncClient, send: _Send) -> httpx.Request:
    return http.build_request(
        send.method, send.path, params=dict(send.params), json=send.json, headers=dict(send.headers)
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
    kind: type[ServiceError] = {
        401: NotAuthorized,
        403: NotAuthorized,
        404: NotFound,
        409: Conflict,
        429: TooManyRequests,
    }.get(response.status_code, InvalidRequest if response.is_client_error else ServiceUnavailable)
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
