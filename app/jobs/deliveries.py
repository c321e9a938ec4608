"""Webhook deliveries in Redis: what must be told to whom, when it is due, and how it went.

| key                               | type   | holds                                                                   |
|-----------------------------------|--------|-------------------------------------------------------------------------|
| longtake:webhook:{id}             | hash   | `delivery` (JSON), `lane`, `status`, `attempts` (JSON), `tries` and     |
|                                   |        | `since` of the present round, `lease`; expires once it is settled       |
| longtake:video:{id}:webhooks      | zset   | ids of a video's deliveries by time of the event                        |
| longtake:webhooks:due:{host:port} | zset   | ids of one receiver's open deliveries by the time they are due          |
| longtake:webhooks:lanes           | zset   | receivers with open deliveries by the time they are served next         |
| longtake:webhook_secret:{owner}   | string | JSON `{"secret", "created_at", "schema_version", "previous": [          |
|                                   |        | {"secret", "until"}, ...]}`                                             |

Times are on the clock of Redis. A video that has the hash field `webhook_disabled` gets no more deliveries: its
receiver answered 410.

`VideoStore` writes a delivery in the transaction of the event that causes it, so none is lost; a sender takes it
under a lease, and if it dies the lease runs out and another sender tries again. A receiver may therefore see an event
twice, always under the same id. Receivers are served in turn, so that a slow one delays only itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict

from app.jobs.connection import Connection, optimistically
from app.jobs.job import SCHEMA_VERSION, VideoSpec, WebhookEvent
from app.jobs.migrations import RecordDamaged, migrated, parsed

LANES_KEY = "longtake:webhooks:lanes"

Outcome = Literal["pending", "delivered", "failed", "disabled"]

# Attempts a delivery's log keeps, the newest.
_KEPT_ATTEMPTS = 50

# Earlier secrets that sign at the same time; rotating faster than they end drops the oldest.
_KEPT_SECRETS = 4

_SECRET_BYTES = 32


def delivery_key(delivery_id: str) -> str:
    return f"longtake:webhook:{delivery_id}"


def deliveries_key(video_id: str) -> str:
    return f"longtake:video:{video_id}:webhooks"


def secret_key(owner: str) -> str:
    return f"longtake:webhook_secret:{owner}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Delivery(_Frozen):
    """One event to tell one receiver. Its id is the event's, the same however often it is sent."""

    id: str
    video_id: str
    owner: str
    url: str
    lane: str
    type: WebhookEvent
    created_at: float
    body: str
    schema_version: int = SCHEMA_VERSION


class Attempt(_Frozen):
    """One try: an HTTP status, or the code of what went wrong before there was one."""

    at: float
    duration_ms: int
    status_code: int | None = None
    error: str | None = None


class DeliveryRecord(_Frozen):
    """A delivery and what has become of it. `due_at` is None once nothing more will be tried."""

    delivery: Delivery
    status: Outcome
    attempts: tuple[Attempt, ...] = ()
    due_at: float | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """A delivery taken for one attempt. `tries` and `age_seconds` are those of the present round of attempts."""

    delivery: Delivery
    attempts: tuple[Attempt, ...]
    tries: int
    age_seconds: float
    token: str


@dataclass(frozen=True, slots=True)
class Secret:
    """The secret that signs an owner's webhooks, and earlier ones that sign beside it until they end."""

    current: str
    created_at: float
    previous: tuple[tuple[str, float], ...] = ()  # secret, and the time until which it signs

    def signing(self, now: float) -> list[str]:
        """Every secret in force at `now`, the newest first."""
        return [self.current, *(secret for secret, until in self.previous if until > now)]


def deliveries_of(
    spec: VideoSpec, event: WebhookEvent, created_at: float, *, chunk: int | None = None
) -> list[Delivery]:
    """What the video's owner wants to be told of an event: one delivery or none."""
    if spec.webhook_url is None or event not in spec.webhook_events:
        return []
    # The same event has the same id, also when a recovered service makes it again: receivers can tell.
    name = f"{spec.id}:{event}" if chunk is None else f"{spec.id}:{event}:{chunk}"
    delivery_id = f"evt_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    data: dict[str, Any] = {"id": spec.id} if chunk is None else {"id": spec.id, "index": chunk}
    body = {
        "id": delivery_id,
        "object": "event",
        "created_at": int(created_at),
        "type": event,
        "data": data,
    }
    return [
        Delivery(
            id=delivery_id,
            video_id=spec.id,
            owner=spec.owner,
            url=spec.webhook_url,
            lane=httpx.URL(spec.webhook_url).netloc.decode("ascii"),
            type=event,
            created_at=created_at,
            body=json.dumps(body),
        )
    ]


def as_argument(deliveries: Iterable[Delivery]) -> str:
    """Deliveries as ENQUEUE_LUA's function takes them."""
    return json.dumps([{"id": d.id, "lane": d.lane, "json": d.model_dump_json()} for d in deliveries])


# A Lua function for scripts that change a video: `enqueue_webhooks(key of the video, argument)`.
# Like all scripts here it names keys that are not declared: this service does not run on a Redis Cluster.
ENQUEUE_LUA = """
local function enqueue_webhooks(video, deliveries)
  local time = redis.call('TIME')
  local now = time[1] + time[2] / 1000000
  local status = redis.call('HEXISTS', video, 'webhook_disabled') == 1 and 'disabled' or 'pending'
  for _, delivery in ipairs(cjson.decode(deliveries)) do
    local key = 'longtake:webhook:' .. delivery.id
    if redis.call('EXISTS', key) == 0 then
      redis.call('HSET', key, 'delivery', delivery.json, 'lane', delivery.lane, 'status', status,
        'attempts', '[]', 'tries', 0, 'since', now, 'lease', '')
      redis.call('ZADD', video .. ':webhooks', now, delivery.id)
      if status == 'pending' then
        redis.call('ZADD', 'longtake:webhooks:due:' .. delivery.lane, now, delivery.id)
        redis.call('ZADD', 'longtake:webhooks:lanes', 'LT', now, delivery.lane)
      end
    end
  end
end
"""

# KEYS: video. ARGV: the argument.
_ENQUEUE = ENQUEUE_LUA + "enqueue_webhooks(KEYS[1], ARGV[1])"

# Takes the delivery that is due longest from the receiver whose turn it is. KEYS: lanes. ARGV: token of the lease, its
# seconds, then the receivers that are busy enough. A receiver that was served goes to the end of the line of those
# that have something due. Returns the record's fields and the time, or nothing.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local busy = {}
for at = 3, #ARGV do busy[ARGV[at]] = true end
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, #ARGV + 100)) do
  if not busy[lane] then
    local due = 'longtake:webhooks:due:' .. lane
    local id = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
    while id and redis.call('EXISTS', 'longtake:webhook:' .. id) == 0 do
      redis.call('ZREM', due, id)
      id = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
    end
    if id then
      redis.call('ZADD', due, now + ARGV[2], id)
      redis.call('HSET', 'longtake:webhook:' .. id, 'lease', ARGV[1])
    end
    local head = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
    if head[1] then
      redis.call('ZADD', KEYS[1], math.max(now, tonumber(head[2])), lane)
    else
      redis.call('ZREM', KEYS[1], lane)
    end
    if id then return {tostring(now), unpack(redis.call('HMGET', 'longtake:webhook:' .. id,
      'delivery', 'attempts', 'tries', 'since'))} end
  end
end
return false
"""

# Ends an attempt. KEYS: lanes, record, deliveries of the video, video. ARGV: token, id, status, attempts, tries,
# seconds until the next attempt or '', seconds the record of a settled delivery is kept.
# `disabled` settles all that is open of the video. Returns 1, or 0 when the lease is another's.
_SETTLE = """
if redis.call('HGET', KEYS[2], 'lease') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local lane = redis.call('HGET', KEYS[2], 'lane')
local due = 'longtake:webhooks:due:' .. lane
redis.call('HSET', KEYS[2], 'status', ARGV[3], 'attempts', ARGV[4], 'tries', ARGV[5], 'lease', '')
if ARGV[6] ~= '' then
  redis.call('ZADD', due, now + ARGV[6], ARGV[2])
  redis.call('ZADD', KEYS[1], 'LT', now + ARGV[6], lane)
  return 1
end
redis.call('ZREM', due, ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[7])
if ARGV[3] == 'disabled' then
  if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('HSET', KEYS[4], 'webhook_disabled', 1) end
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    local key = 'longtake:webhook:' .. id
    if redis.call('HGET', key, 'status') == 'pending' then
      redis.call('ZREM', due, id)
      redis.call('HSET', key, 'status', 'disabled', 'lease', '')
      redis.call('EXPIRE', key, ARGV[7])
    end
  end
end
if redis.call('EXISTS', due) == 0 then redis.call('ZREM', KEYS[1], lane) end
return 1
"""

# Begins a new round of attempts now. KEYS: lanes, record, video. ARGV: id. One that is being sent at this moment is
# left alone. Returns 1, or 0 when there is no such record.
_RETRY = """
local lane = redis.call('HGET', KEYS[2], 'lane')
if not lane then return 0 end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = 'longtake:webhooks:due:' .. lane
local score = redis.call('ZSCORE', due, ARGV[1])
if redis.call('HGET', KEYS[2], 'lease') ~= '' and score and tonumber(score) > now then return 1 end
redis.call('HSET', KEYS[2], 'status', 'pending', 'tries', 0, 'since', now, 'lease', '')
redis.call('PERSIST', KEYS[2])
redis.call('HDEL', KEYS[3], 'webhook_disabled')
redis.call('ZADD', due, now, ARGV[1])
redis.call('ZADD', KEYS[1], 'LT', now, lane)
return 1
"""

# Forgets every delivery of a video. KEYS: lanes, deliveries of the video.
_DROP = """
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local key = 'longtake:webhook:' .. id
  local lane = redis.call('HGET', key, 'lane')
  if lane then
    local due = 'longtake:webhooks:due:' .. lane
    redis.call('ZREM', due, id)
    if redis.call('EXISTS', due) == 0 then redis.call('ZREM', KEYS[1], lane) end
    redis.call('DEL', key)
  end
end
redis.call('DEL', KEYS[2])
return 1
"""


class DeliveryStore:
    """The deliveries of all videos and the secrets that sign them. Synchronous; safe to share between threads.

    Raises `redis.exceptions.RedisError` when Redis is away; nothing is half-written then.
    """

    def __init__(self, connection: Connection) -> None:
        """`connection` must return bytes."""
        self.redis = connection
        self._take_script = connection.register_script(_TAKE)
        self._settle_script = connection.register_script(_SETTLE)
        self._retry_script = connection.register_script(_RETRY)

    # -- inside a transaction of `VideoStore` -----------------------------------------------------------

    def enqueue(self, pipe: Connection, video_key: str, deliveries: Sequence[Delivery]) -> None:
        """Queues deliveries of one video as part of a transaction."""
        # As its text: a server that has just taken over does not know it by its digest, and does the rest without it.
        if deliveries:
            pipe.eval(_ENQUEUE, 1, video_key, as_argument(deliveries))

    def drop(self, pipe: Connection, video_id: str) -> None:
        """Cancels what is open and forgets what was, as part of a transaction."""
        pipe.eval(_DROP, 2, LANES_KEY, deliveries_key(video_id))

    # -- the owner's side -------------------------------------------------------------------------------

    def get(self, video_id: str, delivery_id: str) -> DeliveryRecord | None:
        """One delivery of a video, or None."""
        if self.redis.zscore(deliveries_key(video_id), delivery_id) is None:
            return None
        found = self._records([delivery_id])
        return found[0] if found else None

    def page(
        self, video_id: str, *, limit: int, after: str | None = None
    ) -> tuple[list[DeliveryRecord], bool]:
        """A page of a video's deliveries, the newest first, and whether more follow.

        Raises `KeyError` when `after` names no delivery of the video.
        """
        key = deliveries_key(video_id)
        position = 0
        if after is not None:
            rank = self.redis.zrevrank(key, after)
            if rank is None:
                raise KeyError(after)
            position = rank + 1
        found: list[DeliveryRecord] = []
        while len(found) <= limit:  # records expire, their ids stay
            ids = self.redis.zrange(key, position, position + limit, desc=True)
            if not ids:
                break
            position += len(ids)
            found += self._records([i.decode() for i in ids])
        return found[:limit], len(found) > limit

    def retry(self, video_id: str, video_key: str, delivery_id: str) -> DeliveryRecord | None:
        """Sends a delivery again, at once and as often as a new one; None when there is no such delivery."""
        if self.redis.zscore(deliveries_key(video_id), delivery_id) is None:
            return None
        self._retry_script(keys=[LANES_KEY, delivery_key(delivery_id), video_key], args=[delivery_id])
        return self.get(video_id, delivery_id)

    def _records(self, ids: Sequence[str]) -> list[DeliveryRecord]:
        pipe = self.redis.pipeline(transaction=False)
        for delivery_id in ids:
            pipe.hmget(delivery_key(delivery_id), "delivery", "status", "attempts")
        rows = [row for row in pipe.execute() if row[0] is not None]
        deliveries = [parsed("delivery", Delivery, row[0]) for row in rows]
        for delivery in deliveries:
            pipe.zscore(_due_key(delivery.lane), delivery.id)
        return [
            DeliveryRecord(delivery=delivery, status=row[1].decode(), attempts=json.loads(row[2]), due_at=due)
            for delivery, row, due in zip(deliveries, rows, pipe.execute() if rows else [], strict=True)
        ]

    # -- the sender's side ------------------------------------------------------------------------------

    def take(self, lease_seconds: float, busy: Iterable[str] = ()) -> Leased | None:
        """Takes the next due delivery to a receiver that is not `busy`; None when nothing is due."""
        token = secrets.token_hex(8)
        found = self._take_script(keys=[LANES_KEY], args=[token, lease_seconds, *busy])
        if not found:
            return None
        now, delivery, attempts, tries, since = found
        return Leased(
            delivery=parsed("delivery", Delivery, delivery),
            attempts=tuple(Attempt.model_validate(attempt) for attempt in json.loads(attempts)),
            tries=int(tries),
            age_seconds=float(now) - float(since),
            token=token,
        )

    def settle(
        self,
        leased: Leased,
        attempt: Attempt,
        status: Outcome,
        *,
        video_key: str,
        keep_seconds: int,
        retry_seconds: float | None = None,
    ) -> bool:
        """Logs an attempt and says what follows: with `retry_seconds` another one. False: the lease was lost."""
        delivery = leased.delivery
        attempts = (*leased.attempts, attempt)[-_KEPT_ATTEMPTS:]
        log = json.dumps([entry.model_dump() for entry in attempts])
        delay = "" if retry_seconds is None else retry_seconds
        return bool(
            self._settle_script(
                keys=[LANES_KEY, delivery_key(delivery.id), deliveries_key(delivery.video_id), video_key],
                args=[leased.token, delivery.id, status, log, leased.tries + 1, delay, keep_seconds],
            )
        )

    # -- secrets ----------------------------------------------------------------------------------------

    def secret(self, owner: str) -> Secret:
        """The secret of an owner, made when it is first asked for."""
        key = secret_key(owner)
        raw = self.redis.get(key)
        if raw is None:
            self.redis.set(key, _secret_json(Secret(_new_secret(), time.time())), nx=True)
            raw = self.redis.get(key)
        return _parse_secret(raw)

    def rotate_secret(self, owner: str, overlap_seconds: float) -> Secret:
        """A new secret. The one before signs beside it for `overlap_seconds`; 0 ends all earlier ones at once."""
        key = secret_key(owner)

        def transact(pipe: Connection) -> Secret:
            raw, now = pipe.get(key), time.time()
            previous: tuple[tuple[str, float], ...] = ()
            if raw is not None and overlap_seconds > 0:
                old = _parse_secret(raw)
                alive = [pair for pair in old.previous if pair[1] > now]
                previous = ((old.current, now + overlap_seconds), *alive)[:_KEPT_SECRETS]
            rotated = Secret(_new_secret(), now, previous)
            pipe.multi()
            pipe.set(key, _secret_json(rotated))
            return rotated

        return optimistically(self.redis, transact, key)


def _due_key(lane: str) -> str:
    return f"longtake:webhooks:due:{lane}"


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def _secret_json(secret: Secret) -> str:
    previous = [{"secret": old, "until": until} for old, until in secret.previous]
    return json.dumps(
        {
            "secret": secret.current,
            "created_at": secret.created_at,
            "previous": previous,
            "schema_version": SCHEMA_VERSION,
        }
    )


def _parse_secret(raw: bytes) -> Secret:
    """Raises `RecordError`."""
    try:
        fields = migrated("secret", json.loads(raw))
        previous = tuple((old["secret"], old["until"]) for old in fields["previous"])
        return Secret(fields["secret"], fields["created_at"], previous)
    except (ValueError, KeyError, TypeError) as error:
        raise RecordDamaged from error
