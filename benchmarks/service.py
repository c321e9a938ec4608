"""What is measured: `longtake up` on a folder of its own with the costs of its videos, or an API process alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from app.client import LongtakeClient
from app.embedded import EmbeddedRedis, free_port
from app.jobs.job import ModelCard

# The built-in model as its worker would register it: measurements of the API need no worker.
MODEL_CARD = ModelCard(
    name="builtin",
    fps=24,
    sizes=("128x128",),
    default_size="128x128",
    temporal_factor=4,
    chunk_latents=5,
    chunks_in_flight=8,
    forwards_per_shift=2,
    guidance_scale=3.0,
    prompt_tokens=64,
    created_at=1_700_000_000.0,
)

_START_SECONDS = 30.0


@dataclass(frozen=True)
class JobCost:
    """Seconds from the POST, and the worker process's peak memory in MB so far, where the system tells it."""

    seconds: float
    first_chunk_seconds: float
    frames: int
    worker_peak_mb: float | None


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    folder: Path

    def make(self, prompt: str, seconds: float, seed: int) -> JobCost:
        """Makes one video through the API and waits for its end."""
        with LongtakeClient(self.url) as client:
            start = time.perf_counter()
            video = client.create(prompt, seconds=seconds, seed=seed)
            first = 0.0
            for event in client.events(video.id):
                if event.type == "chunk" and not first:
                    first = time.perf_counter() - start
            total = time.perf_counter() - start
            video = client.retrieve(video.id)
        if video.status != "completed" or video.frames is None:
            raise RuntimeError(f"the video ended as {video.status}: {video.error}")
        return JobCost(total, first, video.frames, self.worker_peak_mb())

    def worker_peak_mb(self) -> float | None:
        """Largest resident size of the worker process so far, in MB; None where the system does not tell that."""
        pid = int((self.folder / "run" / "worker-0.pid").read_text())
        status = Path(f"/proc/{pid}/status")  # of Linux only, and no library knows it from elsewhere
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return None


@contextmanager
def running_service(model: str) -> Iterator[Service]:
    """`longtake up` with `model`, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up", "--port", "0", "--data", folder, "--model", model],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise RuntimeError("the service did not start")
            yield Service(line.split()[1], Path(folder))
        finally:
            process.terminate()
            process.wait(30)


@dataclass(frozen=True)
class ApiProcess:
    """A running API process and its Redis."""

    port: int
    pid: int
    redis_url: str

    def resident_bytes(self) -> int:
        """Memory the process occupies now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """Processor time the process has taken so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def running_api(*, bare: bool = False, redis_url: str | None = None) -> Iterator[ApiProcess]:
    """One process of `longtake api` or of the bare app, until the block ends; on its own Redis if none is given."""
    port = free_port()
    command = (
        [
            sys.executable,
            "-m",
            "uvicorn",
            "benchmarks.bare_app:app",
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        if bare
        else [sys.executable, "-m", "app.cli", "api", "--port", str(port)]
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = redis_url or stack.enter_context(EmbeddedRedis(folder / "redis")).url
        environment = {
            **os.environ,
            "LONGTAKE_REDIS_URL": url,
            "LONGTAKE_STORAGE_URL": (folder / "objects").as_uri(),
            "LONGTAKE_MAX_QUEUED": "1000000",
            "LONGTAKE_LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen(command, env=environment)
        try:
            _await_answer(f"http://127.0.0.1:{port}/healthz", process)
            yield ApiProcess(port, process.pid, url)
        finally:
            process.terminate()
            process.wait(30)


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the API did not start")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered)) - 1))] if ordered else 0.0
