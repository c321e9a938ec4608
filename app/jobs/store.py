"""Records of videos in Redis: every key, every transaction.

| key                              | type   | holds                                                              |
|----------------------------------|--------|--------------------------------------------------------------------|
| longtake:video:{id}              | hash   | `spec` (JSON), one field per `VideoState` field (JSON), `fence`,   |
|                                  |        | `revision` (another one with each thing asked of a running video), |
|                                  |        | `charged` (see `app.limits`) and the plain fields of `app.jobs.line` |
| longtake:video:{id}:chunks       | list   | `ChunkRecord` JSON; the position in the list is the chunk's index  |
| longtake:video:{id}:events       | stream | `type`, `data` (JSON); the entry's id is the SSE event id. Only     |
|                                  |        | about the newest `max_events` are kept, and an hour after the end  |
|                                  |        | the last one                                                       |
| longtake:video:{id}:announced    | stream | `index` of each chunk, under the id of its event                   |
| longtake:videos:{owner}          | zset   | ids of an owner's videos by time of creation                       |
| longtake:idempotency:{owner}:{k} | string | JSON `{"digest", "id", "schema_version"}`, expires                 |
| longtake:active                  | hash   | id of every video not in a terminal state -> name of its RQ queue  |
| longtake:expiring                | zset   | id of every video that has ended and will expire -> `expires_at`   |
| longtake:ended                   | zset   | id of every video that has ended -> when, until its history is cut |
| longtake:ended:found             | string | those are in it that ended before there was such a list            |
| longtake:reconciled              | string | held by the worker that looked last for lost videos, expires       |
| longtake:deleted:{id}            | string | the video was deleted, not lost: its objects may go; expires       |
| longtake:models                  | hash   | model name -> `ModelCard` JSON, written by workers                 |
| longtake:workers                 | zset   | names of workers by the time their lease ends                      |
| longtake:worker:{name}           | string | JSON about a live worker, expires with its lease                   |
| longtake:counted                 | hash   | what was made and how it ended, ever since: see `VideoStore.counts` |

What one owner may ask for, and has asked for, stands in keys of its own: see `app.limits`.

Webhook deliveries have keys of their own: see `app.jobs.deliveries`.

Beside these stand the keys of `app.jobs.line`, which says who runs when, and RQ's own (`rq:*`): `rq:queue:{q}`
(list, waiting), `rq:wip:{q}` (zset, `{id}:{execution}` by the time its lease ends, on the clock of Redis),
`rq:job:{id}` (hash). A video that waits in no queue, has no live lease and is not paused is lost, whatever the
reason; `VideoStore.reconcile` puts it back in line.

A worker's writes are fenced: they take effect only while the video's `fence` is the token that this worker wrote
when it claimed the video, so a worker that was given up for dead and wakes again changes nothing.

What clients ask of a video that is being made (`VideoStore.request`) changes the record, not the worker. The worker
sees that the `revision` is another one and settles in one transaction from which chunk on it counts
(`VideoStore.settle`), before it begins that chunk. So it survives the worker, and repeats to the bit.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from pydantic import ValidationError
from redis.exceptions import NoPermissionError
from rq.job import Job

from app.jobs import queue
from app.jobs.connection import Connection, optimistically
from app.jobs.deliveries import (
    ENQUEUE_LUA,
    Delivery,
    DeliveryStore,
    as_argument,
    deliveries_of,
)
from app.jobs.estimate import Contender, Lineup, Place, forwards_needed
from app.jobs.job import (
    ENDED,
    SCHEMA_VERSION,
    ChunkRecord,
    JobError,
    ModelCard,
    Status,
    Video,
    VideoSpec,
    VideoState,
    WebhookEvent,
    created_ms,
)
from app.jobs.line import Line, Taken, Yield, blocked_key, served_key, speed_kind
from app.jobs.manifest import Manifest
from app.jobs.migrations import RecordDamaged, RecordError, RecordTooNew, migrated, parsed
from app.limits import (
    ACCOUNT_SECONDS,
    LIMITS_KEY,
    UNLIMITED,
    DailySecondsExceeded,
    Limits,
    TooManyQueued,
    asked_milliseconds,
    milliseconds,
    spent_key,
)
from app.schemas import chunk_object, video_object

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

MODELS_KEY = "longtake:models"
ACTIVE_KEY = "longtake:active"
EXPIRING_KEY = "longtake:expiring"
ENDED_KEY = "longtake:ended"
ENDED_FOUND_KEY = "longtake:ended:found"
RECONCILED_KEY = "longtake:reconciled"
COUNTED_KEY = "longtake:counted"
WORKERS_KEY = "longtake:workers"
DELETED_SECONDS = 7 * 24 * 3600

# How long the events of a video are kept after its end, for those who watch it live; then only the last one is.
HISTORY_SECONDS = 3600.0

# Videos whose histories are cut together.
_HISTORIES = 500

# What those in line still take is read at most this often, however many ask; of a new one alone in between.
PLACES_SECONDS = 0.25

# Videos of an owner that are looked at together when a page of them is made.
LIST_STEP = 250


def video_key(video_id: str) -> str:
    return f"longtake:video:{video_id}"


def chunks_key(video_id: str) -> str:
    return f"longtake:video:{video_id}:chunks"


def events_key(video_id: str) -> str:
    return f"longtake:video:{video_id}:events"


def announced_key(video_id: str) -> str:
    return f"longtake:video:{video_id}:announced"


def owner_key(owner: str) -> str:
    return f"longtake:videos:{owner}"


def idempotency_key(owner: str, key: str) -> str:
    return f"longtake:idempotency:{owner}:{key}"


def deleted_key(video_id: str) -> str:
    return f"longtake:deleted:{video_id}"


def worker_key(name: str) -> str:
    return f"longtake:worker:{name}"


class FenceLost(Exception):
    """Another worker has claimed the video; this one must stop and commit nothing."""


class VideoGone(Exception):
    """The video has no record: it was deleted, or Redis lost its data (`VideoStore.was_deleted` tells)."""


class IdempotencyMismatch(Exception):
    """The idempotency key was used before with another body."""


class QueueFull(Exception):
    """As many videos of the model wait, or are paused, as the settings allow."""


class NotPaused(Exception):
    """The video is neither paused nor about to be."""


@dataclass(frozen=True, slots=True)
class Created:
    """Outcome of `VideoStore.create`; `replayed` when an idempotency key named an earlier video."""

    video: Video
    replayed: bool


EventType = Literal["status", "progress", "prompt", "chunk", "completed", "failed", "cancelled"]


class Controls(NamedTuple):
    """What its worker looks at all the time. After the revision come flags, each named as its `VideoState` field."""

    revision: str
    """Changes when something was asked that `VideoStore.settle` has to settle."""
    cancel_requested: bool
    pause_requested: bool


Standing = Literal["next", "front", "back"]
"""Where a video goes that is put back in line: before all of its priority, or to an end of its owner's line."""


_LAST_EVENTS: Mapping[Status, EventType] = {
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}
_WEBHOOKS: Mapping[Status, WebhookEvent] = {Status(name): event for name, event in ENDED.items()}


class Restored(StrEnum):
    """What became of a manifest that was to be restored."""

    ENDED = "restored"
    """The record of a video that has ended is back."""
    QUEUED = "requeued"
    """The record of an unfinished video is back, and the video in line."""
    PAUSED = "paused"
    """The record of a paused video is back."""
    KEPT = "kept"
    """Redis has a record as new as the manifest, or newer, or a worker has the video."""
    DELETED = "deleted"
    """The video was deleted; what is left of its files is no video any more."""


@dataclass(frozen=True, slots=True)
class Event:
    """An entry for a video's event stream."""

    type: EventType
    data: Mapping[str, Any]


# KEYS: video, chunks, events, active, counted, expiring, announced, ended, and with a chunk the owner's account of the
# day.
# ARGV: fence, chunk index or '', chunk JSON, max events, id of the video if this ends it or '', when it expires or '',
# number of fields, field, value, ..., then event type, event data, ...
# An event of type `webhooks` is no event but the deliveries that this causes.
# Returns 1 written, 2 this very chunk was committed before, or the video has ended (a retry after a lost answer, or
# progress told a moment too late: the last event is the last),
# 0 the fence is another's, -1 no such video, -2 the chunk is not the next one.
_WRITE = (
    ENQUEUE_LUA
    + """
local fence = redis.call('HGET', KEYS[1], 'fence')
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if fence ~= ARGV[1] then return 0 end
local status = redis.call('HGET', KEYS[1], 'status')
if status == '"completed"' or status == '"failed"' or status == '"cancelled"' then return 2 end
if ARGV[2] ~= '' then
  local have, want = redis.call('LLEN', KEYS[2]), tonumber(ARGV[2])
  if have == want + 1 and redis.call('LINDEX', KEYS[2], want) == ARGV[3] then return 2 end
  if have ~= want then return -2 end
  redis.call('RPUSH', KEYS[2], ARGV[3])
  local chunk, fps = cjson.decode(ARGV[3]), cjson.decode(redis.call('HGET', KEYS[1], 'spec')).fps
  redis.call('HINCRBY', KEYS[5], 'chunks', 1)
  redis.call('HINCRBYFLOAT', KEYS[5], 'seconds', chunk.frames / fps)
  local charged = tonumber(redis.call('HGET', KEYS[1], 'charged') or '')
  local made = math.floor((chunk.first_frame + chunk.frames) * 1000 / fps)
  if charged and made > charged then
    redis.call('HSET', KEYS[1], 'charged', made)
    redis.call('INCRBY', KEYS[9], made - charged)
    redis.call('EXPIRE', KEYS[9], ACCOUNT_SECONDS)
  end
end
if ARGV[5] ~= '' then
  redis.call('HDEL', KEYS[4], ARGV[5])
  redis.call('ZADD', KEYS[8], redis.call('TIME')[1], ARGV[5])
  if ARGV[6] ~= '' then redis.call('ZADD', KEYS[6], ARGV[6], ARGV[5]) end
  for i = 8, 6 + 2 * ARGV[7], 2 do
    local value = cjson.decode(ARGV[i + 1])
    if ARGV[i] == 'status' then redis.call('HINCRBY', KEYS[5], 'ended:' .. value, 1) end
    if ARGV[i] == 'error' and type(value) == 'table' then
      redis.call('HINCRBY', KEYS[5], 'failed:' .. value.code, 1)
    end
  end
end
local n = tonumber(ARGV[7])
local at = 8
for _ = 1, n do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  if ARGV[at] == 'webhooks' then
    enqueue_webhooks(KEYS[1], ARGV[at + 1])
  else
    local id = redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'type', ARGV[at], 'data', ARGV[at + 1])
    if ARGV[at] == 'chunk' then redis.call('XADD', KEYS[7], id, 'index', ARGV[2]) end
  end
  at = at + 2
end
return 1
""".replace("ACCOUNT_SECONDS", str(ACCOUNT_SECONDS))
)

# Renews the lease of a running video. KEYS: video, wip, queue. ARGV: fence, id, member of wip, milliseconds.
# A lease that somebody reaped is taken back as long as nobody has claimed the video: the fence decides.
# Returns 1 held, 2 held, but the record says that the video waits, 0 the fence is another's, -1 no such video.
_HOLD = """
local fence = redis.call('HGET', KEYS[1], 'fence')
if not fence then return -1 end
if fence ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local ends = time[1] + time[2] / 1000000 + ARGV[4] / 1000
if redis.call('ZADD', KEYS[2], ends, ARGV[3]) == 1 then redis.call('LREM', KEYS[3], 0, ARGV[2]) end
return redis.call('HGET', KEYS[1], 'status') == '"queued"' and 2 or 1
"""

# Counts a model's waiting videos, those that are paused included: a pause is no way around a limit. They are the
# unfinished ones without a lease. KEYS: active, the model's wips. ARGV: names of the model's queues.
_COUNT_WAITING = """
local now, queues, leased, count = redis.call('TIME')[1], {}, {}, 0
for number, name in ipairs(ARGV) do
  queues[name] = true
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1 + number], now, '+inf')) do
    leased[string.match(member, '^[^:]+')] = true
  end
end
local active = redis.call('HGETALL', KEYS[1])
for at = 1, #active, 2 do
  if queues[active[at + 1]] and not leased[active[at]] then count = count + 1 end
end
return count
"""

# The same of an owner, whatever the model.
# KEYS: active, videos of the owner, what stands before the id in a video's key.
_COUNT_WAITING_OF = """
local count = 0
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
  if redis.call('ZSCORE', KEYS[2], id) and redis.call('HGET', KEYS[3] .. id, 'status') ~= '"in_progress"' then
    count = count + 1
  end
end
return count
"""


def new_fence() -> str:
    """What no other claim of a video has."""
    return secrets.token_hex(8)


def _dump(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in fields.items()}


def _state_fields(**changes: Any) -> dict[str, Any]:
    """Changes to a `VideoState`, checked against its field names, as JSON values."""
    unknown = changes.keys() - VideoState.model_fields.keys()
    if unknown:
        raise TypeError(f"not fields of VideoState: {sorted(unknown)}")
    return {name: _plain(value) for name, value in changes.items()}


def _record(video: Video) -> dict[str, str]:
    """The hash of a video that nobody makes."""
    fields = _dump(_state_fields(**video.state.model_dump()))
    return {"spec": video.spec.model_dump_json(), "owner": video.spec.owner, "fence": "", **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, JobError):
        return value.model_dump()
    if isinstance(value, Status):
        return value.value
    return value


class VideoStore:
    """The records of all videos. Synchronous; safe to share between threads.

    Raises `redis.exceptions.RedisError` when Redis is away; nothing is half-written then.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        origin: str = "",
        max_events: int = 20_000,
        max_queued: int = 1000,
        idempotency_seconds: int = 24 * 3600,
        starvation_seconds: float = 600.0,
        turn_seconds: float = 60.0,
        keep_seconds: float = 0.0,
    ) -> None:
        """`connection` must return bytes (no decode_responses); `origin` is put before URLs inside events.

        Videos that end through this store expire after `keep_seconds`; 0 keeps them.
        """
        self.redis = connection
        self.deliveries = DeliveryStore(connection)
        self.origin = origin
        self.max_events = max_events
        self.max_queued = max_queued
        self.idempotency_seconds = idempotency_seconds
        self.keep_seconds = keep_seconds
        self._unreadable: set[str] = set()  # told to the log
        self._told_no_info = False
        self._write_script = connection.register_script(_WRITE)
        self._hold_script = connection.register_script(_HOLD)
        self.line = Line(connection, starvation_seconds=starvation_seconds, turn_seconds=turn_seconds)
        self._lineups: dict[str, tuple[float, Lineup]] = {}
        self._left: dict[str, tuple[float, dict[str, float]]] = {}
        self._count_waiting_script = connection.register_script(_COUNT_WAITING)
        self._count_waiting_of_script = connection.register_script(_COUNT_WAITING_OF)

    # -- reading ----------------------------------------------------------------------------------------

    def get(self, video_id: str) -> Video | None:
        """The video, or None. Raises `RecordError`."""
        return _parse(self.redis.hgetall(video_key(video_id)))

    def get_many(self, video_ids: Iterable[str]) -> list[Video]:
        """Those of the videos that exist and can be read, in the order given. The log names the others."""
        pipe = self.redis.pipeline(transaction=False)
        ids = list(video_ids)
        for video_id in ids:
            pipe.hgetall(video_key(video_id))
        videos = (
            self._readable(video_id, _parse, raw) for video_id, raw in zip(ids, pipe.execute(), strict=True)
        )
        return [video for video in videos if video is not None]

    def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        status: Status | None = None,
    ) -> tuple[list[Video], bool]:
        """A page of an owner's videos by time of creation, and whether more follow.

        Raises `KeyError` when `after` is no id of a video.
        """
        key = owner_key(owner)
        position = 0 if after is None else self._position_after(key, after, newest_first)
        ids = self._listed(key, position, newest_first, status)
        found: list[Video] = []
        while len(found) <= limit and (batch := list(islice(ids, limit + 1 - len(found)))):
            videos = self.get_many(batch)
            found += [video for video in videos if status is None or video.state.status is status]
        return found[:limit], len(found) > limit

    def _position_after(self, key: str, after: str, newest_first: bool) -> int:
        """The position in an owner's list that follows a video, which may have been deleted since.

        The id of one that is not in the list, whoever's it was, says when it was made. What is listed of that same
        millisecond follows it then: it may come twice, but is not left out. Raises `KeyError`.
        """
        rank = self.redis.zrevrank(key, after) if newest_first else self.redis.zrank(key, after)
        if rank is not None:
            return int(rank) + 1
        made_ms = created_ms(after)
        if made_ms is None:
            raise KeyError(after)
        bounds = ((made_ms + 1) / 1000, "+inf") if newest_first else ("-inf", f"({made_ms / 1000}")
        return int(self.redis.zcount(key, *bounds))

    def _listed(self, key: str, position: int, newest_first: bool, status: Status | None) -> Iterator[str]:
        """Ids of an owner's videos from a position on; of each no more is read than whether it has the status."""
        wanted = None if status is None else json.dumps(status).encode()
        while ids := self.redis.zrange(key, position, position + LIST_STEP - 1, desc=newest_first):
            position += len(ids)
            names = [i.decode() for i in ids]
            if wanted is None:
                yield from names
                continue
            pipe = self.redis.pipeline(transaction=False)
            for name in names:
                pipe.hget(video_key(name), "status")
            yield from (name for name, has in zip(names, pipe.execute(), strict=True) if has == wanted)

    def chunks(self, video_id: str, start: int = 0, stop: int | None = None) -> list[ChunkRecord]:
        """Committed chunks with index in ``[start, stop)``, in order. Raises `RecordError`."""
        if stop is not None and stop <= start:
            return []
        raw = self.redis.lrange(chunks_key(video_id), start, -1 if stop is None else stop - 1)
        return [parsed("chunk", ChunkRecord, item) for item in raw]

    def chunk(self, video_id: str, index: int) -> ChunkRecord | None:
        """One committed chunk, or None. Raises `RecordError`."""
        if index < 0:
            return None
        raw = self.redis.lindex(chunks_key(video_id), index)
        return None if raw is None else parsed("chunk", ChunkRecord, raw)

    def trimmed_events(
        self, video_id: str, after: str, before: str, limit: int
    ) -> tuple[list[tuple[bytes, Event]], Event | None]:
        """What a watcher is told of a part of the event stream that is not kept any more, between two entries.

        First the chunks that it announced, at most `limit` of them: ids and events, as they were. Then the `status`
        now; None when the video has ended, as its last event is kept and tells more. Raises `VideoGone` and
        `RecordError`.
        """
        pipe = self.redis.pipeline()
        pipe.hgetall(video_key(video_id))
        pipe.xrange(announced_key(video_id), f"({after}", f"({before}", count=limit)
        raw, announced = pipe.execute()
        video = _parse(raw)
        indices = [int(fields[b"index"]) for _, fields in announced]
        chunks = self.chunks(video_id, indices[0], indices[-1] + 1) if indices else []
        if video is None or len(chunks) < len(indices):
            raise VideoGone(video_id)
        events = [
            (entry_id, self._chunk_event(video.spec, chunks[index - indices[0]]))
            for (entry_id, _), index in zip(announced, indices, strict=True)
        ]
        return events, None if video.state.status.terminal else Event("status", self._wire(video))

    def places(self, videos: Iterable[Video]) -> dict[str, Place]:
        """The places in line of those of the videos that wait, by id; as of a moment ago at most."""
        found: dict[str, Place] = {}
        for video in videos:
            if video.state.status is not Status.QUEUED:
                continue
            at, lineup = self._lineups.get(video.spec.model, (float("-inf"), None))
            place = None if lineup is None else lineup.place(video.id)
            if place is None or time.monotonic() - at > PLACES_SECONDS:
                lineup = self._lineup(video.spec.model)
                self._lineups[video.spec.model] = (time.monotonic(), lineup)
                place = lineup.place(video.id)
            if place is not None:  # None: a worker has just taken it
                found[video.id] = place
        return found

    def _lineup(self, model: str) -> Lineup:
        order = self.line.order(model)
        at, seconds = self._left.get(model, (float("-inf"), {}))
        if time.monotonic() - at > PLACES_SECONDS:
            at, seconds = time.monotonic(), {}
        ids = [video_id for video_id, _ in (*order.waiting, *order.running) if video_id not in seconds]
        seconds = {**seconds, **self._seconds_left(model, ids)}
        self._left[model] = (at, seconds)
        waiting, running = (
            [Contender(video_id, rank, seconds.get(video_id)) for video_id, rank in entries]
            for entries in (order.waiting, order.running)
        )
        return Lineup(
            waiting,
            running,
            slots=order.slots,
            turn_seconds=self.line.turn_seconds,
            blocked=order.blocked,
        )

    def _seconds_left(self, model: str, ids: Sequence[str]) -> dict[str, float]:
        """How long each video still takes in a slot, where that was measured; by id."""
        speeds, card = self.line.speeds(model), self.models().get(model)
        if not speeds or card is None:
            return {}
        pipe = self.redis.pipeline(transaction=False)
        for video_id in ids:
            pipe.hmget(video_key(video_id), "spec", "forwards_total", "forwards_done")
        found: dict[str, float] = {}
        for video_id, (raw, *counts) in zip(ids, pipe.execute(), strict=True):
            if raw is None:
                continue
            spec = json.loads(raw)  # a thousand `VideoSpec`s would take too long
            scale = card.guidance_scale if spec["guidance_scale"] is None else spec["guidance_scale"]
            speed = speeds.get(speed_kind(spec["width"], spec["height"], scale))
            if spec["frames"] is None:
                found[video_id] = math.inf
            elif speed is not None:
                total, done = (None if count is None else json.loads(count) for count in counts)
                total = total or forwards_needed(
                    spec["frames"],
                    card,
                    spec["num_inference_steps"],
                    given_chunks=spec.get("given_chunks", 0),
                )
                found[video_id] = max(0, total - (done or 0)) * speed
        return found

    # -- the API's side ---------------------------------------------------------------------------------

    def create(
        self,
        spec: VideoSpec,
        *,
        idempotency: tuple[str, str] | None = None,
        limits: Limits = UNLIMITED,
    ) -> Created:
        """Records and enqueues a video in one transaction.

        `idempotency` is (key, digest of the request body); `limits` are the owner's. What is asked for counts on the
        day it is asked. Raises `IdempotencyMismatch`, `QueueFull`, `TooManyQueued`, `DailySecondsExceeded` and
        `RecordError`.
        """
        video = Video(spec=spec, state=VideoState())
        idem = None if idempotency is None else idempotency_key(spec.owner, idempotency[0])
        account, cost = spent_key(spec.owner, spec.created_at), asked_milliseconds(spec)

        def transact(pipe: Connection) -> Created:
            if idem is not None and idempotency is not None:
                earlier = pipe.get(idem)
                if earlier is not None:
                    named = _named(earlier, idempotency[1])
                    existing = _parse(pipe.hgetall(video_key(named)))
                    if existing is not None:
                        pipe.multi()
                        return Created(existing, replayed=True)
            # The id is new: a record under it means that this very transaction was carried out before its answer
            # was lost, and must not be repeated.
            if (written := _parse(pipe.hgetall(video_key(spec.id)))) is not None:
                pipe.multi()
                return Created(written, replayed=False)
            if self._waiting(spec.model) >= self.max_queued:
                raise QueueFull
            if limits.max_queued and self._waiting_of(spec.owner) >= limits.max_queued:
                raise TooManyQueued
            if limits.seconds_per_day:
                left = milliseconds(limits.seconds_per_day) - int(pipe.get(account) or 0)
                if cost > left:
                    raise DailySecondsExceeded(max(0, left) / 1000)
            now = self._now()
            pipe.multi()
            pipe.hset(video_key(spec.id), mapping=_record(video))
            if spec.owner:
                pipe.hset(LIMITS_KEY, spec.owner, limits.max_running)
                pipe.hset(video_key(spec.id), "charged", cost)
                pipe.incrby(account, cost)
                pipe.expire(account, ACCOUNT_SECONDS)
            pipe.zadd(owner_key(spec.owner), {spec.id: spec.created_at})
            pipe.hset(ACTIVE_KEY, spec.id, queue.queue_name(spec.model, spec.priority))
            self._add_event(pipe, spec.id, Event("status", self._wire(video)))
            if idem is not None and idempotency is not None:
                answered = {"digest": idempotency[1], "id": spec.id, "schema_version": SCHEMA_VERSION}
                pipe.set(idem, json.dumps(answered), ex=self.idempotency_seconds)
            self._enqueue(pipe, spec, now, "back")
            return Created(video, replayed=False)

        watched = [video_key(spec.id), *([idem] if idem else [])]
        if limits.max_queued:
            watched.append(owner_key(spec.owner))  # changed by every other video that counts against it
        if limits.seconds_per_day:
            watched.append(account)  # changed by every video that is asked for, or made longer, meanwhile
        return optimistically(self.redis, transact, *watched)

    def replayed(self, owner: str, key: str, digest: str) -> Video | None:
        """The video that an idempotency key names already. Raises `IdempotencyMismatch` and `RecordError`."""
        earlier = self.redis.get(idempotency_key(owner, key))
        return None if earlier is None else self.get(_named(earlier, digest))

    def request_cancel(self, video_id: str) -> Video:
        """Stops a video; one that has ended stays as it is.

        A video that no worker has had is cancelled at once. A running one is told. One that waits or is paused goes
        to the front of its line, for a worker to end it: only that makes one file of its chunks, and leaves a
        manifest that says so. Raises `VideoGone`.
        """

        def transact(pipe: Connection) -> Video:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            if video is None:
                raise VideoGone(video_id)
            status, changes = video.state.status, dict[str, Any](cancel_requested=True)
            waiting = queue.waiting_key(queue.queue_name(video.spec.model, video.spec.priority))
            pipe.watch(waiting)
            in_line = pipe.lpos(waiting, video_id) is not None
            now = self._now()
            pipe.multi()
            if status.terminal:
                return video
            if video.state.started_at is None:
                changes |= {"status": Status.CANCELLED, **self.ending()}
            elif status is Status.PAUSED or (status is Status.QUEUED and in_line):
                changes |= {"status": Status.QUEUED}
                pipe.lrem(waiting, 0, video_id)
                self._enqueue(pipe, video.spec, now, "next")
            changed = Video(spec=video.spec, state=video.state.model_copy(update=changes))
            pipe.hset(video_key(video_id), mapping=_dump(_state_fields(**changes)))
            if changed.state.status is Status.CANCELLED:
                pipe.hdel(ACTIVE_KEY, video_id)
                pipe.zadd(ENDED_KEY, {video_id: now})
                self._dequeue(pipe, video.spec)
                if changed.state.expires_at is not None:
                    pipe.zadd(EXPIRING_KEY, {video_id: changed.state.expires_at})
                pipe.hincrby(COUNTED_KEY, f"ended:{Status.CANCELLED}", 1)
                self._refund(pipe, video.spec, raw.get(b"charged"))
                self._add_event(pipe, video_id, Event("cancelled", self._wire(changed)))
                told = deliveries_of(video.spec, "video.cancelled", changes["completed_at"])
                self.deliveries.enqueue(pipe, video_key(video_id), told)
            elif changed.state.status is not status:
                self._add_event(pipe, video_id, Event("status", self._wire(changed)))
            return changed

        return optimistically(self.redis, transact, video_key(video_id))

    def uncancelled(self, owners: Collection[str]) -> list[str]:
        """Ids of the owners' videos that have not ended and that nobody has asked to cancel."""
        ids = [video_id.decode() for video_id in self.redis.hkeys(ACTIVE_KEY)]
        pipe = self.redis.pipeline(transaction=False)
        for video_id in ids:
            pipe.hmget(video_key(video_id), "owner", "cancel_requested")
        return [
            video_id
            for video_id, (owner, cancelled) in zip(ids, pipe.execute(), strict=True)
            if (owner or b"").decode() in owners and cancelled != b"true"
        ]

    def request_pause(self, video_id: str) -> Video:
        """Pauses a waiting video at once and tells a running one to rest after its next chunk.

        One that rests already, was told so before, is being cancelled or has ended stays as it is. Raises `VideoGone`.
        """

        def transact(pipe: Connection) -> Video:
            video = _parse(pipe.hgetall(video_key(video_id)))
            if video is None:
                raise VideoGone(video_id)
            pipe.multi()
            state = video.state
            if state.status.terminal or state.status is Status.PAUSED:
                return video
            if state.cancel_requested or state.pause_requested:
                return video
            if state.status is Status.IN_PROGRESS:
                return self._change(pipe, video, pause_requested=True)
            self._dequeue(pipe, video.spec)
            # If it was lost, its worker may wake up; it must not go on with what rests.
            pipe.hset(video_key(video_id), "fence", "")
            return self._change(pipe, video, status=Status.PAUSED)

        return optimistically(self.redis, transact, video_key(video_id))

    def resume(self, video_id: str) -> Video:
        """Puts a paused video back at the front of its owner's line, or lets a running one go on after all.

        One that has ended stays as it is. Raises `NotPaused` and `VideoGone`.
        """

        def transact(pipe: Connection) -> Video:
            video = _parse(pipe.hgetall(video_key(video_id)))
            if video is None:
                raise VideoGone(video_id)
            now = self._now()
            pipe.multi()
            if video.state.status.terminal:
                return video
            if video.state.pause_requested:
                return self._change(pipe, video, pause_requested=False)
            if video.state.status is not Status.PAUSED:
                raise NotPaused(video_id)
            self._enqueue(pipe, video.spec, now, "front")
            return self._change(pipe, video, status=Status.QUEUED)

        return optimistically(self.redis, transact, video_key(video_id))

    def request(
        self, video_id: str, change: Callable[[Video], Video], *, limits: Limits = UNLIMITED
    ) -> Video:
        """Records what a client asks of a video, for the worker that makes it now or later; returns the video.

        `change` gives the video as it is to be, or raises to refuse; it may be called more than once. What makes it
        longer counts on the day it is asked; `limits` are the owner's. Watchers get a `status` event unless it is a
        prompt, of which they hear when it is settled. Raises `VideoGone` and `DailySecondsExceeded`.
        """
        revision = secrets.token_hex(8)

        def transact(pipe: Connection) -> Video:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            if video is None:
                raise VideoGone(video_id)
            if raw.get(b"revision", b"").decode() == revision:  # carried out before its answer was lost
                pipe.multi()
                return video
            changed = change(video)
            account, owed = spent_key(video.spec.owner, time.time()), 0
            if b"charged" in raw and changed.spec.seconds != video.spec.seconds:
                owed = max(0, asked_milliseconds(changed.spec) - int(raw[b"charged"]))
            if owed and limits.seconds_per_day:
                pipe.watch(account)
                left = milliseconds(limits.seconds_per_day) - int(pipe.get(account) or 0)
                if owed > left:
                    raise DailySecondsExceeded(max(0, left) / 1000)
            pipe.multi()
            if owed:
                pipe.hincrby(video_key(video_id), "charged", owed)
                pipe.incrby(account, owed)
                pipe.expire(account, ACCOUNT_SECONDS)
            if self._replace(pipe, video, changed):
                pipe.hset(video_key(video_id), "revision", revision)
            return changed

        return optimistically(self.redis, transact, video_key(video_id))

    def spent_seconds(self, owner: str) -> float:
        """What an owner has asked for today, and what was made beyond it."""
        return int(self.redis.get(spent_key(owner, time.time())) or 0) / 1000

    def delete(self, video: Video) -> None:
        """Removes every record of a video. A worker that still runs it finds it gone and stops.

        Webhooks that were not delivered yet are dropped too: what they speak of is no more.
        """

        def transact(pipe: Connection) -> None:
            charged, status, started = pipe.hmget(video_key(video.id), "charged", "status", "started_at")
            pipe.multi()
            self._dequeue(pipe, video.spec)
            if started == b"null" and status != b'"cancelled"':
                self._refund(pipe, video.spec, charged)
            pipe.delete(*_keys(video.id))
            self.deliveries.drop(pipe, video.id)
            pipe.zrem(owner_key(video.spec.owner), video.id)
            pipe.hdel(ACTIVE_KEY, video.id)
            pipe.zrem(EXPIRING_KEY, video.id)
            pipe.zrem(ENDED_KEY, video.id)
            pipe.set(deleted_key(video.id), 1, ex=DELETED_SECONDS)

        optimistically(self.redis, transact, video_key(video.id))

    def was_deleted(self, video_id: str) -> bool:
        """Whether a video that has no record was deleted. False: Redis lost it, and its objects must stay."""
        return bool(self.redis.exists(deleted_key(video_id)))

    def expired(self, limit: int) -> list[Video]:
        """Videos whose time is up, the oldest first. All of them have ended.

        Those that an unfinished video still has to begin with are kept until it has taken over their chunks.
        """
        now, kept = time.time(), 0
        expired: list[Video] = []
        sources: set[str] | None = None
        while len(expired) < limit:
            at, most = len(expired) + kept, limit - len(expired)
            ids = self.redis.zrange(EXPIRING_KEY, "-inf", now, byscore=True, offset=at, num=most)
            if not ids:
                break
            if sources is None:
                sources = self._sources()
            for video_id in (i.decode() for i in ids):
                if video_id in sources:
                    kept += 1
                    continue
                try:
                    video = self.get(video_id)
                except RecordError as error:
                    self._tell_unreadable(video_id, error)
                    if isinstance(error, RecordTooNew):  # a version that can read it removes it
                        kept += 1
                        continue
                    video = None
                if (
                    video is not None
                    and video.state.status.terminal
                    and (video.state.expires_at or now) <= now
                ):
                    expired.append(video)
                else:  # not what the index says it is, so it stays
                    self.redis.zrem(EXPIRING_KEY, video_id)
        return expired

    def _sources(self) -> set[str]:
        """Videos whose chunks an unfinished one begins with and has not all taken over yet."""
        unfinished = self.get_many(video_id.decode() for video_id in self.redis.hkeys(ACTIVE_KEY))
        return {
            video.spec.extended_from
            for video in unfinished
            if video.spec.extended_from is not None and video.state.chunks_ready < video.spec.given_chunks
        }

    def cut_histories(self) -> int:
        """Drops the events, all but the last, of some videos that ended `HISTORY_SECONDS` ago; returns of how many.

        Their chunks are told from the list (`trimmed_events`).
        """
        until = self._now() - HISTORY_SECONDS
        ids = self.redis.zrange(ENDED_KEY, "-inf", until, byscore=True, offset=0, num=_HISTORIES)
        if ids:
            pipe = self.redis.pipeline(transaction=False)
            for video_id in ids:
                pipe.xtrim(events_key(video_id.decode()), maxlen=1, approximate=False)
            pipe.zrem(ENDED_KEY, *ids)
            pipe.execute()
        return len(ids)

    def find_ended(self) -> None:
        """Once, for `cut_histories`: looks for videos that ended when nothing kept a list of them.

        Those that workers of an earlier version end from now on are not found.
        """
        if self.redis.exists(ENDED_FOUND_KEY):
            return
        now, (before, behind) = self._now(), events_key("*").split("*")
        keys = self.redis.scan_iter(match=events_key("*"), count=1000)
        while batch := list(islice(keys, _HISTORIES)):
            ids = [key.decode().removeprefix(before).removesuffix(behind) for key in batch]
            pipe = self.redis.pipeline(transaction=False)
            for video_id in ids:
                pipe.hget(video_key(video_id), "status")
            ended = [video_id for video_id, status in zip(ids, pipe.execute(), strict=True) if _ended(status)]
            if ended:
                self.redis.zadd(ENDED_KEY, dict.fromkeys(ended, now), nx=True)
        self.redis.set(ENDED_FOUND_KEY, 1)

    # -- back from the bucket ---------------------------------------------------------------------------

    def restore(self, manifest: Manifest, *, dry_run: bool = False) -> Restored:
        """Makes the records of a video from its manifest, unless Redis knows better, in one transaction.

        An unfinished video goes back in line as if its worker had given it back. With `dry_run` nothing is written.
        A damaged record is replaced. Raises `RecordTooNew` when a newer version has written the one in Redis.
        """
        video = _given_back(manifest.video)
        spec, state = video.spec, video.state
        name = queue.queue_name(spec.model, spec.priority)

        def transact(pipe: Connection) -> Restored:
            try:
                known = _parse(pipe.hgetall(video_key(spec.id)))
            except RecordDamaged:
                known = None
            deleted = pipe.exists(deleted_key(spec.id))
            leased = known is not None and spec.id in self._leased(pipe, name)
            pipe.multi()
            if deleted:
                return Restored.DELETED
            if known is not None and (leased or not _older(known, manifest.video)):
                return Restored.KEPT
            if not dry_run:
                self._write_restored(pipe, name, video, manifest)
                if known is not None and (event := _WEBHOOKS.get(state.status)) is not None:
                    # Redis took it for unfinished, so its owner was not told of the end.
                    told = deliveries_of(spec, event, state.completed_at or time.time())
                    self.deliveries.enqueue(pipe, video_key(spec.id), told)
            if state.status.terminal:
                return Restored.ENDED
            return Restored.PAUSED if state.status is Status.PAUSED else Restored.QUEUED

        keys = (video_key(spec.id), deleted_key(spec.id), queue.waiting_key(name), queue.leases_key(name))
        return optimistically(self.redis, transact, *keys)

    def _write_restored(self, pipe: Connection, name: str, video: Video, manifest: Manifest) -> None:
        spec, state = video.spec, video.state
        pipe.delete(*_keys(spec.id))
        pipe.lrem(queue.waiting_key(name), 0, spec.id)
        pipe.hset(video_key(spec.id), mapping=_record(video))
        if spec.owner:
            # It was paid for when it was asked for, and what was made beyond that when it was made.
            made = max((chunk.first_frame + chunk.frames for chunk in manifest.chunks), default=0)
            charged = max(asked_milliseconds(spec), made * 1000 // spec.fps)
            pipe.hset(video_key(spec.id), "charged", charged)
        if manifest.chunks:
            pipe.rpush(chunks_key(spec.id), *(chunk.model_dump_json() for chunk in manifest.chunks))
        pipe.zadd(owner_key(spec.owner), {spec.id: spec.created_at})
        if state.status.terminal:
            pipe.hdel(ACTIVE_KEY, spec.id)
            pipe.zadd(ENDED_KEY, {spec.id: self._now()})
            pipe.delete(Job.key_for(spec.id))
            if state.expires_at is not None:
                pipe.zadd(EXPIRING_KEY, {spec.id: state.expires_at})
        else:
            pipe.hset(ACTIVE_KEY, spec.id, name)
            if state.status is not Status.PAUSED:
                self._enqueue(pipe, spec, self._now(), "back")
        # The history is lost. What is known of it is told anew, with ids above all that were given before: a client
        # that resumes hears things twice rather than never.
        latest = max(
            self._now(),
            time.time(),
            state.completed_at or 0,
            *(chunk.created_at for chunk in manifest.chunks[-1:]),
        )
        current, at = Event("status", self._wire(video)), int(latest * 1000) + 1
        self._add_event(pipe, spec.id, current, f"{at}-0")
        for number, chunk in enumerate(manifest.chunks, 1):
            self._add_event(pipe, spec.id, self._chunk_event(spec, chunk), f"{at}-{number}")
            pipe.xadd(announced_key(spec.id), {"index": chunk.index}, id=f"{at}-{number}")
        if (ended := _LAST_EVENTS.get(state.status)) is not None:
            self._add_event(pipe, spec.id, Event(ended, current.data))

    # -- the worker's side ------------------------------------------------------------------------------

    def claim(
        self, video_id: str, worker: str, *, count_attempt: bool = True, fence: str = ""
    ) -> tuple[Video, str]:
        """Takes a video for `worker` and fences out whoever had it. Returns it with the new fence.

        Asked again with the same `fence` of its own, after a lost answer, it counts no second attempt. Raises
        `VideoGone` and `RecordError`. A video that has ended or is paused is returned as it is with an empty fence.
        """
        fence = fence or new_fence()

        def transact(pipe: Connection) -> tuple[Video, str]:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            if video is None:
                raise VideoGone(video_id)
            pipe.multi()
            if raw[b"fence"].decode() == fence:
                return video, fence
            if video.state.status.terminal or video.state.status is Status.PAUSED:
                return video, ""
            changes: dict[str, Any] = {
                "status": Status.IN_PROGRESS,
                "worker": worker,
                "attempts": video.state.attempts + int(count_attempt),
                "barren_attempts": video.state.barren_attempts + int(count_attempt),
                "stalled": None,
                "started_at": video.state.started_at or time.time(),
            }
            claimed = Video(spec=video.spec, state=video.state.model_copy(update=changes))
            # The whole record, as this version writes it: an older worker does not go on with it from now on.
            fields = _dump(_state_fields(**claimed.state.model_dump()))
            pipe.hset(
                video_key(video_id),
                mapping={"spec": claimed.spec.model_dump_json(), "fence": fence, **fields},
            )
            # Who paused and resumed it since it was taken has put it back in line.
            queue.leave(pipe, claimed.spec)
            self._add_event(pipe, video_id, Event("status", self._wire(claimed)))
            return claimed, fence

        return optimistically(self.redis, transact, video_key(video_id))

    def update(self, video_id: str, fence: str, *, events: Iterable[Event] = (), **changes: Any) -> None:
        """Changes state fields of a running video, and tells its watchers.

        Raises `FenceLost` and `VideoGone`.
        """
        self._write(video_id, fence, None, changes, events)

    def commit_chunk(self, video: VideoSpec, fence: str, chunk: ChunkRecord, **changes: Any) -> None:
        """Makes an uploaded chunk part of the video: its record, state changes and its event in one transaction.

        Calling it again with the same chunk changes nothing. Raises `FenceLost` (also when the chunk is not the
        next one: somebody else has committed) and `VideoGone`.
        """
        event = self._chunk_event(video, chunk)
        changes["barren_attempts"] = 0
        changes["chunks_ready"] = chunk.index + 1
        changes["frames_ready"] = chunk.first_frame + chunk.frames
        told = deliveries_of(video, "video.chunk", chunk.created_at, chunk=chunk.index)
        account = spent_key(video.owner, time.time())
        self._write(video.id, fence, chunk, changes, [event], deliveries=told, account=account)

    def finish(
        self,
        video: Video,
        fence: str,
        status: Literal["completed", "failed", "cancelled"],
        *,
        error: JobError | None = None,
        **changes: Any,
    ) -> Video:
        """Puts a claimed video into a terminal state and ends its event stream. `video` carries its latest state.

        It has ended now, unless `changes` tell its `ending`. Raises `FenceLost` and `VideoGone`.
        """
        changes = {**self.ending(), **changes}
        changes |= {"status": Status(status), "error": error, "stalled": None, "pause_requested": False}
        done = Video(spec=video.spec, state=video.state.model_copy(update=changes))
        events = [Event(status, self._wire(done))]
        told = deliveries_of(video.spec, ENDED[status], changes["completed_at"])
        self._write(video.id, fence, None, changes, events, deliveries=told, ends=True)
        return done

    def ending(self) -> dict[str, float | None]:
        """`completed_at` and `expires_at` of a video that ends now."""
        now = time.time()
        return {"completed_at": now, "expires_at": now + self.keep_seconds if self.keep_seconds else None}

    def release(
        self, video_id: str, fence: str, member: str, *, count_attempt: bool, standing: Standing
    ) -> Video:
        """Gives up a claimed video and its lease `member`: back in line, or to rest if a pause was asked for.

        With `count_attempt` false the attempt that ends here is taken back: to make room for another is no failure.
        One that has ended stays as it is. Returns the video as it is now. Raises `FenceLost` and `VideoGone`.
        """

        def transact(pipe: Connection) -> Video:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            if video is None:
                raise VideoGone(video_id)
            if raw[b"fence"].decode() != fence:
                raise FenceLost(video_id)
            if video.state.status.terminal:  # an end that its worker had not heard of yet stays one
                pipe.multi()
                return video
            state, spec, now = video.state, video.spec, self._now()
            rests = state.pause_requested and not state.cancel_requested
            back = 0 if count_attempt else 1
            pipe.multi()
            pipe.hset(video_key(video_id), "fence", "")
            pipe.zrem(queue.leases_key(queue.queue_name(spec.model, spec.priority)), member)
            self._dequeue(pipe, spec)
            if not rests:
                self._enqueue(pipe, spec, now, standing)
            return self._change(
                pipe,
                video,
                status=Status.PAUSED if rests else Status.QUEUED,
                pause_requested=False,
                worker="",
                attempts=max(0, state.attempts - back),
                barren_attempts=max(0, state.barren_attempts - back),
                stalled=None,
            )

        return optimistically(self.redis, transact, video_key(video_id))

    def controls(self, video_id: str, fence: str) -> Controls:
        """What is wanted of a running video, at the cost of one small read. Raises `FenceLost` and `VideoGone`."""
        current, revision, *flags = self.redis.hmget(
            video_key(video_id), "fence", "revision", *Controls._fields[1:]
        )
        if current is None:
            raise VideoGone(video_id)
        if current.decode() != fence:
            raise FenceLost(video_id)
        return Controls(
            (revision or b"").decode(), *(flag is not None and json.loads(flag) for flag in flags)
        )

    def make_room(self, video: VideoSpec, fence: str) -> Yield | None:
        """Whether the running video should stop at its next chunk boundary for another (`Line.make_room`).

        Raises `FenceLost` and `VideoGone`.
        """
        name = queue.queue_name(video.model, video.priority)
        answer = self.line.make_room(video.model, video.id, fence, name)
        if answer == "gone":
            raise VideoGone(video.id)
        if answer == "lost":
            raise FenceLost(video.id)
        return answer

    def settle(self, video_id: str, fence: str, change: Callable[[Video], Video]) -> tuple[Video, str]:
        """Writes what becomes of everything asked so far; returns the video and the revision that this settles.

        `change` gives the video as it is to be; it may be called more than once. Watchers get an event `prompt` for
        each new prompt of the timeline, and `status` if anything else is new. Raises `FenceLost` and `VideoGone`.
        """

        def transact(pipe: Connection) -> tuple[Video, str]:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            if video is None:
                raise VideoGone(video_id)
            if raw.get(b"fence", b"").decode() != fence:
                raise FenceLost(video_id)
            changed = change(video)
            pipe.multi()
            self._replace(pipe, video, changed)
            return changed, raw.get(b"revision", b"").decode()

        return optimistically(self.redis, transact, video_key(video_id))

    # -- leases and lost videos -------------------------------------------------------------------------

    def take(self, model: str, taker: str, lease_seconds: float) -> Taken | None:
        """Takes the next waiting video of a model out of line; None when none waits that may run."""
        return self.line.take(model, taker, lease_seconds)

    def hold(
        self,
        video: VideoSpec,
        fence: str,
        member: str,
        lease_seconds: float,
        *,
        in_queue: str | None = None,
        worker: str = "",
    ) -> None:
        """Renews the lease `member` of a claimed video; `worker` has it. Raises `FenceLost` and `VideoGone`."""
        name = in_queue or queue.queue_name(video.model, video.priority)
        code = int(
            self._hold_script(
                keys=[video_key(video.id), queue.leases_key(name), queue.waiting_key(name)],
                args=[fence, video.id, member, int(lease_seconds * 1000)],
            )
        )
        if code < 0:
            raise VideoGone(video.id)
        if code == 0:
            raise FenceLost(video.id)
        if code == 2:
            self._take_back(video.id, fence, worker)

    def _take_back(self, video_id: str, fence: str, worker: str) -> None:
        """Tells that a video which was put back in line as lost is being made after all, unless that has changed."""

        def transact(pipe: Connection) -> None:
            raw = pipe.hgetall(video_key(video_id))
            video = _parse(raw)
            pipe.multi()
            if video is None or raw[b"fence"].decode() != fence or video.state.status is not Status.QUEUED:
                return
            self._change(pipe, video, status=Status.IN_PROGRESS, worker=worker)

        optimistically(self.redis, transact, video_key(video_id))

    def reconcile(self, lease_seconds: float) -> list[str]:
        """Puts every unfinished video back in line that neither waits nor has a live lease; returns their ids.

        Workers call it all the time; one of them at a time does the work. While Redis has been up for less than a
        lease nothing is done: the workers that ran before it went down may come back and renew theirs (see
        `_uptime_seconds`).
        """
        mine = self.redis.set(RECONCILED_KEY, 1, nx=True, px=max(1, int(lease_seconds * 1000 / 8)))
        if not mine or self._uptime_seconds() < lease_seconds:
            return []
        active = {i.decode(): name.decode() for i, name in self.redis.hgetall(ACTIVE_KEY).items()}
        present: set[str] = set()
        for name in {
            *active.values(),
            *(name for model in self.models() for name in queue.queue_names(model)),
        }:
            present |= self._waiting_or_leased(self.redis, name)
        absent = active.keys() - present
        lost = sorted(absent - self._paused(absent))
        return [
            video_id
            for video_id in lost
            # A version that can read the record puts it back.
            if self._readable(video_id, self._requeue, video_id, active[video_id])
        ]

    def _paused(self, video_ids: Iterable[str]) -> set[str]:
        pipe, ids = self.redis.pipeline(transaction=False), list(video_ids)
        for video_id in ids:
            pipe.hget(video_key(video_id), "status")
        paused = json.dumps(Status.PAUSED).encode()
        return {video_id for video_id, status in zip(ids, pipe.execute(), strict=True) if status == paused}

    def _requeue(self, video_id: str, name: str) -> bool:
        def transact(pipe: Connection) -> bool:
            video = _parse(pipe.hgetall(video_key(video_id)))
            present = self._waiting_or_leased(pipe, name)
            now = self._now()
            pipe.multi()
            if video is None or video.state.status.terminal:
                pipe.hdel(ACTIVE_KEY, video_id)
                return False
            if video_id in present or video.state.status is Status.PAUSED:
                return False
            if video.state.pause_requested and not video.state.cancel_requested:
                # Its worker was lost before it came to rest.
                self._change(
                    pipe, video, status=Status.PAUSED, pause_requested=False, worker="", stalled=None
                )
                pipe.hset(video_key(video_id), "fence", "")
                return False
            # It has stood in line before; whoever came later waits.
            self._enqueue(pipe, video.spec, now, "next")
            if video.state.status is Status.IN_PROGRESS:
                self._change(pipe, video, status=Status.QUEUED, worker="", stalled=None)
            return True

        keys = (video_key(video_id), queue.waiting_key(name), queue.leases_key(name))
        return optimistically(self.redis, transact, *keys)

    def _waiting_or_leased(self, connection: Connection, name: str) -> set[str]:
        """Ids that stand in a queue or have a live lease there. Drops leases that have run out."""
        waiting = connection.lrange(queue.waiting_key(name), 0, -1)
        return {i.decode() for i in waiting} | self._leased(connection, name)

    def _leased(self, connection: Connection, name: str) -> set[str]:
        now = self._now()
        for member in self.redis.zrangebyscore(queue.leases_key(name), 0, now):
            # The video may have ended or been deleted, and its worker died before it could tell RQ.
            if not self.redis.hexists(ACTIVE_KEY, video_id := member.decode().partition(":")[0]):
                queue.forget(self.redis, video_id)
        self.redis.zremrangebyscore(queue.leases_key(name), 0, now)
        leased = connection.zrange(queue.leases_key(name), 0, -1)
        return {member.decode().partition(":")[0] for member in leased}

    def _uptime_seconds(self) -> float:
        """How long Redis has been up; for ever where its ACL does not let us ask.

        Then videos may be put back in line, after a restart of Redis, whose workers are there and go on with them.
        """
        try:
            return float(self.redis.info("server").get("uptime_in_seconds", math.inf))
        except NoPermissionError:
            if not self._told_no_info:
                self._told_no_info = True
                log.warning(
                    "the ACL of Redis does not allow INFO: after a restart of it workers are not waited for"
                )
            return math.inf

    # -- models and workers -----------------------------------------------------------------------------

    def register_model(self, card: ModelCard) -> None:
        """Tells the API what a worker can make."""
        self.redis.hset(MODELS_KEY, card.name, card.model_dump_json())

    def models(self) -> dict[str, ModelCard]:
        """Every model that a worker has registered and that can be read, by name.

        Those that a live worker serves come first, and of these the one whose worker began last.
        """
        found = (
            self._readable(f"model {name.decode()}", parsed, "model", ModelCard, raw)
            for name, raw in self.redis.hgetall(MODELS_KEY).items()
        )
        cards = {card.name: card for card in found if card is not None}
        served = self.line.served(cards)
        order = sorted(cards.values(), key=lambda card: (card.name in served, card.created_at), reverse=True)
        return {card.name: card for card in order}

    def worker_alive(self, name: str, info: Mapping[str, Any], lease_seconds: float) -> None:
        """Announces a worker and the slots it has for its model; it counts as gone when the lease runs out.

        `info` holds `model` and `slots`, and what else is worth knowing.
        """
        now = self._now()
        pipe = self.redis.pipeline()
        pipe.set(worker_key(name), json.dumps(info), px=int(lease_seconds * 1000))
        pipe.zremrangebyscore(WORKERS_KEY, 0, now)
        pipe.zadd(WORKERS_KEY, {name: now + lease_seconds})
        pipe.execute()
        self.line.announce_slots(info["model"], name, info["slots"], lease_seconds)

    def worker_gone(self, name: str, info: Mapping[str, Any]) -> None:
        """Takes a worker off the list at once."""
        pipe = self.redis.pipeline()
        pipe.delete(worker_key(name))
        pipe.zrem(WORKERS_KEY, name)
        pipe.execute()
        self.line.withdraw_slots(info["model"], name, info["slots"])

    def workers(self) -> list[dict[str, Any]]:
        """Live workers, as they announced themselves."""
        # Those whose lease has run out since the last of them was announced have no key any more.
        keys = [worker_key(name.decode()) for name in self.redis.zrange(WORKERS_KEY, 0, -1)]
        values = self.redis.mget(keys) if keys else []
        return [json.loads(value) for value in values if value is not None]

    # -- figures ----------------------------------------------------------------------------------------

    def unfinished(self) -> list[tuple[str, Status]]:
        """Name of the queue and status of every video that has not ended."""
        active = self.redis.hgetall(ACTIVE_KEY)
        pipe = self.redis.pipeline(transaction=False)
        for video_id in active:
            pipe.hget(video_key(video_id.decode()), "status")
        return [
            (name.decode(), Status(json.loads(status)))
            for name, status in zip(active.values(), pipe.execute() if active else [], strict=True)
            if status is not None
        ]

    def counts(self) -> dict[str, float]:
        """What all workers have done since the records began, each counted in the transaction that did it.

        `chunks` and `seconds` of video made, `ended:{status}` videos, and of those that failed `failed:{code}`.
        """
        return {name.decode(): float(value) for name, value in self.redis.hgetall(COUNTED_KEY).items()}

    # -- inside -----------------------------------------------------------------------------------------

    def _waiting(self, model: str) -> int:
        names = queue.queue_names(model)
        keys = [ACTIVE_KEY, *(queue.leases_key(name) for name in names)]
        return int(self._count_waiting_script(keys=keys, args=names))

    def _waiting_of(self, owner: str) -> int:
        return int(self._count_waiting_of_script(keys=[ACTIVE_KEY, owner_key(owner), video_key("")]))

    def _refund(self, pipe: Connection, spec: VideoSpec, charged: bytes | None) -> None:
        """Takes a video that nobody has begun off its day's account: what was charged for it, whatever it is by now."""
        account = spent_key(spec.owner, spec.created_at)
        if charged is not None and account == spent_key(spec.owner, time.time()):
            pipe.decrby(account, int(charged))

    def _now(self) -> float:
        """Unix seconds on the clock of Redis."""
        seconds, microseconds = self.redis.time()
        return float(seconds + microseconds / 1e6)

    def _enqueue(self, pipe: Connection, spec: VideoSpec, now: float, standing: Standing) -> None:
        """Puts a video in line as part of a transaction. No limit applies: it was let in when it was created."""
        if standing == "next":
            pipe.zrem(served_key(spec.model), spec.owner)  # it was not served after all
        pipe.delete(blocked_key(spec.model))
        pipe.hset(video_key(spec.id), "since", now)
        pipe.hdel(video_key(spec.id), "rank", "turn", "yielding")
        queue.enqueue(self.redis, spec, pipeline=pipe, at_front=standing != "back")
        self._lineups.pop(spec.model, None)

    def _dequeue(self, pipe: Connection, spec: VideoSpec) -> None:
        queue.dequeue(pipe, spec)
        self._lineups.pop(spec.model, None)

    def _change(self, pipe: Connection, video: Video, **changes: Any) -> Video:
        """Changes state fields as part of a transaction, tells the watchers, and returns the changed video."""
        changed = Video(spec=video.spec, state=video.state.model_copy(update=changes))
        pipe.hset(video_key(video.id), mapping=_dump(_state_fields(**changes)))
        self._add_event(pipe, video.id, Event("status", self._wire(changed)))
        return changed

    def _wire(self, video: Video) -> dict[str, Any]:
        return video_object(video, self.origin).model_dump(mode="json")

    def _chunk_event(self, spec: VideoSpec, chunk: ChunkRecord) -> Event:
        return Event("chunk", chunk_object(spec.id, chunk, spec.fps, self.origin).model_dump(mode="json"))

    def _readable(self, name: str, read: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """What `read` gives; None for a record that cannot be read, which costs no other. The log tells it once."""
        try:
            return read(*args, **options)
        except RecordError as error:
            self._tell_unreadable(name, error)
            return None

    def _tell_unreadable(self, name: str, error: RecordError) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.error("%s is left out: %s (%s)", name, error, error.__cause__)

    def _add_event(self, pipe: Connection, video_id: str, event: Event, entry_id: str = "*") -> None:
        pipe.xadd(
            events_key(video_id),
            {"type": event.type, "data": json.dumps(event.data)},
            id=entry_id,
            maxlen=self.max_events,
            approximate=True,
        )

    def _replace(self, pipe: Connection, old: Video, new: Video) -> bool:
        """Writes what differs between two states of a record and tells its watchers; False when nothing does."""
        if new == old:
            return False
        before = old.state.model_dump(mode="json")
        after = new.state.model_dump(mode="json")
        fields = _dump({name: value for name, value in after.items() if value != before[name]})
        if new.spec != old.spec:
            fields["spec"] = new.spec.model_dump_json()
        pipe.hset(video_key(new.id), mapping=fields)
        for prompt in new.spec.prompts:
            if prompt not in old.spec.prompts:
                self._add_event(pipe, new.id, Event("prompt", prompt.model_dump(mode="json")))
        # A status event holds the whole timeline: one for each prompt would make the stream grow with its square.
        if _without_prompts(new) != _without_prompts(old):
            self._add_event(pipe, new.id, Event("status", self._wire(new)))
        return True

    def _write(
        self,
        video_id: str,
        fence: str,
        chunk: ChunkRecord | None,
        changes: Mapping[str, Any],
        events: Iterable[Event],
        *,
        deliveries: Sequence[Delivery] = (),
        ends: bool = False,
        account: str = "",
    ) -> None:
        fields = _dump(_state_fields(**changes))
        arguments: list[Any] = [
            fence,
            "" if chunk is None else chunk.index,
            "" if chunk is None else chunk.model_dump_json(),
            self.max_events,
            video_id if ends else "",
            "" if changes.get("expires_at") is None else changes["expires_at"],
            len(fields),
        ]
        for name, value in fields.items():
            arguments += [name, value]
        for event in events:
            arguments += [event.type, json.dumps(event.data)]
        if deliveries:
            arguments += ["webhooks", as_argument(deliveries)]
        keys = [
            video_key(video_id),
            chunks_key(video_id),
            events_key(video_id),
            ACTIVE_KEY,
            COUNTED_KEY,
            EXPIRING_KEY,
            announced_key(video_id),
            ENDED_KEY,
        ]
        if account:  # the ACL of Redis may know no key without a name
            keys.append(account)
        code = int(self._write_script(keys=keys, args=arguments))
        if code == -1:
            raise VideoGone(video_id)
        if code in (0, -2):
            raise FenceLost(video_id)


def _ended(status: bytes | None) -> bool:
    """Whether the field `status` of a record says so."""
    return status is not None and Status(json.loads(status)).terminal


def _keys(video_id: str) -> tuple[str, ...]:
    """What holds the record of a video and its history."""
    return video_key(video_id), chunks_key(video_id), events_key(video_id), announced_key(video_id)


def _without_prompts(video: Video) -> Video:
    return Video(
        spec=video.spec.model_copy(update={"prompts": ()}),
        state=video.state.model_copy(update={"pending_prompts": (), "steered_at": None}),
    )


def _parse(raw: Mapping[bytes, bytes]) -> Video | None:
    if not raw or b"spec" not in raw:
        return None
    known = VideoState.model_fields.keys()
    fields = {key.decode(): value for key, value in raw.items()}
    try:
        state = {name: json.loads(fields[name]) for name in known if name in fields}
        return Video.model_validate(migrated("video", {"spec": json.loads(fields["spec"]), "state": state}))
    except (ValidationError, ValueError) as error:
        raise RecordDamaged from error


def _named(raw: bytes, digest: str) -> str:
    """The video that an idempotency key names for a body. Raises `IdempotencyMismatch` and `RecordError`."""
    try:
        known = migrated("idempotency", json.loads(raw))
        if known["digest"] != digest:
            raise IdempotencyMismatch
        return str(known["id"])
    except (ValueError, KeyError) as error:
        raise RecordDamaged from error


def _older(known: Video, other: Video) -> bool:
    """Whether a record says less than another of the same video. A terminal state is never left, nor a chunk lost."""
    if known.state.status.terminal or other.state.status.terminal:
        return not known.state.status.terminal
    return known.state.chunks_ready < other.state.chunks_ready


def _given_back(video: Video) -> Video:
    """A video as it is when its worker gives it back unharmed."""
    state = video.state
    if state.status.terminal or (state.status is Status.PAUSED and not state.cancel_requested):
        return video
    taken_back = int(state.status is Status.IN_PROGRESS)
    changes = {
        "status": Status.QUEUED,
        "worker": "",
        "attempts": max(0, state.attempts - taken_back),
        "barren_attempts": max(0, state.barren_attempts - taken_back),
        "stalled": None,
    }
    return Video(spec=video.spec, state=state.model_copy(update=changes))
