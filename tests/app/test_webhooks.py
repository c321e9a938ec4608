"""Webhooks, from a video's end to a real receiver on loopback, which this operator allows."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.cli import main
from app.client import LongtakeClient
from app.embedded import EmbeddedRedis
from app.jobs.deliveries import deliveries_of
from app.jobs.job import JobError
from app.schemas import CreateVideo, WebhookBody
from app.settings import Settings
from app.specification import specify
from app.webhooks import InvalidReceiver, receiver_url, retry_delay
from tests.app.conftest import CARD, Api, running_api
from tests.conftest import Eventually
from tests.receiver import Call, Receiver, close, endless, garbage, hang, receiving, status

# What an operator sets who lets webhooks reach this machine, and waits shorter than a real one.
ALLOWED: dict[str, Any] = {
    "webhook_allowed_networks": "127.0.0.0/8",
    "webhook_retry_seconds": 0.05,
    "webhook_retry_max_seconds": 0.2,
    "webhook_timeout_seconds": 20,  # only tests of it may run into it, however busy the machine
}


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Starts receivers on free ports."""
    with ExitStack() as stack:
        yield lambda *answers: stack.enter_context(receiving(*answers))


@pytest.fixture
def receiver(receivers: Callable[..., Receiver]) -> Receiver:
    return receivers()


@pytest.fixture
def hooks(own_redis: EmbeddedRedis, settings: Callable[..., Settings]) -> Iterator[Api]:
    """An API that may send to loopback, on a Redis that no other sender looks at."""
    with running_api(settings(redis_url=own_redis.url, **ALLOWED)) as api:
        api.worker.register()
        yield api


def deliveries(api: Api, video_id: str) -> list[dict[str, Any]]:
    answer = api.http.get(f"/v1/videos/{video_id}/webhook_deliveries")
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def settled(api: Api, video_id: str, outcome: str) -> Callable[[], dict[str, Any] | None]:
    """A condition: the video's newest delivery has come to this."""

    def condition() -> dict[str, Any] | None:
        newest = deliveries(api, video_id)[:1]
        return newest[0] if newest and newest[0]["status"] == outcome else None

    return condition


# -- what a receiver gets -------------------------------------------------------------------------------


def test_a_completed_video_is_told_and_libraries_accept_the_signature(
    hooks: Api, receiver: Receiver, eventually: Eventually
) -> None:
    video = hooks.create(webhook_url=receiver.url)
    assert video["webhook_url"] == receiver.url
    hooks.worker.make(video["id"])
    eventually(lambda: receiver.calls)
    (call,) = receiver.calls
    assert call.path == "/hook?token=t0ken"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"
    event = call.event
    assert event.keys() == {"id", "object", "created_at", "type", "data"}
    WebhookBody.model_validate_json(call.body)  # as the OpenAPI document says
    assert (event["object"], event["type"], event["data"]) == (
        "event",
        "video.completed",
        {"id": video["id"]},
    )
    assert event["id"] == call.headers["webhook-id"]
    assert abs(event["created_at"] - time.time()) < 60

    secret = hooks.http.get("/v1/webhook_secret").json()["secret"]
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    unwrapped: Any = client.webhooks.unwrap(call.body, call.headers)
    assert (unwrapped.id, unwrapped.type, unwrapped.data.id) == (event["id"], "video.completed", video["id"])
    assert Webhook(secret).verify(call.body, call.headers) == event
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(call.body.replace(b"completed", b"cancelled"), call.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(call.body, {**call.headers, "webhook-id": "evt_other"})

    done = eventually(settled(hooks, video["id"], "delivered"))
    assert done is not None
    assert (done["id"], done["type"], done["next_attempt_at"]) == (event["id"], "video.completed", None)
    (attempt,) = done["attempts"]
    assert (attempt["status_code"], attempt["error"]) == (204, None)
    assert 0 <= attempt["duration_ms"] < 5000


def test_every_ending_is_told_and_chunks_only_when_asked_for(
    hooks: Api, receiver: Receiver, eventually: Eventually
) -> None:
    waiting, running, failing, chatty, quiet = (
        hooks.create(webhook_url=receiver.url, **more)["id"]
        for more in (
            {},
            {},
            {},
            {"webhook_events": ["video.chunk", "video.completed", "video.chunk"]},
            {"webhook_events": ["video.failed"]},
        )
    )
    hooks.create()  # no webhook at all
    hooks.http.post(f"/v1/videos/{waiting}/cancel")
    hooks.http.post(f"/v1/videos/{waiting}/cancel")
    hooks.worker.claim(running)
    hooks.http.post(f"/v1/videos/{running}/cancel")
    hooks.worker.finish(running, "cancelled")
    hooks.worker.claim(failing)
    hooks.worker.finish(failing, "failed", error=JobError(code="x", message="y"))
    hooks.worker.make(chatty, chunks=2)
    hooks.worker.make(quiet, chunks=1)
    eventually(lambda: len(receiver.calls) == 6)
    told = {(call.event["type"], tuple(call.event["data"].items())) for call in receiver.calls}
    assert told == {
        ("video.cancelled", (("id", waiting),)),
        ("video.cancelled", (("id", running),)),
        ("video.failed", (("id", failing),)),
        ("video.chunk", (("id", chatty), ("index", 0))),
        ("video.chunk", (("id", chatty), ("index", 1))),
        ("video.completed", (("id", chatty),)),
    }
    assert len(set(receiver.ids)) == 6
    assert [d["type"] for d in deliveries(hooks, chatty)] == ["video.completed", "video.chunk", "video.chunk"]
    first = hooks.http.get(f"/v1/videos/{chatty}/webhook_deliveries?limit=2").json()
    rest = hooks.http.get(f"/v1/videos/{chatty}/webhook_deliveries?after={first['last_id']}").json()
    assert (first["has_more"], rest["has_more"], len(rest["data"])) == (True, False, 1)
    hooks.error(
        hooks.http.get(f"/v1/videos/{chatty}/webhook_deliveries?after=evt_0"), 400, "invalid_value", "after"
    )


def test_a_form_can_name_the_receiver_and_its_events(hooks: Api, receiver: Receiver) -> None:
    fields = {
        "prompt": (None, "x"),
        "webhook_url": (None, receiver.url),
        "webhook_events": (None, '["video.chunk"]'),
    }
    video = hooks.http.post("/v1/videos", files=fields).json()
    assert video["webhook_url"] == receiver.url
    listed = {"prompt": "x", "webhook_url": receiver.url, "webhook_events[]": ["video.chunk", "video.failed"]}
    other = hooks.http.post("/v1/videos", data=listed).json()
    specs = [hooks.worker.videos.get(v["id"]).spec for v in (video, other)]  # type: ignore[union-attr]
    assert [spec.webhook_events for spec in specs] == [("video.chunk",), ("video.chunk", "video.failed")]


# -- what is refused at once ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "http"),
        ("hooks.example.com/x", "http"),
        ("ftp://hooks.example.com/x", "http"),
        ("file:///etc/passwd", "http"),
        ("http:///x", "http"),
        ("https://user:pw@hooks.example.com/", "password"),
        ("https://user@hooks.example.com/", "password"),
        ("https://hooks.example.com/#a", "fragment"),
        ("https://hooks.example.com:25/", "port"),
        ("https://hooks.example.com:0/", "port"),
        ("https://hooks.example.com:99999/", "port"),
        ("https://hooks.example.com/a b", "white space"),
        ("https://hooks.example.com/\na", "white space"),
        ("https://[::1/", "URL"),
        ("https://hooks.example.com/" + "a" * 2100, "characters"),
        ("http://127.0.0.1/", "may not be called"),
        ("http://[::1]/", "may not be called"),
        ("http://169.254.169.254/latest/meta-data/", "may not be called"),
        ("http://[::ffff:10.0.0.1]/", "may not be called"),
    ],
)
def test_what_cannot_receive_is_refused_with_its_reason(url: str, words: str) -> None:
    with pytest.raises(InvalidReceiver, match=words):
        receiver_url(url, Settings())


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://hooks.example.com", "https://hooks.example.com"),
        ("https://Hooks.Example.com:443/a?b=c%20d", "https://hooks.example.com/a?b=c%20d"),
        ("http://hooks.example.com:8080/", "http://hooks.example.com:8080/"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
    ],
)
def test_a_receiver_is_kept_in_one_form(url: str, stored: str) -> None:
    assert receiver_url(url, Settings()) == stored


def test_a_refused_receiver_makes_no_video(api: Api) -> None:
    for body, code, param in (
        ({"webhook_url": "http://10.0.0.1/"}, "webhook_address_refused", "webhook_url"),
        ({"webhook_url": "ftp://a.example/"}, "invalid_value", "webhook_url"),
        ({"webhook_url": 7}, "invalid_value", "webhook_url"),
        ({"webhook_events": ["video.failed"]}, "invalid_value", "webhook_events"),
        ({"webhook_url": "http://a.example/", "webhook_events": []}, "invalid_value", "webhook_events"),
        ({"webhook_url": "http://a.example/", "webhook_events": ["x"]}, "invalid_value", "webhook_events[0]"),
    ):
        answer = api.http.post("/v1/videos", json={"prompt": "x", **body})
        api.error(answer, 400, code, param)
    assert api.http.get("/v1/videos").json()["data"] == []


# -- when a receiver fails ------------------------------------------------------------------------------


def test_it_is_tried_again_later_and_later_under_the_same_id(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    receiver = receivers(status(500), status(404), hang, close)
    with running_api(settings(redis_url=own_redis.url, **ALLOWED | {"webhook_timeout_seconds": 3})) as hooks:
        hooks.worker.register()
        video_id = hooks.create(webhook_url=receiver.url)["id"]
        hooks.worker.make(video_id, chunks=1)
        done = eventually(settled(hooks, video_id, "delivered"))
        secret = hooks.http.get("/v1/webhook_secret").json()["secret"]
    assert done is not None
    assert [(a["status_code"], a["error"]) for a in done["attempts"]] == [
        (500, "refused"),
        (404, "refused"),
        (None, "timeout"),
        (None, "malformed_answer"),
        (204, None),
    ]
    assert len(set(receiver.ids)) == 1
    assert len({call.body for call in receiver.calls}) == 1
    for call in receiver.calls:
        Webhook(secret).verify(call.body, call.headers)


def test_the_wait_grows_to_a_limit_and_is_never_the_same() -> None:
    defaults = Settings()
    for tries, seconds in enumerate((5, 15, 45, 135, 405, 1215, 3645, 10935, 14400, 14400)):
        delays = {retry_delay(tries, defaults) for _ in range(50)}
        assert len(delays) == 50
        assert all(0.8 * seconds <= delay <= 1.2 * seconds for delay in delays)
    assert retry_delay(10_000, defaults) <= 1.2 * defaults.webhook_retry_max_seconds
    assert retry_delay(0, defaults, asked_seconds=600) == 600
    assert retry_delay(0, defaults, asked_seconds=1) >= 4
    assert retry_delay(0, defaults, asked_seconds=1e9) == defaults.webhook_retry_max_seconds


def test_attempts_end_and_begin_anew_when_the_owner_asks(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    receiver = receivers(*[status(500)] * 5)
    patience = {
        "webhook_retry_seconds": 0.04,
        "webhook_retry_max_seconds": 10,
        "webhook_max_age_seconds": 3,
    }
    with running_api(settings(redis_url=own_redis.url, **ALLOWED | patience)) as api:
        api.worker.register()
        video_id = api.create(webhook_url=receiver.url)["id"]
        api.worker.make(video_id, chunks=1)
        given_up = eventually(settled(api, video_id, "failed"))
        assert given_up is not None
        assert given_up["next_attempt_at"] is None
        assert 3 <= len(receiver.calls) == len(given_up["attempts"]) <= 5
        gaps = [later.at - call.at for call, later in zip(receiver.calls, receiver.calls[1:], strict=False)]
        assert all(gap >= 0.8 * 0.04 * 3**n for n, gap in enumerate(gaps))
        # The owner can have it sent again, and then it may fail as often as before.
        receiver.answers = [status(500)]
        path = f"/v1/videos/{video_id}/webhook_deliveries/{given_up['id']}/retry"
        again = api.http.post(path).json()
        assert (again["id"], again["status"]) == (given_up["id"], "pending")
        done = eventually(settled(api, video_id, "delivered"))
        assert done is not None
        assert len(done["attempts"]) == len(given_up["attempts"]) + 2
        assert set(receiver.ids) == {given_up["id"]}


def test_what_went_wrong_is_in_the_log_of_the_owner(
    hooks: Api, receivers: Callable[..., Receiver], eventually: Eventually
) -> None:
    target, receiver = receivers(), receivers()
    receiver.answers = [status(307, Location=target.url), garbage, status(429, Retry_After="soon")]
    video_id = hooks.create(webhook_url=receiver.url)["id"]
    hooks.worker.make(video_id, chunks=1)
    done = eventually(settled(hooks, video_id, "delivered"))
    assert done is not None
    assert [(a["status_code"], a["error"]) for a in done["attempts"]] == [
        (307, "redirect_not_followed"),
        (None, "malformed_answer"),
        (429, "refused"),
        (204, None),
    ]
    assert target.calls == []


def test_an_answer_that_never_ends_is_taken_by_its_status(
    hooks: Api, receivers: Callable[..., Receiver], eventually: Eventually
) -> None:
    receiver = receivers(endless)
    video_id = hooks.create(webhook_url=receiver.url)["id"]
    hooks.worker.make(video_id, chunks=1)
    done = eventually(settled(hooks, video_id, "delivered"))
    assert done is not None
    assert [a["status_code"] for a in done["attempts"]] == [200]


@pytest.mark.parametrize("as_date", [False, True])
def test_a_busy_receiver_is_left_alone_as_long_as_it_asks(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
    as_date: bool,
) -> None:
    receiver = receivers()
    with running_api(settings(redis_url=own_redis.url, **ALLOWED | {"webhook_retry_max_seconds": 60})) as api:
        api.worker.register()
        wait = formatdate(time.time() + 30, usegmt=True) if as_date else "30"
        receiver.answers = [status(503, Retry_After=wait)]
        video_id = api.create(webhook_url=receiver.url)["id"]
        api.worker.make(video_id, chunks=1)
        refused = eventually(lambda: next((d for d in deliveries(api, video_id) if d["attempts"]), None))
        assert refused is not None
        assert refused["status"] == "pending"
        assert 20 < refused["next_attempt_at"] - time.time() <= 31


def test_410_ends_all_webhooks_of_the_video_until_its_owner_asks_again(
    hooks: Api, receivers: Callable[..., Receiver], eventually: Eventually
) -> None:
    receiver = receivers(status(410))
    video_id = hooks.create(webhook_url=receiver.url, webhook_events=["video.chunk", "video.completed"])["id"]
    other = hooks.create(webhook_url=receiver.url)["id"]
    hooks.worker.claim(video_id)
    hooks.worker.commit(video_id, 0)
    gone = eventually(settled(hooks, video_id, "disabled"))
    assert gone is not None
    assert gone["attempts"][0]["error"] == "gone"
    hooks.worker.commit(video_id, 1)
    assert [d["status"] for d in deliveries(hooks, video_id)] == ["disabled", "disabled"]
    hooks.worker.make(other, chunks=1)  # another video to the same receiver is told
    eventually(lambda: receiver.types == ["video.chunk", "video.completed"])
    hooks.http.post(f"/v1/videos/{video_id}/webhook_deliveries/{gone['id']}/retry")
    eventually(lambda: receiver.ids.count(gone["id"]) == 2)
    hooks.worker.finish(video_id)
    told = ["delivered", "disabled", "delivered"]
    eventually(lambda: [d["status"] for d in deliveries(hooks, video_id)] == told)


def test_a_delivery_that_is_not_there_cannot_be_sent_again(hooks: Api, receiver: Receiver) -> None:
    video_id, other = hooks.create(webhook_url=receiver.url)["id"], hooks.create()["id"]
    hooks.http.post(f"/v1/videos/{video_id}/cancel")
    (delivery,) = deliveries(hooks, video_id)
    for owner, delivery_id in ((other, delivery["id"]), (video_id, "evt_0")):
        answer = hooks.http.post(f"/v1/videos/{owner}/webhook_deliveries/{delivery_id}/retry")
        hooks.error(answer, 404, "delivery_not_found", "delivery_id")
    unknown = "video_" + "0" * 32
    hooks.error(
        hooks.http.get(f"/v1/videos/{unknown}/webhook_deliveries"), 404, "video_not_found", "video_id"
    )


def test_a_name_that_leads_to_a_forbidden_address_is_never_called(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings], receiver: Receiver, eventually: Eventually
) -> None:
    with running_api(settings(redis_url=own_redis.url)) as api:
        api.worker.register()
        video_id = api.create(webhook_url=f"http://localhost:{receiver.port}/")["id"]
        api.worker.make(video_id, chunks=1)
        refused = eventually(lambda: next((d for d in deliveries(api, video_id) if d["attempts"]), None))
        assert refused is not None
        assert refused["status"] == "pending"  # a wrong DNS entry may be put right
        assert refused["attempts"][0]["error"] == "address_refused"
        assert "127.0.0.1" not in json.dumps(refused)
    assert receiver.calls == []


def test_many_receivers_are_called_at_the_same_time(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    together = threading.Barrier(16)

    def meet(request: BaseHTTPRequestHandler) -> None:
        together.wait(60)
        status(204)(request)

    receiver = receivers(*[meet] * 16)
    many = {"webhook_host_concurrency": 16, "webhook_timeout_seconds": 90}
    with running_api(settings(redis_url=own_redis.url, **ALLOWED | many)) as api:
        api.worker.register()
        ids = [api.create(webhook_url=receiver.url)["id"] for _ in range(16)]
        for video_id in ids:
            api.http.post(f"/v1/videos/{video_id}/cancel")
        eventually(lambda: all(settled(api, video_id, "delivered")() for video_id in ids))
    assert len(receiver.calls) == 16


def test_a_receiver_is_its_host_and_port_whatever_follows_in_the_url() -> None:
    urls = [f"http://h.example:8080{rest}" for rest in ("?token=a", "?token=b", "", "/", "/hook?token=c/d")]
    specs = [specify(CreateVideo(prompt="x", webhook_url=url), {"builtin": CARD}, Settings()) for url in urls]
    told = [delivery for spec in specs for delivery in deliveries_of(spec, "video.completed", 0.0)]
    assert [delivery.lane for delivery in told] == ["h.example:8080"] * 5


def test_receivers_that_hang_do_not_hold_up_the_others(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    few = {"webhook_concurrency": 5, "webhook_host_concurrency": 2, "webhook_timeout_seconds": 90}
    with running_api(settings(redis_url=own_redis.url, **ALLOWED | few)) as api:
        api.worker.register()
        dead = [receivers(*[hang] * 50), receivers(*[hang] * 50)]
        alive = receivers()
        for receiver in dead:
            for _ in range(10):
                hooks_id = api.create(webhook_url=receiver.url)["id"]
                api.http.post(f"/v1/videos/{hooks_id}/cancel")
        eventually(lambda: [len(receiver.calls) for receiver in dead] == [2, 2])
        for _ in range(10):
            api.http.post(f"/v1/videos/{api.create(webhook_url=alive.url)['id']}/cancel")
        eventually(lambda: len(alive.calls) == 10)
        assert [len(receiver.calls) for receiver in dead] == [2, 2]


# -- nothing lost, nothing twice ------------------------------------------------------------------------


def test_two_replicas_send_each_event_once(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings], receiver: Receiver, eventually: Eventually
) -> None:
    both = settings(redis_url=own_redis.url, **ALLOWED)
    with running_api(both) as api, running_api(both):
        api.worker.register()
        ids = [api.create(webhook_url=receiver.url)["id"] for _ in range(12)]
        for video_id in ids:
            api.http.post(f"/v1/videos/{video_id}/cancel")
        eventually(lambda: all(settled(api, video_id, "delivered")() for video_id in ids))
        assert sorted(call.event["data"]["id"] for call in receiver.calls) == sorted(ids)


def test_an_event_outlives_the_api_and_redis_between_the_end_and_its_delivery(
    own_redis: EmbeddedRedis, settings: Callable[..., Settings], receiver: Receiver, eventually: Eventually
) -> None:
    silent = settings(redis_url=own_redis.url, **ALLOWED | {"webhook_concurrency": 0})
    with running_api(silent) as api:
        api.worker.register()
        video_id = api.create(webhook_url=receiver.url)["id"]
        api.worker.make(video_id, chunks=1)
        assert deliveries(api, video_id)[0]["status"] == "pending"
    own_redis.stop()  # whoever ran is gone, and so is Redis
    own_redis.start()
    assert receiver.calls == []
    with running_api(settings(redis_url=own_redis.url, **ALLOWED)) as api:
        eventually(settled(api, video_id, "delivered"))
        own_redis.stop()  # a sender waits for Redis, and goes on
        own_redis.start()
        other = api.create(webhook_url=receiver.url)["id"]
        api.http.post(f"/v1/videos/{other}/cancel")
        eventually(settled(api, other, "delivered"))
    assert [call.event["data"]["id"] for call in receiver.calls] == [video_id, other]


def test_what_a_killed_sender_was_sending_is_sent_by_another(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    receiver = receivers(hang)
    environment = {
        **os.environ,
        "LONGTAKE_REDIS_URL": own_redis.url,
        **{f"LONGTAKE_{name.upper()}": str(value) for name, value in ALLOWED.items()},
        "LONGTAKE_WEBHOOK_TIMEOUT_SECONDS": "1",
    }
    silent = settings(redis_url=own_redis.url, **ALLOWED | {"webhook_concurrency": 0})
    with running_api(silent) as api:
        api.worker.register()
        video_id = api.create(webhook_url=receiver.url)["id"]
        api.http.post(f"/v1/videos/{video_id}/cancel")
        command = [sys.executable, "-m", "app.cli", "webhooks", "send"]
        killed = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        eventually(lambda: receiver.calls)
        killed.kill()
        killed.communicate()
        other = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        try:
            eventually(settled(api, video_id, "delivered"), seconds=90)
        finally:
            other.send_signal(signal.SIGTERM)
            _, said = other.communicate(timeout=60)
        assert other.returncode == 0, said.decode()
    assert len(receiver.calls) == 2
    assert len(set(receiver.ids)) == 1
    assert b"t0ken" not in said


def test_a_deleted_video_is_not_spoken_of(
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    receiver = receivers(*[status(500)] * 100)
    with running_api(settings(redis_url=own_redis.url, **ALLOWED)) as api:
        api.worker.register()
        video_id = api.create(webhook_url=receiver.url)["id"]
        api.worker.make(video_id, chunks=1)
        eventually(lambda: len(receiver.calls) >= 2)
        assert api.http.delete(f"/v1/videos/{video_id}").status_code == 200
        left = [key for key in own_keys(own_redis) if b"webhook" in key]
        assert [key for key in left if not key.startswith(b"longtake:webhook_secret:")] == []


def own_keys(server: EmbeddedRedis) -> list[bytes]:
    from redis import Redis

    with Redis.from_url(server.url) as client:
        return list(client.scan_iter())


# -- secrets --------------------------------------------------------------------------------------------


def test_both_secrets_sign_while_they_overlap(hooks: Api, receiver: Receiver, eventually: Eventually) -> None:
    def tell() -> Call:
        count = len(receiver.calls)
        video_id = hooks.create(webhook_url=receiver.url)["id"]
        hooks.http.post(f"/v1/videos/{video_id}/cancel")
        eventually(lambda: len(receiver.calls) > count)
        return receiver.calls[-1]

    first = hooks.http.get("/v1/webhook_secret").json()
    assert first["previous"] == []
    assert hooks.http.get("/v1/webhook_secret").json() == first
    rotated = hooks.http.post("/v1/webhook_secret/rotate").json()
    assert rotated["secret"] != first["secret"]
    assert [old["secret"] for old in rotated["previous"]] == [first["secret"]]
    assert 86000 < rotated["previous"][0]["expires_at"] - time.time() <= 86400
    call = tell()
    for secret in (first["secret"], rotated["secret"]):
        Webhook(secret).verify(call.body, call.headers)
        openai.OpenAI(api_key="none").webhooks.unwrap(call.body, call.headers, secret=secret)
    # A secret that leaked ends at once, with all before it.
    last = hooks.http.post("/v1/webhook_secret/rotate", json={"overlap_seconds": 0}).json()
    assert last["previous"] == []
    call = tell()
    Webhook(last["secret"]).verify(call.body, call.headers)
    for secret in (first["secret"], rotated["secret"]):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(call.body, call.headers)


def test_a_secret_is_not_replaced_otherwise_than_was_asked(api: Api) -> None:
    first = api.http.get("/v1/webhook_secret").json()
    url = "/v1/webhook_secret/rotate"
    api.error(api.http.post(url, json={"overlap_seconds": -1}), 400, "invalid_value", "overlap_seconds")
    api.error(api.http.post(url, json={"overlap_seconds": 2592001}), 400, "invalid_value", "overlap_seconds")
    api.error(api.http.post(url, json={"overlap": 0}), 400, "unknown_parameter", "overlap")
    api.error(api.http.post(f"{url}?overlap_seconds=0"), 400, "unknown_parameter", "overlap_seconds")
    api.error(api.http.post(url, content=b"0"), 415, "unsupported_media_type", "Content-Type")
    assert api.http.get("/v1/webhook_secret").json() == first
    for body in ({"data": {"overlap_seconds": "0"}}, {"files": {"overlap_seconds": (None, "0")}}):
        assert api.http.post(url, **body).json()["previous"] == []
    kept = api.http.post(url, json={}).json()["previous"]
    assert [old["secret"] for old in kept] != [first["secret"]]
    assert len(kept) == 1


def test_neither_the_secret_nor_the_receiver_s_token_reaches_logs_or_events(
    hooks: Api, receivers: Callable[..., Receiver], eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver = receivers(status(500))
    secret = hooks.http.get("/v1/webhook_secret").json()["secret"]
    video_id = hooks.create(webhook_url=receiver.url)["id"]
    hooks.worker.make(video_id, chunks=1)
    eventually(settled(hooks, video_id, "delivered"))
    assert "not delivered" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("app"))
    assert secret not in caplog.text
    assert "t0ken" not in ours
    assert secret not in hooks.http.get(f"/v1/videos/{video_id}/events").text
    assert secret not in hooks.http.get(f"/v1/videos/{video_id}/webhook_deliveries").text


def test_the_client_and_the_command_line_show_and_rotate_it(
    hooks: Api, receiver: Receiver, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    with LongtakeClient(hooks.url) as client:
        first = client.webhook_secret().secret
        assert main(["webhooks", "secret", "--url", hooks.url]) == 0
        assert capsys.readouterr().out == f"{first}\n"
        assert main(["webhooks", "rotate", "--overlap", "60", "--url", hooks.url]) == 0
        now = client.webhook_secret()
        assert capsys.readouterr().out == f"{now.secret}\n"
        assert [old.secret for old in now.previous] == [first]
        assert client.rotate_webhook_secret(overlap_seconds=0).previous == []
        video = client.create("x", webhook_url=receiver.url, webhook_events=["video.cancelled"])
        client.cancel(video.id)
        eventually(lambda: [d.status for d in client.webhook_deliveries(video.id)] == ["delivered"])
        (delivery,) = client.webhook_deliveries(video.id)
        assert client.retry_webhook(video.id, delivery.id).status == "pending"
        eventually(lambda: len(receiver.calls) == 2)


def test_only_a_service_that_may_send_runs_the_sending_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["webhooks", "send"]) == 2
    assert "LONGTAKE_REDIS_URL" in capsys.readouterr().err
    monkeypatch.setenv("LONGTAKE_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("LONGTAKE_WEBHOOK_CONCURRENCY", "0")
    assert main(["webhooks", "send"]) == 2
    assert "nothing would be sent" in capsys.readouterr().err


def test_proxies_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
    own_redis: EmbeddedRedis,
    settings: Callable[..., Settings],
    receivers: Callable[..., Receiver],
    eventually: Eventually,
) -> None:
    receiver, proxy = receivers(), receivers()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running_api(settings(redis_url=own_redis.url, **ALLOWED)) as api:
        api.worker.register()
        api.http.post(f"/v1/videos/{api.create(webhook_url=receiver.url)['id']}/cancel")
        eventually(lambda: receiver.calls)
    assert proxy.calls == []
