"""Videos made from an earlier one, as requests. What a worker makes of them is in tests/worker/test_starts.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from app.settings import Settings
from app.storage.objects import reference_key, video_prefix
from tests.app.conftest import CARD, Api, running_api

UNKNOWN = "video_" + "0" * 32


def made(api: Api, **body: Any) -> dict[str, Any]:
    """A finished video of 57 frames."""
    video = api.create(**{"seconds": 57 / 24, "seed": 7, **body})
    api.worker.make(video["id"])
    return video


def extend(api: Api, video_id: Any, headers: dict[str, str] | None = None, **body: Any) -> Any:
    asked = {"video": {"id": video_id}, "prompt": "A blue ball", "seconds": 5, **body}
    return api.http.post("/v1/videos/extensions", json=asked, headers=headers)


def remix(api: Api, video_id: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return api.http.post(f"/v1/videos/{video_id}/remix", json={"prompt": "A cube", **body}, headers=headers)


def upload(api: Api) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    answer = api.http.post(
        "/v1/videos",
        data={"prompt": "A red ball", "seconds": "2", "seed": "7"},
        files={"input_reference": ("a.png", buffer.getvalue())},
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def spec(api: Api, video: dict[str, Any]) -> Any:
    stored = api.worker.videos.get(video["id"])
    assert stored is not None
    return stored.spec


def test_an_extension_takes_everything_of_its_source_but_the_end(api: Api) -> None:
    prompts = [{"at": 1, "text": "A green ball"}]
    options = {
        "negative_prompt": "blur",
        "guidance_scale": 2.5,
        "num_inference_steps": 20,
        "priority": "high",
    }
    source = made(api, prompts=prompts, size="128x128", **options)
    answer = extend(api, source["id"], metadata={"part": "2"})
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert video["id"] != source["id"]
    assert (video["status"], video["seconds"], video["frames"], video["seed"]) == ("queued", "5", 120, 7)
    assert (video["extended_from_video_id"], video["remixed_from_video_id"]) == (source["id"], None)
    assert video["metadata"] == {"part": "2"}
    old, new = spec(api, source), spec(api, video)
    assert [(p.at, p.text) for p in new.prompts] == [
        (0, "A red ball"), (1, "A green ball"), (57 / 24, "A blue ball"),
    ]  # fmt: skip
    changed = {
        "id",
        "created_at",
        "prompts",
        "seconds",
        "frames",
        "metadata",
        "extended_from",
        "given_chunks",
    }
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
    assert new.given_chunks == 3
    assert spec(api, extend(api, source["id"], seed=8, priority="low").json()).seed == 8


def test_a_form_names_the_source_in_brackets(api: Api) -> None:
    source = made(api)
    form = {"video[id]": source["id"], "prompt": "x", "seconds": "4"}
    answer = api.http.post("/v1/videos/extensions", files={k: (None, v) for k, v in form.items()})
    assert answer.json()["extended_from_video_id"] == source["id"]
    files = {"video": ("a.mp4", b"x"), "prompt": (None, "x"), "seconds": (None, "4")}
    message = api.error(api.http.post("/v1/videos/extensions", files=files), 400, "invalid_value", "video")
    assert "input_reference" in message


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"seconds": 57 / 24}, "invalid_value", "seconds"),
        ({"seconds": 1}, "invalid_value", "seconds"),
        ({"seconds": 3601}, "invalid_value", "seconds"),
        ({"seconds": None}, "missing_required_parameter", "seconds"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": " "}, "invalid_value", "prompt"),
        ({"prompt": "x" * 4001}, "text_too_long", "prompt"),
        ({"video": None}, "missing_required_parameter", "video"),
        ({"video": "video_1"}, "invalid_value", "video"),
        ({"video": {}}, "missing_required_parameter", "video.id"),
        ({"video": {"id": "x", "url": "y"}}, "unknown_parameter", "video.url"),
        ({"size": "64x64"}, "unknown_parameter", "size"),
        ({"seed": -1}, "invalid_value", "seed"),
    ],
)
def test_an_extension_that_cannot_be_is_refused(
    api: Api, change: dict[str, Any], code: str, param: str
) -> None:
    source = made(api)
    api.error(extend(api, source["id"], **change), 400, code, param)
    assert len(api.http.get("/v1/videos").json()["data"]) == 1


def test_only_what_has_an_end_can_be_extended(api: Api) -> None:
    api.error(extend(api, UNKNOWN), 404, "video_not_found", "video")
    api.error(extend(api, "nonsense"), 404, "video_not_found", "video")
    video = api.create(seconds=10)
    assert "PATCH" in api.error(extend(api, video["id"], seconds=20), 409, "video_not_finished", "video")
    api.worker.claim(video["id"])
    api.worker.commit(video["id"], 0)
    api.error(extend(api, video["id"], seconds=20), 409, "video_not_finished", "video")
    api.worker.finish(video["id"], "cancelled")
    cut = extend(api, video["id"], seconds=1).json()
    assert (spec(api, cut).given_chunks, spec(api, cut).prompts[-1].at) == (1, 17 / 24)
    failed = api.create()
    api.worker.claim(failed["id"])
    api.worker.finish(failed["id"], "failed")
    api.error(extend(api, failed["id"]), 409, "video_failed", "video")
    waiting = api.create()
    api.http.post(f"/v1/videos/{waiting['id']}/cancel")
    api.error(extend(api, waiting["id"]), 409, "video_cancelled", "video")


def test_prompts_after_the_end_of_a_cancelled_video_are_not_taken_over(api: Api) -> None:
    video = api.create(seconds=10, prompts=[{"at": 5, "text": "later"}])
    api.worker.claim(video["id"])
    api.worker.commit(video["id"], 0)
    api.worker.finish(video["id"], "cancelled")
    assert [p.text for p in spec(api, extend(api, video["id"]).json()).prompts] == [
        "A red ball",
        "A blue ball",
    ]


def test_a_remix_has_all_of_its_source_but_the_prompt(api: Api) -> None:
    source = api.create(
        seed=3, seconds=4, size="128x128", prompts=[{"at": 1, "text": "later"}], metadata={"a": "b"}
    )
    answer = remix(api, source["id"], metadata={"c": "d"})
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert (video["remixed_from_video_id"], video["prompt"], video["metadata"]) == (
        source["id"],
        "A cube",
        {"c": "d"},
    )
    old, new = spec(api, source), spec(api, video)
    assert [(p.at, p.text) for p in new.prompts] == [(0, "A cube")]
    changed = {"id", "created_at", "prompts", "metadata", "remixed_from"}
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
    api.error(remix(api, UNKNOWN), 404, "video_not_found", "video_id")
    api.error(remix(api, source["id"], prompt=""), 400, "invalid_value", "prompt")
    api.error(remix(api, source["id"], seed=1), 400, "unknown_parameter", "seed")


def test_a_remix_is_as_long_as_its_source_is_shown_to_be(api: Api) -> None:
    ended, waiting = made(api, seconds="endless"), api.create(seconds="endless")
    again = remix(api, ended["id"]).json()
    assert (again["seconds"], again["frames"]) == ("2.375", 57)
    assert remix(api, waiting["id"]).json()["seconds"] == "endless"
    assert api.http.post(f"/v1/videos/{waiting['id']}/cancel").json()["seconds"] == "0"
    api.error(remix(api, waiting["id"]), 400, "invalid_value", "video_id")


def test_a_remix_is_no_longer_than_may_be_asked_for(api: Api, settings: Callable[..., Settings]) -> None:
    long, endless = api.create(seconds=4), api.create(seconds="endless")
    with running_api(settings(max_seconds=3, max_endless_seconds=0), opened=False) as strict:
        said = strict.error(remix(strict, long["id"]), 400, "invalid_value", "video_id")
        assert said == "A video may have 0.25 to 3 seconds."
        said = strict.error(remix(strict, endless["id"]), 400, "invalid_value", "video_id")
        assert said == "This server makes no endless videos."


def test_what_was_endless_can_be_extended_beyond_what_may_be_asked_for_at_once(
    api: Api, settings: Callable[..., Settings]
) -> None:
    source = made(api, seconds="endless")
    with running_api(settings(max_seconds=2, max_endless_seconds=6), opened=False) as strict:
        longer = extend(strict, source["id"], seconds=77 / 24)
        assert longer.status_code == 200, longer.text
        api.worker.make(longer.json()["id"], chunks=4)
        assert extend(strict, longer.json()["id"], seconds=6).status_code == 200
        strict.error(extend(strict, longer.json()["id"], seconds=6.1), 400, "invalid_value", "seconds")


@pytest.mark.parametrize("ask", [extend, remix])
def test_whom_to_tell_is_as_in_the_source_unless_it_is_said(api: Api, ask: Callable[..., Any]) -> None:
    url, other = "https://example.com/one", "https://example.com/other"
    told = made(api, webhook_url=url, webhook_events=["video.failed"])

    def asked(source: dict[str, Any], **body: Any) -> tuple[str | None, list[str]]:
        answer = ask(api, source["id"], **body)
        assert answer.status_code == 200, answer.text
        found = spec(api, answer.json())
        return found.webhook_url, list(found.webhook_events)

    assert asked(told) == (url, ["video.failed"])
    assert asked(told, webhook_url=other) == (other, ["video.failed"])
    assert asked(told, webhook_events=["video.chunk"]) == (url, ["video.chunk"])
    untold = made(api)
    assert asked(untold, webhook_url=url) == (url, ["video.completed", "video.failed", "video.cancelled"])
    api.error(ask(api, untold["id"], webhook_url="ftp://example.com"), 400, "invalid_value", "webhook_url")
    lonely = ask(api, untold["id"], webhook_events=["video.chunk"])
    api.error(lonely, 400, "invalid_value", "webhook_events")


def test_a_remix_of_an_extension_is_made_from_the_beginning(api: Api) -> None:
    longer = extend(api, made(api)["id"]).json()
    again = remix(api, longer["id"]).json()
    assert (again["seconds"], again["extended_from_video_id"]) == ("5", None)
    assert spec(api, again).given_chunks == 0


def test_a_reference_goes_with_remixes_and_extensions_and_outlives_the_source(api: Api) -> None:
    source = upload(api)
    frames = api.worker.objects.get(reference_key(source["id"]))
    api.worker.make(source["id"], chunks=2)
    again, longer = remix(api, source["id"]).json(), extend(api, source["id"]).json()
    twice = remix(api, longer["id"]).json()
    assert api.http.delete(f"/v1/videos/{source['id']}").status_code == 200
    for video in (again, longer, twice):
        assert video["input_reference"] == source["input_reference"]
        assert api.worker.objects.get(reference_key(video["id"])) == frames
    assert [spec(api, video).given_chunks for video in (again, longer, twice)] == [1, 2, 1]


def test_a_source_without_its_reference_makes_nothing(api: Api) -> None:
    source = upload(api)
    api.worker.objects.delete_prefix(video_prefix(source["id"]))
    api.error(remix(api, source["id"]), 404, "file_not_found")
    assert len(api.http.get("/v1/videos").json()["data"]) == 1


def test_an_idempotency_key_covers_the_operation_and_the_source(api: Api) -> None:
    source, other = made(api), made(api)
    for ask in (extend, remix):
        headers = {"Idempotency-Key": ask.__name__}
        first, again = ask(api, source["id"], headers), ask(api, source["id"], headers)
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["Idempotent-Replayed"] == "true"
        api.error(ask(api, other["id"], headers), 422, "idempotency_mismatch", "Idempotency-Key")
    api.error(
        extend(api, source["id"], {"Idempotency-Key": "remix"}),
        422,
        "idempotency_mismatch",
        "Idempotency-Key",
    )


@pytest.mark.parametrize(("ask", "param"), [(extend, "video"), (remix, "video_id")])
def test_the_first_answer_holds_after_the_source_is_deleted(api: Api, ask: Any, param: str) -> None:
    source = made(api)
    first = ask(api, source["id"], {"Idempotency-Key": "k"})
    assert api.http.delete(f"/v1/videos/{source['id']}").status_code == 200
    again = ask(api, source["id"], {"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    api.error(ask(api, UNKNOWN, {"Idempotency-Key": "k"}), 422, "idempotency_mismatch", "Idempotency-Key")
    api.error(ask(api, source["id"], {"Idempotency-Key": "other"}), 404, "video_not_found", param)


def test_a_model_that_is_gone_makes_nothing_more(api: Api) -> None:
    source = made(api)
    api.worker.videos.redis.delete("longtake:models")
    api.error(remix(api, source["id"]), 503, "no_model")
    api.worker.register(CARD.model_copy(update={"name": "other"}))
    api.error(remix(api, source["id"]), 400, "model_not_found", "model")
    api.error(extend(api, source["id"]), 400, "model_not_found", "model")
