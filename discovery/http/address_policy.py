"""Decides which addresses may be fetched from.

A registry is told by anybody that there is a module at an address: without this, whoever may
register could have Lictor ask any server that it reaches, a cloud's metadata service above all.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
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
        # Metadata services that are elsewhere, most of them amid unique-local addresses:
        "fd00:ec2::/32",  # AWS, and its agent that hands out the rights of pods
        "fd20:ce::254/128",  # Google Cloud
        "168.63.129.16/32",  # Azure
        "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud
        "192.0.0.192/32",  # Oracle Cloud, as it was first
        "100.100.100.200/32",  # Alibaba Cloud
        "fd00:100::100:200/128",
        "fd00:a9fe:a9fe::1/128",  # Akamai (Linode)
        "fd00:42::42/128",  # Scaleway
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

        # A host's instances have one address, and it is judged for each of their fetches.
        self._remembered = functools.lru_cache(maxsize=4096)(self._refusal)

    def refusal(self, address: str) -> str | None:
        """Why an IP address must not be connected to, None where it may be."""
        return self._remembered(address)

    def _refusal(self, address: str) -> str | None:
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
    """Asks the system for the addresses of names, so many at a time, each in a thread of its own.

    The threads are daemons: a name server that does not answer neither holds up anything else nor
    keeps the process from ending.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_NAMES_AT_ONCE)
        self._asked: set[asyncio.Future[list[str]]] = set()

    def close(self) -> None:
        """Gives up what is being looked up."""
        for found in self._asked:
            found.cancel()

    async def __call__(self, name: str) -> list[str]:
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        self._asked.add(found)
        found.add_done_callback(self._asked.discard)

        def look_up() -> None:
            try:
                settle = functools.partial(_settle, found, _system_addresses(name))
            except (OSError, UnicodeError) as exc:
                settle = functools.partial(_fail, found, exc)
            # The loop may have ended meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)
                loop.call_soon_threadsafe(self._places.release)

        try:
            threading.Thread(target=look_up, name="lictor resolver", daemon=True).start()
        except RuntimeError as exc:
            # The system has no more of them: that may pass, and its place is not to be lost.
            self._places.release()
            found.cancel()
            raise OSError(str(exc)) from exc
        return await found


def _settle(found: asyncio.Future[list[str]], addresses: list[str]) -> None:
    if not found.cancelled():
        found.set_result(addresses)


def _fail(found: asyncio.Future[list[str]], error: Exception) -> None:
    if not found.cancelled():
        found.set_exception(error)


def _system_addresses(name: str) -> list[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _judged(address: str) -> Address:
    """The address that is reached: an IPv4-mapped IPv6 address leads to the IPv4 address within."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
