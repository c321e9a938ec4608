"""Who asks: an API key, a signed URL, or nobody. Decided before anything else of a request is looked at.

Everything needs a key but what `_PUBLIC` names, so a new route is closed until somebody opens it. Without a file of
keys there are no tenants: everybody is the owner "", and the service listens on the loopback only.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import socket
from dataclasses import dataclass

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import APIError, from_redis, keys_unavailable, too_many, unauthorized
from app.keys import ApiKey, KeyFile, Keyring, KeysError
from app.limits import UNLIMITED, Limits, RequestRate, limits_of
from app.settings import Settings
from app.signatures import InvalidSignature, Signature, SignatureExpired, Signer, parse_signature

log = logging.getLogger(__name__)

# Say nothing about any video. `/metrics` has a token of its own.
_PUBLIC = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"})
_PUBLIC_FILES = "/static/"

# What a signed URL opens; of events the part that is not private (`EventHub.watch`). Everything else of a video, its
# prompts above all, takes the key.
_PLAYBACK = re.compile(
    r"/v1/videos/(video_[0-9a-f]{32})"
    r"/(?:stream\.m3u8|init\.mp4|chunks/[0-9]{1,6}\.m4s|chunks/[0-9]{1,6}/content|content|events)",
    re.ASCII,
)

# What a key may do that may only look. How webhooks are signed is for who makes videos.
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_VISIBLE = re.compile(r"/v1/(?:videos|models)(?:/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from, and what it may do."""

    owner: str
    """Whose videos are made and seen: the id of an API key, "" where keys are off."""
    key: str = ""
    """Id of the API key that asks: the owner's, or one that may only look at what is the owner's."""
    limits: Limits = UNLIMITED
    signature: Signature | None = None
    """The signed URL that let the request in, where no key did."""


ANONYMOUS = Caller("")


class Authenticate:
    """Finds out who asks, and refuses whoever may not. Puts a `Caller` into the request's state.

    A public address has none: what it answers does not depend on who asks.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        keyring: Keyring | None,
        rate: RequestRate,
        signer: Signer,
    ) -> None:
        """`keyring` None: keys are off."""
        self.app = app
        self._settings = settings
        self._keyring = keyring
        self._rate = rate
        self._signer = signer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope["path"]):
            await self.app(scope, receive, send)
            return
        caller = ANONYMOUS
        if self._keyring is not None:
            try:
                caller = await self._caller(self._keyring, scope)
            except APIError as refusal:
                await refusal.response()(scope, receive, send)
                return
            send = _guarded(send, self._keyring, caller.key)
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)

    async def _caller(self, keyring: Keyring, scope: Scope) -> Caller:
        try:
            return await self._identified(keyring, scope)
        except KeysError as error:
            raise keys_unavailable() from error
        except RedisError as error:
            raise from_redis(error) from error

    async def _identified(self, keyring: Keyring, scope: Scope) -> Caller:
        token = bearer_token(Headers(scope=scope))
        if token is None:
            return await self._by_signature(keyring, scope)
        key = keyring.find(token)
        if key is None:
            raise unauthorized("The API key is wrong, or it was revoked.", code="invalid_api_key")
        caller = self._caller_with(key)
        await self._spend_request(caller)
        if key.read_only and not (scope["method"] in _READING and _VISIBLE.fullmatch(scope["path"])):
            raise APIError(
                403,
                "This API key may look at videos, and do nothing else.",
                code="insufficient_scope",
                type="permission_error",
            )
        return caller

    def _caller_with(self, key: ApiKey, signature: Signature | None = None) -> Caller:
        return Caller(key.of or key.id, key.id, limits_of(key, self._settings), signature)

    async def _spend_request(self, caller: Caller) -> None:
        per_minute = caller.limits.requests_per_minute
        if not per_minute:
            return
        wait = await run_in_threadpool(self._rate.take, caller.key, per_minute)
        if wait > 0:
            raise too_many(
                f"This API key may make {per_minute} requests a minute.",
                code="rate_limit_exceeded",
                retry_after_seconds=math.ceil(wait),
            )

    async def _by_signature(self, keyring: Keyring, scope: Scope) -> Caller:
        """A request without a key. Signed URLs do not count as requests of their owner."""
        try:
            signature = parse_signature(scope["query_string"].decode("latin-1"))
            if signature is None:
                raise unauthorized(
                    "This needs an API key, sent as `Authorization: Bearer KEY`.", code="missing_api_key"
                )
            playback = _PLAYBACK.fullmatch(scope["path"])
            if playback is None or scope["method"] not in ("GET", "HEAD"):
                raise InvalidSignature
            await run_in_threadpool(self._signer.check, signature, playback[1])
            key = keyring.active(signature.owner)
            if key is None:
                raise InvalidSignature
        except InvalidSignature as error:
            raise unauthorized("The URL is not signed for this.", code="invalid_signature") from error
        except SignatureExpired as error:
            raise unauthorized(
                "The signed URL has expired. The video's owner can get a new one.", code="signature_expired"
            ) from error
        return self._caller_with(key, signature)


def is_public(path: str) -> bool:
    """Whether an address is open to everybody."""
    return path in _PUBLIC or path.startswith(_PUBLIC_FILES)


def is_playback(path: str) -> bool:
    """Whether a signed URL may open an address."""
    return _PLAYBACK.fullmatch(path) is not None


def check_exposure(settings: Settings) -> None:
    """Raises ValueError when the settings open the service to others and let anybody in."""
    if settings.api_keys_file is not None:
        try:
            KeyFile(settings.api_keys_file).read()
        except KeysError as error:
            raise ValueError(
                f"{error} (LONGTAKE_API_KEYS_FILE; `longtake keys create --name NAME` makes it)"
            ) from error
    elif not settings.allow_anonymous and not _is_loopback(settings.host):
        raise ValueError(
            f"listening on {settings.host} would let everybody in: set LONGTAKE_API_KEYS_FILE, "
            "or LONGTAKE_ALLOW_ANONYMOUS=true if something else keeps strangers out"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def bearer_token(headers: Headers) -> str | None:
    """The token of an `Authorization: Bearer` header; None when there is none."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _guarded(send: Send, keyring: Keyring, key: str) -> Send:
    """Keeps an answer out of shared caches, and ends a long one when the key is revoked meanwhile."""
    announced = False

    async def guarded(message: Message) -> None:
        nonlocal announced
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            announced = "content-length" in headers
            if "public" in headers.get("cache-control", ""):
                headers["cache-control"] = headers["cache-control"].replace("public", "private")
        elif not _still_active(keyring, key):
            log.info("the key %s was revoked: an answer to it is cut off", key)
            if not announced:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise ClientDisconnect
        await send(message)

    return guarded


def _still_active(keyring: Keyring, key: str) -> bool:
    try:
        return keyring.active(key) is not None
    except KeysError:
        return False
