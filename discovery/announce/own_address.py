"""Finds this machine's address as a given peer sees it."""

from __future__ import annotations

import asyncio
import socket

from discovery.errors import RegistryUnavailable


async def own_address_towards(host: str, port: int) -> str:
    """This machine's address on the way to a peer; nothing is sent to find it.

    Raises RegistryUnavailable where the peer's name or the way to it is not known.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as exc:
        raise RegistryUnavailable(f"the address of {host!r} is not known: {exc}") from exc
    reasons = []
    for family, kind, protocol, _, peer in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # Connecting a datagram socket only chooses the way.
                probe.connect(peer)
                return str(probe.getsockname()[0]).partition("%")[0]
        except OSError as exc:
            reasons.append(str(exc))
    raise RegistryUnavailable(f"no way to {host!r}: {'; '.join(reasons)}")
