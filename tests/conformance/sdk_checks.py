"""What the stock OpenAI SDK must be able to do, whichever of its versions is on the path.

A script: it runs checks of this module against the service that the environment names, and writes the outcome of each
as one line of JSON. ``CHECKS`` are the functions whose names begin with ``check_``.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Video

# The vendor closed its own service; the wire format lives on.
warnings.simplefilter("ignore", DeprecationWarning)

SIZE = "16x16"
SECONDS: Any = "1"
RED = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAF0lEQVR42mP4z8BAEmIY1TCqYfhqAACQ+f8B8u7oVwAAAABJRU5ErkJggg=="
)


@cache
def client(key: str = "KEY", *, url: str = "URL", max_retries: int = 0) -> Any:
    """An SDK client; `key` and `url` name variables of the environment."""
    return openai.OpenAI(
        base_url=f"{os.environ[url]}/v1",
        api_key=os.environ.get(key, key),
        max_retries=max_retries,
        timeout=60,
    )


@contextmanager
def raises(kind: type[openai.APIStatusError], status: int, code: str, param: str | None = None) -> Any:
    """The block ends with this error of the SDK."""
    with pytest.raises(kind) as caught:
        yield
    told = (caught.value.status_code, caught.value.code, caught.value.param)
    assert told == (status, code, param), told
    assert caught.value.message


def finished(service: Any, **request: Any) -> Any:
    """A video that was made."""
    video = service.videos.create_and_poll(
        **{"prompt": "A red ball", "seconds": SECONDS, "size": SIZE, **request}
    )
    assert video.status == "completed", video
    return video


_making = threading.Lock()
_made_before: list[Any] = []


def source() -> Any:
    """A finished video of seed 7 that several checks look at, and none changes."""
    with _making:
        if not _made_before:
            _made_before.append(finished(client(), extra_body={"seed": 7}))
        return _made_before[0]


# -- making -------------------------------------------------------------------------------------------------


def check_create_and_poll() -> None:
    video = source()
    assert (video.object, video.progress, video.seconds, video.size) == ("video", 100, "1", SIZE)
    assert video.completed_at >= video.created_at
    assert video.error is None


def check_create_is_multipart_and_returns_at_once() -> None:
    raw = client().videos.with_raw_response.create(prompt="A red ball", seconds=SECONDS, model="stand-in")
    assert raw.http_request.headers["content-type"].startswith("multipart/form-data"), "the SDK changed"
    video = raw.parse()
    assert video.status in ("queued", "in_progress")
    assert video.model == "stand-in"
    assert int(raw.headers["openai-poll-after-ms"]) > 0


def check_image_as_input_reference() -> None:
    folder = Path(os.environ["FOLDER"])
    path = folder / "red.png"
    path.write_bytes(RED)
    service = client()
    with path.open("rb") as file:
        for given in (path, file, RED, ("red.png", RED, "image/png")):
            video = service.videos.create(prompt="A ball", seconds=SECONDS, size=SIZE, input_reference=given)
            assert video.input_reference["kind"] == "image", video
            assert (video.input_reference["width"], video.input_reference["height"]) == (16, 16)
            if given is not RED:  # one is made
                service.videos.delete(video.id)
            else:
                kept = video
    assert service.videos.poll(kept.id).status == "completed"


def check_clip_as_input_reference() -> None:
    service = client()
    clip = service.videos.download_content(source().id).read()
    video = service.videos.create_and_poll(
        prompt="A ball",
        seconds="3",
        size=SIZE,
        input_reference=("clip.mp4", clip, "video/mp4"),
    )
    assert video.status == "completed", video
    assert video.input_reference["kind"] == "video"
    assert 0 < video.input_reference["frames"] <= 24


def check_dict_as_input_reference() -> None:
    """Where the SDK refuses the dict that its own types allow, the documented raw call works."""
    reference = {"image_url": "data:image/png;base64," + base64.b64encode(RED).decode()}
    service = client()
    request: Any = {"prompt": "A ball", "seconds": SECONDS, "size": SIZE}
    try:
        video = service.videos.create(**request, input_reference=reference)
    except (RuntimeError, TypeError):
        video = service.videos.create(**request, extra_body={"input_reference": reference})
    assert video.input_reference["kind"] == "image"
    raw = service.post("/videos", body={**request, "input_reference": reference}, cast_to=Video)
    assert raw.input_reference["kind"] == "image"


def check_extra_body() -> None:
    video = client().videos.create(
        prompt="A red ball",
        seconds="3",
        extra_body={
            "seed": 7,
            "guidance_scale": 2.5,
            "priority": "high",
            "metadata": {"scene": "12"},
            "prompts": [{"at": 1, "text": "A blue ball"}, {"at": 2, "text": "A green ball"}],
        },
    )
    assert (video.seed, video.metadata, video.fps, video.frames) == (7, {"scene": "12"}, 24, 72)
    assert video.priority == "high"
    assert video.prompts == [
        {"at": 0, "text": "A red ball"},
        {"at": 1, "text": "A blue ball"},
        {"at": 2, "text": "A green ball"},
    ]


def check_extend() -> None:
    service = client()
    earlier = source()
    request = {"video": {"id": earlier.id}, "prompt": "A blue ball", "seconds": "2"}
    try:
        video = service.videos.extend(**request)
    except (RuntimeError, TypeError):
        # Refused by the SDK itself; the documented raw call works.
        video = service.post("/videos/extensions", body=request, cast_to=Video)
    assert video.extended_from_video_id == earlier.id
    video = service.videos.poll(video.id)
    assert (video.status, video.seconds, video.seed, video.frames) == ("completed", "2", 7, 48)


def check_remix() -> None:
    service = client()
    earlier = source()
    video = service.videos.remix(earlier.id, prompt="A green ball")
    assert (video.remixed_from_video_id, video.seconds, video.seed) == (earlier.id, "1", 7)
    assert service.videos.poll(video.id).status == "completed"


# -- looking and removing -----------------------------------------------------------------------------------


def check_retrieve() -> None:
    service = client()
    video = service.videos.create(prompt="A red ball", seconds=SECONDS)
    found = service.videos.retrieve(video.id)
    assert (found.id, found.prompt, found.created_at) == (video.id, "A red ball", video.created_at)


def check_list_pages_to_the_end() -> None:
    service = client("LISTING_KEY")
    ids = [service.videos.create(prompt=f"Ball {n}", seconds=SECONDS).id for n in range(5)]
    assert [video.id for video in service.videos.list(limit=2)] == ids[::-1]
    assert [video.id for video in service.videos.list(order="asc", limit=3)] == ids
    assert [video.id for video in service.videos.list(after=ids[3], limit=1)] == ids[2::-1]


def check_delete() -> None:
    service = client()
    video = finished(service)
    deleted = service.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    with raises(openai.NotFoundError, 404, "video_not_found", "video_id"):
        service.videos.retrieve(video.id)


def check_download() -> None:
    service = client()
    video = source()
    whole = service.videos.download_content(video.id).read()
    assert whole[4:8] == b"ftyp"
    assert service.videos.download_content(video.id, variant="video").read() == whole
    for variant in ("thumbnail", "spritesheet"):
        assert service.videos.download_content(video.id, variant=variant).read()[:2] == b"\xff\xd8", variant
    target = Path(os.environ["FOLDER"]) / "video.mp4"
    with service.videos.with_streaming_response.download_content(video.id) as streamed:
        streamed.stream_to_file(target)
    assert target.read_bytes() == whole


def check_where_the_bytes_come_from() -> None:
    """A folder's are sent by the API; those of a bucket by the bucket, behind a presigned URL that takes no key."""
    video = source()
    request = urllib.request.Request(
        f"{os.environ['URL']}/v1/videos/{video.id}/content",
        headers={"Authorization": f"Bearer {os.environ['KEY']}", "Accept": "application/binary"},
    )

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    opener = urllib.request.build_opener(Stay, urllib.request.ProxyHandler({}))
    if os.environ["STORAGE"] == "folder":
        with opener.open(request) as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
        return
    with pytest.raises(urllib.error.HTTPError) as redirect:
        opener.open(request)
    assert redirect.value.code == 302
    with opener.open(redirect.value.headers["location"]) as answer:
        assert answer.read()[4:8] == b"ftyp"


def check_models() -> None:
    service = client()
    assert [model.id for model in service.models.list()] == ["stand-in"]
    assert service.models.retrieve("stand-in").id == "stand-in"


# -- endings ------------------------------------------------------------------------------------------------


def check_a_failed_video_is_an_answer() -> None:
    video = client().videos.create_and_poll(prompt="error", seconds=SECONDS, size=SIZE)
    assert video.status == "failed"
    assert (video.error.code, bool(video.error.message)) == ("model_error", True), video.error


def check_a_cancelled_video_ends_the_poll() -> None:
    service = client()
    video = service.videos.create(prompt="A red ball", seconds="600", size=SIZE)
    answer = service.post(f"/videos/{video.id}/cancel", cast_to=Video)
    assert answer.id == video.id
    assert service.videos.poll(video.id).status == "cancelled"


# -- errors -------------------------------------------------------------------------------------------------


def check_400() -> None:
    service = client()
    with raises(openai.BadRequestError, 400, "invalid_value", "seconds"):
        service.videos.create(prompt="x", seconds="0")
    with raises(openai.BadRequestError, 400, "unknown_parameter", "colour"):
        service.videos.create(prompt="x", extra_body={"colour": "red"})
    with raises(openai.BadRequestError, 400, "invalid_image", "input_reference"):
        service.videos.create(prompt="x", input_reference=b"\x89PNG\r\n\x1a\n")


def check_401() -> None:
    with raises(openai.AuthenticationError, 401, "invalid_api_key"):
        client("not-a-key").videos.retrieve("video_" + 32 * "0")


def check_403() -> None:
    service = client("READ_ONLY_KEY")
    assert list(service.videos.list()) == []
    with raises(openai.PermissionDeniedError, 403, "insufficient_scope"):
        service.videos.create(prompt="x", seconds=SECONDS)


def check_404() -> None:
    service = client()
    with raises(openai.NotFoundError, 404, "video_not_found", "video_id"):
        service.videos.retrieve("video_" + 32 * "0")
    mine = service.videos.create(prompt="x", seconds="600", size=SIZE)
    with raises(openai.NotFoundError, 404, "video_not_ready"):
        service.videos.download_content(mine.id)
    with raises(openai.NotFoundError, 404, "video_not_found", "video_id"):
        client("LISTING_KEY").videos.retrieve(mine.id)
    service.videos.delete(mine.id)


def check_409() -> None:
    service = client()
    video = source()
    with raises(openai.ConflictError, 409, "video_completed"):
        service.post(f"/videos/{video.id}/cancel", cast_to=Video)


def check_422() -> None:
    service = client()
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = service.videos.create(prompt="x", seconds=SECONDS, extra_headers=headers)
    again = service.videos.create(prompt="x", seconds=SECONDS, extra_headers=headers)
    assert first.id == again.id
    with raises(openai.UnprocessableEntityError, 422, "idempotency_mismatch", "Idempotency-Key"):
        service.videos.create(prompt="y", seconds=SECONDS, extra_headers=headers)


def check_429() -> None:
    service = client("LIMITED_KEY")
    service.videos.create(prompt="x", seconds="2")
    with pytest.raises(openai.RateLimitError) as caught:
        service.videos.create(prompt="x", seconds="2")
    assert (caught.value.status_code, caught.value.code) == (429, "daily_seconds_exceeded")
    assert int(caught.value.response.headers["retry-after"]) > 0


# -- retries: the gateway in between answers 503 --------------------------------------------------------------


def check_503() -> None:
    headers = {"X-Refuse": f"{uuid.uuid4()} 9"}
    with pytest.raises(openai.InternalServerError) as caught:
        client(url="GATEWAY").videos.create(prompt="x", seconds=SECONDS, extra_headers=headers)
    assert caught.value.status_code == 503


def check_a_503_is_retried() -> None:
    label = uuid.uuid4().hex
    service = client("RETRY_KEY", url="GATEWAY", max_retries=2)
    service.videos.create(prompt=label, seconds=SECONDS, extra_headers={"X-Refuse": f"{label} 1"})
    assert _made(service, label) == 1


def check_an_answer_lost_without_an_idempotency_key_makes_a_second_video() -> None:
    label = uuid.uuid4().hex
    service = client("RETRY_KEY", url="GATEWAY", max_retries=2)
    service.videos.create(prompt=label, seconds=SECONDS, extra_headers={"X-Lose": f"{label} 1"})
    assert _made(service, label) == 2, "the documentation says so"


def check_an_answer_lost_with_an_idempotency_key_makes_none() -> None:
    label = uuid.uuid4().hex
    service = client("RETRY_KEY", url="GATEWAY", max_retries=2)
    headers = {"X-Lose": f"{label} 1", "Idempotency-Key": label}
    raw = service.videos.with_raw_response.create(prompt=label, seconds=SECONDS, extra_headers=headers)
    assert raw.headers["idempotent-replayed"] == "true"
    assert _made(service, label) == 1


def _made(service: Any, label: str) -> int:
    return sum(video.prompt == label for video in service.videos.list(limit=100))


# -- webhooks -----------------------------------------------------------------------------------------------


def check_webhooks_unwrap() -> None:
    received: list[tuple[str, Mapping[str, str]]] = []
    arrived = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((body, dict(self.headers)))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            pass

    service = client()
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        video = finished(service, extra_body={"webhook_url": url})
        assert arrived.wait(60)
        server.shutdown()
    secret = service.get("/webhook_secret", cast_to=object)["secret"]
    body, headers = received[0]
    event = service.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id) == ("video.completed", video.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        service.webhooks.unwrap(body.replace("completed", "cancelled"), headers, secret=secret)


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
OF_THE_STORE = (
    "create_and_poll",
    "image_as_input_reference",
    "clip_as_input_reference",
    "extend",
    "remix",
    "delete",
    "download",
    "where_the_bytes_come_from",
    "a_cancelled_video_ends_the_poll",
)
"""Those whose outcome could depend on where files are kept."""


def main() -> None:
    """Runs the checks that the arguments name, all at the same time, as they mostly wait."""
    lock = threading.Lock()

    def run(name: str, check: Callable[[], None]) -> None:
        problem = ""
        began = time.monotonic()
        try:
            check()
        except BaseException:  # noqa: BLE001 - whatever it was, it is the outcome
            problem = traceback.format_exc()
        outcome = {"check": name, "problem": problem, "seconds": round(time.monotonic() - began, 2)}
        with lock:
            print(json.dumps(outcome), flush=True)

    print(json.dumps({"version": openai.__version__}), flush=True)
    threads = [threading.Thread(target=run, args=(name, CHECKS[name])) for name in sys.argv[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
