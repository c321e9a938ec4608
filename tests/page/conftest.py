"""A browser, the real API on a real Redis, and a stand-in for the worker that a test can hold up."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright
from redis import Redis

from app.jobs.job import ChunkRecord, JobError, ModelCard, Video
from app.jobs.store import Event, FenceLost, VideoGone, VideoStore
from app.main import Server, create_app
from app.settings import Settings
from app.storage import ObjectStore, open_store
from app.storage import objects as keys
from worker.media.assemble import assemble_final, thumbnail
from worker.media.encode import EncodedChunk, encode_chunk

expect.set_options(timeout=30_000)

FPS = 24
CHUNK_FRAMES = 8
EXAMPLES = (
    "a red circle bouncing off the walls on a black background",
    "a yellow square orbiting the center on a navy background",
    "a cyan triangle drifting to the left on a maroon background",
    "a white cross spinning in place on a teal background",
)
COLOURS = {
    "red": (235, 48, 40),
    "yellow": (245, 228, 40),
    "cyan": (20, 225, 225),
    "white": (240, 240, 240),
    "green": (40, 205, 60),
    "purple": (180, 60, 215),
}
PAPERS = {
    "black": (10, 10, 12),
    "navy": (12, 18, 84),
    "maroon": (88, 12, 24),
    "teal": (6, 78, 72),
    "gray": (104, 104, 104),
}


class Painter(threading.Thread):
    """Stands in for the worker, because a model would be too slow for these tests: it draws what the prompt says.

    Everything else is real: it takes videos out of line, commits chunks that a real encoder made, one by one, and
    ends with the same final file. `pace` is how many seconds of video it makes in one second, `hold_at` the second of
    the video at which it waits: so a test knows what is made, however slow the machine is.
    """

    def __init__(
        self, store: VideoStore, objects: ObjectStore, *, pace: float = 10.0, size: str = "64x64"
    ) -> None:
        super().__init__(name="painter", daemon=True)
        self.store, self.objects = store, objects
        self.pace = pace
        self.hold_at = math.inf
        self.card = ModelCard(
            name="builtin",
            fps=FPS,
            sizes=(size,),
            default_size=size,
            temporal_factor=4,
            chunk_latents=2,
            chunks_in_flight=4,
            forwards_per_shift=4,
            guidance_scale=2.0,
            prompt_tokens=32,
            created_at=time.time(),
            example_prompts=EXAMPLES,
        )
        self.resting = threading.Event()  # set: leaves videos in line
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            self.store.register_model(self.card)
            self.store.worker_alive("painter", {"name": "painter", "model": "builtin", "slots": 1}, 15.0)
            taken = None if self.resting.is_set() else self.store.take("builtin", "painter", 3600.0)
            if taken is None:
                self.ending.wait(0.05)
                continue
            try:
                self._make(taken.video_id)
            except (VideoGone, FenceLost):
                continue

    def _make(self, video_id: str) -> None:
        video, fence = self.store.claim(video_id, "painter")
        if not fence:
            return
        spec = video.spec
        total = math.ceil(spec.frames / CHUNK_FRAMES)
        forwards = total * 4
        self.store.update(video_id, fence, chunks_total=total, forwards_total=forwards)
        started = time.monotonic()
        chunks: list[EncodedChunk] = []
        for index in range(total):
            first = index * CHUNK_FRAMES
            count = min(CHUNK_FRAMES, spec.frames - first)
            made_at = started + (first + count) / FPS / self.pace
            while time.monotonic() < made_at or (first + count) / FPS > self.hold_at:
                if self.ending.wait(0.02) or self.store.controls(video_id, fence).cancel_requested:
                    break
            if self.ending.is_set():
                return
            if self.store.controls(video_id, fence).cancel_requested:
                self.store.finish(self._latest(video_id), fence, "cancelled")
                return
            if "explode" in spec.prompt and index == 3:
                error = JobError(code="out_of_memory", message="the GPU ran out of memory")
                self.store.finish(self._latest(video_id), fence, "failed", error=error)
                return
            chunk = encode_chunk(draw(spec.prompt, first, count, spec.width, spec.height), index, first, FPS)
            if index == 0:
                self.objects.put(keys.init_key(video_id), chunk.init)
            self.objects.put(keys.chunk_key(video_id, index), chunk.segment)
            record = ChunkRecord(
                index=index,
                first_frame=first,
                frames=count,
                bytes=len(chunk.segment),
                sha256=hashlib.sha256(chunk.segment).hexdigest(),
                created_at=time.time(),
            )
            changes = {"first_chunk_at": time.time()} if index == 0 else {}
            per_forward = CHUNK_FRAMES / FPS / self.pace / 4
            done = 4 * (index + 1)
            self.store.commit_chunk(
                spec, fence, record, forwards_done=done, seconds_per_forward=per_forward, **changes
            )
            progress = {
                "progress": min(99, 100 * done // forwards),
                "chunks_ready": index + 1,
                "chunks_total": total,
                "seconds_ready": (first + count) / FPS,
                "eta_seconds": round((forwards - done) * per_forward, 1),
            }
            self.store.update(video_id, fence, events=[Event("progress", progress)])
            chunks.append(chunk)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "video.mp4"
            segments = (chunk.segment for chunk in chunks)
            info = assemble_final(chunks[0].init, segments, file, spec.frames, FPS)
            self.objects.put(keys.final_key(video_id), file)
        middle = draw(spec.prompt, spec.frames // 2, 1, spec.width, spec.height)[0]
        self.objects.put(keys.thumbnail_key(video_id), thumbnail(middle))
        self.store.finish(self._latest(video_id), fence, "completed", final_bytes=info.size)

    def _latest(self, video_id: str) -> Video:
        video = self.store.get(video_id)
        if video is None:
            raise VideoGone(video_id)
        return video


def draw(prompt: str, first: int, count: int, width: int, height: int) -> NDArray[np.uint8]:
    """Frames of a coloured disc that bounces over a plain ground; (count, height, width, 3)."""
    words = prompt.lower().split()
    ink = next((COLOURS[word] for word in words if word in COLOURS), COLOURS["green"])
    paper = next((PAPERS[word] for word in words if word in PAPERS), PAPERS["gray"])
    y, x = np.mgrid[0:height, 0:width] + 0.5
    radius = 0.2 * height
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for number in range(count):
        seconds = (first + number) / FPS
        middle_x = _bounce(0.3 + 0.31 * seconds, radius / width) * width
        middle_y = _bounce(0.6 + 0.43 * seconds, 0.2) * height
        alpha = np.clip(radius - np.hypot(x - middle_x, y - middle_y) + 0.5, 0, 1)[..., None]
        frames[number] = np.array(paper) * (1 - alpha) + np.array(ink) * alpha
    return frames


def _bounce(way: float, margin: float) -> float:
    free = 1 - 2 * margin
    way %= 2 * free
    return margin + min(way, 2 * free - way)


class Service:
    """The real API on a port of its own, in a thread, and a painter that works for it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.redis_url is not None
        self.settings = settings
        self.store = VideoStore(Redis.from_url(settings.redis_url.get_secret_value()))
        self.painter = Painter(self.store, open_store(settings.resolved_storage_url))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        app = create_app(self.settings)
        config = uvicorn.Config(
            app, port=self.port, log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        up = threading.Event()
        self._server = Server(config, app.state.context, up.set)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert up.wait(10)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path).raise_for_status().json()

    def make(self, prompt: str, seconds: float) -> str:
        """Asks for a video over HTTP and returns its id."""
        body = {"prompt": prompt, "seconds": seconds}
        return str(httpx.post(f"{self.url}/v1/videos", json=body).raise_for_status().json()["id"])


@pytest.fixture
def service(settings: Callable[..., Settings]) -> Iterator[Service]:
    """A service that draws ten seconds of video in one."""
    service = Service(settings())
    service.start()
    service.painter.start()
    yield service
    service.painter.ending.set()
    service.painter.join(10)
    service.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium: the system's, else the one that Playwright has installed."""
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

    def open(self, hash: str = "", **options: Any) -> Page:  # noqa: A002 - the part of the address
        # Without motion: drawing it without a GPU would take the time that the video needs.
        defaults = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"}
        context = self.browser.new_context(**{**defaults, **options})
        context.set_default_timeout(30_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"{error.name}: {error.message}"))
        page.goto(f"{self.url}/{hash}")
        page.locator("#examples button").first.wait_for()
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
