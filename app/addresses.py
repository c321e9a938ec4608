"""Which network addresses this service connects to on a client's behalf, checked when the connection is made.

A client's URL must not reach what only this machine or its network can: metadata services, databases, other tenants'
hosts. The name in the URL proves nothing, and may resolve to something else a moment after it was looked at. So
`GuardedBackend` resolves the name itself, looks at every address, and connects to an address it has looked at.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpcore

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

# IANA's special-purpose registry: everything that is not somebody's public address.
_REFUSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network, unspecified
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link local, metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# Public IPv6 is 2000::/3. Outside are ::, ::1, IPv4-mapped and -compatible forms, NAT64, ULA, link local, multicast.
_PUBLIC_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",
    )
)

# Addresses of one name that are tried before the attempt counts as failed.
_TRIED = 4


class AddressRefused(Exception):
    """The name has an address that clients may not make this service connect to."""


class NameNotResolved(Exception):
    """The name has no address."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, separated by commas. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def is_allowed(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether a client's URL may lead to this address: a public one, or one in the operator's `allowed` networks."""
    if any(address.version == network.version and address in network for network in allowed):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    return address in _PUBLIC_IPV6 and not any(address in network for network in _REFUSED_IPV6)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """httpcore's way to the network, through the check. TLS and Host keep the URL's name, as that is decided above."""

    def __init__(self, allowed: Iterable[Network], resolve: Resolve) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to the first address that answers. Raises `AddressRefused` if any of them is not allowed,
        `NameNotResolved`, and httpcore's own errors."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        # One bad address among good ones is how rebinding begins: the whole name is refused.
        if not all(is_allowed(ip_address(address), self._allowed) for address in addresses):
            raise AddressRefused(host)
        failure: Exception = NameNotResolved(host)
        for address in addresses[:_TRIED]:
            try:
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await asyncio.sleep(seconds)


class Resolver:
    """The system's resolver in threads of its own: a name server that never answers holds up nothing else."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a name, in the order to try them. Raises `NameNotResolved`."""
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        except (OSError, UnicodeError) as error:
            raise NameNotResolved(host) from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        """Waits for nobody: what is being looked up is of no more use."""
        self._threads.shutdown(wait=False, cancel_futures=True)
