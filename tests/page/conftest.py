"""A browser, the real API and the real worker on a Redis of their own, and a model that a test can hold up."""

from __future__ import annotations

import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.embedded import EmbeddedRedis, free_port
from app.jobs.connection import connect
from app.jobs.store import VideoStore
from app.keys import KeyFile
from app.main import Server, create_app
from app.removal import remove
from app.settings import Settings
from tests.page.easel import Easel
from worker.main import model_card, serve

expect.set_options(timeout=60_000)


class UnderPath:
    """Asks an app without the path that a proxy serves it under."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{self.path}/"):
                await Response(status_code=404)(scope, receive, send)
                return
            inner = scope["path"].removeprefix(self.path)
            scope = {**scope, "path": inner, "raw_path": inner.encode()}
        await self.app(scope, receive, send)


class Api:
    """The real API on a port of its own, in a thread. It can be stopped, and started again on that port."""

    def __init__(self, settings: Settings, path: str = "") -> None:
        self.port, self._path = free_port(), path
        self.url = f"http://127.0.0.1:{self.port}{path}"
        self.settings = settings.model_copy(update={"public_url": self.url}) if path else settings

    def start(self) -> None:
        app: Any = create_app(self.settings)
        self._context = app.state.context
        if self._path:
            app = UnderPath(app, self._path)
        config = uvicorn.Config(
            app, port=self.port, log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        up = threading.Event()
        self._server = Server(config, self._context, up.set)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert up.wait(60)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


class Service(Api):
    """An API, and a worker that paints for it. Some twenty seconds of video take one second."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.easel = Easel()
        assert settings.redis_url is not None
        self.redis = connect(settings.redis_url.get_secret_value())
        self._shutdown = threading.Event()
        card = model_card(self.easel, self.easel.describe(), "easel")
        self._worker = threading.Thread(
            target=serve, args=(settings, self.easel, card, self._shutdown), daemon=True
        )

    def open(self) -> None:
        self.start()
        self._worker.start()

    def close(self) -> None:
        self._shutdown.set()
        self.easel.ending.set()
        self._worker.join(60)
        assert not self._worker.is_alive()
        self.stop()

    def clear(self) -> None:
        """For the next test: nothing is held up, there are no videos, and the worker works on none."""
        self.easel.hold_at = math.inf
        unfinished = False
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while videos := http.get("/v1/videos?limit=100").raise_for_status().json()["data"]:
                for video in videos:
                    unfinished |= video["status"] in ("queued", "in_progress", "paused")
                    http.delete(f"/v1/videos/{video['id']}").raise_for_status()
        if (
            unfinished
        ):  # the one slot may still have a video that is gone, and the next test's hold would keep it there
            self.delete(self.await_end(self.make("a red circle", 1)))

    def await_end(self, video_id: str) -> str:
        """Waits until a video is completed."""
        deadline = time.monotonic() + 60
        while self.get(f"/v1/videos/{video_id}")["status"] != "completed":
            assert time.monotonic() < deadline, f"{video_id} does not end"
            time.sleep(0.02)
        return video_id

    def delete(self, video_id: str) -> None:
        httpx.delete(f"{self.url}/v1/videos/{video_id}", timeout=60).raise_for_status()

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=60).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(self.url + path, json=body, timeout=60).raise_for_status().json()

    def await_wish(self, video_id: str, wish: str) -> None:
        """Waits until the record has `wish`, "cancel", "pause" or "finish": the page tells it before it is there."""
        deadline = time.monotonic() + 60
        videos = VideoStore(self.redis)
        while (video := videos.get(video_id)) and not getattr(video.state, f"{wish}_requested"):
            assert time.monotonic() < deadline, f"nobody has asked to {wish}"
            time.sleep(0.02)

    def make(self, prompt: str, seconds: float | str, **fields: Any) -> str:
        """Asks for a video over HTTP and returns its id."""
        return str(self.post("/v1/videos", prompt=prompt, seconds=seconds, **fields)["id"])


@pytest.fixture(scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("page")
    with EmbeddedRedis(folder / "redis") as redis, pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"LONGTAKE_{name.upper()}", raising=False)
        settings = Settings(
            redis_url=redis.url,
            data_dir=folder / "data",
            slots=1,
            control_seconds=0.02,
            progress_seconds=0.1,
            manifest_seconds=0.5,
            retry_max_seconds=0.2,
            max_attempts=1,
        )
        service = Service(settings)
        service.open()
        yield service
        service.close()


@pytest.fixture
def service(_service: Service) -> Iterator[Service]:
    """The service that all tests of the page share, without videos."""
    yield _service
    _service.clear()


class Tenants(Api):
    """The same service for those who have a key: another API process of it, as it were."""

    def __init__(self, settings: Settings, **tokens: str) -> None:
        super().__init__(settings)
        self.alice, self.bob, self.carol = (tokens[name] for name in ("alice", "bob", "carol"))

    def videos(self, token: str) -> list[dict[str, Any]]:
        """What a key has made."""
        answer = httpx.get(f"{self.url}/v1/videos", headers=_bearer(token))
        return list(answer.raise_for_status().json()["data"])

    def clear(self) -> None:
        """Removes whatever the keys have made, also what a key may not ask to remove for now."""
        for token in (self.alice, self.bob, self.carol):
            for video in self._context.videos.page(token.split("_")[1], limit=100)[0]:
                remove(video, self._context.videos, self._context.objects)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def tenants(service: Service, tmp_path: Path) -> Iterator[Tenants]:
    """The service with keys on, for Alice, Bob, and Carol, who may ask four times a minute."""
    keys = KeyFile(tmp_path / "keys.json")
    tokens = {name: keys.create(name)[1] for name in ("alice", "bob")}
    tokens["carol"] = keys.create("carol", requests_per_minute=4)[1]
    tenants = Tenants(service.settings.model_copy(update={"api_keys_file": keys.path}), **tokens)
    tenants.start()
    yield tenants
    service.easel.hold_at = math.inf
    tenants.clear()
    tenants.stop()


@pytest.fixture
def another(service: Service) -> Iterator[Callable[..., Api]]:
    """Starts further API processes of the service, as it were: with other settings, or behind a path."""
    started: list[Api] = []

    def start(path: str = "", **changes: Any) -> Api:
        started.append(Api(service.settings.model_copy(update=changes), path))
        started[-1].start()
        return started[-1]

    yield start
    for api in started:
        api.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: the system's, else the one that Playwright has installed.

    Not for longer than a module of these tests: while Playwright runs, no other test can run an event loop.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=found,
                args=[
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--autoplay-policy=no-user-gesture-required",
                ],
            )
        except Error as error:
            pytest.skip(f"no Chromium here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Visitor:
    """Opens pages, and notes what a developer would see in the console."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.complaints: list[str] = []
        self.expected: list[str] = []  # patterns of complaints that belong to the test
        self._contexts: list[Any] = []

    def open(self, hash: str = "", *, url: str = "", ready: str = "#examples button", **options: Any) -> Page:  # noqa: A002
        """A page at an address of the service, or of another `url`, once `ready` can be seen."""
        # Without motion: drawing it without a GPU would take the time that the video needs.
        defaults = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"}
        context = self.browser.new_context(**{**defaults, **options})
        context.set_default_timeout(60_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"{error.name}: {error.message}"))
        page.goto(f"{url or self.url}/{hash}")
        page.locator(ready).first.wait_for()
        return page

    def unexpected(self) -> list[str]:
        return [c for c in self.complaints if not any(re.search(known, c) for known in self.expected)]

    def leave(self) -> None:
        for context in self._contexts:
            context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        # Violations of the Content-Security-Policy are told here, too.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")


@pytest.fixture
def visitor(browser: Browser, service: Service) -> Iterator[Visitor]:
    """Somebody with a browser. After the test nothing may have been complained about that it did not expect."""
    visitor = Visitor(browser, service.url)
    yield visitor
    visitor.leave()
    assert visitor.unexpected() == []
