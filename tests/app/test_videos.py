from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import av
import httpx
import pytest
from moto.server import ThreadedMotoServer

from app import forms
from app.jobs.job import JobError, Priority, Video, new_video_id
from app.jobs.store import owner_key, video_key
from app.routes import control, derived, videos, webhooks
from app.settings import Settings
from app.storage.objects import video_prefix
from tests.app.conftest import CARD, FIRST_CHUNK_FRAMES, Api, running_api

UNKNOWN = "video_" + "0" * 32


def frames_of(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def stored(api: Api, video_id: str) -> Video:
    video = api.worker.videos.get(video_id)
    assert video is not None
    return video


# -- create ---------------------------------------------------------------------------------------------


def test_a_json_request_becomes_a_queued_video_with_every_default_filled_in(api: Api) -> None:
    answer = api.http.post("/v1/videos", json={"prompt": "A red ball", "seconds": 2.5})
    assert answer.status_code == 200
    assert answer.headers["openai-poll-after-ms"] == "1000"
    video = answer.json()
    assert video["object"] == "video"
    assert (video["status"], video["progress"], video["queue_position"]) == ("queued", 0, 0)
    assert (video["model"], video["size"], video["fps"]) == ("builtin", "64x64", 24)
    assert (video["seconds"], video["frames"]) == ("2.5", 60)
    assert 0 <= video["seed"] < 2**32
    assert video["error"] is None
    assert stored(api, video["id"]).spec.prompt == "A red ball"
    assert api.http.get(f"/v1/videos/{video['id']}").json() == video


def test_all_fields_reach_the_worker(api: Api) -> None:
    video = api.create(
        prompt="A red ball",
        prompts=[{"at": 1.5, "text": "A blue ball"}],
        model="builtin",
        seconds="4",
        size="128x128",
        seed=2**63 - 1,
        negative_prompt="blur",
        guidance_scale=2.5,
        num_inference_steps=20,
        priority="high",
        metadata={"scene": "12", "ä": "ü"},
    )
    spec = stored(api, video["id"]).spec
    assert [(p.at, p.text) for p in spec.prompts] == [(0, "A red ball"), (1.5, "A blue ball")]
    assert (spec.width, spec.height, spec.frames, spec.seconds) == (128, 128, 96, 4)
    assert (spec.seed, spec.negative_prompt, spec.guidance_scale) == (2**63 - 1, "blur", 2.5)
    assert (spec.num_inference_steps, spec.priority) == (20, "high")
    assert spec.metadata == {"scene": "12", "ä": "ü"}


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata[scene]": "12", "metadata[take]": "3", "prompts": '[{"at": 1, "text": "B"}]'},
        {"metadata": '{"scene": "12", "take": "3"}', "prompts[][at]": "1", "prompts[][text]": "B"},
    ],
)
def test_a_multipart_form_says_the_same_as_json(api: Api, fields: dict[str, str]) -> None:
    form = {"prompt": "Grüße\nan alle", "seconds": "2", "seed": "5", "guidance_scale": "1.5", **fields}
    answer = api.http.post("/v1/videos", files={name: (None, value) for name, value in form.items()})
    assert answer.status_code == 200, answer.text
    spec = stored(api, answer.json()["id"]).spec
    assert [(p.at, p.text) for p in spec.prompts] == [(0, "Grüße\nan alle"), (1, "B")]
    assert (spec.seed, spec.guidance_scale) == (5, 1.5)
    assert spec.metadata == {"scene": "12", "take": "3"}


@pytest.mark.parametrize("order", ["at text at text", "at at text text"])
def test_members_of_a_form_s_list_find_their_element_in_either_order(api: Api, order: str) -> None:
    values = {"at": iter("01"), "text": iter("AB")}
    parts = [(f"prompts[][{member}]", (None, next(values[member]))) for member in order.split()]
    answer = api.http.post("/v1/videos", files=[*parts, ("seconds", (None, "2"))])
    assert answer.status_code == 200, answer.text
    assert [(p.at, p.text) for p in stored(api, answer.json()["id"]).spec.prompts] == [(0, "A"), (1, "B")]


def test_an_urlencoded_form_works_too(api: Api) -> None:
    answer = api.http.post("/v1/videos", data={"prompt": "A red ball", "seconds": "2"})
    assert answer.status_code == 200, answer.text
    # As `curl -d` sends it.
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = api.http.post("/v1/videos", content="prompt=Ein Ball f%C3%A4llt, fällt".encode(), headers=kind)
    assert answer.json()["prompt"] == "Ein Ball fällt, fällt"


def test_frames_are_seconds_times_fps_exactly(api: Api) -> None:
    for seconds, frames in [(0.25, 6), (1, 24), (7.3, 175), (60, 1440), (3600, 86400), ("0.5e1", 120)]:
        assert api.create(seconds=seconds)["frames"] == frames


NESTED = "[" * 100_000

BAD = [
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": " \n\t "}, "invalid_value", "prompt"),
    ({"webhook_url": "https://example.com/hook", "webhook_events": []}, "invalid_value", "webhook_events"),
    ({"prompt": "x" * 4001}, "text_too_long", "prompt"),
    ({"prompt": "a\x00b"}, "invalid_value", "prompt"),
    ({"prompt": "a\x1b[2Jb"}, "invalid_value", "prompt"),
    ({"prompt": "a\ud800b"}, "invalid_value", "prompt"),
    ({"prompt": 7}, "invalid_value", "prompt"),
    ({"prompt": ["a"]}, "invalid_value", "prompt"),
    ({"prompt": None}, "missing_required_parameter", "prompt"),
    ({"prompts": [], "prompt": None}, "missing_required_parameter", "prompt"),
    ({"model": "sora-9"}, "model_not_found", "model"),
    ({"model": "\ud800"}, "invalid_value", "model"),
    ({"seconds": 0}, "invalid_value", "seconds"),
    ({"seconds": -1}, "invalid_value", "seconds"),
    ({"seconds": "NaN"}, "invalid_value", "seconds"),
    ({"seconds": "inf"}, "invalid_value", "seconds"),
    ({"seconds": "sixty"}, "invalid_value", "seconds"),
    ({"seconds": "forever"}, "invalid_value", "seconds"),
    ({"seconds": "   "}, "invalid_value", "seconds"),
    ({"seconds": ""}, "invalid_value", "seconds"),
    ({"seconds": "١"}, "invalid_value", "seconds"),
    ({"seconds": True}, "invalid_value", "seconds"),
    ({"seconds": 1e300}, "invalid_value", "seconds"),
    ({"seconds": 10**400}, "invalid_value", "seconds"),
    ({"seconds": "9" * 400}, "invalid_value", "seconds"),
    ({"seconds": 3600.1}, "invalid_value", "seconds"),
    ({"seconds": [1]}, "invalid_value", "seconds"),
    ({"size": "65x64"}, "invalid_value", "size"),
    ({"size": "64"}, "invalid_value", "size"),
    ({"size": "../../etc"}, "invalid_value", "size"),
    ({"size": 64}, "invalid_value", "size"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"seed": 10**400}, "invalid_value", "seed"),
    ({"seed": 1.5}, "invalid_value", "seed"),
    ({"seed": True}, "invalid_value", "seed"),
    ({"seed": "x"}, "invalid_value", "seed"),
    ({"guidance_scale": -0.1}, "invalid_value", "guidance_scale"),
    ({"guidance_scale": "nan"}, "invalid_value", "guidance_scale"),
    ({"num_inference_steps": 7}, "invalid_value", "num_inference_steps"),
    ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps"),
    ({"num_inference_steps": 10**9}, "invalid_value", "num_inference_steps"),
    ({"priority": "urgent"}, "invalid_value", "priority"),
    ({"negative_prompt": "x" * 4001}, "text_too_long", "negative_prompt"),
    ({"negative_prompt": "\x00"}, "invalid_value", "negative_prompt"),
    ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
    ({"metadata": {"a": "\x00"}}, "invalid_value", "metadata.a"),
    ({"metadata": {"a": "x" * 20_000}}, "metadata_too_large", "metadata"),
    ({"metadata": {"a": 1, "b": "x" * 20_000}}, "metadata_too_large", "metadata"),
    ({"metadata": json.dumps({"x" * 20_000: 1})}, "metadata_too_large", "metadata"),
    ({"metadata": "{"}, "invalid_value", "metadata"),
    ({"metadata": [1]}, "invalid_value", "metadata"),
    ({"metadata": '{"a": "1", "a": "2"}'}, "invalid_value", "metadata"),
    ({"prompts": '[{"at": 0, "text": "B", "at": 1}]'}, "invalid_value", "prompts"),
    ({"prompts": "[{]"}, "invalid_value", "prompts"),
    ({"prompts": NESTED}, "invalid_value", "prompts"),
    ({"prompts": [1] * 501}, "invalid_value", "prompts"),
    ({"prompts": json.dumps([1] * 501)}, "invalid_value", "prompts"),
    ({"prompts": [{"at": 1, "text": "B"}], "prompt": None}, "invalid_value", "prompts[0].at"),
    ({"prompts": [{"at": 0, "text": "B"}]}, "invalid_value", "prompts[0].at"),
    ({"prompts": [{"at": 1, "text": "B"}, {"at": 1, "text": "C"}]}, "invalid_value", "prompts[1].at"),
    ({"prompts": [{"at": 2, "text": "B"}]}, "invalid_value", "prompts[0].at"),
    ({"prompts": [{"at": -1, "text": "B"}]}, "invalid_value", "prompts[0].at"),
    ({"prompts": '[{"at": NaN, "text": "B"}]'}, "invalid_value", "prompts[0].at"),
    ({"prompts": [{"at": 1, "text": ""}]}, "invalid_value", "prompts[0].text"),
    ({"prompts": [{"at": 1, "text": "x" * 4001}]}, "text_too_long", "prompts[0].text"),
    ({"prompts": [{"text": "B"}]}, "missing_required_parameter", "prompts[0].at"),
    ({"prompts": [{"at": 1, "text": "B", "x": 1}]}, "unknown_parameter", "prompts[0].x"),
    ({"prompts": [1]}, "invalid_value", "prompts[0]"),
    ({"quality": None}, "unknown_parameter", "quality"),
    ({"\ud800": 1}, "unknown_parameter", "\ud800"),
]


@pytest.mark.parametrize(("change", "code", "param"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_input_gets_a_clear_error_and_makes_nothing(
    api: Api, change: dict[str, Any], code: str, param: str
) -> None:
    body = json.dumps({"prompt": "A red ball", "seconds": 2, **change})
    answer = api.http.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    message = api.error(answer, 400, code, param)
    assert len(message) < 400
    assert not re.search("Input|dictionary|PromptAt|List", message), message
    assert api.http.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b"", "application/json", 400, "malformed_body"),
        (b"[]", "application/json", 400, "malformed_body"),
        (b'"x"', "application/json", 400, "malformed_body"),
        (b'{"prompt": "x", "seconds": NaN}', "application/json", 400, "malformed_body"),
        (b'{"prompt": "x", "seconds": -Infinity}', "application/json", 400, "malformed_body"),
        (b'{"prompt": "\xff"}', "application/json", 400, "malformed_body"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "application/json", 400, "malformed_body"),
        (b'{"prompts": ' + b"[" * 100_000, "application/json", 400, "malformed_body"),
        (b'{"prompt": "x", "prompt": "y"}', "application/json", 400, "malformed_body"),
        (b"prompt=x", "text/plain", 415, "unsupported_media_type"),
        (b"prompt=x", "", 415, "unsupported_media_type"),
        (b"prompt=%ff", "application/x-www-form-urlencoded", 400, "malformed_body"),
        (b"prompt=\xff", "application/x-www-form-urlencoded", 400, "malformed_body"),
        (b"x", "multipart/form-data", 400, "malformed_body"),
        (b"x", "multipart/form-data; boundary=b", 400, "malformed_body"),
        (b"", "multipart/form-data; boundary=b", 400, "malformed_body"),
        (
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b\r\n'
            b'Content-Disposition: form-data; name="seconds"\r\n\r\n2',
            "multipart/form-data; boundary=b",
            400,
            "malformed_body",
        ),
        (
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
            400,
            "malformed_body",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
            "malformed_body",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="prompt[a"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
            "invalid_value",
        ),
    ],
)
def test_a_malformed_body_gets_a_clear_error(
    api: Api, body: bytes, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = api.http.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    message = api.error(answer, status, code, answer.json()["error"]["param"])
    assert "conversion" not in message
    assert api.http.get("/v1/videos").json()["data"] == []


def test_a_field_given_twice_is_refused(api: Api) -> None:
    answer = api.http.post("/v1/videos", files=[("prompt", (None, "a")), ("prompt", (None, "b"))])
    api.error(answer, 400, "invalid_value", "prompt")


def test_a_file_where_there_is_none_is_refused_by_name(api: Api) -> None:
    files = {"prompt": (None, "a"), "image": ("a.png", b"\x89PNG", "image/png")}
    api.error(api.http.post("/v1/videos", files=files), 400, "unknown_parameter", "image")
    api.error(api.http.post("/v1/videos", files={"prompt": ("a.txt", b"a")}), 400, "invalid_value", "prompt")


def test_no_other_request_waits_while_a_body_is_read(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read, checked and hashed in threads: where the event loop runs nothing of that is done."""
    called: list[str] = []

    def in_a_thread(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def checked(*given: Any, **options: Any) -> Any:
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            called.append(name)
            return function(*given, **options)

        monkeypatch.setattr(module, name, checked)

    for module, name in (
        (forms, "json_value"),
        (forms, "parse_qsl"),
        (videos, "parse"),
        (videos, "digest"),
        (derived, "parse"),
        (control, "parse"),
        (webhooks, "parse"),
    ):
        in_a_thread(module, name)
    address = f"/v1/videos/{api.create()['id']}"
    assert api.http.post("/v1/videos", data={"prompt": "A ball", "seconds": "2"}).status_code == 200
    assert api.http.patch(address, json={"seconds": 3}).status_code == 200
    assert api.http.post(f"{address}/prompts", json={"text": "A cube"}).status_code == 200
    assert api.http.post(f"{address}/remix", json={"prompt": "A cube"}).status_code == 200
    extension = {"video": {"id": UNKNOWN}, "prompt": "A cube", "seconds": 4}
    assert api.http.post("/v1/videos/extensions", json=extension).status_code == 404
    assert api.http.post("/v1/webhook_secret/rotate", json={}).status_code == 200
    assert Counter(called) == {"json_value": 6, "parse_qsl": 1, "parse": 7, "digest": 2}


def test_a_body_above_the_limit_is_refused_also_when_its_length_is_not_announced(api: Api) -> None:
    limit = api.settings.max_body_bytes + api.settings.max_data_url_bytes
    big = b'{"prompt": "' + b"x" * (limit + 1) + b'"}'
    headers = {"Content-Type": "application/json"}
    remix = f"/v1/videos/{api.create()['id']}/remix"
    api.error(
        api.http.post(remix, content=big[: api.settings.max_body_bytes + 1], headers=headers),
        413,
        "body_too_large",
    )
    api.error(api.http.post("/v1/videos", content=big, headers=headers), 413, "body_too_large")
    pieces = (big[at : at + 65536] for at in range(0, len(big), 65536))
    api.error(api.http.post("/v1/videos", content=pieces, headers=headers), 413, "body_too_large")
    assert api.create()["status"] == "queued"


def test_without_a_registered_model_the_answer_is_try_again(settings: Callable[..., Settings]) -> None:
    with running_api(settings()) as api:
        api.error(api.http.post("/v1/videos", json={"prompt": "x"}), 503, "no_model")
        assert api.http.get("/v1/models").json() == {"object": "list", "data": []}
        api.worker.register(CARD.model_copy(update={"name": "org/other"}))
        assert api.create()["model"] == "org/other"
        model = api.http.get("/v1/models/org/other").json()
        assert (model["id"], model["sizes"], model["fps"]) == ("org/other", ["64x64", "128x128"], 24)
        api.error(api.http.get("/v1/models/nope"), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "served"),  # the last that a live worker has told of
        ({"model": "org/Configured"}, "configured"),  # by what its worker loads
        ({"model": "served-before"}, "served-before"),  # or by its name
        ({"model": "builtin"}, "served"),  # never seen here
    ],
)
def test_a_video_without_a_model_is_one_of_the_model_that_is_configured_or_served(
    settings: Callable[..., Settings], asked: dict[str, str], expected: str
) -> None:
    with running_api(settings(**asked)) as api:
        for age, name in enumerate(("tried-once", "configured", "served", "served-before")):
            changes = {"name": name, "created_at": 1000.0 - age, "loaded_as": f"org/{name.capitalize()}"}
            api.worker.register(CARD.model_copy(update=changes))
            if name.startswith("served"):
                api.worker.videos.worker_alive(name, {"model": name, "slots": 1}, lease_seconds=60)
        assert api.create()["model"] == expected
        listed = {model["id"]: model["served"] for model in api.http.get("/v1/models").json()["data"]}
        assert list(listed)[:2] == ["served", "served-before"]
        assert listed == {"served": True, "served-before": True, "configured": False, "tried-once": False}
        api.worker.videos.worker_gone("served", {"model": "served", "slots": 1})
        assert not api.http.get("/v1/models/served").json()["served"]


def test_a_full_queue_refuses_more_but_still_repeats_earlier_answers(
    settings: Callable[..., Settings],
) -> None:
    with running_api(settings(max_queued=2)) as api:
        api.worker.register()
        key = {"Idempotency-Key": "k"}
        first = api.http.post("/v1/videos", json={"prompt": "x"}, headers=key).json()
        api.create()
        api.error(api.http.post("/v1/videos", json={"prompt": "x"}), 429, "queue_full")
        assert api.http.post("/v1/videos", json={"prompt": "x"}, headers=key).json()["id"] == first["id"]


def test_an_idempotency_key_makes_one_video_whatever_the_encoding(api: Api) -> None:
    headers = {"Idempotency-Key": "order 7"}
    first = api.http.post("/v1/videos", json={"prompt": "x", "seconds": 2}, headers=headers)
    again = api.http.post(
        "/v1/videos", files={"prompt": (None, "x"), "seconds": (None, "2")}, headers=headers
    )
    assert again.json()["id"] == first.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = api.http.post("/v1/videos", json={"prompt": "y", "seconds": 2}, headers=headers)
    api.error(other, 422, "idempotency_mismatch", "Idempotency-Key")
    bad = api.http.post("/v1/videos", json={"prompt": "x"}, headers={"Idempotency-Key": "x" * 256})
    api.error(bad, 400, "invalid_value", "Idempotency-Key")
    assert len(api.http.get("/v1/videos").json()["data"]) == 1


def test_a_repeated_request_gives_the_first_answer_whatever_has_changed_since(
    settings: Callable[..., Settings],
) -> None:
    def ask(api: Api, seconds: int) -> httpx.Response:
        body = {"prompt": "x", "seconds": seconds}
        return api.http.post("/v1/videos", json=body, headers={"Idempotency-Key": "k"})

    with running_api(settings()) as api:
        api.worker.register()
        first = ask(api, 4)
    with running_api(settings(max_seconds=3)) as api:
        again = ask(api, 4)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert again.headers["Idempotent-Replayed"] == "true"
        api.error(ask(api, 5), 422, "idempotency_mismatch", "Idempotency-Key")


def test_twenty_requests_at_once_with_one_key_make_one_video(api: Api) -> None:
    ids: list[str] = []

    def post() -> None:
        body = {"prompt": "x", "seconds": 2}
        ids.append(
            httpx.post(
                f"{api.url}/v1/videos", json=body, headers={"Idempotency-Key": "k"}, timeout=20
            ).json()["id"]
        )

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 20
    assert len(set(ids)) == 1


# -- look, list, cancel, delete -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "video_id",
    [UNKNOWN, "x", "video_", "video_" + "G" * 32, "..", "%2e%2e%2f", "video_%00", "a" * 5000, "%ff"],
)
@pytest.mark.parametrize("rest", ["", "/content", "/chunks", "/events", "/stream.m3u8", "/init.mp4"])
def test_an_id_that_is_not_one_is_not_found(api: Api, video_id: str, rest: str) -> None:
    answer = api.http.get(f"/v1/videos/{video_id}{rest}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("video_not_found", "not_found")


def test_the_list_pages_through_all_videos_in_both_orders(api: Api) -> None:
    made = [api.create()["id"] for _ in range(7)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 3, "order": order}
        while True:
            page = api.http.get("/v1/videos", params=query).json()
            assert page["object"] == "list"
            ids = [video["id"] for video in page["data"]]
            assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
            seen += ids
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert seen == expected
    positions = [v["queue_position"] for v in api.http.get("/v1/videos?order=asc").json()["data"]]
    assert positions == list(range(7))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("status", ["queued", "cancelled"])
def test_a_page_follows_on_the_one_before_although_its_videos_were_deleted(
    api: Api, order: str, status: str
) -> None:
    made = {"queued": [api.create()["id"] for _ in range(5)], "cancelled": []}
    for _ in range(5):
        made["cancelled"].append(api.create()["id"])
        api.http.post(f"/v1/videos/{made['cancelled'][-1]}/cancel")
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2, "order": order, "status": status}
    while (page := api.http.get("/v1/videos", params=query).json())["data"]:
        for video in page["data"]:
            seen.append(video["id"])
            assert api.http.delete(f"/v1/videos/{video['id']}").status_code == 200
        query["after"] = page["last_id"]
    assert seen == (made[status] if order == "asc" else made[status][::-1])


def test_after_a_deleted_video_none_of_its_millisecond_is_left_out(api: Api) -> None:
    record = api.worker.videos.redis.hgetall(video_key(api.create()["id"]))
    api.worker.videos.redis.flushdb()
    # Made within one millisecond, and one just before and just after it.
    times = [1_700_000_000 + ms / 1000 for ms in (122.999, 123, 123.5, 123.999, 124)]
    ids = [new_video_id(created_at) for created_at in times]
    for video_id, created_at in zip(ids, times, strict=True):
        spec = json.loads(record[b"spec"]) | {"id": video_id, "created_at": created_at}
        api.worker.videos.redis.hset(video_key(video_id), mapping=record | {b"spec": json.dumps(spec)})
        api.worker.videos.redis.zadd(owner_key(""), {video_id: created_at})
    assert api.http.delete(f"/v1/videos/{ids[2]}").status_code == 200
    for order, expected in (("asc", [ids[1], ids[3], ids[4]]), ("desc", [ids[3], ids[1], ids[0]])):
        page = api.http.get(f"/v1/videos?order={order}&after={ids[2]}").json()
        assert [video["id"] for video in page["data"]] == expected


def test_the_list_can_be_filtered_by_status(api: Api) -> None:
    ids = [api.create()["id"] for _ in range(3)]
    api.worker.make(ids[1], chunks=1)
    assert [v["id"] for v in api.http.get("/v1/videos?status=completed").json()["data"]] == [ids[1]]
    empty = api.http.get("/v1/videos?status=failed").json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


def test_a_status_that_few_videos_have_is_found_without_reading_all_of_them(api: Api) -> None:
    store = api.worker.videos
    record = store.redis.hgetall(video_key(api.create()["id"]))
    ids = [f"video_{number:032x}" for number in range(2000)]
    failed = {number for number in range(2000) if number % 97 == 0}
    pipe = store.redis.pipeline()
    for number, video_id in enumerate(ids):
        spec = json.loads(record[b"spec"]) | {"id": video_id, "created_at": float(number)}
        status = "failed" if number in failed else "completed"
        pipe.hset(video_key(video_id), mapping=record | {b"spec": json.dumps(spec), b"status": f'"{status}"'})
        pipe.zadd(owner_key(""), {video_id: number})
    pipe.execute()

    store.redis.config_resetstat()
    newest = api.http.get("/v1/videos?status=failed&limit=1").json()
    used = store.redis.info("commandstats")
    assert [video["id"] for video in newest["data"]] == [ids[max(failed)]]
    assert used["cmdstat_hgetall"]["calls"] <= 5, "records are read in full only where the status fits"

    store.redis.config_resetstat()
    assert api.http.get("/v1/videos?status=cancelled&limit=1").json()["data"] == []
    used = store.redis.info("commandstats")
    looks = used.pop("cmdstat_hget")["calls"]
    assert looks <= 2001
    assert sum(figures["calls"] for figures in used.values()) <= 30

    for order, expected in (("asc", sorted(failed)), ("desc", sorted(failed, reverse=True))):
        seen: list[str] = []
        query: dict[str, Any] = {"status": "failed", "limit": 8, "order": order}
        while True:
            page = api.http.get("/v1/videos", params=query).json()
            seen += [video["id"] for video in page["data"]]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert seen == [ids[number] for number in expected]


def test_a_record_that_cannot_be_read_makes_no_page_shorter(api: Api) -> None:
    ids = [api.create()["id"] for _ in range(5)]
    api.worker.videos.redis.hset(video_key(ids[3]), "spec", "{}")
    for query in ("limit=3", "limit=3&status=queued"):
        page = api.http.get(f"/v1/videos?{query}").json()
        assert [video["id"] for video in page["data"]] == [ids[4], ids[2], ids[1]]
        assert page["has_more"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("status=done", "status"),
        ("after=video_1", "after"),
        (f"after={UNKNOWN}0", "after"),
        ("after=%00", "after"),
    ],
)
def test_a_bad_list_query_gets_a_clear_error(api: Api, query: str, param: str) -> None:
    api.error(api.http.get(f"/v1/videos?{query}"), 400, "invalid_value", param)


def test_queue_positions_count_what_is_more_urgent(api: Api) -> None:
    priorities: list[Priority] = ["normal", "low", "high", "normal"]
    ids = [api.create(priority=priority)["id"] for priority in priorities]
    positions = [api.http.get(f"/v1/videos/{i}").json()["queue_position"] for i in ids]
    assert positions == [1, 3, 0, 2]


def test_a_waiting_video_is_cancelled_at_once_and_cancelling_again_changes_nothing(api: Api) -> None:
    video = api.create()
    for _ in range(2):
        answer = api.http.post(f"/v1/videos/{video['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert answer.json()["queue_position"] is None


def test_cancelling_a_running_video_tells_its_worker(api: Api) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    answer = api.http.post(f"/v1/videos/{video_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "in_progress")
    assert api.worker.videos.controls(video_id, api.worker.fences[video_id]).cancel_requested


def test_a_video_that_has_ended_cannot_be_cancelled(api: Api) -> None:
    done, failed = (api.create()["id"] for _ in range(2))
    api.worker.make(done, chunks=1)
    api.worker.claim(failed)
    api.worker.finish(failed, "failed")
    api.error(api.http.post(f"/v1/videos/{done}/cancel"), 409, "video_completed")
    api.error(api.http.post(f"/v1/videos/{failed}/cancel"), 409, "video_failed")
    api.error(api.http.post(f"/v1/videos/{UNKNOWN}/cancel"), 404, "video_not_found", "video_id")
    assert api.http.get(f"/v1/videos/{done}").json()["status"] == "completed"


def test_a_failed_video_is_an_answer_like_any_other(api: Api) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.finish(video_id, "failed", error=JobError(code="model_error", message="The model failed."))
    answer = api.http.get(f"/v1/videos/{video_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "model_error", "message": "The model failed."}


@pytest.mark.parametrize("state", ["queued", "running", "completed"])
def test_deleting_removes_the_record_and_every_file(api: Api, state: str) -> None:
    video_id = api.create()["id"]
    if state != "queued":
        api.worker.claim(video_id)
        api.worker.commit(video_id, 0)
    if state == "completed":
        api.worker.finish(video_id)
    answer = api.http.delete(f"/v1/videos/{video_id}")
    assert answer.json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    assert list(api.worker.objects.list(video_prefix(video_id))) == []
    for path in ("", "/content", "/chunks/0/content", "/events"):
        api.error(api.http.get(f"/v1/videos/{video_id}{path}"), 404, "video_not_found", "video_id")
    api.error(api.http.delete(f"/v1/videos/{video_id}"), 404, "video_not_found", "video_id")
    assert api.http.get("/v1/videos").json()["data"] == []
    assert api.worker.videos.take("builtin", "x", 5) is None


# -- content --------------------------------------------------------------------------------------------


@pytest.fixture
def finished(api: Api) -> tuple[Api, str, bytes]:
    video_id = api.create()["id"]
    api.worker.make(video_id)
    return api, f"/v1/videos/{video_id}/content", api.http.get(f"/v1/videos/{video_id}/content").content


def test_the_finished_file_plays_and_has_a_name(finished: tuple[Api, str, bytes]) -> None:
    api, url, whole = finished
    assert frames_of(whole) == FIRST_CHUNK_FRAMES + 40
    head = api.http.head(url)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(whole))
    assert head.headers["content-type"] == "video/mp4"
    assert head.headers["accept-ranges"] == "bytes"
    assert url.split("/")[3] + ".mp4" in head.headers["content-disposition"]
    assert api.http.get(f"{url}?variant=video").content == whole


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, None),
        ("bytes=100-199", 100, 200),
        ("bytes=100-99999999999", 100, None),
        ("bytes=-10", -10, None),
        ("bytes=-99999999999", 0, None),
        ("Bytes= 5 - 9", 5, 10),
    ],
)
def test_a_range_is_answered_with_exactly_those_bytes(
    finished: tuple[Api, str, bytes], header: str, start: int, end: int | None
) -> None:
    api, url, whole = finished
    answer = api.http.get(url, headers={"Range": header})
    first, last, _ = slice(start, end).indices(len(whole))
    assert answer.status_code == 206
    assert answer.content == whole[start:end]
    assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{len(whole)}"


@pytest.mark.parametrize("header", ["bytes=99999999999-", "bytes=-0", "bytes={size}-", "bytes={size}-{size}"])
def test_a_range_past_the_end_is_416(finished: tuple[Api, str, bytes], header: str) -> None:
    api, url, whole = finished
    answer = api.http.get(url, headers={"Range": header.format(size=len(whole))})
    api.error(answer, 416, "range_not_satisfiable", "Range")
    assert answer.headers["content-range"] == f"bytes */{len(whole)}"


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-1,3-4",
        "bytes=5-2",
        "bytes=",
        "bytes=-",
        "bytes=x-y",
        "items=0-1",
        "garbage",
        "bytes=1" + "0" * 50 + "-",
    ],
)
def test_several_ranges_or_a_malformed_one_give_the_whole(
    finished: tuple[Api, str, bytes], header: str
) -> None:
    api, url, whole = finished
    answer = api.http.get(url, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, whole)


def test_conditions_save_bytes_and_never_mix_two_versions(finished: tuple[Api, str, bytes]) -> None:
    api, url, whole = finished
    head = api.http.head(url).headers
    for name in (head["etag"], f'"other", {head["etag"]}', "*", "W/" + head["etag"]):
        answer = api.http.get(url, headers={"If-None-Match": name})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == head["etag"]
    assert api.http.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    part = {"Range": "bytes=0-9"}
    for validator in (head["etag"], head["last-modified"]):
        assert api.http.get(url, headers={**part, "If-Range": validator}).content == whole[:10]
    assert api.http.get(url, headers={**part, "If-Range": '"other"'}).content == whole


def test_variants_and_what_is_not_ready(api: Api) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/content"
    for variant in ("video", "thumbnail", "spritesheet"):
        api.error(api.http.get(url, params={"variant": variant}), 404, "video_not_ready")
    api.error(api.http.get(url, params={"partial": "true"}), 404, "video_not_ready")
    api.error(api.http.get(url, params={"variant": "gif"}), 400, "invalid_value", "variant")
    api.error(api.http.get(url, params={"partial": "perhaps"}), 400, "invalid_value", "partial")
    api.worker.make(video_id)
    picture = api.http.get(url, params={"variant": "thumbnail"})
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content.startswith(b"\xff\xd8")
    api.error(api.http.get(url, params={"variant": "spritesheet"}), 404, "video_not_ready")


def test_the_part_made_so_far_plays_at_every_moment(api: Api) -> None:
    video_id = api.create()["id"]
    url = f"/v1/videos/{video_id}/content?partial=true"
    api.worker.claim(video_id)
    for index in range(3):
        api.worker.commit(video_id, index)
        answer = api.http.get(url)
        assert answer.status_code == 200
        assert frames_of(answer.content) == FIRST_CHUNK_FRAMES + 20 * index
        # Ranges run across the borders of the objects it is made of.
        parts = [
            api.http.get(url, headers={"Range": f"bytes={at}-{at + 332}"}).content
            for at in range(0, len(answer.content), 333)
        ]
        assert b"".join(parts) == answer.content
    api.worker.finish(video_id, "failed")
    message = api.error(api.http.get(f"/v1/videos/{video_id}/content"), 404, "video_not_ready")
    assert "partial=true" in message
    assert api.http.get(url).content == answer.content


def test_what_a_cancelled_video_keeps_is_a_file_like_any_other(api: Api) -> None:
    video_id = api.create()["id"]
    api.worker.claim(video_id)
    api.worker.commit(video_id, 0)
    api.worker.finish(video_id, "cancelled")
    url = f"/v1/videos/{video_id}/content"
    kept = api.http.get(url)
    assert kept.status_code == 200
    assert frames_of(kept.content) == FIRST_CHUNK_FRAMES
    assert api.http.get(url, headers={"Range": "bytes=0-9"}).content == kept.content[:10]
    assert api.http.get(url, params={"partial": "true"}).content == kept.content


def test_once_complete_the_part_is_the_whole(finished: tuple[Api, str, bytes]) -> None:
    api, url, whole = finished
    assert api.http.get(f"{url}?partial=true").content == whole


# -- a store that serves its objects itself -------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    return {
        "storage_url": "s3://longtake-tests/here",
        "s3_endpoint_url": s3.replace("0.0.0.0", "127.0.0.1"),
        "s3_create_bucket": True,
    }


def test_with_s3_downloads_are_redirected_and_chunks_are_not(
    bucket: dict[str, Any], settings: Callable[..., Settings]
) -> None:
    with running_api(settings(**bucket)) as api:
        assert api.http.get("/readyz").status_code == 200  # creates the bucket
        api.worker.register()
        video_id = api.create()["id"]
        api.worker.make(video_id)
        url = f"/v1/videos/{video_id}/content"
        answer = api.http.get(url)
        assert answer.status_code == 302
        assert answer.headers["location"].startswith(bucket["s3_endpoint_url"])
        assert "secret-of-the-store" not in answer.headers["location"]
        whole = httpx.get(answer.headers["location"])
        assert frames_of(whole.content) == 57
        assert f"{video_id}.mp4" in whole.headers["content-disposition"]
        head = api.http.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
        etag = {"If-None-Match": head.headers["etag"]}
        assert api.http.get(url, headers=etag).status_code == 304
        assert api.http.get(f"/v1/videos/{video_id}/chunks/1.m4s").status_code == 200
        assert frames_of(api.http.get(f"/v1/videos/{video_id}/chunks/1/content").content) == 20
        api.error(api.http.get(f"{url}?variant=spritesheet"), 404, "video_not_ready")
        policy = api.http.get("/").headers["content-security-policy"]
        assert f"media-src 'self' {bucket['s3_endpoint_url']} blob:" in policy
        assert api.http.delete(f"/v1/videos/{video_id}").status_code == 200
        assert list(api.worker.objects.list()) == []


def test_redirects_can_be_turned_off(bucket: dict[str, Any], settings: Callable[..., Settings]) -> None:
    with running_api(settings(**bucket, s3_presign=False)) as api:
        assert api.http.get("/readyz").status_code == 200
        api.worker.register()
        video_id = api.create()["id"]
        api.worker.make(video_id)
        answer = api.http.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=4-7"})
        assert (answer.status_code, answer.content) == (206, b"ftyp")
