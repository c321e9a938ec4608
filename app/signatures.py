"""Signed URLs: playback without an API key, for elements and players that cannot send a header.

    /v1/videos/{id}/stream.m3u8?owner=…&exp=…&sig=…

The signature (HMAC-SHA256) is over the video's id, the key it was made for (`owner`: the video's owner, or a key that
may look at its videos) and the time it ends. It opens the playback addresses of that one video to GET and HEAD, and is
refused once that key is revoked. All addresses of a video take the same query. URLs change only every quarter of their
life, so that players and caches see the same ones for a while.

| key                   | type   | holds                                                                         |
|-----------------------|--------|-------------------------------------------------------------------------------|
| longtake:secret       | string | what URLs are signed with, unless LONGTAKE_SIGNING_SECRET is set              |
| longtake:viewed:{sig} | string | a growing playlist was read with this signature a moment ago; expires         |
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from app.jobs.connection import Connection

SIGNED_WITH_KEY = "longtake:secret"

# A player reads a growing playlist every few seconds. One that was reading it when its signature ended may go on, or
# nobody could watch a video for longer than URLs live; one that stops for this long may not.
_VIEWING_SECONDS = 60

# How long a secret from Redis is used without looking: replicas agree again this soon after Redis lost it.
_SECRET_SECONDS = 30.0

SIGNATURE_FIELDS = frozenset({"owner", "exp", "sig"})
"""What a signed URL has in its query."""

_END = re.compile(r"[0-9]{1,12}", re.ASCII)


class InvalidSignature(Exception):
    """The signature is not one of this service for this video."""


class SignatureExpired(Exception):
    """The signature was good, and its time is over."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What the query of a signed URL says."""

    owner: str
    ends_at: int
    mac: str

    @property
    def query(self) -> str:
        return urlencode({"owner": self.owner, "exp": self.ends_at, "sig": self.mac})


def parse_signature(query: str) -> Signature | None:
    """The signature in a query; None when there is none. Raises `InvalidSignature` for half of one."""
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:  # no URL of ours has that many
        return None
    if "sig" not in fields:
        return None
    values = [fields.get(name, []) for name in ("owner", "exp", "sig")]
    if any(len(given) != 1 for given in values) or not _END.fullmatch(values[1][0]):
        raise InvalidSignature
    return Signature(values[0][0], int(values[1][0]), values[2][0])


class Signer:
    """Signs and checks. All replicas that share a Redis, or a secret, take each other's signatures.

    Every method may ask Redis, and so raise `RedisError`.
    """

    def __init__(self, connection: Connection, secret: str | None, lifetime_seconds: float) -> None:
        self._redis = connection
        self._given = None if secret is None else secret.encode()
        self._lifetime = lifetime_seconds
        self._fetched = b""
        self._fetched_at = -_SECRET_SECONDS
        self._fetching = threading.Lock()

    def sign(self, video_id: str, owner: str) -> Signature:
        """A signature that is good for at least the lifetime of signed URLs."""
        step = max(1, int(self._lifetime / 4))
        ends_at = (int(time.time()) // step + 1) * step + int(self._lifetime)
        return Signature(owner, ends_at, self._mac(video_id, owner, ends_at))

    def check(self, signature: Signature, video_id: str) -> None:
        """Raises `InvalidSignature` and `SignatureExpired`."""
        right = self._mac(video_id, signature.owner, signature.ends_at)
        if not hmac.compare_digest(right.encode(), signature.mac.encode(errors="surrogatepass")):
            raise InvalidSignature
        if signature.ends_at < time.time() and not self.watching(signature):
            raise SignatureExpired

    def viewed(self, signature: Signature) -> None:
        """Notes that somebody is watching with this signature while the video grows."""
        self._redis.set(_viewed_key(signature), 1, ex=_VIEWING_SECONDS)

    def watching(self, signature: Signature) -> bool:
        """Whether somebody was watching the growing video with this signature a moment ago."""
        return bool(self._redis.exists(_viewed_key(signature)))

    def _mac(self, video_id: str, owner: str, ends_at: int) -> str:
        text = f"{video_id}\n{owner}\n{ends_at}".encode(errors="surrogatepass")
        digest = hmac.new(self._secret(), text, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _secret(self) -> bytes:
        if self._given is not None:
            return self._given
        with self._fetching:
            if time.monotonic() - self._fetched_at >= _SECRET_SECONDS:
                pipe = self._redis.pipeline()
                pipe.set(SIGNED_WITH_KEY, secrets.token_hex(32), nx=True)
                pipe.get(SIGNED_WITH_KEY)
                self._fetched = pipe.execute()[1]
                self._fetched_at = time.monotonic()
            return self._fetched


def _viewed_key(signature: Signature) -> str:
    return f"longtake:viewed:{signature.mac}"
