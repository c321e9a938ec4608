"""The process tree of `longtake up`, with small stand-ins for its API and workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from app import supervisor
from app.embedded import EmbeddedRedis
from app.jobs.store import worker_key
from app.settings import Settings
from app.storage import FilesystemStore
from app.storage.objects import init_key, manifest_key
from app.supervisor import DataFolder, LogFollower, Supervisor, UpError

API = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
signal.signal(signal.SIGTERM, lambda *_: (print("api ends", flush=True), os._exit(0)))
HTTPServer((os.environ["LONGTAKE_HOST"], int(os.environ["LONGTAKE_PORT"])), Handler).serve_forever()
"""
WORKER = """
import os, signal, socket, sys, threading
from app.jobs.connection import connect
from app.jobs.store import VideoStore
store = VideoStore(connect(os.environ["LONGTAKE_REDIS_URL"]))
def end(*_):
    store.redis.ping()  # Redis is still there
    print("worker ends", flush=True); os._exit(0)
signal.signal(signal.SIGTERM, end)
number = os.environ["LONGTAKE_WORKER_NUMBER"]
info = {"model": "m", "slots": 1, "host": socket.gethostname(), "pid": os.getpid(), "number": number}
store.worker_alive(f"w{os.getpid()}", info, 60)
while True:
    signal.pause()
"""


class Running:
    """A supervisor in the main thread of the test, and what it said."""

    def __init__(self, settings: Settings, workers: int = 1) -> None:
        self.ready: list[str] = []
        self.warnings: list[str] = []
        self.supervisor = Supervisor(
            settings, workers=workers, ready=self.ready.append, warn=self.warnings.append
        )
        self.data = settings.data_dir

    def run(self, *steps: Callable[[], object]) -> None:
        """Runs until each step in turn has been true, then as if Ctrl-C was pressed."""
        left = list(steps)

        def drive() -> None:
            deadline = time.monotonic() + 120
            while left and time.monotonic() < deadline:
                if left[0]():
                    left.pop(0)
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=drive, daemon=True)
        thread.start()
        try:
            self.supervisor.run()
        finally:
            thread.join()
        assert not left, self.warnings

    def pid(self, name: str) -> int:
        try:
            return int((self.data / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What runs in place of `longtake api` and `longtake worker`; tests may change it."""
    programs = {"api": API, "worker": WORKER}
    monkeypatch.setattr(supervisor, "longtake_command", lambda name: [sys.executable, "-c", programs[name]])
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "_PATIENCE_SECONDS", 600.0)  # what else it says is no matter of the load
    return programs


@pytest.fixture
def make(settings: Callable[..., Settings], stand_ins: dict[str, str]) -> Callable[..., Running]:
    def make(workers: int = 1, **overrides: object) -> Running:
        return Running(settings(redis_url=None, port=0, **overrides), workers)

    return make


@contextmanager
def interrupted_unless_raised() -> Iterator[None]:
    """Lets a supervisor that should end by itself be ended by the driver if it does not."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ready_is_told_once_and_everything_ends_in_order(make: Callable[..., Running]) -> None:
    running = make(workers=2)
    pids: list[int] = []

    def started() -> bool:
        pids[:] = [running.pid(name) for name in ("redis", "api", "worker-0", "worker-1")]
        if not running.ready or not all(pids):
            return False
        return {worker["number"] for worker in running.supervisor.store.workers()} == {"0", "1"}

    running.run(started)
    assert len(running.ready) == 1
    assert running.ready[0].startswith("http://127.0.0.1:")
    assert running.warnings == []
    assert list((running.data / "run").glob("*.pid")) == []
    for name in ("worker-0", "worker-1"):
        assert (running.data / "logs" / f"{name}.log").read_text() == "worker ends\n"
    assert "api ends" in (running.data / "logs" / "api.log").read_text()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_redis_that_is_given_is_used_and_left_alone(
    settings: Callable[..., Settings], stand_ins: dict[str, str], own_redis: EmbeddedRedis
) -> None:
    with Redis.from_url(own_redis.url) as redis:
        redis.set(worker_key("elsewhere"), '{"host": "elsewhere", "pid": 1}')
        running = Running(settings(redis_url=SecretStr(own_redis.url), port=0))
        running.run(lambda: running.ready and running.pid("worker-0"), lambda: not running.pid("redis"))
        assert running.warnings == []
        assert redis.exists(worker_key("elsewhere"))


def test_an_empty_redis_is_filled_from_the_objects_of_the_folder_once(make: Callable[..., Running]) -> None:
    record = json.loads((Path(__file__).parent / "jobs" / "records" / "version-1.json").read_text())[
        "completed"
    ]
    video_id = json.loads(record["hash"]["spec"])["id"]
    running = make()
    store = FilesystemStore(running.data / "objects")
    store.put(manifest_key(video_id), record["manifest"].encode())
    store.put(init_key(video_id), b"x")
    running.run(lambda: running.ready, lambda: running.supervisor.store.get(video_id))
    assert "files are missing or cut short: chunks/000000.m4s" in running.warnings[0]
    assert running.warnings[1].endswith(": 1 restored, 1 with a problem")
    again = make()
    again.run(lambda: again.ready, lambda: again.supervisor.store.get(video_id))
    assert again.warnings == []


def test_a_child_that_dies_is_started_again(make: Callable[..., Running]) -> None:
    running = make()
    killed: dict[str, int] = {}

    def kill_all() -> bool:
        for name in ("redis", "api", "worker-0"):
            killed[name] = running.pid(name)
            os.kill(killed[name], signal.SIGKILL)
        return True

    running.run(
        lambda: running.ready,
        kill_all,
        lambda: all(running.pid(name) not in (0, pid) for name, pid in killed.items()),
    )
    assert len(running.ready) == 1
    assert sum("(signal 9) and is started again" in line for line in running.warnings) >= 3


def test_restarts_of_a_child_that_keeps_dying_become_rare(
    make: Callable[..., Running], stand_ins: dict[str, str]
) -> None:
    stand_ins["worker"] = "import time; print(time.monotonic(), flush=True); raise SystemExit(1)"
    running = make()
    log = running.data / "logs" / "worker-0.log"
    running.run(lambda: log.exists() and len(log.read_text().splitlines()) >= 5)
    times = [float(line) for line in log.read_text().splitlines()]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[3] > 3 * gaps[0] or gaps[3] > 0.35


@pytest.mark.parametrize("code", [2, 3])
def test_a_worker_that_cannot_ever_run_ends_it_with_the_workers_own_words(
    code: int, make: Callable[..., Running], stand_ins: dict[str, str]
) -> None:
    stand_ins["worker"] = (
        f"print('longtake worker: model x: no such thing', flush=True); raise SystemExit({code})"
    )
    running = make()
    with interrupted_unless_raised(), pytest.raises(UpError, match=r"^model x: no such thing$"):
        running.supervisor.run()
    assert running.ready == []
    assert list((running.data / "run").glob("*.pid")) == []


def test_an_api_that_does_not_start_ends_it(make: Callable[..., Running], stand_ins: dict[str, str]) -> None:
    stand_ins["api"] = (
        "print('2026-01-01 10:00:00,000 ERROR app.main: the API cannot start: no'); raise SystemExit(1)"
    )
    with interrupted_unless_raised(), pytest.raises(UpError, match=r"^the API cannot start: no$"):
        make().supervisor.run()


def test_warnings_of_the_children_are_passed_on(
    make: Callable[..., Running], stand_ins: dict[str, str]
) -> None:
    lines = "import sys; print('x INFO a: fine', 'x WARNING a: hot', sep=chr(10), flush=True)"
    stand_ins["worker"] = f"{lines}\n{WORKER}"
    running = make()
    running.run(lambda: running.ready, lambda: running.warnings)
    assert running.warnings == ["worker-0: x WARNING a: hot"]


def test_a_child_that_does_not_end_is_killed(
    make: Callable[..., Running], stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_WORKER_SECONDS", 0.3)
    stand_ins["worker"] = WORKER.replace("os._exit(0)", "None")
    running = make()
    running.run(lambda: running.ready)
    assert ["worker-0 did not end in time and was killed" in line for line in running.warnings] == [True]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path), DataFolder(tmp_path)
    first.acquire()
    first.sign("http://127.0.0.1:1")
    with pytest.raises(
        UpError, match=rf"in use by another longtake \(process {os.getpid()}, http://127.0.0.1:1\)"
    ):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_log_follower_tells_only_what_is_new_and_alarming(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("x ERROR old\n")
    follower = LogFollower(log)
    with log.open("a") as file:
        file.write('x INFO app.access: "GET /v1/videos?after=ERROR" 400\n')
        file.write('{"level": "INFO", "message": "GET /v1/videos?after=\\"level\\": \\"ERROR\\""}\n')
        file.write('x INFO fine\nx ERROR new\n{"level": "ERROR", "message": "json"}\nx WARN')
        file.flush()
        assert follower.alarms() == ["x ERROR new", '{"level": "ERROR", "message": "json"}']
        file.write("ING half\n")
    assert follower.alarms() == ["x WARNING half"]
    assert follower.last_line() == "x WARNING half"


def test_a_log_that_grows_long_is_put_aside_while_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOG_BYTES", 20)
    log = tmp_path / "api.log"
    follower = LogFollower(log)
    with log.open("ab", buffering=0) as child:
        child.write(b"x ERROR short\n")
        follower.rotate()
        assert not (tmp_path / "api.log.1").exists()
        child.write(b"x ERROR long\nx WARN")
        assert follower.alarms() == ["x ERROR short", "x ERROR long"]
        follower.rotate()
        child.write(b"ING new\n")
        assert follower.alarms() == ["x WARNING new"]
    assert (tmp_path / "api.log.1").read_text() == "x ERROR short\nx ERROR long\nx WARN"
    assert log.read_text() == "ING new\n"


def test_logs_do_not_grow_without_bound_while_it_runs(
    make: Callable[..., Running], stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOG_BYTES", 1000)
    stand_ins["api"] = "print('x' * 2000, flush=True)" + API
    running = make()
    running.run((running.data / "logs" / "api.log.1").exists, lambda: running.ready)
    log = (running.data / "logs" / "api.log").read_text()
    assert "xxx" not in log
    assert "api ends" in log


def test_a_long_log_is_put_aside_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LOG_BYTES", 10)
    (tmp_path / "api.log").write_text("a long log\n")
    LogFollower(tmp_path / "api.log")
    assert not (tmp_path / "api.log").exists()
    assert (tmp_path / "api.log.1").read_text() == "a long log\n"
