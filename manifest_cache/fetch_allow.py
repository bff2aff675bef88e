"""Which addresses may be fetched from: networks and a host in, the addresses to connect to out.

A registry is told by anybody that there is a module at an address: without this, whoever may
register could have Lictor ask any server that it reaches, a cloud's metadata service above all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""A host name in, its IP addresses out; raises OSError where it has none."""

DEFAULT_ALLOW: tuple[Network, ...] = tuple(
    ipaddress.ip_network(one)
    for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "::1/128", "fc00::/7")
)
"""Private, loopback and unique-local addresses."""

_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; most clouds' metadata services are at 169.254.169.254
        "fe80::/10",  # link-local
        "fd00:ec2::254/128",  # the metadata service of AWS
        "100.100.100.200/32",  # the metadata service of Alibaba Cloud
    )
)
_NAMES_AT_ONCE = 16


def network(said: str | Network) -> Network:
    """A network in CIDR notation, or one address; raises ValueError with advice."""
    text = str(said)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'"{text}" is no network: write one like 10.0.0.0/8 or fd00::/8') from None
    raise ValueError(f'"{text}" has bits set beyond its prefix: write {wider}, or the address alone')


class FetchAllow:
    """Judges addresses by the networks that are allowed.

    Link-local addresses and those of metadata services are never allowed by a network that is
    wider than the address itself. `setting` is what a refusal names as the place to allow more.
    """

    def __init__(self, networks: Sequence[Network], setting: str = "LICTOR_FETCH_ALLOW") -> None:
        self._setting = setting
        self._networks = tuple(networks)
        self._single = tuple(one for one in networks if one.num_addresses == 1)

    def refusal(self, address: str) -> str | None:
        """Why an IP address must not be connected to, None where it may be."""
        judged = _judged(address)
        if any(judged in network for network in _NEVER):
            if any(judged in network for network in self._single):
                return None
            return (
                f"{address} is a link-local address or that of a metadata service, and such are not asked "
                f"unless {self._setting} names {judged}/{judged.max_prefixlen} itself"
            )
        if any(judged in network for network in self._networks):
            return None
        return (
            f"{address} is in none of the networks of {self._setting}: add its network there if it is "
            "to be reached"
        )


class SystemResolver:
    """Asks the system for the addresses of names, in threads of its own.

    A name server that does not answer takes only these; nothing else waits for them.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NAMES_AT_ONCE, thread_name_prefix="lictor resolver")

    async def __call__(self, name: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _system_addresses, name)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _system_addresses(name: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


def _judged(address: str) -> Address:
    """The address that is reached: an IPv4-mapped IPv6 address leads to the IPv4 address within."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
