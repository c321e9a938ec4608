"""Around every request: its id, one line in the log, where it may come from, limits on its body, no stack trace."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import APIError, body_stalled, body_too_large, internal, quoted
from app.metrics import Metrics
from app.settings import Settings

access_log = logging.getLogger("app.access")
log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 5.0
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_PROBES = {"/healthz", "/readyz"}
_PORT = re.compile(r":[0-9]*$")


class RequestLog:
    """Names each request, counts it, logs it when it is over, and answers 500 when it fails.

    The line holds the path without its query, and no header but the id: neither keys nor prompts reach the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        began = time.perf_counter()
        status, answered = 0, began

        async def named(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, named)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # the answer has begun: only a cut connection tells the client that it is not whole
            await internal().response()(scope, receive, named)
        finally:
            self.metrics.request(scope, status or 500, (answered if status else time.perf_counter()) - began)
            access_log.info(
                "%s %s %s",
                scope["method"],
                # Escapes keep line breaks, terminal codes and half characters in a path out of the log.
                scope["path"].encode("unicode_escape").decode("ascii"),
                status or 500,
                extra={
                    "request_id": request_id,
                    "milliseconds": round((time.perf_counter() - began) * 1000, 1),
                    "client": (scope.get("client") or ("",))[0],
                    **_owner(scope),
                },
            )


def _owner(scope: Scope) -> dict[str, str]:
    caller = scope.get("state", {}).get("caller")
    return {"owner": caller.owner} if caller is not None and caller.owner else {}


class BodyLimit:
    """Refuses bodies above a size with 413: at once by their announced length, else by the bytes that arrive.
    One that stops arriving is refused with 408.

    What only reads has no body that counts: such a request waits for its client to leave, however long that takes.
    """

    def __init__(self, app: ASGIApp, max_bytes: Callable[[str, str], int], idle_seconds: float) -> None:
        """`max_bytes` is told the path and the media type of a request."""
        self.app = app
        self.max_bytes = max_bytes
        self.idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        limit = self.max_bytes(scope["path"], media_type)
        announced = headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
            if "expect" not in headers:  # such a client waits to be asked for its body
                await _discard(receive)
            await body_too_large(limit).response()(scope, receive, send)
            return
        seen, more = 0, True

        async def counted() -> Message:
            nonlocal seen, more
            try:
                async with asyncio.timeout(self.idle_seconds if more else None):
                    message = await receive()
            except TimeoutError as error:
                raise body_stalled(self.idle_seconds) from error
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                more = message.get("more_body", False)
                if seen > limit:
                    if more:
                        await _discard(receive)
                    raise body_too_large(limit)
            return message

        await self.app(scope, counted, send)


async def _discard(receive: Receive) -> None:
    """Takes the rest of a body from the wire, within reason.

    A connection that is closed while the client still sends is reset, and the client never sees the answer.
    """
    seen, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while more and seen < _DISCARD_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


class CrossSiteGuard:
    """Refuses what another web site makes a visitor's browser send, unless that site is allowed.

    A form on any page can post to a service on the visitor's own machine or network without asking first. Browsers
    say so in `Sec-Fetch-Site`, but only to https:// and to their own machine; elsewhere `Origin` has to tell. Programs
    send neither.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], own: str, keys: bool) -> None:
        """`own` origin of the service. `keys` are on: nobody gets anywhere without one, and other sites have none."""
        self.app = app
        self.allowed = frozenset(allowed)
        self.own = own
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and "*" not in self.allowed:
            headers = Headers(scope=scope)
            if self._from_another_site(headers) and headers.get("origin") not in self.allowed:
                refusal = APIError(
                    403,
                    "Other web sites may not call this service. LONGTAKE_CORS_ORIGINS names those that may.",
                    code="cross_site_request",
                    param="Origin",
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _from_another_site(self, headers: Headers) -> bool:
        site, origin, host = (headers.get(name) for name in ("sec-fetch-site", "origin", "host"))
        if site is not None:
            return site in ("cross-site", "same-site")
        return not self.keys and origin not in (None, f"http://{host}", f"https://{host}", self.own)


class HostGuard:
    """Answers 421 to a host name that is not one of the service's. For a service without keys.

    A web site can make its own name point at this service (DNS rebinding): to the visitor's browser both are one site
    then, and its pages may do everything here. An address, or a name that public DNS does not serve, cannot be made to
    point elsewhere.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        """`allowed` names beside those that are safe anyway; `*`: any."""
        self.app = app
        self.allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            name = _PORT.sub("", Headers(scope=scope).get("host", "").lower())
            if not (self.allowed & {name, "*"} or _is_safe(name)):
                refusal = APIError(
                    421,
                    f"This service does not go by the name {quoted(name)}. "
                    "LONGTAKE_ALLOWED_HOSTS lists the names that it answers to; with API keys it answers to any.",
                    code="host_not_allowed",
                    param="Host",
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def own_origin(settings: Settings) -> str:
    """The public address as browsers write it in `Origin`. Raises ValueError for one that is no URL."""
    parts = urlsplit(settings.public_url or "")
    return f"{parts.scheme}://{parts.netloc}".lower()


def own_host_names(settings: Settings) -> list[str]:
    """The names that a service goes by. Raises ValueError for a public address that is no URL."""
    machine = socket.gethostname()
    names = [name.strip() for name in settings.allowed_hosts.split(",")]
    names += [settings.host, machine, f"{machine.partition('.')[0]}.local"]
    names += [urlsplit(settings.public_url or "").hostname or ""]
    return names


def _is_safe(name: str) -> bool:
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
