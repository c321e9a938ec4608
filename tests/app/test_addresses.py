"""Which addresses a client's URL may lead to, and that the address looked at is the address connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from app.addresses import (
    AddressRefused,
    GuardedBackend,
    NameNotResolved,
    Resolver,
    is_allowed,
    parse_networks,
)
from app.settings import Settings

LOOPBACK = parse_networks("127.0.0.0/8, ::1/128")


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "100.63.0.1", "2606:4700::1111"],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:127.0.0.1",  # IPv4-mapped
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",  # NAT64
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "4000::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_every_other_address_is_refused(address: str) -> None:
    assert not is_allowed(ip_address(address))
    assert not is_allowed(ip_address(address), parse_networks("12.0.0.0/8, 2a00::/16"))


def test_the_operator_allows_networks_by_name_and_nothing_beside_them() -> None:
    allowed = parse_networks("10.1.0.0/16, ::1/128,")
    assert is_allowed(ip_address("10.1.2.3"), allowed)
    assert is_allowed(ip_address("::1"), allowed)
    assert not is_allowed(ip_address("10.2.0.1"), allowed)
    assert not is_allowed(ip_address("::ffff:10.1.2.3"), allowed)


def test_a_network_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(ValidationError, match="webhook_allowed_networks"):
        Settings(webhook_allowed_networks="10.0.0.1/8")  # host bits set: not what was meant


class Names:
    """A name server of the test: each look-up of a name gives the next of its answers."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers.pop(0)


@contextmanager
def listening(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A server on loopback that answers 204; yields its port and the requests it got."""
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(near, server_side=True) if context else near as connection:
                    requests.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], requests
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def get(url: str, backend: GuardedBackend, context: ssl.SSLContext | None = None) -> int:
    async def call() -> int:
        async with httpcore.AsyncConnectionPool(ssl_context=context, network_backend=backend) as pool:
            answer = await pool.request("GET", url, extensions={"timeout": {"connect": 1.0, "read": 5.0}})
            return answer.status

    return asyncio.run(call())


def test_the_name_is_resolved_once_and_its_checked_address_is_called() -> None:
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    with listening() as (port, requests):
        assert get(f"http://hooks.example.test:{port}/x", GuardedBackend(LOOPBACK, names)) == 204
    assert names.asked == [("hooks.example.test", port)]
    assert f"Host: hooks.example.test:{port}".encode() in requests[0]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["fe80::1%1"]])
def test_a_name_with_one_bad_address_is_not_called_at_all(addresses: list[str]) -> None:
    with listening() as (port, requests):
        with pytest.raises(AddressRefused):
            get(f"http://hooks.example.test:{port}/", GuardedBackend((), Names(addresses)))
        # The second look-up of a rebinding name is checked like the first.
        twice = GuardedBackend(LOOPBACK, Names(["127.0.0.1"], ["10.0.0.1"]))
        assert get(f"http://hooks.example.test:{port}/", twice) == 204
        with pytest.raises(AddressRefused):
            get(f"http://hooks.example.test:{port}/", twice)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_every_spelling_of_loopback_is_refused_by_the_system_s_own_resolver(host: str) -> None:
    resolver = Resolver(1)
    with listening() as (port, requests):
        with pytest.raises(AddressRefused):
            get(f"http://{host}:{port}/", GuardedBackend((), resolver))
        assert get(f"http://127.1:{port}/", GuardedBackend(LOOPBACK, resolver)) == 204
    assert len(requests) == 1
    resolver.close()


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with listening() as (port, requests):
        assert get(f"http://h.test:{port}/", GuardedBackend(LOOPBACK, Names(["::1", "127.0.0.1"]))) == 204
    assert len(requests) == 1


def test_a_name_without_an_address_and_one_that_is_none() -> None:
    with pytest.raises(NameNotResolved):
        get("http://h.test/", GuardedBackend((), Names([])))
    resolver = Resolver(1)
    with pytest.raises(NameNotResolved):
        get("http://nothing.invalid/", GuardedBackend((), resolver))
    with pytest.raises(NameNotResolved):
        get(f"http://{'a' * 64}.example/", GuardedBackend((), resolver))
    resolver.close()


def test_tls_proves_the_name_in_the_url_and_not_the_address(tmp_path: Path) -> None:
    authority, server = _certificates(tmp_path, "hooks.example.test")
    with listening(server) as (port, requests):
        names = Names(["127.0.0.1"], ["127.0.0.1"])
        backend = GuardedBackend(LOOPBACK, names)
        assert get(f"https://hooks.example.test:{port}/", backend, authority) == 204
        with pytest.raises(httpcore.ConnectError):
            get(f"https://other.example.test:{port}/", backend, authority)
    assert len(requests) == 1


def _certificates(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's context that trusts the certificate of `name`, and the server's that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    return ssl.create_default_context(cafile=str(path)), server
