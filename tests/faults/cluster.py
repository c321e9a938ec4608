"""A whole service as real processes on one machine: Redis, API replicas, workers; each can die and come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from app.client import LongtakeClient
from app.embedded import EmbeddedRedis, end, free_port, spawn
from app.jobs.connection import connect
from app.jobs.job import Video
from app.jobs.store import VideoStore
from app.settings import Settings
from app.storage import ObjectStore, open_store

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

# Short times, so that a lost worker is noticed within seconds. Attempts are plentiful, because a video that is made
# while one process after another is killed on purpose has done nothing wrong.
QUICK: dict[str, Any] = {
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.25,
    "control_seconds": 0.02,
    "progress_seconds": 0.1,
    "manifest_seconds": 0.1,
    "retry_max_seconds": 0.3,
    "max_attempts": 50,
    "poll_after_ms": 100,
    "min_seconds": 0.1,  # a video that is finished at once has a single chunk
}

START_SECONDS = 120.0
"""How long a process may take to start on a busy machine."""


def until(condition: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """The first true result of `condition`. Raises `AssertionError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() > deadline
        if result := condition():
            return result
        if late:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


@dataclass
class Worker:
    """A worker process. Its parent is the nursery, or this process."""

    pid: int
    log: Path
    _code: Callable[[], int | None]

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._code()

    @property
    def stopped(self) -> bool:
        """Whether it stands still after SIGSTOP."""
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    @property
    def words(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Does nothing to a process that has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def proceed(self) -> None:
        """After it was stopped."""
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Asks it to end, and waits for that."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0

    def wait(self, seconds: float = 60.0) -> int:
        until(lambda: self.code is not None, f"worker {self.pid} ends", seconds)
        assert self.code is not None
        return self.code


class Nursery:
    """Makes worker processes quickly; see `worker_entry`. Ends with everything it made."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._born: list[int] = []
        self._codes: dict[int, int] = {}
        self._changed = threading.Condition()
        self._ready = False
        self._process = _piped(
            [sys.executable, "-m", "tests.faults.worker_entry", "--nursery"], dict(environment)
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                self._ready = self._ready or "ready" in told
                if "born" in told:
                    self._born.append(told["born"])
                elif "ended" in told:
                    self._codes[told["ended"]] = told["code"]
                self._changed.notify_all()

    def worker(self, environment: Mapping[str, str], log: Path, plan: Sequence[Mapping[str, Any]]) -> Worker:
        order = {"environment": dict(environment), "log": str(log), "plan": list(plan)}
        with self._changed:
            assert self._changed.wait_for(lambda: self._ready, START_SECONDS), "the nursery does not start"
            known = len(self._born)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            assert self._changed.wait_for(lambda: len(self._born) > known, START_SECONDS), "no worker came"
            pid = self._born[-1]
        return Worker(pid, log, lambda: self._codes.get(pid))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _piped(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    )


@dataclass
class Api:
    """A replica of the API; it comes back on its port."""

    url: str
    _begin: Callable[[Sequence[Mapping[str, Any]]], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self, plan: Sequence[Mapping[str, Any]] = ()) -> None:
        """Starts it again and returns at once."""
        self.process = self._begin(plan)

    def await_ready(self) -> None:
        def answers() -> bool:
            try:
                return httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).is_success
            except httpx.HTTPError:
                return False

        until(answers, f"the API at {self.url} answers", START_SECONDS)


@dataclass
class Cluster:
    """What is running. Made by `running_cluster`."""

    folder: Path
    settings: dict[str, Any]
    redis: EmbeddedRedis
    model: Path
    nursery: Nursery | None = None
    apis: list[Api] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    clients: list[LongtakeClient] = field(default_factory=list)
    extra_environment: dict[str, str] = field(default_factory=dict)
    """Of workers and of the API, beside their settings."""
    direct_endpoint: str | None = None
    """Of an S3 store that the service reaches through a proxy only."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _numbers: int = 0

    def __post_init__(self) -> None:
        self.store = VideoStore(connect(self.redis.url))
        url = self.settings.get("storage_url") or (self.folder / "data" / "objects").as_uri()
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        endpoint = self.direct_endpoint or self.settings.get("s3_endpoint_url")
        self.objects: ObjectStore = open_store(url, s3_endpoint_url=endpoint, s3_ensure_bucket=True)

    # -- starting ----------------------------------------------------------------------------------------

    def environment(self, **overrides: Any) -> dict[str, str]:
        """The environment of a process of the service."""
        ours = {f"LONGTAKE_{name.upper()}" for name in Settings.model_fields}
        settings = {
            "redis_url": self.redis.url,
            "data_dir": self.folder / "data",
            "model": self.model,
            **self.settings,
            **overrides,
        }
        return {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            **{f"LONGTAKE_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def worker(self, plan: Sequence[Mapping[str, Any]] = (), **settings: Any) -> Worker:
        """Starts a worker process with a plan of faults and returns at once."""
        if self.nursery is None:
            self.nursery = Nursery({**self.environment(), **self.extra_environment})
            self._stack.callback(self.nursery.close)
        worker = self.nursery.worker(self.environment(**settings), self._log("worker"), plan)
        self.workers.append(worker)
        return worker

    def fresh_worker(
        self, *, prefix: Sequence[str] = (), plan: Sequence[Mapping[str, Any]] = (), **settings: Any
    ) -> Worker:
        """Starts a worker with an interpreter of its own, behind a command such as `ip netns exec NAME`."""
        log = self._log("worker")
        with log.open("ab") as output:
            process = spawn(
                [*prefix, sys.executable, "-m", "tests.faults.worker_entry"],
                env={
                    **self.environment(**settings),
                    **self.extra_environment,
                    "FAULTS_PLAN": json.dumps(list(plan)),
                },
                output=output,
            )
        self._stack.callback(_ended, process)
        worker = Worker(process.pid, log, process.poll)
        self.workers.append(worker)
        return worker

    def start_apis(self, count: int = 1) -> None:
        for _ in range(count):
            self.apis.append(self._api(free_port()))
        for api in self.apis:
            api.await_ready()

    def _api(self, port: int) -> Api:
        log = self._log("api")
        environment = {**self.environment(host="127.0.0.1", port=port), **self.extra_environment}

        def begin(plan: Sequence[Mapping[str, Any]] = ()) -> subprocess.Popen[bytes]:
            command = ["-m", "tests.faults.worker_entry", "--api"] if plan else ["-m", "app.cli", "api"]
            with log.open("ab") as output:
                process = spawn(
                    [sys.executable, *command],
                    env={**environment, "FAULTS_PLAN": json.dumps(list(plan))},
                    output=output,
                )
            self._stack.callback(end, process, 10.0)
            return process

        return Api(f"http://127.0.0.1:{port}", begin, begin())

    def _log(self, name: str) -> Path:
        self._numbers += 1
        return self.folder / f"{self._numbers:03d}-{name}.log"

    # -- using -------------------------------------------------------------------------------------------

    def client(self, replica: int = 0) -> LongtakeClient:
        """A new client of one of the replicas, which is closed with the cluster."""
        client = LongtakeClient(self.apis[replica % len(self.apis)].url, patience_seconds=60.0)
        self.clients.append(client)
        return client

    def video(self, video_id: str) -> Video:
        video = self.store.get(video_id)
        assert video is not None
        return video

    def wait(self, video_id: str, *statuses: str, chunks: int | None = None, seconds: float = 120.0) -> Video:
        """Waits for a status, or for a number of committed chunks."""

        def reached() -> Video | None:
            video = self.video(video_id)
            enough = chunks is not None and video.state.chunks_ready >= chunks
            return video if enough or video.state.status in statuses else None

        what = f"{video_id} is {' or '.join(statuses) or f'at chunk {chunks}'}"
        found = until(reached, what, seconds)
        assert found is not None
        return found

    def ready_workers(self, count: int) -> None:
        """Waits until so many workers have announced themselves."""
        until(lambda: len(self.store.workers()) >= count, f"{count} workers are ready", START_SECONDS)

    def end_workers(self) -> None:
        """SIGTERM to all that run, and waits for their end."""
        for worker in self.workers:
            worker.proceed()
            worker.signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait()
        self.workers.clear()

    def logs(self) -> str:
        """The last words of every process."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        self._stack.close()
        self.redis.stop()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """The environment that children inherit."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def running_cluster(
    folder: Path,
    model: Path,
    *,
    apis: int = 1,
    extra_environment: Mapping[str, str] | None = None,
    redis_environment: Mapping[str, str] | None = None,
    direct_endpoint: str | None = None,
    nursery: Nursery | None = None,
    **settings: Any,
) -> Iterator[Cluster]:
    """Redis and API replicas with `QUICK` settings; workers are started by the caller.

    A `nursery` given belongs to another cluster, which outlives this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    redis = EmbeddedRedis(folder / "redis")
    with _environment(redis_environment or {}):
        redis.start()
    cluster = Cluster(
        folder,
        {"storage_url": (folder / "data" / "objects").as_uri(), **QUICK, **settings},
        redis,
        model,
        extra_environment=dict(extra_environment or {}),
        direct_endpoint=direct_endpoint,
        nursery=nursery,
    )
    try:
        cluster.start_apis(apis)
        yield cluster
    finally:
        cluster.close()
