"""The stock OpenAI SDK drives the service unchanged."""

from __future__ import annotations

import base64
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.app.conftest import Api


@pytest.fixture
def client(api: Api) -> Iterator[Any]:
    with warnings.catch_warnings():
        # The vendor closed its own service; the wire format lives on.
        warnings.simplefilter("ignore", DeprecationWarning)
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
            yield client


def test_create_poll_and_download(api: Api, client: Any) -> None:
    def work() -> None:
        while (taken := api.worker.videos.take("builtin", "double", 60)) is None:
            time.sleep(0.02)
        time.sleep(0.2)
        api.worker.make(taken.video_id)

    thread = threading.Thread(target=work)
    thread.start()
    video = client.videos.create_and_poll(
        prompt="A red ball", model="builtin", seconds="2", size="64x64", poll_interval_ms=50
    )
    thread.join()
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "2", "64x64")
    whole = client.videos.download_content(video.id).read()
    assert whole[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="video").read() == whole
    assert client.videos.download_content(video.id, variant="thumbnail").read()[:2] == b"\xff\xd8"


def test_what_the_sdk_does_not_know_goes_through_extra_body(api: Api, client: Any) -> None:
    video = client.videos.create(
        prompt="A red ball",
        seconds="3",
        extra_body={
            "seed": 7,
            "guidance_scale": 2.5,
            "metadata": {"scene": "12"},
            "prompts": [{"at": 1, "text": "A blue ball"}, {"at": 2, "text": "A green ball"}],
        },
    )
    assert (video.seed, video.metadata, video.fps, video.frames) == (7, {"scene": "12"}, 24, 72)
    stored = api.worker.videos.get(video.id)
    assert stored is not None
    assert [(p.at, p.text) for p in stored.spec.prompts] == [
        (0, "A red ball"),
        (1, "A blue ball"),
        (2, "A green ball"),
    ]


def test_retrieve_list_and_delete(api: Api, client: Any) -> None:
    ids = [client.videos.create(prompt=f"Ball {n}").id for n in range(5)]
    assert client.videos.retrieve(ids[0]).prompt == "Ball 0"
    assert [video.id for video in client.videos.list(limit=2)] == ids[::-1]  # pages to the end
    assert [video.id for video in client.videos.list(order="asc", limit=3)] == ids
    deleted = client.videos.delete(ids[0])
    assert (deleted.id, deleted.object, deleted.deleted) == (ids[0], "video.deleted", True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.videos.retrieve(ids[0])
    assert caught.value.code == "video_not_found"


def test_errors_are_the_sdk_s_own(api: Api, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.videos.create(prompt="x", seconds="0")
    assert (bad.value.code, bad.value.param, bad.value.type) == (
        "invalid_value",
        "seconds",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as damaged:
        client.videos.create(prompt="x", input_reference=b"\x89PNG\r\n\x1a\n")
    assert (damaged.value.code, damaged.value.param) == ("invalid_image", "input_reference")
    video = client.videos.create(prompt="x")
    with pytest.raises(openai.NotFoundError) as early:
        client.videos.download_content(video.id)
    assert early.value.code == "video_not_ready"
    headers = {"Idempotency-Key": "k"}
    client.videos.create(prompt="x", extra_headers=headers)
    with pytest.raises(openai.UnprocessableEntityError):
        client.videos.create(prompt="y", extra_headers=headers)


def test_a_failed_video_ends_the_poll_without_raising(api: Api, client: Any) -> None:
    video = client.videos.create(prompt="x")
    api.worker.claim(video.id)
    api.worker.finish(video.id, "failed")
    assert client.videos.poll(video.id).status == "failed"


@pytest.mark.parametrize("form", ["path", "open file", "bytes", "tuple", "dict"])
def test_a_video_begins_with_what_the_sdk_uploads(client: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (200, 100), "red").save(path)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    with path.open("rb") as file:
        given: dict[str, Any] = {
            "path": path,
            "open file": file,
            "bytes": path.read_bytes(),
            "tuple": ("photo.png", path.read_bytes(), "image/png"),
            "dict": {"image_url": url},
        }
        if form == "dict" and not _takes_dicts(client):
            # This SDK refuses what its own types allow; the wire takes it.
            video = client.videos.create(
                prompt="A red ball", seconds="2", extra_body={"input_reference": given["dict"]}
            )
        else:
            video = client.videos.create(prompt="A red ball", seconds="2", input_reference=given[form])
    assert video.input_reference == {"kind": "image", "width": 200, "height": 100, "frames": 17}


def _takes_dicts(client: Any) -> bool:
    try:
        client.videos.create(prompt="x", input_reference={"image_url": "https://example.com/"})
    except openai.BadRequestError:
        return True
    except (RuntimeError, TypeError):
        return False
    raise AssertionError("a remote URL was taken")


def test_extend_and_remix(api: Api, client: Any) -> None:
    source = client.videos.create(prompt="A red ball", seconds="2", extra_body={"seed": 7})
    api.worker.make(source.id)
    try:
        longer = client.videos.extend(video={"id": source.id}, prompt="A blue ball", seconds="4")
    except (RuntimeError, TypeError):
        # This SDK refuses what its own types allow; the wire takes it.
        body = {"video": {"id": source.id}, "prompt": "A blue ball", "seconds": "4"}
        longer = client.post("/videos/extensions", body=body, cast_to=openai.types.Video)
    assert (longer.extended_from_video_id, longer.seconds, longer.seed) == (source.id, "4", 7)
    remix = client.videos.remix(source.id, prompt="A green ball")
    assert (remix.remixed_from_video_id, remix.seconds, remix.seed) == (source.id, "2", 7)
    with pytest.raises(openai.ConflictError) as caught:
        client.post(
            "/videos/extensions",
            body={"video": {"id": remix.id}, "prompt": "x", "seconds": 9},
            cast_to=openai.types.Video,
        )
    assert caught.value.code == "video_not_finished"


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["builtin"]
    assert client.models.retrieve("builtin").id == "builtin"
