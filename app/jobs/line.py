"""Who runs when: the order of waiting videos, and when a running one makes room for them.

| key                         | type   | holds                                                                  |
|-----------------------------|--------|------------------------------------------------------------------------|
| longtake:slots:{model}      | zset   | names of live slots by the time their worker's lease ends              |
| longtake:served:{model}     | zset   | owners by the time a video of theirs was taken last                    |
| longtake:promoted:{model}   | string | a video was promoted a short while ago; expires                        |
| longtake:blocked:{model}    | string | all that wait have owners at their limits; expires                     |
| longtake:speed:{model}      | hash   | kind of forward (`speed_kind`) -> measured seconds of one, running mean |

How many videos an owner may have running stands in `longtake:limits` (`app.limits`).

In a video's own hash (`app.jobs.store`): `owner`; `since`, when it was put in line; `rank`, `turn` and `yielding` (the
answer of `_MAKE_ROOM`, once it was yes) while it runs. All times are Unix seconds on the clock of Redis.

The policy, and all of it is in the scripts below, so that what is taken and what is told are the same:

- More urgent videos are taken first. Within a priority the owner who was served least recently comes first, and an
  owner's videos in the order they stand in line. Who runs as many videos as allowed is passed over, but for what is
  only to be ended because it was cancelled.
- A running video makes room at its next chunk boundary when somebody waits and no slot is free: at once for a more
  urgent video, and for an equal one when its turn (`turn_seconds`) is over. Of several running videos the least
  urgent, then the one with the longest turn does, one for each that waits and no more. In every turn a video makes at
  least one chunk, so all get on, however short the turns. Nobody makes room when nobody waits.
- What waits only because its owner runs as many as allowed is helped by none but its owner's own videos of the same
  model: one of those makes room for it by the same rules, whatever slots are free.
- Low priorities are not starved: once in `starvation_seconds` the video that has waited longest, and at least so
  long, is promoted. It is taken before all others and counts as most urgent for one turn, and then as what it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from app.jobs import queue
from app.jobs.connection import Connection
from app.limits import LIMITS_KEY

# How much the newest measurement counts in the running mean of a model's speed.
SPEED_WEIGHT = 0.3

Yield = Literal["outranked", "turn_over"]


def slots_key(model: str) -> str:
    return f"longtake:slots:{model}"


def served_key(model: str) -> str:
    return f"longtake:served:{model}"


def promoted_key(model: str) -> str:
    return f"longtake:promoted:{model}"


def blocked_key(model: str) -> str:
    return f"longtake:blocked:{model}"


def speed_key(model: str) -> str:
    return f"longtake:speed:{model}"


def speed_kind(width: int, height: int, guidance_scale: float) -> str:
    """What a forward costs depends on the size, and on whether there is a second row for guidance."""
    return f"{width}x{height}{'' if guidance_scale == 1.0 else ' guided'}"


@dataclass(frozen=True, slots=True)
class Taken:
    """A video taken out of line under a lease: its queue, and the lease's member in that queue's `rq:wip`."""

    queue: str
    video_id: str
    member: str


@dataclass(frozen=True, slots=True)
class Order:
    """Who waits and who runs, as (id, rank): 1 is the most urgent rank. Those that wait in the order of taking.

    The `blocked` last of those that wait do so for videos of their own owners.
    """

    waiting: tuple[tuple[str, int], ...]
    blocked: int
    running: tuple[tuple[str, int], ...]
    slots: int


# What all scripts share. KEYS: the model's queue and wip three times by priority, slots, served, promoted, limits.
# ARGV[1]: starvation seconds.
_LINE = """
local CLASSES, SLOTS, SERVED, PROMOTED, LIMITS = 3, KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local starvation = tonumber(ARGV[1])

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

local function video(id) return 'longtake:video:' .. id end

local function leased(wip, now)
  local ids = {}
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', wip, now, '+inf')) do
    ids[#ids + 1] = string.match(member, '^[^:]+')
  end
  return ids
end

local function waiting(classes)
  local count = 0
  for class = 1, classes do count = count + redis.call('LLEN', KEYS[2 * class - 1]) end
  return count
end

-- How many more videos each owner with a limit may run, over all models.
local function room(now)
  local left, seen = {}, {}
  local limits = redis.call('HGETALL', LIMITS)
  for at = 1, #limits, 2 do
    local limit = tonumber(limits[at + 1])
    if limit and limit > 0 then left[limits[at]] = limit end
  end
  if next(left) == nil then return left end
  for _, key in ipairs(redis.call('SMEMBERS', 'rq:queues')) do
    local name = string.match(key, '^rq:queue:(longtake:.+)$')
    for _, id in ipairs(name and leased('rq:wip:' .. name, now) or {}) do
      local owner = not seen[id] and redis.call('HGET', video(id), 'owner')
      seen[id] = true
      if owner and left[owner] then left[owner] = left[owner] - 1 end
    end
  end
  return left
end

-- The waiting videos in the order of taking, then those whose owners have to wait for their own.
-- `rank` is of a running video that asks whether somebody should have its place, or 4.
local function line(now, left, rank)
  local classes, oldest, urgent, ends = {}, nil, rank, {}
  for class = 1, CLASSES do
    local here = {owners = {}, place = {}, videos = {}}
    for at, id in ipairs(redis.call('LRANGE', KEYS[2 * class - 1], 0, -1)) do
      local facts = redis.call('HMGET', video(id), 'owner', 'since', 'cancel_requested')
      local owner, since = facts[1] or '', tonumber(facts[2] or now)
      ends[id] = facts[3] == 'true'
      if not here.videos[owner] then
        here.owners[#here.owners + 1], here.place[owner], here.videos[owner] = owner, at, {}
      end
      table.insert(here.videos[owner], id)
      local free = left[owner] == nil or left[owner] > 0 or ends[id]
      if free and class > urgent and (not oldest or since < oldest.since) then
        oldest = {id = id, class = class, rank = 1, owner = owner, since = since, promoted = true}
      end
    end
    if #here.owners > 0 and class < urgent then urgent = class end
    classes[class] = here
  end

  local ready, blocked, served = {}, {}, {}
  local function serve(entry)
    local owner = entry.owner
    if left[owner] and not ends[entry.id] then
      if left[owner] <= 0 then
        blocked[#blocked + 1] = entry
        return
      end
      left[owner] = left[owner] - 1
    end
    ready[#ready + 1] = entry
    served[owner] = 1e12 + #ready
  end

  if oldest and now - oldest.since >= starvation and redis.call('EXISTS', PROMOTED) == 0 then
    serve(oldest)
    local own = classes[oldest.class].videos[oldest.owner]
    for at, id in ipairs(own) do
      if id == oldest.id then table.remove(own, at) break end
    end
  end
  for class, here in ipairs(classes) do
    for _, owner in ipairs(here.owners) do
      served[owner] = served[owner] or tonumber(redis.call('ZSCORE', SERVED, owner) or 0)
    end
    table.sort(here.owners, function(a, b)
      if served[a] ~= served[b] then return served[a] < served[b] end
      return here.place[a] < here.place[b]
    end)
    -- Who has been served goes to the end: the owners come round and round in one order.
    local round, left_over = 1, true
    while left_over do
      left_over = false
      for _, owner in ipairs(here.owners) do
        local id = here.videos[owner][round]
        if id then
          left_over = true
          serve({id = id, class = class, rank = class, owner = owner})
        end
      end
      round = round + 1
    end
  end
  return ready, blocked
end
"""

# Takes the next video together with a lease, so that a worker that dies right after loses nothing.
# KEYS[11]: blocked. ARGV: starvation seconds, name of the taker, milliseconds of the lease.
# Returns the number of its class, its id and the member of wip; or nothing.
_TAKE = (
    _LINE
    + """
if waiting(CLASSES) == 0 or redis.call('EXISTS', KEYS[11]) == 1 then return false end
local now = clock()
local entry = line(now, room(now), CLASSES + 1)[1]
if not entry then
  -- Idle slots ask all the time; a long line need not be gone through for each of them.
  redis.call('SET', KEYS[11], 1, 'PX', 250)
  return false
end
local member = entry.id .. ':' .. ARGV[2]
redis.call('LREM', KEYS[2 * entry.class - 1], 1, entry.id)
redis.call('ZADD', KEYS[2 * entry.class], now + ARGV[3] / 1000, member)
redis.call('ZADD', SERVED, now, entry.owner)
if entry.promoted then redis.call('SET', PROMOTED, 1, 'PX', math.max(1, math.ceil(starvation * 1000))) end
if redis.call('EXISTS', video(entry.id)) == 1 then
  redis.call('HSET', video(entry.id), 'rank', entry.rank)
  redis.call('HDEL', video(entry.id), 'since', 'turn', 'yielding')
end
return {entry.class, entry.id, member}
"""
)

# Whether a running video should make room. ARGV: starvation seconds, id, fence, class, turn seconds.
# Asking for the first time begins its turn, so that loading it does not count. Who was told yes is told so again: the
# answer may have been lost, and it is counted on.
# Returns 0 no, 1 yes, 2 yes and its turn is over, -1 no such video, -2 the fence is another's.
_MAKE_ROOM = (
    _LINE
    + """
local me, now = ARGV[2], clock()
local own = redis.call('HMGET', video(me), 'fence', 'owner', 'rank', 'turn', 'yielding')
if not own[1] then return -1 end
if own[1] ~= ARGV[3] then return -2 end
if own[5] then return tonumber(own[5]) end
local rank, turn = tonumber(own[3] or ARGV[4]), tonumber(own[4] or now)
if not own[4] then redis.call('HSET', video(me), 'turn', string.format('%.6f', now)) end
local function ended(since) return now - since >= tonumber(ARGV[5]) end
local over = ended(turn)
if over then rank = math.max(rank, tonumber(ARGV[4])) end
if waiting(over and CLASSES or rank - 1) == 0 then return 0 end

local left, owner = room(now), own[2]
local full = owner and left[owner] and left[owner] <= 0
local function wanted(one_less_of_mine)
  local copy, count = {}, 0  -- which `line` uses up
  for name, number in pairs(left) do copy[name] = number end
  if one_less_of_mine then copy[owner] = 1 end
  for _, entry in ipairs((line(now, copy, rank))) do
    if entry.rank < rank or (over and entry.rank == rank) then count = count + 1 end
  end
  return count
end

-- Those that any slot would do for, and the one more that could be taken if my owner ran one less.
local of_all = wanted(false)
local of_mine = full and wanted(true) - of_all or 0
if of_all + of_mine == 0 then return 0 end

-- Slots that are free, those that soon will be because their videos are to make room before this one, and how many of
-- these are my owner's.
local free, others, mine, seen = redis.call('ZCOUNT', SLOTS, now, '+inf'), 0, 0, {}
for class = 1, CLASSES do
  for _, id in ipairs(leased(KEYS[2 * class], now)) do
    if not seen[id] then
      seen[id], free = true, free - 1
      local facts = redis.call('HMGET', video(id), 'rank', 'turn', 'yielding', 'pause_requested', 'cancel_requested',
        'chunks_ready', 'chunks_total', 'owner')
      local other, since = tonumber(facts[1] or class), tonumber(facts[2] or now)
      if ended(since) then other = math.max(other, class) end
      -- Who is being joined into one file has no boundary to come to.
      local ending = facts[5] == 'true' or (facts[6] and facts[6] == facts[7])
      local before = id ~= me and facts[2] and not ending
        and (other > rank or (other == rank and (since < turn or (since == turn and id < me))))
      if facts[3] or facts[4] == 'true' or before then
        others = others + 1
        if facts[8] == owner then mine = mine + 1 end
      end
    end
  end
end
if of_all <= math.max(0, free) + others and of_mine <= mine then return 0 end
local answer = over and 2 or 1
redis.call('HSET', video(me), 'yielding', answer)
return answer
"""
)

# Returns the number of live slots, ids and ranks of those that wait, and of those that run, and how many of those that
# wait do so for their owners' own.
_ORDER = (
    _LINE
    + """
local now = clock()
local ahead, behind, running, seen = {}, {}, {}, {}
local ready, blocked = line(now, room(now), CLASSES + 1)
for _, list in ipairs({ready, blocked}) do
  for _, entry in ipairs(list) do
    ahead[#ahead + 1] = entry.id
    ahead[#ahead + 1] = entry.rank
  end
end
for class = 1, CLASSES do
  for _, id in ipairs(leased(KEYS[2 * class], now)) do
    if not seen[id] then
      seen[id] = true
      running[#running + 1] = id
      running[#running + 1] = tonumber(redis.call('HGET', video(id), 'rank') or class)
    end
  end
end
return {redis.call('ZCOUNT', SLOTS, now, '+inf'), ahead, running, #blocked}
"""
)

# KEYS: speed. ARGV: kind, seconds per forward, weight.
_LEARN = """
local known, measured = redis.call('HGET', KEYS[1], ARGV[1]), tonumber(ARGV[2])
if known then measured = known + ARGV[3] * (measured - known) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.9f', measured))
"""


class Line:
    """The waiting and running videos of every model. Raises `redis.exceptions.RedisError` when Redis is away."""

    def __init__(self, connection: Connection, *, starvation_seconds: float, turn_seconds: float) -> None:
        self.redis = connection
        self.starvation_seconds = starvation_seconds
        self.turn_seconds = turn_seconds
        self._take = connection.register_script(_TAKE)
        self._make_room = connection.register_script(_MAKE_ROOM)
        self._order = connection.register_script(_ORDER)
        self._learn = connection.register_script(_LEARN)

    def take(self, model: str, taker: str, lease_seconds: float) -> Taken | None:
        """Takes the next waiting video of a model out of line; None when none waits that may run."""
        found = self._take(
            keys=[*_keys(model), blocked_key(model)],
            args=[self.starvation_seconds, taker, int(lease_seconds * 1000)],
        )
        if not found:
            return None
        return Taken(queue.queue_names(model)[int(found[0]) - 1], found[1].decode(), found[2].decode())

    def make_room(
        self, model: str, video_id: str, fence: str, own_queue: str
    ) -> Yield | Literal["lost", "gone"] | None:
        """Whether a running video should stop at its next chunk boundary, and why; None: it may go on.

        Yes is final: the one who asked counts as making room from then on. "lost": the fence is another's; "gone":
        there is no such video.
        """
        rank = queue.queue_names(model).index(own_queue) + 1
        args = [self.starvation_seconds, video_id, fence, rank, self.turn_seconds]
        code = int(self._make_room(keys=_keys(model), args=args))
        if code < 0:
            return "gone" if code == -1 else "lost"
        return (None, "outranked", "turn_over")[code]

    def order(self, model: str) -> Order:
        """Who waits, in the order of taking, and who runs."""
        slots, ahead, running, blocked = self._order(keys=_keys(model), args=[self.starvation_seconds])
        return Order(_pairs(ahead), int(blocked), _pairs(running), int(slots))

    # -- slots ------------------------------------------------------------------------------------------

    def announce_slots(self, model: str, worker: str, count: int, lease_seconds: float) -> None:
        """A worker's slots are live until the lease ends."""
        seconds, microseconds = self.redis.time()
        now = seconds + microseconds / 1e6
        pipe = self.redis.pipeline()
        pipe.zremrangebyscore(slots_key(model), 0, now)
        pipe.zadd(slots_key(model), dict.fromkeys(_slot_names(worker, count), now + lease_seconds))
        pipe.execute()

    def served(self, models: Iterable[str]) -> set[str]:
        """Those of the models that have a live slot."""
        names = list(models)
        pipe = self.redis.pipeline(transaction=False)
        pipe.time()
        for name in names:
            pipe.zrange(slots_key(name), -1, -1, withscores=True)
        (seconds, microseconds), *latest = pipe.execute()
        now = seconds + microseconds / 1e6
        return {name for name, slots in zip(names, latest, strict=True) if slots and slots[0][1] > now}

    def withdraw_slots(self, model: str, worker: str, count: int) -> None:
        """A worker's slots are gone."""
        self.redis.zrem(slots_key(model), *_slot_names(worker, count))

    # -- speed ------------------------------------------------------------------------------------------

    def learn_speed(self, model: str, kind: str, seconds_per_forward: float) -> None:
        """Takes a measurement into the running mean of a model's forwards of one kind."""
        self._learn(keys=[speed_key(model)], args=[kind, seconds_per_forward, SPEED_WEIGHT])

    def speeds(self, model: str) -> dict[str, float]:
        """Measured seconds per forward by kind (`speed_kind`)."""
        return {kind.decode(): float(mean) for kind, mean in self.redis.hgetall(speed_key(model)).items()}


def _keys(model: str) -> list[str]:
    names = queue.queue_names(model)
    pairs = [key for name in names for key in (queue.waiting_key(name), queue.leases_key(name))]
    return [*pairs, slots_key(model), served_key(model), promoted_key(model), LIMITS_KEY]


def _slot_names(worker: str, count: int) -> list[str]:
    return [f"{worker}-{number}" for number in range(count)]


def _pairs(flat: list[bytes | int]) -> tuple[tuple[str, int], ...]:
    ids, ranks = flat[::2], flat[1::2]
    return tuple((i.decode(), int(r)) for i, r in zip(ids, ranks, strict=True) if isinstance(i, bytes))
