"""The HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import resource
import signal
import socket
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import __version__
from app.auth import Authenticate, check_exposure, is_playback, is_public
from app.context import THREADS, Context
from app.errors import (
    APIError,
    from_record,
    from_redis,
    from_status,
    from_storage,
    from_validation,
    not_found,
    unknown_parameter,
)
from app.jobs.migrations import RecordError
from app.logs import configure_logging
from app.middleware import BodyLimit, CrossSiteGuard, HostGuard, RequestLog, own_host_names, own_origin
from app.routes import chunks, control, derived, events, operations, page, reference, videos, webhooks
from app.routes.documentation import errors
from app.routes.examples import EXAMPLES
from app.schemas import CreateVideo, ExtendVideo, RemixVideo, RotateSecret, SteerVideo, UpdateVideo
from app.settings import Settings
from app.signatures import SIGNATURE_FIELDS
from app.storage import StorageError
from app.upkeep import Upkeep
from app.webhooks import WebhookSender

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 64 * 1024

_DESCRIPTION = """
Turns a prompt into a long video that can be watched while it is being made.

Every error, whatever its cause, is `{"error": {"message", "type", "param", "code"}}`. The stock OpenAI SDK drives
`/v1/videos` unchanged.

Where API keys are on, everything under `/v1` takes one as `Authorization: Bearer KEY`, and answers with what that key
made and nothing else. The playback addresses of a video can be opened without a key by the query of its `playlist_url`.
"""


_ROUTERS = (
    derived.router,
    videos.router,
    control.router,
    chunks.router,
    events.router,
    webhooks.router,
    operations.router,
    page.router,
    reference.router,
)


def create_app(settings: Settings) -> FastAPI:
    """The application. Connects to nothing yet. Raises ValueError when the settings name no Redis."""
    context = Context(settings)
    sender = WebhookSender(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await context.events.start()
        upkeep = Upkeep(context.chores(), settings.sweep_seconds)
        upkeep.start()
        await sender.start()
        yield
        await sender.close()
        await context.events.close()
        await anyio.to_thread.run_sync(upkeep.stop)
        await context.events.disconnect()

    app = FastAPI(
        title="longtake",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        webhooks=webhooks.sent,
        middleware=_middleware(settings, context),
        redirect_slashes=False,
        dependencies=[Depends(_only_known_parameters)],
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", page.files, name="static")
    _handle_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def serve(settings: Settings, *, ready: Callable[[str, int], None] | None = None) -> int:
    """Runs the API until SIGTERM or SIGINT and returns the exit code. Prints nothing; logs to stderr.

    `ready` is called with the host and the real port (also when port 0 was asked for) once requests are answered.
    """
    configure_logging(settings)
    try:
        check_exposure(settings)
        app = create_app(settings)
        listener = _listen(settings.host, settings.port)
    except (OSError, ValueError) as error:
        log.error("the API cannot start: %s", error)
        return 1
    _raise_file_limit()
    host, port = listener.getsockname()[:2]

    def started() -> None:
        log.info("listening on %s port %d", host, port)
        if ready is not None:
            ready(host, port)

    server = Server(server_config(app, settings), app.state.context, started)
    with listener, _quiet_signals():
        server.run(sockets=[listener])
    return 0 if server.started else 1


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How an application is served."""
    return uvicorn.Config(
        app,
        http=partial(_Protocol, settings.idle_seconds),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )


class Server(uvicorn.Server):
    """uvicorn waits for open responses before the lifespan ends: event streams have to end before that."""

    def __init__(self, config: uvicorn.Config, context: Context, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._context = context
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._context.events.close()
        await super().shutdown(sockets)


class _Protocol(HttpToolsProtocol):
    """What is not even HTTP is refused in the shape of all other errors, and so is a head that does not end.

    A client that takes nothing of its answers any more loses its connection. Whatever was sending to it ends by that.
    One loses it, too, that sends no whole head of its first request, or of a later one once it has begun with it.
    """

    _in_head = True
    _head_bytes = 0
    _look: asyncio.TimerHandle | None = None
    _head_due: asyncio.TimerHandle | None = None

    def __init__(self, idle_seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._idle_seconds = idle_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # paused is then as long as anything waits for the client
        self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        self._look_no_more()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_no_more()
        self._wait_no_more()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._look = self.loop.call_later(self._idle_seconds, self._look_after_client, self._untaken_bytes())

    def _look_no_more(self) -> None:
        if self._look is not None:
            self._look.cancel()

    def _look_after_client(self, before: int) -> None:
        if self._untaken_bytes() < before:
            self._look_later()
            return
        log.info("a client takes nothing any more: cut off")
        self.transport.abort()

    def _untaken_bytes(self) -> int:
        waiting = self.transport.get_write_buffer_size()
        if sys.platform == "linux":
            # A client slower than the system's buffer is large takes from that for minutes before it is refilled.
            connection = self.transport.get_extra_info("socket")
            held = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(held, sys.byteorder)
        return waiting

    def _wait_for_head(self) -> None:
        self._head_due = self.loop.call_later(self._idle_seconds, self._give_up)

    def _wait_no_more(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()

    def _give_up(self) -> None:
        log.info("a client sends no whole request: cut off")
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:  # all was answered; from now on uvicorn waits for ever
            self._wait_for_head()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait_no_more()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        error = APIError(400, msg, code="malformed_request")
        body = json.dumps(error.body()).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _middleware(settings: Settings, context: Context) -> list[Middleware]:
    origins = [origin.strip().rstrip("/") for origin in settings.cors_origins.split(",") if origin.strip()]
    layers = [Middleware(RequestLog, metrics=context.metrics)]
    if origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
                allow_headers=["*"],
                expose_headers=[
                    "Content-Disposition",
                    "Content-Range",
                    "ETag",
                    "Retry-After",
                    "WWW-Authenticate",
                    "openai-poll-after-ms",
                    "x-request-id",
                ],
                max_age=3600,
            )
        )
    keys = settings.api_keys_file is not None
    if not keys:
        layers.append(Middleware(HostGuard, allowed=own_host_names(settings)))
    layers.append(Middleware(CrossSiteGuard, allowed=origins, own=own_origin(settings), keys=keys))
    layers.append(
        Middleware(
            Authenticate,
            settings=settings,
            keyring=context.keyring,
            rate=context.request_rate,
            signer=context.signer,
        )
    )
    max_bytes = partial(_max_body_bytes, settings)
    layers.append(Middleware(BodyLimit, max_bytes=max_bytes, idle_seconds=settings.idle_seconds))
    return layers


def _max_body_bytes(settings: Settings, path: str, media_type: str) -> int:
    """Only the request that may bring an image or a video may be large."""
    if path != "/v1/videos":
        return settings.max_body_bytes
    largest = settings.max_body_bytes + settings.max_data_url_bytes
    return largest + settings.max_upload_bytes if media_type == "multipart/form-data" else largest


async def _only_known_parameters(request: Request) -> None:
    """Raises `APIError` 400 for a query parameter of the API that does nothing there."""
    path = request.scope["path"]
    if not path.startswith("/v1/"):
        return
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    if is_playback(path):
        known |= SIGNATURE_FIELDS
    for name in request.query_params:
        if name not in known:
            raise unknown_parameter(name)


def _handle_errors(app: FastAPI) -> None:
    async def known(_request: Request, error: APIError) -> Response:
        return error.response()

    async def away(_request: Request, error: RedisError) -> Response:
        log.warning("Redis is away: %s", type(error).__name__)
        return from_redis(error).response()

    async def unreadable(_request: Request, error: RecordError) -> Response:
        log.error("a record cannot be read: %s (%s)", error, error.__cause__)
        return from_record(error).response()

    async def stored(_request: Request, error: StorageError) -> Response:
        answer = from_storage(error)
        if answer.status >= 500:
            # The log has the cause, which may name hosts and paths; the client's message does not.
            log.warning("the object store failed: %s (%s)", error, error.__cause__)
        return answer.response()

    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(
                _methods(request.url.path)
            )  # the framework knows of the first route only
        return from_status(error.status_code, headers).response()

    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        if problems[0]["loc"][0] == "path":
            return not_found("There is nothing at this address.").response()
        return from_validation(problems, skip=1).response()

    handlers: dict[type[Exception], Any] = {
        APIError: known,
        RedisError: away,
        RecordError: unreadable,
        StorageError: stored,
        HTTPException: refused,
        RequestValidationError: malformed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _methods(path: str) -> list[str]:
    """Every method that some route takes at a path."""
    return sorted(
        {
            method
            for router in _ROUTERS
            for route in router.routes
            if isinstance(route, Route) and route.path_regex.match(path)
            for method in route.methods or ()
        }
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, less its own validation errors (ours are 400), plus the request body."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            webhooks=app.webhooks.routes,
        )
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations_of_path in (*document["paths"].items(), *document["webhooks"].items()):
            for operation in operations_of_path.values():
                if path in document["paths"] and not is_public(path):
                    # Nothing, or a key: a service may run without keys.
                    operation["security"] = [{}, {"key": []}]
                    operation["responses"] = _described_refusals() | operation["responses"]
                content = operation["responses"].get("422", {}).get("content", {})
                if "HTTPValidationError" in json.dumps(content):
                    del operation["responses"]["422"]
        for body in (CreateVideo, ExtendVideo, RemixVideo, UpdateVideo, SteerVideo, RotateSecret):
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[body.__name__] = schema
        for name, example in EXAMPLES.items():
            schemas[name]["examples"] = [example]
        app.openapi_schema = document
    return app.openapi_schema


def _described_refusals() -> dict[str, Any]:
    """What any address that takes a key may answer, in the words of the OpenAPI document."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorObject"}}}
    return {
        str(status): {"description": answer["description"], "content": content}
        for status, answer in errors(400, 401, 403, 421, 429, 503).items()
    }


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"{host} port {port}: {error.strerror}") from error
    return listener


def _raise_file_limit() -> None:
    """Every watcher is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _quiet_signals() -> Any:
    """uvicorn raises the signal that ended it once more; the end was asked for, and is no failure."""
    with ExitStack() as restore:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                restore.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        yield
