"""One running service for a measurement: `longtake up` on a folder of its own, and the costs of its videos."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.client import LongtakeClient


@dataclass(frozen=True)
class JobCost:
    """Seconds from the POST, and the worker process's peak memory in MB so far."""

    seconds: float
    first_chunk_seconds: float
    frames: int
    worker_peak_mb: float


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
        if video.status != "completed":
            raise RuntimeError(f"the video ended as {video.status}: {video.error}")
        return JobCost(total, first, video.frames, self.worker_peak_mb())

    def worker_peak_mb(self) -> float:
        """Largest resident size of the worker process so far, in MB."""
        pid = int((self.folder / "run" / "worker-0.pid").read_text())
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("this system does not tell a process's peak memory")


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
