"""Real object stores on loopback: a folder, moto over HTTP, and OpenStack Swift with its S3 API.

moto is quick and accepts everything, wrong keys included. Swift is an independent implementation that checks
signatures and expiry, so what is said about presigned URLs and credentials is proved on Swift.
"""

import copy
import ctypes
import importlib.util
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from app.storage import ObjectStore
from app.storage.filesystem import FilesystemStore
from app.storage.s3 import S3Store


@dataclass
class S3Server:
    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    def open(self, bucket: str = "longtake", **changed: str) -> S3Store:
        settings = {
            "endpoint_url": self.endpoint_url,
            "region": "us-east-1",
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return S3Store(bucket, **(settings | changed))

    @cached_property
    def shared(self) -> S3Store:
        return self.open()

    def open_empty(self) -> S3Store:
        """A fresh prefix on the connection of an earlier test: a client costs 100 ms to make."""
        store = copy.copy(self.shared)
        store._prefix = f"tests/{secrets.token_hex(8)}/"
        return store


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3Server(f"http://{host}:{port}", "test", "test-secret")
    found.open().ensure_bucket()
    yield found
    server.stop()


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if importlib.util.find_spec("swift") is None:
        pytest.skip("OpenStack Swift is not installed")
    base = tmp_path_factory.mktemp("swift")
    try:
        os.setxattr(base, "user.test", b"1")
    except OSError:
        pytest.skip("Swift keeps its metadata in extended attributes, which this file system lacks")
    ports = _free_ports("proxy", "object", "container", "account")
    _configure_swift(base, ports)
    servers = [_start_swift(base, role) for role in ports]
    found = S3Server(f"http://127.0.0.1:{ports['proxy']}", "test:tester", "testing")
    try:
        _wait_for_swift(ports, servers)
        found.open().ensure_bucket()
        yield found
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(60)


@pytest.fixture(params=["filesystem", "moto", "swift"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "filesystem":
        return FilesystemStore(tmp_path / "objects")
    server: S3Server = request.getfixturevalue(request.param)
    return server.open_empty()


@pytest.fixture(params=["moto", "swift"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    """A running server of each kind that speaks S3."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


def _free_ports(*roles: str) -> dict[str, int]:
    sockets = {role: socket.create_server(("127.0.0.1", 0)) for role in roles}
    ports = {role: one.getsockname()[1] for role, one in sockets.items()}
    for one in sockets.values():
        one.close()
    return ports


def _configure_swift(base: Path, ports: dict[str, int]) -> None:
    etc = base / "etc"
    for folder in (etc, base / "devices" / "d1"):
        folder.mkdir(parents=True)
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = t\nswift_hash_path_suffix = t\n"
        "[storage-policy:0]\nname = gold\ndefault = yes\n"
    )
    common = textwrap.dedent(
        f"""
        [DEFAULT]
        bind_ip = 127.0.0.1
        workers = 0
        user = {pwd.getpwuid(os.geteuid()).pw_name}
        swift_dir = {etc}
        devices = {base / "devices"}
        mount_check = false
        fallocate_reserve = 0
        disable_fallocate = true
        log_udp_host = 127.0.0.1
        log_udp_port = 9
        """
    )
    rings = {role: port for role, port in ports.items() if role != "proxy"}
    for role, port in rings.items():
        (etc / f"{role}-server.conf").write_text(
            f"{common}bind_port = {port}\n[pipeline:main]\npipeline = {role}-server\n"
            f"[app:{role}-server]\nuse = egg:swift#{role}\n"
        )
    filters = {
        "catch_errors": "",
        "gatekeeper": "",
        "healthcheck": "",
        "proxy-logging": "",
        "cache": "memcache_servers = 127.0.0.1:9",
        "listing_formats": "",
        "bulk": "",
        "s3api": "s3_acl = false\ncheck_bucket_owner = false\nlocation = us-east-1",
        "tempauth": "user_test_tester = testing .admin",
        "slo": "",
        "dlo": "",
    }
    entry_points = {"proxy-logging": "proxy_logging", "cache": "memcache"}
    sections = "".join(
        f"[filter:{name}]\nuse = egg:swift#{entry_points.get(name, name)}\n{options}\n"
        for name, options in filters.items()
    )
    (etc / "proxy-server.conf").write_text(
        f"{common}bind_port = {ports['proxy']}\n"
        f"[pipeline:main]\npipeline = {' '.join(filters)} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        f"{sections}"
    )
    # One process for the three rings; the command line tool would take nine.
    build = textwrap.dedent(
        """
        import sys
        from swift.common.ring import RingBuilder
        for role, port in zip(sys.argv[2::2], sys.argv[3::2]):
            builder = RingBuilder(0, 1, 0)
            builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
            builder.rebalance()
            builder.get_ring().save(f"{sys.argv[1]}/{role}.ring.gz")
        """
    )
    arguments = [text for role, port in rings.items() for text in (role, str(port))]
    subprocess.run([sys.executable, "-c", build, str(etc), *arguments], check=True)


def _start_swift(base: Path, role: str) -> subprocess.Popen[bytes]:
    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing is left running, however the tests end.

    libc = ctypes.CDLL(None)
    program = Path(sys.executable).parent / f"swift-{role}-server"
    with (base / f"{role}.log").open("wb") as log:
        return subprocess.Popen(
            [program, base / "etc" / f"{role}-server.conf"],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )


def _wait_for_swift(ports: dict[str, int], servers: list[subprocess.Popen[bytes]]) -> None:
    """Until all four answer: a proxy that meets one too early asks it for nothing for a minute."""
    deadline = time.monotonic() + 180
    with httpx.Client(trust_env=False) as client:
        for role, port in ports.items():
            health = role == "proxy"
            url = f"http://127.0.0.1:{port}/" + ("healthcheck" if health else "")
            while True:
                assert all(server.poll() is None for server in servers), "a Swift server ended at once"
                assert time.monotonic() < deadline, "Swift did not start within 180 seconds"
                try:
                    if client.get(url).status_code == 200 or not health:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
