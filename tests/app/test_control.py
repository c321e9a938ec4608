"""Asking more of a video that was asked for: its end, its length, its prompts. The worker is a double."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from app.jobs.job import Video
from app.settings import Settings
from tests.app.conftest import Api, running_api

UNKNOWN = "video_" + "0" * 32


def stored(api: Api, video_id: str) -> Video:
    video = api.worker.videos.get(video_id)
    assert video is not None
    return video


def begun(api: Api, chunks: int = 1, **body: Any) -> str:
    """A running video with some chunks."""
    video_id: str = api.create(**body)["id"]
    api.worker.claim(video_id)
    for index in range(chunks):
        api.worker.commit(video_id, index)
    return video_id


def ask(api: Api, video_id: str, what: str, **body: Any) -> httpx.Response:
    if what == "patch":
        return api.http.patch(f"/v1/videos/{video_id}", json=body)
    return api.http.post(f"/v1/videos/{video_id}/{what}", json=body)


def settle(api: Api, video_id: str, **changes: Any) -> Video:
    """What the worker does when the last chunk is begun."""

    def change(video: Video) -> Video:
        return Video(spec=video.spec, state=video.state.model_copy(update={"ending": True, **changes}))

    return api.worker.videos.settle(video_id, api.worker.fences[video_id], change)[0]


EVERYTHING = [("finish", {}), ("patch", {"seconds": 4}), ("prompts", {"text": "B"})]


# -- endless --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [False, True])
def test_an_endless_video_has_no_length_until_its_end_is_known(api: Api, form: bool) -> None:
    body = {"prompt": "A red ball", "seconds": "endless"}
    answer = api.http.post("/v1/videos", **({"data": body} if form else {"json": body}))
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert (video["seconds"], video["frames"], video["chunks_total"]) == ("endless", None, None)
    assert (stored(api, video["id"]).spec.seconds, stored(api, video["id"]).spec.frames) == (None, None)
    api.worker.claim(video["id"])
    api.worker.progress(video["id"], 10)
    for index in range(3):
        api.worker.commit(video["id"], index)
    url = f"/v1/videos/{video['id']}"
    video = api.http.get(url).json()
    assert (video["seconds"], video["frames"], video["progress"]) == ("endless", None, 0)
    assert (video["seconds_ready"], video["eta_seconds"]) == (2.375, None)
    assert api.http.get("/v1/videos").json()["data"][0]["seconds"] == "endless"
    assert "ENDLIST" not in api.http.get(f"{url}/stream.m3u8").text
    assert api.http.get(f"{url}/content?partial=true").status_code == 200
    api.worker.finish(video["id"], "cancelled")
    video = api.http.get(url).json()
    assert (video["seconds"], video["frames"]) == ("2.375", 57)
    assert api.http.get(f"{url}/stream.m3u8").text.endswith("#EXT-X-ENDLIST\n")


def test_prompts_of_an_endless_video_may_be_as_late_as_it_may_become(api: Api) -> None:
    late = [{"at": 80_000, "text": "B"}]
    assert api.create(seconds="endless", prompts=late)["prompts"][1] == late[0]
    answer = api.http.post(
        "/v1/videos", json={"prompt": "A", "seconds": "endless", "prompts": [{"at": 86_400, "text": "B"}]}
    )
    api.error(answer, 400, "invalid_value", "prompts[0].at")


def test_a_server_may_make_no_endless_videos_and_no_long_timelines(settings: Any) -> None:
    limits: Settings = settings(max_endless_seconds=0, max_prompts=2)
    with running_api(limits, opened=False) as api:
        api.worker.register()
        answer = api.http.post("/v1/videos", json={"prompt": "A", "seconds": "endless"})
        assert "no endless videos" in api.error(answer, 400, "invalid_value", "seconds")
        later = [{"at": at, "text": "B"} for at in (1, 2)]
        answer = api.http.post("/v1/videos", json={"prompt": "A", "seconds": 9, "prompts": later})
        api.error(answer, 400, "invalid_value", "prompts")
        video_id = api.create()["id"]
        assert ask(api, video_id, "prompts", text="B").status_code == 200
        api.error(ask(api, video_id, "prompts", text="C"), 409, "too_many_prompts")


# -- finish ---------------------------------------------------------------------------------------------


def test_finishing_tells_the_worker_once_and_repeats_harmlessly(api: Api) -> None:
    video_id = begun(api, seconds="endless")
    fence = api.worker.fences[video_id]
    before = api.worker.videos.controls(video_id, fence).revision
    answer = ask(api, video_id, "finish")
    assert (answer.status_code, answer.json()["status"]) == (200, "in_progress")
    asked = api.worker.videos.controls(video_id, fence).revision
    assert asked != before
    assert ask(api, video_id, "finish").status_code == 200
    assert api.worker.videos.controls(video_id, fence).revision == asked
    settle(api, video_id)
    assert ask(api, video_id, "finish").status_code == 200
    api.worker.finish(video_id)
    assert ask(api, video_id, "finish").json()["status"] == "completed"


def test_a_waiting_video_is_finished_if_it_has_chunks(api: Api) -> None:
    fresh, released = api.create()["id"], begun(api)
    api.error(ask(api, fresh, "finish"), 409, "video_not_started")
    fence = api.worker.fences[released]
    api.worker.videos.release(released, fence, f"{released}:double", count_attempt=False, standing="front")
    for _ in range(2):
        assert ask(api, released, "finish").json()["status"] == "queued"
    assert stored(api, released).state.finish_requested
    just_claimed = begun(api, chunks=0)
    assert ask(api, just_claimed, "finish").status_code == 200


# -- length ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [False, True])
def test_the_length_of_a_video_that_waits_or_runs_can_change(api: Api, claimed: bool) -> None:
    video_id = begun(api) if claimed else api.create()["id"]
    for seconds, told, frames in ((120, "120", 2880), ("1.5", "1.5", 36), ("endless", "endless", None)):
        answer = ask(api, video_id, "patch", seconds=seconds)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["seconds"], answer.json()["frames"]) == (told, frames)
        assert api.http.get(f"/v1/videos/{video_id}").json()["seconds"] == told
    # What runs without an end may have become longer than what may be asked for at once.
    assert ask(api, video_id, "patch", seconds=7200).json()["seconds"] == "7200"
    api.error(ask(api, video_id, "patch", seconds=7300), 400, "invalid_value", "seconds")


def test_a_paused_video_of_another_length_tells_how_far_it_is_of_that(api: Api) -> None:
    video_id = begun(api, chunks=3, seconds=4)
    fence = api.worker.fences[video_id]
    api.worker.videos.update(video_id, fence, chunks_total=5, forwards_total=18, forwards_done=9)
    ask(api, video_id, "pause")
    api.worker.videos.release(video_id, fence, f"{video_id}:double", count_attempt=False, standing="front")
    told = [ask(api, video_id, "patch", seconds=seconds).json() for seconds in (20, "endless", 4)]
    # 480 frames are 17 + 20 * 24 - 17: 25 chunks in 2 * (25 + 4) forwards; 96 are 5 in 18.
    assert [(video["chunks_total"], video["progress"]) for video in told] == [(25, 15), (None, 0), (5, 50)]
    assert api.http.get(f"/v1/videos/{video_id}").json() == told[-1]


def test_a_video_cannot_become_shorter_than_what_is_made(api: Api) -> None:
    video_id = begun(api, chunks=3, seconds=60)
    message = api.error(ask(api, video_id, "patch", seconds=2), 409, "video_longer_already", "seconds")
    assert message == "2.375 s are made already."
    assert ask(api, video_id, "patch", seconds=2.4).status_code == 200


def test_labels_change_as_a_whole_also_close_to_the_end(api: Api) -> None:
    video_id = begun(api, metadata={"scene": "12"})
    settle(api, video_id)
    answer = ask(api, video_id, "patch", metadata={"take": "3"})
    assert answer.json()["metadata"] == {"take": "3"}
    assert ask(api, video_id, "patch", seconds=2).status_code == 200, "the length that it has already"
    answer = api.http.patch(f"/v1/videos/{video_id}", data={"metadata[take]": "4"})
    assert answer.json()["metadata"] == {"take": "4"}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", None),
        ({"seconds": None}, "missing_required_parameter", None),
        ({"seconds": 0}, "invalid_value", "seconds"),
        ({"seconds": "forever"}, "invalid_value", "seconds"),
        ({"seconds": 3601}, "invalid_value", "seconds"),
        ({"size": "64x64"}, "unknown_parameter", "size"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
        ({"metadata": {"a": "x" * 16_385}}, "metadata_too_large", "metadata"),
    ],
)
def test_a_change_that_cannot_be_says_why(api: Api, body: Any, code: str, param: str | None) -> None:
    video_id = api.create()["id"]
    before = stored(api, video_id)
    api.error(ask(api, video_id, "patch", **body), 400, code, param)
    assert stored(api, video_id) == before


# -- steering -------------------------------------------------------------------------------------------


def test_prompts_wait_in_order_until_the_worker_has_settled_on_a_chunk(api: Api) -> None:
    video_id = begun(api, seconds=60)
    ask(api, video_id, "prompts", text="B")
    answer = api.http.post(f"/v1/videos/{video_id}/prompts", data={"text": "C\nD", "at": "30.5"})
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert video["prompts"] == [{"at": 0, "text": "A red ball"}]
    assert video["pending_prompts"] == [{"at": None, "text": "B"}, {"at": 30.5, "text": "C\nD"}]
    assert api.http.get(f"/v1/videos/{video_id}").json()["pending_prompts"] == video["pending_prompts"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "text"),
        ({"text": " "}, "invalid_value", "text"),
        ({"text": "x" * 4001}, "text_too_long", "text"),
        ({"text": "B", "at": 2}, "invalid_value", "at"),
        ({"text": "B", "at": -1}, "invalid_value", "at"),
        ({"text": "B", "at": "soon"}, "invalid_value", "at"),
        ({"text": "B", "when": 1}, "unknown_parameter", "when"),
    ],
)
def test_a_prompt_that_cannot_be_says_why(api: Api, body: Any, code: str, param: str) -> None:
    video_id = begun(api)
    api.error(ask(api, video_id, "prompts", **body), 400, code, param)
    assert stored(api, video_id).state.pending_prompts == ()


def test_watchers_learn_of_what_was_asked_and_of_what_was_settled(api: Api) -> None:
    video_id = begun(api, seconds=60)
    ask(api, video_id, "prompts", text="B")

    def settled(video: Video) -> Video:
        first = video.spec.prompts[0]
        spec = video.spec.model_copy(
            update={"prompts": (first, first.model_copy(update={"at": 5, "text": "B"}))}
        )
        return Video(spec=spec, state=video.state.model_copy(update={"pending_prompts": ()}))

    api.worker.videos.settle(video_id, api.worker.fences[video_id], settled)
    ask(api, video_id, "patch", seconds=30)
    api.worker.finish(video_id)
    text = api.http.get(f"/v1/videos/{video_id}/events").text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["status", "status", "chunk", "prompt", "status", "completed"]
    assert 'event: prompt\ndata: {"at": 5.0, "text": "B"}\n' in text


# -- too late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "body"), EVERYTHING)
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_nothing_can_be_asked_of_a_video_that_has_ended(api: Api, what: str, body: Any, status: str) -> None:
    video_id = begun(api)
    api.worker.finish(video_id, status)
    api.error(ask(api, video_id, what, **body), 409, f"video_{status}")
    api.error(ask(api, UNKNOWN, what, **body), 404, "video_not_found", "video_id")


@pytest.mark.parametrize(("what", "body"), EVERYTHING[1:])
def test_the_end_cannot_be_moved_or_steered_once_it_is_settled(api: Api, what: str, body: Any) -> None:
    settled, finishing, cancelling = (begun(api) for _ in range(3))
    settle(api, settled)
    ask(api, finishing, "finish")
    ask(api, cancelling, "cancel")
    for video_id in (settled, finishing, cancelling):
        before = stored(api, video_id)
        api.error(ask(api, video_id, what, **body), 409, "video_ending")
        assert stored(api, video_id) == before


def test_requests_and_a_worker_that_settles_at_the_same_time_lose_nothing(api: Api) -> None:
    video_id = begun(api, seconds=60)
    moved: list[str] = []
    before: list[str] = []
    stop = threading.Event()

    def settled(video: Video) -> Video:
        pending = video.state.pending_prompts
        return Video(spec=video.spec, state=video.state.model_copy(update={"pending_prompts": pending[1:]}))

    def work() -> None:
        while not stop.is_set() or stored(api, video_id).state.pending_prompts:

            def noted(video: Video) -> Video:
                before[:] = [prompt.text for prompt in video.state.pending_prompts[:1]]
                return settled(video)

            api.worker.videos.settle(video_id, api.worker.fences[video_id], noted)
            moved.extend(before)

    threads = [threading.Thread(target=work)]
    threads += [
        threading.Thread(
            target=lambda name=name: [ask(api, video_id, "prompts", text=f"{name}{n}") for n in range(10)]
        )
        for name in "AB"
    ]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(30)
    stop.set()
    threads[0].join(30)
    assert sorted(moved) == sorted(f"{name}{n}" for name in "AB" for n in range(10))
    assert [text for text in moved if text[0] == "A"] == [f"A{n}" for n in range(10)]
