"""One way to reach Redis: bounded waits, and retries over connections that a restart or a failover left stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from redis import BlockingConnectionPool, Redis
from redis.backoff import ExponentialBackoff
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

# redis-py types every answer as a union over its sync, async, RESP2 and RESP3 forms; naming the client Any here
# keeps that out of the code that uses it. Every client in this project is synchronous and returns bytes.
Connection: TypeAlias = Any

T = TypeVar("T")

# How often a transaction is begun anew that lost its connection. Between two of them redis-py does not wait.
_LOST_AT_MOST = 2


class _ToPrimary(AbstractConnection):
    """A connection that ends when its server refuses a write because it is a replica by now.

    After a failover the old primary answers on as before, to a PING too, and would be asked for ever; the address may
    lead to the new one already.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            # It is a kind of its own, but some scripts and transactions tell it within the text of another.
            if not isinstance(error, ReadOnlyError) and "READONLY" not in str(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise RedisConnectionError("this Redis is a replica now") from error


def connect(
    url: str, *, max_connections: int = 64, timeout_seconds: float = 5.0, retries: int = 2
) -> Connection:
    """A thread-safe client. It connects on first use; `redis.exceptions.RedisError` tells that Redis is away."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    # The URL has chosen among TCP, TLS and a socket file.
    pool.connection_class = type("ToPrimary", (_ToPrimary, pool.connection_class), {})
    return Redis(connection_pool=pool)


def optimistically(connection: Connection, transact: Callable[[Connection], T], *watched: str) -> T:
    """Runs `transact` on a pipeline with the keys watched until no one else changed them meanwhile.

    Raises `redis.exceptions.RedisError`.
    """
    lost = 0
    while True:
        with connection.pipeline() as pipe:
            try:
                if watched:
                    pipe.watch(*watched)
                result = transact(pipe)
                pipe.execute()
            except WatchError as error:
                # redis-py says the same of a connection that was lost meanwhile. A replica takes a WATCH and what is
                # read, so without an end this would never leave one that stays a replica.
                cause = error.__context__
                if isinstance(cause, RedisConnectionError | RedisTimeoutError):
                    lost += 1
                    if lost > _LOST_AT_MOST:
                        raise cause from None
                continue
            return result
