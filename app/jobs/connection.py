"""One way to reach Redis: bounded waits, and retries over connections that a restarted server left stale."""

from __future__ import annotations

from typing import Any, TypeAlias

from redis import BlockingConnectionPool, Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

# redis-py types every answer as a union over its sync, async, RESP2 and RESP3 forms; naming the client Any here
# keeps that out of the code that uses it. Every client in this project is synchronous and returns bytes.
Connection: TypeAlias = Any


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
    return Redis(connection_pool=pool)
