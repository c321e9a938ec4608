"""`longtake up`: Redis, API and workers of one data folder as one process tree.

    DIR/redis/    data of the embedded server          DIR/logs/   what each child wrote, of late and before (.log.1)
    DIR/objects/  the object store                      DIR/run/    process ids while it runs, and the lock

One thread starts, watches and restarts the children. They end with it, in the order in which nothing is lost: workers
hand their videos over, then the API, then Redis. Killed with SIGKILL it takes them with it, and the next `up` on the
folder continues from what was committed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis.exceptions import RedisError

from app.embedded import EmbeddedRedis, EmbeddedRedisError, spawn
from app.jobs.connection import Connection, connect
from app.jobs.queue import leases_key
from app.jobs.store import ACTIVE_KEY, RECONCILED_KEY, WORKERS_KEY, VideoStore
from app.recover import recover
from app.settings import Settings
from app.signals import Signals
from app.storage import StorageError, store_of

# Exit codes with which a worker says that starting it again is of no use; the reason is its last line.
BAD_USAGE = 2
BAD_MODEL = 3

_TICK_SECONDS = 0.1
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 30.0
_STEADY_SECONDS = 60.0
_PATIENCE_SECONDS = 30.0
_WORKER_SECONDS = 60.0
_REDIS_SECONDS = 15.0
_LOG_BYTES = 8 * 1024 * 1024
# A line of the log, in words or JSON, at such a level.
_ALARMING = re.compile(r"^(\S+ ){0,2}(WARNING|ERROR|CRITICAL)\b|^\{.*\"level\": \"(WARNING|ERROR|CRITICAL)\"")

# What stands before the words of a line that a child ended with.
_PREFIX = re.compile(r"^(\S+ \S+ +(ERROR|CRITICAL) [\w.]+: |longtake( worker)?: )")

Say = Callable[[str], None]


class UpError(Exception):
    """Why `up` cannot run, or cannot go on; one line for a person."""


class DataFolder:
    """The folder of one service, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Raises `UpError` when it cannot be written, or another process holds it."""
        try:
            for folder in (self.path, self.run, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            # Not inherited by children: the lock ends with this process, however it ends.
            self._lock = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UpError(f"cannot use the data folder {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 200).decode(errors="replace").strip()
            os.close(self._lock)
            self._lock = None
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UpError(f"cannot lock the data folder {self.path}: {error.strerror}") from error
            raise UpError(
                f"the data folder {self.path} is in use by another longtake{f' ({holder})' if holder else ''}"
            ) from error
        for left_over in self.run.glob("*.pid"):
            left_over.unlink()

    def sign(self, url: str) -> None:
        """Leaves word for those who find the folder locked."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()}, {url}\n".encode(), 0)

    def release(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None


@dataclass(slots=True)
class LogFollower:
    """Passes on the alarming lines that are added to a log."""

    path: Path
    _position: int = 0
    _rest: bytes = b""

    def __post_init__(self) -> None:
        with suppress(OSError):
            if self.path.stat().st_size > _LOG_BYTES:
                self.path.replace(self.path.with_suffix(".log.1"))
        with suppress(OSError):
            self._position = self.path.stat().st_size

    def rotate(self) -> None:
        """Puts a long log aside while it is written to: all that write to it append, and go on at its beginning."""
        with suppress(OSError):
            if self.path.stat().st_size > _LOG_BYTES:
                shutil.copyfile(self.path, self.path.with_suffix(".log.1"))
                os.truncate(self.path, 0)
                self._position = 0

    def alarms(self) -> list[str]:
        """Lines of warnings and errors written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read(1 << 20)
        except OSError:
            return []
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        text = (line.decode(errors="replace").rstrip() for line in lines)
        return [line for line in text if _ALARMING.search(line)]

    def last_line(self) -> str:
        """The last thing that was said."""
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return next((line for line in reversed(lines) if line.strip()), "")


@dataclass(slots=True)
class Child:
    """A process that is kept running."""

    name: str
    begin: Callable[[], subprocess.Popen[bytes]]
    log: LogFollower
    pid_file: Path
    end_seconds: float
    """How long it may take over SIGTERM."""
    process: subprocess.Popen[bytes] | None = None
    _delay: float = 0.0
    _due: float = field(default=0.0)
    _began: float = 0.0

    def start(self) -> None:
        """Raises `EmbeddedRedisError` and OSError; another start is due later then."""
        now = time.monotonic()
        self._delay = min(_LONGEST_DELAY_SECONDS, max(_FIRST_DELAY_SECONDS, 2 * self._delay))
        self._due = now + self._delay
        self._began = now
        self.process = self.begin()
        self.pid_file.write_text(f"{self.process.pid}\n")

    def ended(self) -> int | None:
        """Exit code of a process that has ended since the last call; its restart is due after the delay."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self.pid_file.unlink(missing_ok=True)
        now = time.monotonic()
        if now - self._began > _STEADY_SECONDS:
            self._delay = 0.0
        self._due = now + self._delay
        return code

    @property
    def due(self) -> bool:
        return self.process is None and time.monotonic() >= self._due

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Supervisor:
    """One service on one data folder. `run` is called once, in the main thread."""

    def __init__(self, settings: Settings, *, workers: int, ready: Say, warn: Say) -> None:
        """`ready` is told the service's URL once it can make videos; `warn` one line per thing that goes wrong."""
        self.settings = settings
        self.workers = workers
        self.ready = ready
        self.warn = warn
        self.folder = DataFolder(settings.data_dir)
        self.children: list[Child] = []
        ends = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            ends.append(signal.SIGHUP)
        self._signals = Signals(*ends)
        self._is_ready = False
        self._patience_signals = 0

    def run(self) -> None:
        """Returns after SIGTERM, SIGINT or SIGHUP. Raises `UpError`."""
        with ExitStack() as stack:
            stack.enter_context(self._signals)
            self.folder.acquire()
            stack.callback(self.folder.release)
            host, port = self.settings.host, self._port()
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            self.folder.sign(self.url)
            stack.callback(self._stop)
            self._start(port)
            self._watch()

    def _port(self) -> int:
        """The port to listen on; a free one for 0. Raises `UpError` when it is taken."""
        host, port = self.settings.host, self.settings.port
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
                return int(probe.getsockname()[1])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UpError(f"port {port} on {host} is in use; choose another with --port") from error
            raise UpError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error

    def _start(self, port: int) -> None:
        settings, folder = self.settings, self.folder
        if settings.redis_url is not None:
            redis_url = settings.redis_url.get_secret_value()
        else:
            try:
                redis = EmbeddedRedis(folder.path / "redis", log_file=folder.logs / "redis.log")
            except EmbeddedRedisError as error:
                raise UpError(str(error)) from error
            self._begin("redis", redis.start, _REDIS_SECONDS)
            redis_url = redis.url
        self.store = VideoStore(
            connect(redis_url, timeout_seconds=1.0, retries=0), origin=settings.public_url or ""
        )
        self._restore()
        self._take_back()
        env = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "LONGTAKE_DATA_DIR": str(folder.path),
            "LONGTAKE_REDIS_URL": redis_url,
            "LONGTAKE_STORAGE_URL": settings.model_copy(
                update={"data_dir": folder.path}
            ).resolved_storage_url,
            "LONGTAKE_MODEL": settings.model,
            "LONGTAKE_HOST": settings.host,
            "LONGTAKE_PORT": str(port),
        }
        self._begin("api", self._python("api", "api", env), settings.shutdown_seconds + 5.0)
        for index in range(self.workers):
            name = f"worker-{index}"
            own = {**env, "LONGTAKE_WORKER_NUMBER": str(index)}
            self._begin(name, self._python("worker", name, own), _WORKER_SECONDS)

    def _begin(self, name: str, begin: Callable[[], subprocess.Popen[bytes]], end_seconds: float) -> None:
        log = LogFollower(self.folder.logs / f"{name}.log")
        child = Child(name, begin, log, self.folder.run / f"{name}.pid", end_seconds)
        try:
            child.start()
        except EmbeddedRedisError as error:
            raise UpError(str(error)) from error
        except OSError as error:
            raise UpError(f"cannot start {name}: {error.strerror}") from error
        self.children.append(child)

    def _python(
        self, command: str, name: str, env: Mapping[str, str]
    ) -> Callable[[], subprocess.Popen[bytes]]:
        def begin() -> subprocess.Popen[bytes]:
            with (self.folder.logs / f"{name}.log").open("ab") as log:
                return spawn(longtake_command(command), env=env, output=log)

        return begin

    def _restore(self) -> None:
        """Fills an empty Redis from the objects, where both are of this folder: its data was lost.

        Objects elsewhere may be those of another service, which is making them.
        """
        if self.settings.redis_url is not None or self.settings.storage_url is not None:
            return
        redis: Connection = self.store.redis
        try:
            if redis.dbsize():
                return
            objects = store_of(self.settings.model_copy(update={"data_dir": self.folder.path}))
            found = recover(
                self.store, objects, tell=lambda one: self.warn(str(one)) if one.problem else None
            )
        except (RedisError, StorageError) as error:
            self.warn(f"videos made before were not looked for: {error}")
            return
        if any(found.outcomes.values()):
            self.warn(f"Redis was empty; from the files of {self.folder.path}: {found}")

    def _take_back(self) -> None:
        """Puts videos back in line that dead workers had, without waiting for their leases to run out.

        Only where that is certain: the Redis is ours, the folder's lock too, and none of our workers lives.
        """
        if self.settings.redis_url is not None or any(child.process for child in self._workers):
            return
        redis: Connection = self.store.redis
        try:
            redis.delete(RECONCILED_KEY, WORKERS_KEY)
            for name in set(redis.hvals(ACTIVE_KEY)):
                key = leases_key(name.decode())
                redis.zunionstore(key, {key: 0})  # they have run out, all of them
            found = self.store.reconcile(0.0)
        except RedisError:
            return  # it has just died too; the leases run out
        if found:
            self.warn(f"continuing {len(found)} interrupted video{'s' if len(found) > 1 else ''}")

    @property
    def _workers(self) -> list[Child]:
        return [child for child in self.children if child.name.startswith("worker-")]

    def _watch(self) -> None:
        began, told = time.monotonic(), False
        while not self._signals.count:
            for child in self.children:
                self._tend(child)
            if not self._is_ready:
                missing = self._missing()
                if missing is None:
                    self._is_ready = True
                    self.ready(self.url)
                elif not told and time.monotonic() - began > _PATIENCE_SECONDS:
                    told = True
                    self.warn(f"still waiting for {missing}; logs are in {self.folder.logs}")
            self._signals.wait(_TICK_SECONDS)

    def _tend(self, child: Child) -> None:
        if (code := child.ended()) is not None:
            if code in (BAD_USAGE, BAD_MODEL) or (child.name == "api" and not self._is_ready):
                line = _PREFIX.sub("", child.log.last_line())
                raise UpError(line or f"{child.name} ended with {_manner(code)}")
            self.warn(f"{child.name} ended ({_manner(code)}) and is started again; log: {child.log.path}")
            if child in self._workers:
                self._take_back()
        # Redis has its own idea of a warning, and what matters of it shows up in the others' logs.
        for line in () if child.name == "redis" else child.log.alarms():
            self.warn(f"{child.name}: {line}")
        child.log.rotate()
        if child.due:
            try:
                child.start()
            except (EmbeddedRedisError, OSError) as error:
                self.warn(f"{child.name} does not start: {error}")

    def _missing(self) -> str | None:
        """What is missing before a video can be made; None when nothing is."""
        own = {(socket.gethostname(), child.process.pid) for child in self.children if child.process}
        try:
            if not any((worker.get("host"), worker.get("pid")) in own for worker in self.store.workers()):
                return "a worker to load the model"
        except RedisError:
            return "Redis"
        address = self.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        try:
            answer = httpx.get(f"{address}/readyz", timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return "the API"
        return None if answer.is_success else "Redis and the object store"

    def _stop(self) -> None:
        """Workers first, all at once, then the API, then Redis. One more signal ends everything now."""
        self._patience_signals = max(1, self._signals.count)
        self._end(self._workers)
        for child in reversed(self.children):
            self._end([child])

    def _end(self, children: Sequence[Child]) -> None:
        running = [child for child in children if child.process is not None]
        began = time.monotonic()
        for child in running:
            child.terminate()
        while running:
            for child in running:
                impatient = self._signals.count > self._patience_signals
                if impatient or time.monotonic() - began > child.end_seconds:
                    child.kill()
                    self.warn(f"{child.name} did not end in time and was killed; log: {child.log.path}")
            running = [child for child in running if child.ended() is None]
            if running:
                time.sleep(_TICK_SECONDS / 5)


def longtake_command(*arguments: str) -> list[str]:
    """How this very installation is called; a folder named `app` in the current directory is not it (-P)."""
    return [sys.executable, "-P", "-m", "app.cli", *arguments]


def _manner(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
