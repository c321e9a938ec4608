"""Webhooks: events told to the URL that came with a video, signed as Standard Webhooks has it.

A receiver takes an event by answering 2xx. Anything else is tried again, later and later; 410 means that it wants no
more events of this video. Redirects are not followed: the owner gave one address, and that one was checked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import TypeVar

import httpcore
import httpx
from redis.exceptions import RedisError

from app import __version__
from app.addresses import (
    AddressRefused,
    GuardedBackend,
    NameNotResolved,
    Resolve,
    Resolver,
    is_allowed,
    parse_networks,
)
from app.jobs.connection import connect
from app.jobs.deliveries import Attempt, DeliveryStore, Leased
from app.jobs.migrations import RecordError
from app.jobs.store import video_key
from app.logs import configure_logging
from app.retry_after import retry_after_seconds
from app.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

# Ports below 1024 are other services', mail above all; above that receivers live where they like.
_LOW_PORTS = frozenset({80, 443})

# How soon a new delivery is seen.
_POLL_SECONDS = 0.5

# How much longer than an attempt its lease is: for the look-up of the secret, and for writing what came of it.
_LEASE_MARGIN_SECONDS = 5.0

# Grace for attempts under way when the process ends; those cut off are made again by another.
_CLOSE_SECONDS = 2.0

_RETRY_FACTOR = 3.0
_JITTER = 0.2

_REDIS_THREADS = 4


class InvalidReceiver(ValueError):
    """Why a URL cannot receive webhooks, in words and as a stable code."""

    def __init__(self, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.code = code


def receiver_url(text: str, settings: Settings) -> str:
    """The URL in the form in which it is stored and called. Raises `InvalidReceiver`.

    A name is not resolved here: what counts is the address when a connection is made.
    """
    if len(text) > settings.max_webhook_url_chars:
        raise InvalidReceiver(f"it has {len(text)} characters, {settings.max_webhook_url_chars} are allowed")
    if any(c.isspace() for c in text):
        raise InvalidReceiver("it holds white space")
    try:
        url = httpx.URL(text)
        host, port = url.raw_host.decode("ascii"), url.port
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidReceiver("it is not a URL") from error
    if url.scheme not in ("http", "https") or not host:
        raise InvalidReceiver("it must be an http:// or https:// URL")
    if url.userinfo:
        raise InvalidReceiver("it must not hold a user name or password")
    if url.fragment:
        raise InvalidReceiver("it must not have a fragment")
    if port is not None and port not in _LOW_PORTS and not 1024 <= port <= 65535:
        raise InvalidReceiver("its port must be 80, 443, or 1024 to 65535")
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        if not is_allowed(address, parse_networks(settings.webhook_allowed_networks)):
            raise InvalidReceiver("this address may not be called", "webhook_address_refused")
    return str(url)


def sign(secrets: Sequence[str], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header: one signature per secret (`whsec_` and base64), the newest first."""
    signed = b".".join((delivery_id.encode(), str(timestamp).encode(), body))
    return " ".join(
        "v1,"
        + base64.b64encode(
            hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
        ).decode()
        for secret in secrets
    )


def retry_delay(tries: int, settings: Settings, *, asked_seconds: float | None = None) -> float:
    """Seconds until the next attempt after `tries` earlier ones and this; no less than the receiver asked for."""
    longest = settings.webhook_retry_max_seconds
    grown = min(longest, settings.webhook_retry_seconds * _RETRY_FACTOR ** min(tries, 50))
    # What failed together shall not be tried together.
    spread = grown * random.uniform(1 - _JITTER, 1 + _JITTER)
    return max(spread, min(asked_seconds or 0.0, longest))


class WebhookSender:
    """Sends what is due, from any number of processes. Lives on one event loop."""

    def __init__(self, settings: Settings, *, resolve: Resolve | None = None) -> None:
        """Nothing is connected before `start`. Raises ValueError when the settings name no Redis."""
        if settings.redis_url is None:
            raise ValueError("LONGTAKE_REDIS_URL is not set")
        self._settings = settings
        self._deliveries = DeliveryStore(connect(settings.redis_url.get_secret_value(), timeout_seconds=1.5))
        self._resolve = resolve
        self._lease_seconds = settings.webhook_timeout_seconds + _LEASE_MARGIN_SECONDS
        self._under_way: Counter[str] = Counter()  # by receiver
        self._attempts: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._freed = asyncio.Event()
        self._closing = False

    async def start(self) -> None:
        """Begins to send, if the settings let this process send anything."""
        if not self._settings.webhook_concurrency:
            return
        self._redis_threads = ThreadPoolExecutor(_REDIS_THREADS, thread_name_prefix="webhooks")
        self._resolver = Resolver(self._settings.webhook_concurrency)
        allowed = parse_networks(self._settings.webhook_allowed_networks)
        # A connection per attempt: receivers are many and seldom called. Proxies of the environment are not used, as
        # they would resolve the name themselves.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(allowed, self._resolve or self._resolver),
        )
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    async def close(self) -> None:
        """Takes nothing more, and waits a moment for attempts under way. May be called more than once."""
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        # Not cancelled: what is being taken this moment would be nobody's until its lease runs out.
        self._closing = True
        self._freed.set()
        await asyncio.wait({loop}, timeout=_CLOSE_SECONDS)
        loop.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=_CLOSE_SECONDS)
        for task in self._attempts:
            task.cancel()
        await asyncio.gather(loop, *self._attempts, return_exceptions=True)
        await self._pool.aclose()
        self._resolver.close()
        self._redis_threads.shutdown(wait=False, cancel_futures=True)
        self._deliveries.redis.close()

    async def _run(self) -> None:
        away = False
        while not self._closing:
            self._freed.clear()
            leased: Leased | None = None
            try:
                if self._under_way.total() < self._settings.webhook_concurrency:
                    leased = await self._blocking(
                        partial(self._deliveries.take, self._lease_seconds, self._busy())
                    )
                away = False
            except RedisError as error:
                if not away:
                    log.warning("webhooks wait for Redis: %s", type(error).__name__)
                away = True
            except RecordError as error:  # its lease keeps it from being taken again at once
                log.error("a webhook delivery is left to another version of longtake: %s", error)
            except Exception:  # every receiver waits for this one loop: it outlives whatever it trips over
                log.exception("webhooks cannot be taken")
            if leased is not None:
                self._begin(leased)
                continue
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._freed.wait()
            except TimeoutError:
                pass

    def _busy(self) -> list[str]:
        limit = self._settings.webhook_host_concurrency
        return [lane for lane, count in self._under_way.items() if count >= limit]

    def _begin(self, leased: Leased) -> None:
        lane = leased.delivery.lane
        self._under_way[lane] += 1

        def ended(task: asyncio.Task[None]) -> None:
            self._attempts.discard(task)
            self._under_way[lane] -= 1
            if not self._under_way[lane]:
                del self._under_way[lane]
            self._freed.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("webhook %s: %r", leased.delivery.id, error, exc_info=error)

        task = asyncio.create_task(self._deliver(leased), name=f"webhook-{leased.delivery.id}")
        self._attempts.add(task)
        task.add_done_callback(ended)

    async def _deliver(self, leased: Leased) -> None:
        lease_ends = time.monotonic() + self._lease_seconds
        delivery = leased.delivery
        secret = await self._until(lease_ends, partial(self._deliveries.secret, delivery.owner))
        if secret is None:
            return
        at, began = time.time(), time.perf_counter()
        status, error, pause = await self._post(leased, secret.signing(at))
        attempt = Attempt(
            at=round(at, 3),
            duration_ms=round((time.perf_counter() - began) * 1000),
            status_code=status,
            error=error,
        )
        settle = partial(
            self._deliveries.settle,
            leased,
            attempt,
            video_key=video_key(delivery.video_id),
            keep_seconds=self._settings.webhook_log_seconds,
        )
        if error is None:
            log.info("webhook %s of %s delivered to %s", delivery.id, delivery.video_id, delivery.lane)
            await self._until(lease_ends, partial(settle, status="delivered"))
            return
        delay = retry_delay(leased.tries, self._settings, asked_seconds=pause)
        if error == "gone":
            outcome = partial(settle, status="disabled")
            words = "it wants no more events of this video"
        elif leased.age_seconds + delay > self._settings.webhook_max_age_seconds:
            outcome = partial(settle, status="failed")
            words = "given up"
        else:
            outcome = partial(settle, status="pending", retry_seconds=delay)
            words = f"tried again in {delay:.0f} s"
        log.warning(
            "webhook %s of %s not delivered to %s: %s%s; %s",
            delivery.id,
            delivery.video_id,
            delivery.lane,
            error,
            "" if status is None else f" (status {status})",
            words,
        )
        await self._until(lease_ends, outcome)

    async def _post(
        self, leased: Leased, secrets: Sequence[str]
    ) -> tuple[int | None, str | None, float | None]:
        """One attempt: the status if there is one, the code of what went wrong, and the pause that was asked for."""
        delivery = leased.delivery
        url = httpx.URL(delivery.url)
        timestamp, body = int(time.time()), delivery.body.encode()
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"longtake/{__version__}",
            "Accept": "*/*",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, delivery.id, timestamp, body),
        }
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = {"connect": self._settings.webhook_connect_seconds}
        try:
            # The status is all that is wanted: the rest of the answer, however long, is never read.
            async with (
                asyncio.timeout(self._settings.webhook_timeout_seconds),
                self._pool.stream(
                    "POST", target, headers=headers, content=body, extensions={"timeout": timeouts}
                ) as answer,
            ):
                status = answer.status
                answered = {name.decode().lower(): value.decode("latin-1") for name, value in answer.headers}
        except (TimeoutError, httpcore.TimeoutException):
            return None, "timeout", None
        except AddressRefused:
            return None, "address_refused", None
        except NameNotResolved:
            return None, "name_not_resolved", None
        except httpcore.ConnectError as error:
            tls = _caused_by(error, ssl.SSLError)
            return None, "tls_failed" if tls else "connection_failed", None
        except httpcore.NetworkError:
            return None, "connection_lost", None
        except httpcore.ProtocolError:
            return None, "malformed_answer", None
        except Exception:  # a fault of ours is one more failed attempt, not one that is repeated for ever
            log.exception("webhook %s", delivery.id)
            return None, "internal_error", None
        if 200 <= status < 300:
            return status, None, None
        if 300 <= status < 400:
            return status, "redirect_not_followed", None
        if status == 410:
            return status, "gone", None
        asked = retry_after_seconds(answered.get("retry-after")) if status in (429, 503) else None
        return status, "refused", asked

    async def _blocking(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._redis_threads, call)

    async def _until(self, deadline: float, call: Callable[[], T]) -> T | None:
        """Asks Redis until it answers; None when the lease has run out by then, and another may have begun."""
        pause = 0.1
        while time.monotonic() < deadline:
            try:
                return await self._blocking(call)
            except RedisError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
        log.warning("a webhook's lease ran out while Redis was away; it is sent again")
        return None


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kind):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def send(settings: Settings) -> int:
    """Sends webhooks in a process of its own until SIGTERM or SIGINT, and returns the exit code."""
    configure_logging(settings)
    asyncio.run(_send(WebhookSender(settings)))
    return 0


async def _send(sender: WebhookSender) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await sender.start()
    log.info("sending webhooks")
    await stop.wait()
    await sender.close()
