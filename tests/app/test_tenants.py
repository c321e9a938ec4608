"""What a key makes is nobody else's: every route of the application's own table against every kind of caller."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from starlette.routing import Route

from app.jobs.job import Status
from app.jobs.store import events_key, video_key
from app.keys import KeysError
from app.main import _ROUTERS
from app.settings import Settings
from app.storage.objects import final_key, video_prefix
from tests.app.conftest import Tenants, owner_of, running_api, running_tenants

NEVER = "video_" + "0" * 32

# Open to everybody.
PUBLIC = {("GET", "/"), ("HEAD", "/"), ("GET", "/docs"), ("GET", "/healthz"), ("GET", "/readyz")}
# Opened by a token of its own.
OPERATOR = {("GET", "/metrics")}
# Of the caller: the same for every key but for what it made. What a route of a video needs beside its path stands here
# as well, and so does the body of a route that names a video in it: `VIDEO` stands for its id.
VIDEO = "VIDEO"
COLLECTIONS = {
    ("GET", "/v1/videos"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model:path}"),
    ("GET", "/v1/webhook_secret"),
    ("POST", "/v1/webhook_secret/rotate"),
}
MAKING: set[tuple[str, str]] = {("POST", "/v1/videos")}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/videos"): {"prompt": "A blue ball", "seconds": 2},
    ("POST", "/v1/videos/extensions"): {"video": {"id": VIDEO}, "prompt": "A blue ball", "seconds": 60},
    ("POST", "/v1/videos/{video_id}/remix"): {"prompt": "A blue ball"},
    ("PATCH", "/v1/videos/{video_id}"): {"seconds": 60},
    ("POST", "/v1/videos/{video_id}/prompts"): {"text": "A red ball"},
}
# What a signed URL opens.
PLAYBACK = {
    "/v1/videos/{video_id}/content",
    "/v1/videos/{video_id}/chunks/{index}.m4s",
    "/v1/videos/{video_id}/chunks/{index}/content",
    "/v1/videos/{video_id}/init.mp4",
    "/v1/videos/{video_id}/stream.m3u8",
    "/v1/videos/{video_id}/events",
}

ROUTES = sorted(
    (method, route.path)
    for router in _ROUTERS
    for route in router.routes
    if isinstance(route, Route)
    for method in route.methods or ()
)


def of_a_video(route: tuple[str, str]) -> bool:
    return "{video_id}" in route[1] or VIDEO in str(BODIES.get(route))


def test_every_route_is_classified() -> None:
    known = PUBLIC | OPERATOR | COLLECTIONS | MAKING
    unknown = [route for route in ROUTES if not of_a_video(route) and route not in known]
    assert not unknown, f"who may see what these answer? {unknown}"
    assert not (known & {route for route in ROUTES if of_a_video(route)})
    assert known <= set(ROUTES)


@dataclass
class House:
    """A finished video of one tenant, and everybody who might come for it."""

    tenants: Tenants
    owner: httpx.Client
    other: httpx.Client
    reader: httpx.Client
    video: dict[str, Any]

    @property
    def video_id(self) -> str:
        return str(self.video["id"])

    def ask(
        self, client: httpx.Client, route: tuple[str, str], video_id: str, query: str = ""
    ) -> httpx.Response:
        method, path = route
        named = {
            "{video_id}": video_id,
            "{index}": "0",
            "{model:path}": "builtin",
            "{delivery_id}": "event_0",
        }
        path = re.sub(r"\{[^}]+\}", lambda found: named[found[0]], path) + (f"?{query}" if query else "")
        body = BODIES.get(route)
        if body is not None:
            body = _filled(body, video_id)
        elif method not in ("GET", "HEAD"):
            body = {}
        return client.request(method, path, json=body)

    def remains(self) -> Any:
        """Everything that is recorded of the video."""
        redis = self.tenants.api.worker.videos.redis
        objects = self.tenants.api.worker.objects
        return (
            redis.hgetall(video_key(self.video_id)),
            redis.xrange(events_key(self.video_id)),
            sorted((info.key, info.etag) for info in objects.list(video_prefix(self.video_id))),
        )


def _filled(value: Any, video_id: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, video_id) for name, inner in value.items()}
    return video_id if value == VIDEO else value


@pytest.fixture
def house(tenants: Tenants) -> House:
    owner, other = tenants.join("owner"), tenants.join("other")
    reader = tenants.join("reader", of="owner")
    video = tenants.create(owner)
    tenants.api.worker.make(video["id"])
    return House(tenants, owner, other, reader, owner.get(f"/v1/videos/{video['id']}").json())


# -- the matrix -----------------------------------------------------------------------------------------


def test_a_foreign_video_is_answered_like_one_that_never_was(house: House) -> None:
    before = house.remains()
    assert before[2]
    for route in filter(of_a_video, ROUTES):
        foreign = house.ask(house.other, route, house.video_id)
        never = house.ask(house.other, route, NEVER)
        assert foreign.status_code == 404, (route, foreign.text)
        assert foreign.content == never.content, route
        if route[0] != "HEAD":
            assert foreign.json()["error"]["code"] == "video_not_found", route
        unlike = {"x-request-id", "date"}
        assert {k: v for k, v in foreign.headers.items() if k not in unlike} == {
            k: v for k, v in never.headers.items() if k not in unlike
        }, route
    assert house.remains() == before


def test_the_owner_itself_gets_an_answer_to_everything_it_may_read(house: House) -> None:
    for route in ROUTES:
        if route[0] in ("GET", "HEAD") and route not in OPERATOR:
            for client in (house.owner, house.other) if not of_a_video(route) else (house.owner,):
                assert house.ask(client, route, house.video_id).status_code in (200, 204), route


def test_without_a_key_only_what_is_public_opens(house: House) -> None:
    tenants = house.tenants
    strangers = {
        "missing_api_key": tenants.client(),
        "invalid_api_key": tenants.client("lt_" + "0" * 12 + "_" + "0" * 64),
    }
    gone = tenants.join("gone")
    tenants.keys.revoke(owner_of(gone))
    half = tenants.client(house.owner.headers["authorization"].removeprefix("Bearer ")[:-1] + "x")
    before = house.remains()
    for route in ROUTES:
        for code, client in [*strangers.items(), ("invalid_api_key", gone), ("invalid_api_key", half)]:
            answer = house.ask(client, route, house.video_id)
            if route in PUBLIC:
                assert answer.status_code == 200, route
            elif route in OPERATOR:
                assert answer.status_code == 404, route
            else:
                assert answer.status_code == 401, (route, answer.text)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["cache-control"] == "no-store"
                if route[0] != "HEAD":
                    error = answer.json()["error"]
                    assert (error["code"], error["type"]) == (code, "authentication_error"), route
    assert house.remains() == before
    for path in ("/v1", "/v1/nothing", "//v1/videos", "/static/../v1/videos", "/v1/videos/"):
        assert tenants.client().get(path).status_code in (401, 404)
    assert tenants.client().get("/static/page.js").status_code == 200
    assert tenants.client().get("/openapi.json").status_code == 200


def test_a_key_that_may_only_look_sees_the_videos_of_one_key_and_changes_nothing(house: House) -> None:
    tenants = house.tenants
    foreign = tenants.create(house.other)["id"]
    before = house.remains()
    for route in ROUTES:
        if route in PUBLIC | OPERATOR:
            continue
        answer = house.ask(house.reader, route, house.video_id)
        if route[0] not in ("GET", "HEAD") or route[1] == "/v1/webhook_secret":
            tenants.api.error(answer, 403, "insufficient_scope")
            continue
        assert answer.status_code in (200, 204), route
        if of_a_video(route):
            assert house.ask(house.reader, route, foreign).status_code == 404, route
    assert house.remains() == before
    assert [video["id"] for video in house.reader.get("/v1/videos").json()["data"]] == [house.video_id]


def test_what_a_key_that_may_only_look_was_shown_ends_with_it_and_with_the_owner(house: House) -> None:
    tenants, path = house.tenants, f"/v1/videos/{house.video_id}"
    second = tenants.join("second reader", of="owner")
    urls = [client.get(path).json()["playlist_url"] for client in (house.owner, house.reader, second)]
    assert [tenants.client().get(url).status_code for url in urls] == [200, 200, 200]
    tenants.keys.revoke(owner_of(house.reader))
    assert house.reader.get(path).status_code == 401
    assert [tenants.client().get(url).status_code for url in urls] == [200, 401, 200]
    tenants.keys.revoke(owner_of(house.owner))
    assert second.get(path).status_code == 401
    assert [tenants.client().get(url).status_code for url in urls] == [401, 401, 401]


def test_requests_of_a_key_that_may_only_look_are_its_own(house: House) -> None:
    eager = house.tenants.join("eager", of="owner", requests_per_minute=1)
    assert eager.get("/v1/videos").status_code == 200
    house.tenants.api.error(eager.get("/v1/videos"), 429, "rate_limit_exceeded")
    assert house.owner.get("/v1/videos").status_code == 200


def test_what_a_route_makes_belongs_to_its_caller(house: House) -> None:
    for route in ROUTES:
        if route not in MAKING:
            continue
        video_id = house.ask(house.owner, route, house.video_id).json()["id"]
        assert video_id != house.video_id
        stored = house.tenants.api.worker.videos.get(video_id)
        assert stored is not None
        assert stored.spec.owner == owner_of(house.owner), route
        assert house.other.get(f"/v1/videos/{video_id}").status_code == 404


def test_a_signed_url_plays_its_video_and_does_nothing_else(house: House) -> None:
    tenants, anybody = house.tenants, house.tenants.client()
    second = tenants.create(house.owner)["id"]
    tenants.api.worker.make(second)
    query = urlsplit(house.video["playlist_url"]).query
    assert urlsplit(house.video["events_url"]).query == query
    before = house.remains()
    for route in ROUTES:
        method, path = route
        if route in PUBLIC | OPERATOR:
            continue
        answer = house.ask(anybody, route, house.video_id, query)
        if path in PLAYBACK and method in ("GET", "HEAD"):
            assert answer.status_code == 200, (route, answer.text)
        else:
            assert answer.status_code == 401, (route, answer.text)
        for other_id in (second, NEVER):
            assert house.ask(anybody, route, other_id, query).status_code == 401, route
    assert house.remains() == before


# -- lists, cursors, idempotency ------------------------------------------------------------------------


def test_lists_hold_and_cursors_name_only_one_s_own(house: House) -> None:
    tenants = house.tenants
    mine = [tenants.create(house.other)["id"] for _ in range(3)]
    assert [video["id"] for video in house.other.get("/v1/videos?order=asc").json()["data"]] == mine
    listed = house.owner.get("/v1/videos").json()
    assert [video["id"] for video in listed["data"]] == [house.video_id]
    assert listed["has_more"] is False
    # Somebody else's video is as one that never was, made in that millisecond.
    never = house.video_id[:-20] + "0" * 20
    for order, follow in (("asc", mine), ("desc", [])):
        foreign = house.other.get(f"/v1/videos?order={order}&after={house.video_id}")
        assert foreign.content == house.other.get(f"/v1/videos?order={order}&after={never}").content
        assert [video["id"] for video in foreign.json()["data"]] == follow


def test_the_same_idempotency_key_of_two_tenants_makes_two_videos(house: House) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"prompt": "A red ball", "seconds": 2}
    first = [
        c.post("/v1/videos", json=body, headers=headers).json()["id"] for c in (house.owner, house.other)
    ]
    again = [
        c.post("/v1/videos", json=body, headers=headers).json()["id"] for c in (house.owner, house.other)
    ]
    assert first == again
    assert len(set(first)) == 2
    differs = house.other.post("/v1/videos", json={**body, "seconds": 3}, headers=headers)
    house.tenants.api.error(differs, 422, "idempotency_mismatch", "Idempotency-Key")


def test_a_deleted_video_is_gone_for_everybody_in_the_same_words(house: House) -> None:
    assert house.owner.delete(f"/v1/videos/{house.video_id}").status_code == 200
    for client in (house.owner, house.other):
        for method in ("GET", "DELETE"):
            gone = client.request(method, f"/v1/videos/{house.video_id}")
            assert gone.status_code == 404
            assert gone.content == client.request(method, f"/v1/videos/{NEVER}").content


def test_videos_of_a_revoked_key_stay_and_nobody_sees_them(house: House) -> None:
    tenants = house.tenants
    query = urlsplit(house.video["playlist_url"]).query
    tenants.keys.revoke(owner_of(house.owner))
    tenants.api.error(house.owner.get(f"/v1/videos/{house.video_id}"), 401, "invalid_api_key")
    signed = tenants.client().get(f"/v1/videos/{house.video_id}/stream.m3u8?{query}")
    tenants.api.error(signed, 401, "invalid_signature")
    assert tenants.api.worker.videos.get(house.video_id) is not None
    assert house.remains()[2]


def test_unfinished_videos_of_a_revoked_key_are_cancelled(tenants: Tenants) -> None:
    owner, other, worker = tenants.join(), tenants.join(), tenants.api.worker
    waiting, paused, running, done = (tenants.create(owner)["id"] for _ in range(4))
    not_theirs = tenants.create(other)["id"]
    worker.claim(running)
    worker.commit(running, 0)
    worker.make(done)
    assert owner.post(f"/v1/videos/{paused}/pause").status_code == 200

    def states() -> list[tuple[Status, bool]]:
        videos = worker.videos.get_many([waiting, paused, running, done, not_theirs])
        return [(video.state.status, video.state.cancel_requested) for video in videos]

    before = states()
    cancel = tenants.api.context.chores()["videos of revoked API keys"]
    content = tenants.keys.path.read_text()
    tenants.keys.path.write_text('{"version": 1, "keys": []}')
    cancel()  # a key that is not in the file was lost, maybe
    for broken in ("{", None):
        if broken is None:
            tenants.keys.path.unlink()
        else:
            tenants.keys.path.write_text(broken)
        with pytest.raises(KeysError):
            cancel()
    tenants.keys.path.write_text(content)
    cancel()
    assert states() == before
    tenants.keys.revoke(owner_of(owner))
    for _ in range(2):
        cancel()
        assert states() == [
            (Status.CANCELLED, True),
            (Status.CANCELLED, True),
            (Status.IN_PROGRESS, True),
            (Status.COMPLETED, False),
            (Status.QUEUED, False),
        ]


def test_what_was_made_before_keys_were_on_is_nobody_s(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    keyed = settings(api_keys_file=tmp_path / "keys.json")
    unkeyed = keyed.model_copy(update={"api_keys_file": None})
    with running_tenants(keyed) as tenants, running_api(unkeyed) as open_api:
        old = open_api.create()
        assert "sig" not in old["playlist_url"]
        tenant = tenants.join()
        assert tenant.get(f"/v1/videos/{old['id']}").status_code == 404
        new = tenants.create(tenant)
        assert open_api.http.get(f"/v1/videos/{new['id']}").status_code == 404
        assert [v["id"] for v in open_api.http.get("/v1/videos").json()["data"]] == [old["id"]]


# -- while it is being answered -------------------------------------------------------------------------


def test_revocation_ends_an_open_event_stream_before_its_next_event(house: House) -> None:
    tenants = house.tenants
    video_id = tenants.create(house.owner)["id"]
    tenants.api.worker.claim(video_id)
    received = bytearray()
    open_ = threading.Event()

    def listen() -> None:
        with house.owner.stream("GET", f"/v1/videos/{video_id}/events") as stream:
            for piece in stream.iter_bytes():
                received.extend(piece)
                open_.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert open_.wait(60)
    tenants.keys.revoke(owner_of(house.owner))
    tenants.api.worker.commit(video_id, 0)
    listener.join(60)
    assert not listener.is_alive()
    assert b"event: status" in received
    assert b"event: chunk" not in received


@pytest.mark.parametrize("revoked", ["reader", "owner"])
def test_revocation_cuts_off_a_download(house: House, revoked: str) -> None:
    tenants = house.tenants
    size = 32 << 20
    tenants.api.worker.objects.put(final_key(house.video_id), bytes(size))
    with house.reader.stream("GET", f"/v1/videos/{house.video_id}/content") as download:
        pieces = download.iter_raw(1 << 16)
        received = len(next(pieces))
        tenants.keys.revoke(owner_of(getattr(house, revoked)))
        with pytest.raises(httpx.RemoteProtocolError):
            received += sum(map(len, pieces))
    assert received < size


def test_no_shared_cache_may_keep_what_a_key_opened(house: House) -> None:
    for path in ("chunks/0.m4s", "content", "init.mp4"):
        cache = house.owner.get(f"/v1/videos/{house.video_id}/{path}").headers["cache-control"]
        assert "public" not in cache
        assert "private" in cache


# -- the stock SDK --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sdk_raises_its_own_errors(house: House) -> None:
    def sdk(client: httpx.Client | None) -> Any:
        key = "wrong" if client is None else client.headers["authorization"].removeprefix("Bearer ")
        return openai.OpenAI(base_url=f"{house.tenants.api.url}/v1", api_key=key, max_retries=0, timeout=20)

    with sdk(None) as stranger, pytest.raises(openai.AuthenticationError) as wrong:
        stranger.videos.list()
    assert (wrong.value.code, wrong.value.type) == ("invalid_api_key", "authentication_error")
    with sdk(house.reader) as reader, pytest.raises(openai.PermissionDeniedError) as looking:
        reader.videos.create(prompt="x")
    assert looking.value.code == "insufficient_scope"
    with sdk(house.other) as other, pytest.raises(openai.NotFoundError):
        other.videos.retrieve(house.video_id)
    with sdk(house.owner) as owner:
        assert owner.videos.retrieve(house.video_id).status == "completed"
        assert owner.videos.download_content(house.video_id).read()[4:8] == b"ftyp"
    limited = house.tenants.join(seconds_per_day=2)
    with sdk(limited) as busy:
        busy.videos.create(prompt="x", seconds="2")
        with pytest.raises(openai.RateLimitError) as much:
            busy.with_options(max_retries=5).videos.create(prompt="x", seconds="2")
        assert (much.value.code, much.value.type) == ("daily_seconds_exceeded", "rate_limit_error")
    # What passes is tried again, after the time that the answer names.
    hasty = house.tenants.join(requests_per_minute=20)
    with sdk(hasty) as patient:
        # Until the next one that is allowed, of which there is one in three seconds, is some way off.
        while (said := hasty.get("/v1/models")).status_code == 200 or int(said.headers["retry-after"]) < 3:
            pass
        with pytest.raises(openai.RateLimitError) as often:
            patient.models.list()
        assert often.value.code == "rate_limit_exceeded"
        assert [model.id for model in patient.with_options(max_retries=3).models.list()] == ["builtin"]
