"""Signed URLs: what they are worth, for how long, and to whom. What they open is in `test_tenants`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import httpx
import pytest

from app.jobs.connection import connect
from app.jobs.job import TimedPrompt, Video
from app.schemas import PRIVATE_FIELDS, VideoObject
from app.settings import Settings
from app.signatures import InvalidSignature, SignatureExpired, Signer, parse_signature
from tests.app.conftest import Tenants, owner_of, running_tenants

VIDEO = "video_" + "1" * 32


def test_all_replicas_of_a_redis_take_each_other_s_signatures(redis_url: str) -> None:
    one, two = (Signer(connect(redis_url), None, 3600) for _ in range(2))
    signature = one.sign(VIDEO, "tenant")
    assert 3600 <= signature.ends_at - time.time() <= 1.25 * 3600 + 1
    two.check(signature, VIDEO)
    assert two.sign(VIDEO, "tenant") == signature  # so a player sees the same address for a while


def test_with_a_secret_of_one_s_own_signatures_outlive_redis(redis_url: str) -> None:
    with connect(redis_url) as redis:
        signature = Signer(redis, "a secret of sixteen", 3600).sign(VIDEO, "tenant")
        redis.flushall()
        Signer(redis, "a secret of sixteen", 3600).check(signature, VIDEO)
        assert redis.dbsize() == 0
        with pytest.raises(InvalidSignature):
            Signer(redis, "another of sixteen!", 3600).check(signature, VIDEO)


def test_nothing_of_a_signed_url_can_be_changed(tenants: Tenants) -> None:
    mine, other = tenants.join(), tenants.join()
    video = tenants.create(mine)
    tenants.api.worker.make(video["id"])
    url = urlsplit(video["playlist_url"])
    fields = {name: values[0] for name, values in parse_qs(url.query).items()}
    anybody = tenants.client()
    assert anybody.get(video["playlist_url"]).status_code == 200
    changes: list[dict[str, str]] = [
        {"exp": str(int(fields["exp"]) + 1)},
        {"owner": owner_of(other)},
        {"owner": ""},
        {"sig": fields["sig"][:-1]},
        {"sig": ""},
        {"sig": "é"},
        {"exp": "-1"},
        {"exp": "1e9"},
    ]
    for change in changes:
        answer = anybody.get(f"{url.path}?{urlencode(fields | change)}")
        tenants.api.error(answer, 401, "invalid_signature")
    doubled = anybody.get(f"{url.path}?{url.query}&sig=x")
    tenants.api.error(doubled, 401, "invalid_signature")
    # A wrong key is not made good by a signature.
    tenants.api.error(tenants.client("lt_x").get(video["playlist_url"]), 401, "invalid_api_key")


def expired(tenants: Tenants, monkeypatch: pytest.MonkeyPatch, video_id: str, owner: str) -> str:
    """The query of a signature whose time is over."""
    with monkeypatch.context() as earlier:
        real = time.time
        earlier.setattr("app.signatures.time.time", lambda: real() - 10 * 3600)
        return tenants.api.context.signer.sign(video_id, owner).query


def test_an_expired_url_plays_nothing(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tenants.join()
    video = tenants.create(client)
    tenants.api.worker.make(video["id"])
    query = expired(tenants, monkeypatch, video["id"], owner_of(client))
    for path in ("stream.m3u8", "init.mp4", "chunks/0.m4s", "content", "events"):
        answer = tenants.client().get(f"/v1/videos/{video['id']}/{path}?{query}")
        tenants.api.error(answer, 401, "signature_expired")


def test_who_watches_a_growing_video_may_go_on_when_the_url_expires(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tenants.join()
    video = tenants.create(client)
    tenants.api.worker.claim(video["id"])
    tenants.api.worker.commit(video["id"], 0)
    viewer = tenants.client()
    old = f"/v1/videos/{video['id']}/stream.m3u8?" + expired(
        tenants, monkeypatch, video["id"], owner_of(client)
    )
    assert viewer.get(old).status_code == 401
    signature = parse_signature(urlsplit(old).query)
    assert signature is not None
    tenants.api.context.signer.viewed(signature)  # as if it had been read a moment ago
    assert viewer.get(old).status_code == 200
    assert 0 < tenants.api.worker.videos.redis.ttl(f"longtake:viewed:{signature.mac}") <= 60
    # The segments carry a signature that is good for hours.
    segment = re.findall(r"^chunks/.*$", viewer.get(old).text, re.M)[0]
    fresh = parse_signature(urlsplit(segment).query)
    assert fresh is not None
    assert fresh.ends_at > time.time() + 3600
    # Once nobody has been watching for a while, that is over.
    tenants.api.worker.videos.redis.delete(f"longtake:viewed:{signature.mac}")
    assert viewer.get(old).status_code == 401
    with pytest.raises(SignatureExpired):
        tenants.api.context.signer.check(signature, video["id"])


def segment_query(playlist: httpx.Response) -> str:
    """The query that a playlist's first segment has."""
    assert playlist.status_code == 200
    return urlsplit(re.findall(r"^chunks/.*$", playlist.text, re.M)[0]).query


def test_a_link_to_an_ended_video_does_not_renew_itself(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, viewer = tenants.join(), tenants.client()
    video = tenants.create(client)
    tenants.api.worker.make(video["id"])
    path = f"/v1/videos/{video['id']}/stream.m3u8"
    with monkeypatch.context() as earlier:
        real = time.time
        earlier.setattr("app.signatures.time.time", lambda: real() - 2 * 3600)
        link = tenants.api.context.signer.sign(video["id"], owner_of(client)).query
    assert segment_query(viewer.get(f"{path}?{link}")) == link
    # The owner's key takes a fresh one.
    fresh = parse_signature(segment_query(client.get(path)))
    assert fresh is not None
    assert fresh.ends_at > time.time() + 3 * 3600


def test_who_watches_a_video_grow_gets_a_fresh_signature_for_its_end_and_no_other(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, viewer = tenants.join(), tenants.client()
    video = tenants.create(client)
    tenants.api.worker.claim(video["id"])
    tenants.api.worker.commit(video["id"], 0)
    path = f"/v1/videos/{video['id']}/stream.m3u8"
    with monkeypatch.context() as earlier:
        real = time.time
        earlier.setattr("app.signatures.time.time", lambda: real() - 2 * 3600)
        link = tenants.api.context.signer.sign(video["id"], owner_of(client))
    assert segment_query(viewer.get(f"{path}?{link.query}")) != link.query
    tenants.api.worker.finish(video["id"])
    last = segment_query(viewer.get(f"{path}?{link.query}"))
    assert last != link.query
    assert segment_query(viewer.get(f"{path}?{last}")) == last
    # Once nobody has been watching for a while, the link is as any other to a video that has ended.
    tenants.api.worker.videos.redis.delete(f"longtake:viewed:{link.mac}")
    assert segment_query(viewer.get(f"{path}?{link.query}")) == link.query


def test_a_player_without_a_header_follows_a_video_to_its_end(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with running_tenants(
        settings(api_keys_file=tmp_path / "keys.json", public_url="https://videos.example")
    ) as tenants:
        client, player = tenants.join(), tenants.client()
        video = tenants.create(client)
        tenants.api.worker.make(video["id"], chunks=2)
        assert video["playlist_url"].startswith(f"https://videos.example/v1/videos/{video['id']}/")
        address = video["playlist_url"].removeprefix("https://videos.example")
        listing = player.get(address)
        uris = re.findall(r'^(?:#EXT-X-MAP:URI="(.+)"|([^#].*))$', listing.text, re.M)
        parts = [player.get(urljoin(address, a or b)) for a, b in uris]
        assert [part.status_code for part in parts] == [200] * 3
        assert parts[0].content[4:8] == b"ftyp"
        again = player.get(address, headers={"If-None-Match": listing.headers["etag"]})
        assert again.status_code == 304
        chunk = client.get(f"/v1/videos/{video['id']}/chunks").json()["data"][1]
        assert player.get(chunk["url"].removeprefix("https://videos.example")).status_code == 200
        events = player.get(video["events_url"].removeprefix("https://videos.example"))
        assert "event: completed" in events.text
        # What everybody who watches is sent holds nobody's signature.
        assert "sig=" not in events.text


def told(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Type and data of each event of a stream that has ended."""
    return [
        (kind, json.loads(data))
        for kind, data in re.findall(r"^event: (.*)\ndata: (.*)$", answer.read().decode(), re.M)
    ]


def test_events_opened_by_a_signed_url_keep_prompts_labels_and_webhook_to_the_owner(tenants: Tenants) -> None:
    client, viewer = tenants.join(), tenants.client()
    worker = tenants.api.worker
    secrets = ("a walled garden", "at midnight", "a fog bank", "label of mine", "receiver.example")
    video = tenants.create(
        client,
        prompt=secrets[0],
        prompts=[{"at": 0, "text": secrets[0]}, {"at": 1, "text": secrets[1]}],
        metadata={"scene": secrets[3]},
        webhook_url=f"https://{secrets[4]}/",
        webhook_events=["video.failed"],
    )

    def steered(video: Video) -> Video:
        prompts = (
            *video.spec.prompts,
            *(TimedPrompt(at=1.5, text=p.text) for p in video.state.pending_prompts),
        )
        spec = video.spec.model_copy(update={"prompts": prompts})
        return Video(spec=spec, state=video.state.model_copy(update={"pending_prompts": ()}))

    with (
        viewer.stream("GET", video["events_url"]) as signed,
        client.stream("GET", video["events_url"]) as keyed,
    ):
        worker.claim(video["id"])
        assert client.post(f"/v1/videos/{video['id']}/prompts", json={"text": secrets[2]}).status_code == 200
        client.post(f"/v1/videos/{video['id']}/pause")  # a status with the prompt pending
        worker.videos.settle(video["id"], worker.fences[video["id"]], steered)
        worker.progress(video["id"], 7)
        worker.commit(video["id"], 0)
        worker.finish(video["id"])
        live, whole = told(signed), told(keyed)
    replayed = told(viewer.get(video["events_url"]))
    assert replayed == live
    assert [kind for kind, _ in live] == [kind for kind, _ in whole]
    assert [kind for kind, _ in live] == ["status"] * 3 + ["prompt", "progress", "chunk", "completed"]
    for secret in secrets:
        assert secret in json.dumps(whole)
        assert secret not in json.dumps(live)
    for (kind, data), (_, everything) in zip(live, whole, strict=True):
        if kind in ("progress", "chunk"):
            assert data == everything
        elif kind == "prompt":
            assert (data, everything) == ({"at": 1.5}, {"at": 1.5, "text": secrets[2]})
        else:
            assert data.keys() == VideoObject.model_fields.keys() - PRIVATE_FIELDS
            assert data.items() <= everything.items()
