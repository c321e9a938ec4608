"""The product as a user starts it: `longtake` processes on a folder, driven over HTTP."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import av
import psutil
import pytest

from app.client import LongtakeClient
from app.embedded import spawn
from app.settings import Settings
from tests.worker.models.conftest import pipeline_folder  # noqa: F401 - a fixture

LONGTAKE = [sys.executable, "-m", "app.cli"]
READY_SECONDS = 180.0


def environment(**settings: str) -> dict[str, str]:
    """The environment without the developer's settings, and with these."""
    ours = {f"LONGTAKE_{name.upper()}" for name in Settings.model_fields} | {
        "LONGTAKE_URL",
        "LONGTAKE_API_KEY",
    }
    rest = {name: value for name, value in os.environ.items() if name not in ours}
    return {**rest, **{f"LONGTAKE_{name.upper()}": value for name, value in settings.items()}}


def longtake(*arguments: str, seconds: float = 300.0, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*LONGTAKE, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@dataclass
class Up:
    """A running `longtake up`."""

    data: Path
    process: subprocess.Popen[bytes]
    errors: Path
    url: str = ""
    clients: list[LongtakeClient] = field(default_factory=list)

    @property
    def client(self) -> LongtakeClient:
        if not self.clients:
            self.clients.append(LongtakeClient(self.url))
        return self.clients[0]

    def pid(self, name: str) -> int:
        """Process id of a child, as its file tells."""
        return int((self.data / "run" / f"{name}.pid").read_text())

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text()

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in (self.data / "logs").glob("*.log"))

    def terminate(self, seconds: float = 90.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """What a power cut does to it."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


def begin(data: Path, *arguments: str, **settings: str) -> Up:
    """Starts `longtake up` on a free port and returns at once."""
    descriptor, errors = tempfile.mkstemp(prefix="up-", suffix=".err", dir=data.parent)
    with os.fdopen(descriptor, "wb") as stderr:
        process = spawn(  # so that it ends with a test session that is killed
            [*LONGTAKE, "up", "--data", str(data), "--port", "0", *arguments],
            env=environment(**settings),
            output=subprocess.PIPE,
            errors=stderr,
            on_parent_death=signal.SIGTERM,
        )
    return Up(data, process, Path(errors))


def await_ready(up: Up) -> Up:
    """Waits for the one line that says where the service is."""
    lines: queue.Queue[bytes] = queue.Queue()
    assert up.process.stdout is not None
    threading.Thread(target=lambda: lines.put(up.process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
    line = lines.get(timeout=READY_SECONDS).decode()
    assert line.startswith("ready http://127.0.0.1:"), f"{line!r}\n{up.said()}\n{up.logs()}"
    up.url = line.split()[1]
    return up


@pytest.fixture(scope="session")
def model_folder(pipeline_folder: Callable[..., Path]) -> str:  # noqa: F811
    """A whole pipeline with small random weights: quick, and what it shows does not matter."""
    return str(pipeline_folder("skyreels", "two stages"))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Iterator[Up]:
    """One service for all tests that leave it running."""
    data = tmp_path_factory.mktemp("service") / "data"
    up = begin(data, "--model", model_folder, webhook_allowed_networks="127.0.0.0/8")
    try:
        yield await_ready(up)
    finally:
        up.close()


@pytest.fixture
def up(tmp_path: Path, model_folder: str) -> Iterator[Callable[..., Up]]:
    """Starts services of this test's own, all on one folder unless told otherwise, and ends what is left of them."""
    running: list[Up] = []

    def start(*arguments: str, data: Path | None = None, ready: bool = True, **settings: str) -> Up:
        if "--model" not in arguments:
            arguments = ("--model", model_folder, *arguments)
        one = begin(data or tmp_path / "data", *arguments, **settings)
        running.append(one)
        return await_ready(one) if ready else one

    yield start
    for one in running:
        one.close()


def frame_times(data: bytes) -> list[float]:
    """Presentation time in seconds of every frame that decodes."""
    with av.open(BytesIO(data)) as container:
        return [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]


def chunk_hashes(client: LongtakeClient, video_id: str) -> list[str]:
    """SHA-256 of every chunk as recorded, in order; the video must have ended."""
    return [chunk.sha256 for chunk in client.chunks(video_id)]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
