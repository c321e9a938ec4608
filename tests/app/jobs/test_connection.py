"""A failover: the server that was asked so far goes on answering, as a replica, and the address leads to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from app.context import THREADS, Context
from app.embedded import EmbeddedRedis
from app.jobs.connection import Connection, connect, optimistically
from app.jobs.job import Status, TimedPrompt, VideoSpec, new_video_id
from app.jobs.store import VideoStore, video_key
from app.settings import Settings
from tests.conftest import Eventually
from tests.faults.proxy import Relay


@pytest.fixture
def other_redis(own_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server with the same password as `own_redis`."""
    server = EmbeddedRedis(tmp_path / "other-redis")
    server.password = own_redis.password
    with server:
        yield server


def admin(server: EmbeddedRedis, *command: object) -> Any:
    with connect(server.url) as client:
        return client.execute_command(*command)


def follow(server: EmbeddedRedis, primary: EmbeddedRedis) -> None:
    admin(primary, "CONFIG", "SET", "repl-diskless-sync-delay", 0)  # it waits five seconds for more replicas
    admin(server, "CONFIG", "SET", "masterauth", primary.password)
    admin(server, "REPLICAOF", "127.0.0.1", primary.port)


def spec(**fields: Any) -> VideoSpec:
    given: dict[str, Any] = {
        "id": new_video_id(), "created_at": time.time(), "model": "m", "seconds": 1.0, "fps": 24, "frames": 24,
        "prompts": (TimedPrompt(at=0, text="a circle"),), "width": 16, "height": 16, "seed": 1,
    }  # fmt: skip
    return VideoSpec(**(given | fields))


def command(client: Connection) -> None:
    client.incr("n")


def script(client: Connection) -> None:
    client.register_script("return redis.call('INCR', KEYS[1])")(keys=["n"])


def pipeline(client: Connection) -> None:
    client.pipeline(transaction=False).get("m").incr("n").execute()


def transaction(client: Connection) -> None:
    client.pipeline().get("m").incr("n").execute()


def script_in_a_transaction(client: Connection) -> None:
    client.pipeline().eval("return redis.call('INCR', KEYS[1])", 1, "n").incr("m").execute()


def watching_transaction(client: Connection) -> None:
    def transact(pipe: Connection) -> None:
        pipe.get("n")
        pipe.multi()
        pipe.incr("n")

    optimistically(client, transact, "n")


def test_as_many_transactions_as_the_api_has_threads_run_at_once(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.context._REDIS_SECONDS", 30.0)  # the machine may be busy
    redis = Context(settings()).videos.redis
    all_at_once = threading.Barrier(THREADS)

    def transact(pipe: Connection) -> None:
        all_at_once.wait(60)
        redis.time()
        pipe.multi()

    with redis, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: optimistically(redis, transact, f"key-{number}"), range(THREADS)))


WRITES = [command, script, pipeline, transaction, script_in_a_transaction, watching_transaction]


@pytest.mark.parametrize("write", WRITES)
def test_after_a_failover_the_next_write_reaches_the_new_primary(
    own_redis: EmbeddedRedis, other_redis: EmbeddedRedis, write: Callable[[Connection], None]
) -> None:
    relay = Relay("127.0.0.1", own_redis.port)
    with connect(own_redis.url.replace(f":{own_redis.port}", f":{relay.port}")) as client:
        write(client)
        relay.target_port = other_redis.port
        follow(own_redis, other_redis)
        write(client)
        assert admin(other_redis, "GET", "n") == b"1"
    relay.close()


def test_a_transaction_that_meets_a_failover_is_carried_out_as_a_whole(
    own_redis: EmbeddedRedis, other_redis: EmbeddedRedis, eventually: Eventually
) -> None:
    relay = Relay("127.0.0.1", own_redis.port)
    store = VideoStore(connect(own_redis.url.replace(f":{own_redis.port}", f":{relay.port}")))
    follow(other_redis, own_redis)
    before, after = (store.create(spec(webhook_url="http://127.0.0.1:9/")).video for _ in range(2))
    store.request_cancel(before.id)  # the first server knows every script by now; the second will not
    eventually(lambda: admin(other_redis, "HGET", video_key(before.id), "status") == b'"cancelled"')
    admin(other_redis, "REPLICAOF", "NO", "ONE")
    relay.target_port = other_redis.port
    follow(own_redis, other_redis)
    assert store.request_cancel(after.id).state.status is Status.CANCELLED
    assert [told.delivery.type for told in store.deliveries.page(after.id, limit=9)[0]] == ["video.cancelled"]
    store.redis.close()
    relay.close()


def test_on_a_redis_that_stays_a_replica_a_write_fails_soon_and_works_once_it_is_a_primary_again(
    own_redis: EmbeddedRedis, other_redis: EmbeddedRedis
) -> None:
    store = VideoStore(connect(own_redis.url, retries=1))
    follow(own_redis, other_redis)
    with pytest.raises(RedisConnectionError, match="is a replica now"):
        store.create(video := spec())
    with pytest.raises(RedisConnectionError, match="is a replica now"):
        script(store.redis)
    admin(own_redis, "REPLICAOF", "NO", "ONE")
    assert store.create(video).video.spec == video
    assert store.take("m", "w", 5) is not None
