"""What one API key may ask for: how much at once, how much a day, and how often.

| key                          | type   | holds                                                                 |
|------------------------------|--------|-----------------------------------------------------------------------|
| longtake:limits              | hash   | owner -> videos it may have running at once, 0: any number            |
| longtake:spent:{owner}:{day} | string | milliseconds of video asked for on a day (UTC); expires after the next |
| longtake:requests:{owner}    | string | when the owner's bucket is full again, in microseconds; expires then   |

The first two are written by `VideoStore`, in the transactions that create, cancel and delete a video, change its
length and commit its chunks; the first one also by each API process from time to time, so that a changed limit, or one
that was lost with Redis, is in force for videos that wait already. A video counts on the day it is asked for, with the
length that is asked for; the field `charged` of its record holds that. What makes it longer counts on the day that is
asked for. An endless video costs a minute at first; what it becomes beyond that counts on the day it is made, and when
the day is spent the video is finished (`app.overdrawn`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from app.jobs.connection import Connection
from app.jobs.job import VideoSpec
from app.keys import ApiKey
from app.settings import Settings

LIMITS_KEY = "longtake:limits"

# What an endless video is charged at first.
ENDLESS_SECONDS = 60.0

_DAY_SECONDS = 24 * 3600

# Life of a day's account, from its last entry on.
ACCOUNT_SECONDS = 2 * _DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one owner; 0: none."""

    max_queued: int = 0
    max_running: int = 0
    seconds_per_day: float = 0.0
    requests_per_minute: int = 0


UNLIMITED = Limits()


class TooManyQueued(Exception):
    """As many of the owner's videos wait as it may have waiting."""


class DailySecondsExceeded(Exception):
    """The owner would ask for more video than it may on one day; `left_seconds` is what it may still ask for."""

    def __init__(self, left_seconds: float) -> None:
        super().__init__(left_seconds)
        self.left_seconds = left_seconds


def limits_of(key: ApiKey, settings: Settings) -> Limits:
    """A key's own limits, and those of the settings where it has none."""
    return Limits(
        max_queued=settings.key_max_queued if key.max_queued is None else key.max_queued,
        max_running=settings.key_max_running if key.max_running is None else key.max_running,
        seconds_per_day=settings.key_seconds_per_day if key.seconds_per_day is None else key.seconds_per_day,
        requests_per_minute=settings.key_requests_per_minute
        if key.requests_per_minute is None
        else key.requests_per_minute,
    )


def announce(connection: Connection, keys: Iterable[ApiKey], settings: Settings) -> None:
    """Tells the line how many videos each key may run, also those that ask for nothing now.

    Raises `redis.exceptions.RedisError`.
    """
    running = {key.id: limits_of(key, settings).max_running for key in keys}
    if running:
        connection.hset(LIMITS_KEY, mapping=running)


def spent_key(owner: str, at: float) -> str:
    """Key of what an owner has asked for on the day of a Unix time."""
    return f"longtake:spent:{owner}:{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def milliseconds(seconds: float) -> int:
    """A duration in the unit of the day's account, so that sums of many stay exact."""
    return round(seconds * 1000)


def asked_milliseconds(spec: VideoSpec) -> int:
    """What a video costs when it is asked for; what is made beyond that is charged with its chunks."""
    return milliseconds(ENDLESS_SECONDS if spec.seconds is None else spec.seconds)


def seconds_until_tomorrow() -> int:
    """Seconds until the next day (UTC) begins, when everybody's account is empty again."""
    return math.ceil(_DAY_SECONDS - time.time() % _DAY_SECONDS)


# A bucket of N requests that fills at N a minute, as one number: the time at which it will be full again (GCRA).
# KEYS: requests. ARGV: N. Returns 0 when the request is taken from it, else microseconds until one can be.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local each = 60000000 / ARGV[1]
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + each
local wait = full - now - 60000000
if wait > 0.5 then return math.ceil(wait) end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.max(1, math.ceil((full - now) / 1000)))
return 0
"""


class RequestRate:
    """Counts requests by owner, for all replicas of the API together."""

    def __init__(self, connection: Connection) -> None:
        self._take = connection.register_script(_TAKE)

    def take(self, owner: str, per_minute: int) -> float:
        """0 when the request may go on, else how many seconds later it could. Raises `RedisError`.

        An owner that was quiet may make a minute's requests at once, then one per minute divided by their number.
        """
        return int(self._take(keys=[f"longtake:requests:{owner}"], args=[per_minute])) / 1e6
