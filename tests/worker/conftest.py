"""What the runtime's tests share: a stand-in model, videos to make, workers in a thread or in a process."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from redis.exceptions import RedisError

from app.embedded import spawn
from app.jobs.connection import connect
from app.jobs.job import TimedPrompt, Video, VideoSpec, new_video_id
from app.jobs.store import VideoStore
from app.settings import Settings
from app.storage import ObjectStore, open_store
from app.storage.objects import chunk_key, init_key

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def _load(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


LEASE_OF_A_PROCESS = 2.0
"""Short, because tests kill processes. That of a thread is long: a busy machine must not let it run out."""

QUICK: dict[str, Any] = {
    "lease_seconds": 10.0,
    "heartbeat_seconds": 0.2,
    "control_seconds": 0.02,
    "progress_seconds": 0.02,
    "manifest_seconds": 0.1,
    "retry_max_seconds": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in a worker; two threads that wait for each other on busy cores take many times as long."""
    torch.set_num_threads(1)


@pytest.fixture
def stand_in() -> Any:
    """The module of the stand-in model."""
    return _load("stand_in")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pipeline folder with random weights."""
    folder: Path = _load("tiny").save(tmp_path_factory.mktemp("tiny"))
    return folder


@pytest.fixture
def make_spec() -> Callable[..., VideoSpec]:
    """A request to the stand-in model for `frames` frames, or an endless one."""

    def make(frames: int | None = 40, *, prompt: str = "a circle", **fields: Any) -> VideoSpec:
        given: dict[str, Any] = {
            "id": new_video_id(),
            "created_at": time.time(),
            "model": "stand-in",
            "prompts": (TimedPrompt(at=0, text=prompt),),
            "seconds": None if frames is None else frames / 24,
            "fps": 24,
            "frames": frames,
            "width": 16,
            "height": 16,
            "seed": 7,
        }
        return VideoSpec(**(given | fields))

    return make


class ThreadWorker:
    """A worker in a thread of the test's process."""

    def __init__(self, settings: Settings, model: Any, card: Any) -> None:
        from worker.main import serve

        self.shutdown = threading.Event()
        self._thread = threading.Thread(
            target=serve, args=(settings, model, card, self.shutdown), daemon=True
        )
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        self.shutdown.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive()


class ProcessWorker:
    """A worker in a process of its own, made of the stand-in model."""

    def __init__(self, settings: Settings, log: Path, options: dict[str, Any]) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("LONGTAKE_")}
        for name in settings.model_fields_set:
            value = getattr(settings, name)
            secret = getattr(value, "get_secret_value", None)
            env[f"LONGTAKE_{name.upper()}"] = str(secret() if secret else value)
        env["PYTHONPATH"] = str(ROOT)
        self.log = log
        with log.open("ab") as output:
            self.process: subprocess.Popen[bytes] = spawn(
                [sys.executable, str(HERE / "stand_in.py"), json.dumps(options)], env=env, output=output
            )

    @property
    def words(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Workbench:
    """One service without its API: Redis, a folder as object store, workers. `redis_url` may be another server's."""

    def __init__(
        self,
        make_settings: Callable[..., Settings],
        spec: Callable[..., VideoSpec],
        eventually: Any,
        logs: Path,
        redis_url: str,
    ) -> None:
        self.stand_in = _load("stand_in")
        self.model: Any = self.stand_in.StandIn
        self.card: Any = self.stand_in.card
        self.spec = spec
        self.eventually = eventually
        self._make_settings, self._logs = make_settings, logs
        self.use(redis_url)
        self.objects: ObjectStore = open_store(self.settings().resolved_storage_url)
        self._threads: list[ThreadWorker] = []
        self._processes: list[ProcessWorker] = []

    def use(self, redis_url: str) -> None:
        """From now on with this Redis."""
        self._redis_url = redis_url
        self.store = VideoStore(connect(redis_url))

    def settings(self, **overrides: Any) -> Settings:
        """Settings with short times."""
        return self._make_settings(**{"redis_url": self._redis_url, **QUICK, **overrides})

    def start(self, model: Any = None, **overrides: Any) -> ThreadWorker:
        """Starts a worker in a thread."""
        model = model or self.model()
        self._threads.append(ThreadWorker(self.settings(**overrides), model, self.card(model)))
        return self._threads[-1]

    def process(self, options: dict[str, Any] | None = None, **overrides: Any) -> ProcessWorker:
        """Starts a worker in a process; `options` are of the stand-in model."""
        log = self._logs / f"worker-{len(self._processes)}.log"
        settings = self.settings(**{"lease_seconds": LEASE_OF_A_PROCESS, **overrides})
        self._processes.append(ProcessWorker(settings, log, options or {}))
        return self._processes[-1]

    def video(self, video_id: str) -> Video:
        """The record of a video that exists."""
        video = self.store.get(video_id)
        assert video is not None
        return video

    def wait(self, video_id: str, *states: str, chunks: int | None = None, seconds: float = 60.0) -> Video:
        """Waits until a video is in one of the states, or `chunks` are ready, and returns it."""

        def reached() -> Video | None:
            try:
                video = self.video(video_id)
            except RedisError:
                return None
            if chunks is not None and video.state.chunks_ready >= chunks:
                return video
            return video if video.state.status in states else None

        found: Video = self.eventually(reached, seconds)
        return found

    def digests(self, video_id: str) -> list[str]:
        """SHA-256 of the init segment and of every committed chunk's object, checked against the records."""
        found = [hashlib.sha256(self.objects.get(init_key(video_id))).hexdigest()]
        for number, chunk in enumerate(self.store.chunks(video_id)):
            assert chunk.index == number
            digest = hashlib.sha256(self.objects.get(chunk_key(video_id, number))).hexdigest()
            assert digest == chunk.sha256
            found.append(digest)
        return found

    def end(self) -> None:
        for process in self._processes:
            process.process.kill()
            process.process.wait()
        for thread in self._threads:
            thread.shutdown.set()
        for thread in self._threads:
            thread.stop()


@pytest.fixture
def work(
    settings: Callable[..., Settings],
    make_spec: Callable[..., VideoSpec],
    eventually: Any,
    tmp_path: Path,
    redis_url: str,
) -> Iterator[Workbench]:
    bench = Workbench(settings, make_spec, eventually, tmp_path, redis_url)
    yield bench
    bench.end()
