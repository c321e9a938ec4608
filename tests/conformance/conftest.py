"""A whole service, as processes: the API, a worker with the stand-in model, a Redis, and a store of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.embedded import EmbeddedRedis, end, free_port, spawn
from app.keys import KeyFile
from tests.app.storage.conftest import swift  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "worker" / "stand_in.py"
START_SECONDS = 180.0

QUICK = {
    "model": "stand-in",
    "lease_seconds": "30",
    "heartbeat_seconds": "0.5",
    "control_seconds": "0.02",
    "poll_after_ms": "250",
    "slots": "4",
    "playlist_wait_seconds": "0.2",
    "max_attempts": "1",
    "torch_threads": "1",
    "turn_seconds": "2",
    "webhook_allowed_networks": "127.0.0.0/8",
}


def environment(**settings: str) -> dict[str, str]:
    """The environment with these settings of the service, and no others."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("LONGTAKE_")}
    ours = {f"LONGTAKE_{name.upper()}": value for name, value in settings.items()}
    return {**rest, **ours, "PYTHONPATH": str(ROOT)}


@dataclass
class Service:
    """A running service; `keys` is None where they are off."""

    url: str
    folder: Path
    keys: KeyFile | None
    storage: str

    def key(self, name: str, **limits: float | str) -> str:
        """A new API key."""
        assert self.keys is not None
        return self.keys.create(name, **limits)[1]  # type: ignore[arg-type]


@contextmanager
def serving(
    folder: Path, *, keys: bool, step_seconds: float = 0.0, storage: str = "folder", **settings: str
) -> Iterator[Service]:
    """Starts a service and waits until it has a worker."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        own = {"redis_url": redis.url, "storage_url": (folder / "data" / "objects").as_uri()}
        settings = {**QUICK, **own, "data_dir": str(folder / "data"), **settings}
        key_file = None
        if keys:
            key_file = KeyFile(folder / "keys.json")
            key_file.create("the first")
            settings["api_keys_file"] = str(folder / "keys.json")
        logs = [folder / "api.log", folder / "worker.log"]
        commands = (
            [sys.executable, "-m", "app.cli", "api", "--port", str(port)],
            [sys.executable, str(STAND_IN), json.dumps({"step_seconds": step_seconds})],
        )
        processes = []
        for command, log in zip(commands, logs, strict=True):
            output = stack.enter_context(log.open("wb"))
            process = spawn(command, env=environment(**settings), output=output)
            stack.callback(end, process, 20.0)
            processes.append(process)
        _await_worker(url, processes, logs)
        yield Service(url, folder, key_file, storage)


def _await_worker(url: str, processes: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and all(process.poll() is None for process in processes):
            try:
                answer = client.get(f"{url}/readyz")
                if answer.status_code == 200 and answer.json()["workers"] and answer.json()["models"]:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    pytest.fail("the service does not start\n" + "\n".join(log.read_text()[-3000:] for log in logs))


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With API keys, on a store of each kind. The bucket is Swift's, which refuses a request with two signatures."""
    settings: dict[str, str] = {}
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "s3":
            server = request.getfixturevalue("swift")
            patch.setenv("AWS_ACCESS_KEY_ID", server.access_key_id)
            patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_access_key)
            settings = {
                "storage_url": "s3://conformance/videos",
                "s3_endpoint_url": server.endpoint_url,
                "s3_create_bucket": "true",
            }
        with serving(folder, keys=True, storage=request.param, **settings) as running:
            yield running


@pytest.fixture(scope="session")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Without API keys, and a little slower, so that there is time to steer."""
    folder = tmp_path_factory.mktemp("open")
    with serving(folder, keys=False, step_seconds=0.004, playlist_wait_seconds="20") as running:
        yield running
