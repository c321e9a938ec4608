"""A running API over real HTTP, and a double of a worker: it makes no pictures, all else is as in production."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from app.context import Context
from app.embedded import EmbeddedRedis
from app.jobs.connection import connect
from app.jobs.job import ChunkRecord, ModelCard, Video
from app.jobs.store import Event, VideoStore
from app.keys import KeyFile
from app.main import Server, create_app, server_config
from app.settings import Settings
from app.storage import ObjectStore, open_store
from app.storage.objects import chunk_key, final_key, init_key, thumbnail_key
from worker.media.assemble import assemble_final
from worker.media.encode import EncodedChunk, encode_chunk

FPS = 24
CARD = ModelCard(
    name="builtin",
    fps=FPS,
    sizes=("64x64", "128x128"),
    default_size="64x64",
    temporal_factor=4,
    chunk_latents=5,
    chunks_in_flight=5,
    forwards_per_shift=2,
    guidance_scale=3.0,
    prompt_tokens=64,
    created_at=1_700_000_000.0,
    example_prompts=("A red ball rolls over green grass",),
)
FIRST_CHUNK_FRAMES = 17  # 1 + 4 latents of 4 frames
CHUNK_FRAMES = 20


def chunk_bounds(index: int) -> tuple[int, int]:
    """First frame and number of frames of a chunk."""
    if index == 0:
        return 0, FIRST_CHUNK_FRAMES
    return FIRST_CHUNK_FRAMES + CHUNK_FRAMES * (index - 1), CHUNK_FRAMES


@cache
def encoded(index: int, frames: int) -> EncodedChunk:
    """A really encoded chunk: a grey level per frame, so that frames can be told apart."""
    first, _ = chunk_bounds(index)
    levels = ((first + np.arange(frames)) * 7 % 200 + 20).astype(np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (frames, 64, 64, 3))
    return encode_chunk(np.ascontiguousarray(pictures), index, first, FPS)


@dataclass
class WorkerDouble:
    """Writes the records and objects that a worker would, when told to."""

    videos: VideoStore
    objects: ObjectStore
    fences: dict[str, str] = field(default_factory=dict)

    def register(self, card: ModelCard = CARD) -> None:
        self.videos.register_model(card)

    def claim(self, video_id: str) -> Video:
        video, self.fences[video_id] = self.videos.claim(video_id, "double")
        return video

    def commit(self, video_id: str, index: int, frames: int | None = None) -> ChunkRecord:
        video = self.videos.get(video_id)
        assert video is not None
        first, count = chunk_bounds(index)
        chunk = encoded(index, frames or count)
        self.objects.put(init_key(video_id), chunk.init)
        self.objects.put(chunk_key(video_id, index), chunk.segment)
        record = ChunkRecord(
            index=index,
            first_frame=first,
            frames=chunk.frames,
            bytes=len(chunk.segment),
            sha256=hashlib.sha256(chunk.segment).hexdigest(),
            created_at=time.time(),
        )
        self.videos.commit_chunk(video.spec, self.fences[video_id], record)
        return record

    def progress(self, video_id: str, done: int, total: int = 1000) -> None:
        event = Event("progress", {"id": video_id, "forwards_done": done, "forwards_total": total})
        self.videos.update(
            video_id, self.fences[video_id], events=[event], forwards_done=done, forwards_total=total
        )

    def finish(self, video_id: str, status: str = "completed", **changes: Any) -> None:
        video = self.videos.get(video_id)
        assert video is not None
        chunks = self.videos.chunks(video_id)
        if chunks and status != "failed":
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "video.mp4"
                segments = (self.objects.get(chunk_key(video_id, chunk.index)) for chunk in chunks)
                frames = sum(chunk.frames for chunk in chunks)
                assemble_final(self.objects.get(init_key(video_id)), segments, out, frames, Fraction(FPS))
                self.objects.put(final_key(video_id), out)
                changes["final_bytes"] = out.stat().st_size
            self.objects.put(thumbnail_key(video_id), b"\xff\xd8\xff\xe0 a picture \xff\xd9")
        self.videos.finish(video, self.fences[video_id], status, **changes)  # type: ignore[arg-type]

    def make(self, video_id: str, chunks: int = 3) -> None:
        """A whole video."""
        self.claim(video_id)
        for index in range(chunks):
            self.commit(video_id, index)
        self.finish(video_id)


@dataclass
class Api:
    """A running API."""

    url: str
    settings: Settings
    context: Context
    http: httpx.Client
    worker: WorkerDouble

    def create(self, **body: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/videos", json={"prompt": "A red ball", "seconds": 2, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def error(self, answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
        """Checks an error's shape and returns its message."""
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"error"}
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (code, param), error
        for secret in ("Traceback", "/work", "site-packages", str(self.settings.data_dir), "redis://"):
            assert secret not in answer.text
        if status in (429, 503):
            assert int(answer.headers["retry-after"]) > 0
        return error["message"]


class Tenants:
    """A running API with keys on. Each tenant is an HTTP client that sends a key of its own."""

    def __init__(self, api: Api, keys: KeyFile) -> None:
        self.api = api
        self.keys = keys
        self._clients: list[httpx.Client] = []

    def client(self, token: str | None = None, *, url: str = "") -> httpx.Client:
        """A client that sends this key, or none."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=url or self.api.url, headers=headers, timeout=20, trust_env=False)
        self._clients.append(client)
        return client

    def join(self, name: str = "somebody", **limits: Any) -> httpx.Client:
        """A client with a new key."""
        return self.client(self.keys.create(name, **limits)[1])

    def create(self, client: httpx.Client, **body: Any) -> dict[str, Any]:
        answer = client.post("/v1/videos", json={"prompt": "A red ball", "seconds": 2, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def running_tenants(settings: Settings) -> Iterator[Tenants]:
    """Serves the settings, which name a file of keys, with one model registered."""
    assert settings.api_keys_file is not None
    with running_api(settings) as api:
        api.worker.register()
        tenants = Tenants(api, KeyFile(settings.api_keys_file))
        try:
            yield tenants
        finally:
            tenants.close()


def owner_of(client: httpx.Client) -> str:
    """Id of the key that a client sends."""
    return client.headers["authorization"].split("_")[1]


@contextmanager
def running_api(settings: Settings, *, opened: bool = True) -> Iterator[Api]:
    """Serves the settings on a free loopback port, in a thread. Unless `opened` the worker's double has no store."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()
    server = Server(server_config(app, settings), app.state.context, started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    assert started.wait(60)
    assert settings.redis_url is not None
    connection = connect(settings.redis_url.get_secret_value())
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    store: Any = None
    if opened:
        url_of_store, endpoint = settings.resolved_storage_url, settings.s3_endpoint_url
        store = open_store(url_of_store, s3_endpoint_url=endpoint, s3_region=settings.s3_region)
    try:
        with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
            yield Api(url, settings, app.state.context, http, WorkerDouble(VideoStore(connection), store))
    finally:
        server.should_exit = True
        thread.join(60)
        connection.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def _shared_api(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data = tmp_path_factory.mktemp("data")
    settings = Settings(redis_url=SecretStr(redis_server.url), data_dir=data, playlist_wait_seconds=0.1)
    with running_api(settings) as running:
        yield running


@pytest.fixture
def api(_shared_api: Api, redis_url: str) -> Api:
    """An API with default settings and one registered model; it knows no videos."""
    _shared_api.worker.register()
    return _shared_api


@pytest.fixture
def tenants(settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Tenants]:
    """An API with keys on and no key made yet."""
    with running_tenants(
        settings(api_keys_file=tmp_path / "keys.json", playlist_wait_seconds=0.1)
    ) as running:
        yield running
