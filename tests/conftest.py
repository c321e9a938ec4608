"""What every suite shares: one real Redis per session, settings that ignore the shell, and waiting with a deadline."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from redis import Redis

from app import embedded
from app.embedded import EmbeddedRedis
from app.settings import Settings

T = TypeVar("T")


class Eventually(Protocol):
    def __call__(self, condition: Callable[[], T], seconds: float = 60.0, every: float = 0.02) -> T: ...


# On a user's machine a test whose tool is missing is skipped with the reason; where this is set it fails.
SKIP_NOTHING = bool(os.environ.get("LONGTAKE_TESTS_SKIP_NOTHING"))


def pytest_configure() -> None:
    """Tests interrupt what they start, which a shell that runs the suite in the background has made it ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if SKIP_NOTHING and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _ordinary_priority() -> Iterator[None]:
    """Nothing makes the process's threads real-time threads; that starved those a later test waited for."""
    yield
    if sys.platform == "linux":
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """A log that a test turns on ends with it: the stream that it goes to is closed then."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches a test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LONGTAKE_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The session's server. Leave it running: a test that kills Redis takes `own_redis`."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of the session's server, emptied."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def redis_user(redis_url: str) -> Iterator[Callable[[str], str]]:
    """Makes a user of the session's server, with these rules of its ACL, and gives the URL for it."""

    def make(rules: str) -> str:
        admin.execute_command("ACL", "SETUSER", "somebody", "reset", "on", ">secret", *rules.split())
        admin.execute_command("ACL", "LOG", "RESET")
        return f"redis://somebody:secret@{redis_url.partition('@')[2]}"

    with Redis.from_url(redis_url) as admin:
        yield make
        admin.execute_command("ACL", "DELUSER", "somebody")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server for this test alone, to `kill()`, `stop()` and `start()` again on the same port."""
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Makes settings on a folder of this test and, unless `redis_url` is given, the session's Redis."""

    def make(**overrides: Any) -> Settings:
        if "redis_url" not in overrides:
            overrides["redis_url"] = request.getfixturevalue("redis_url")
        return Settings(**{"data_dir": tmp_path / "data", **overrides})

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB. Mounting one takes root."""
    point = tmp_path / "small"
    point.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", point], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds a port that nobody listens on."""
    return embedded.free_port


@pytest.fixture
def eventually() -> Eventually:
    """Waits until `condition` returns something true, and returns that; fails after `seconds`.

    There are many of them, because they cost nothing unless the test fails, and the machine may be busy.

    An `AssertionError` inside the condition means not yet; the last one is shown when time is up.
    """

    def wait(condition: Callable[[], T], seconds: float = 60.0, every: float = 0.02) -> T:
        deadline = time.monotonic() + seconds
        while True:
            late = time.monotonic() > deadline
            try:
                if result := condition():
                    return result
            except AssertionError:
                if late:
                    raise
            else:
                if late:
                    pytest.fail(f"still not true after {seconds:g} s: {condition}", pytrace=True)
            time.sleep(every)

    return wait
