"""Makes the asynchronous HTTP clients: the one place that decides what all of them have in common.

None looks at the environment's proxies or .netrc, keeps cookies, follows redirects, sends a request
twice or decompresses bodies by itself; who uses one bounds what it takes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver


class ConnectionBroke(aiohttp.ClientConnectionError):
    """A connection ended before the head of an answer; whether the request was acted on is unknown."""


_FAREWELL = 1.0
"""Seconds at most in which the loop sees the ends of connections that are cut."""

_sockets: weakref.WeakKeyDictionary[aiohttp.ClientSession, weakref.WeakSet[socket.socket]] = (
    weakref.WeakKeyDictionary()
)
"""Those that a session opened: aiohttp does not tell when the last of them is closed."""

SocketOption = tuple[int, int, int]
"""Level, name and value, as `socket.setsockopt` takes them."""

# A connection that died silently (a firewall that forgot it, a machine that lost its power) is
# noticed within a minute, though a blocking query is silent for longer than that by nature.
KEEPALIVE: Sequence[SocketOption] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        # macOS has the first under another name and can do with its default.
        if hasattr(socket, name)
    ),
)


def open_session(
    *,
    tls: ssl.SSLContext | None = None,
    resolver: AbstractResolver | None = None,
    unix_socket: str = "",
    max_idle_seconds: float = 0.0,
) -> aiohttp.ClientSession:
    """A client for the running event loop.

    `tls` is for https. Names are looked up by `resolver`, or by the system; each connection asks
    again. With `unix_socket` all requests go through that socket. Connections that were idle for
    `max_idle_seconds` are closed; with 0 none is used twice.
    """
    kept: dict[str, Any] = (
        {"keepalive_timeout": max_idle_seconds} if max_idle_seconds else {"force_close": True}
    )
    sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
    connector: aiohttp.BaseConnector
    if unix_socket:
        connector = aiohttp.UnixConnector(path=unix_socket, limit=0, **kept)
    else:
        connector = aiohttp.TCPConnector(
            ssl=tls if tls is not None else True,
            resolver=resolver,
            use_dns_cache=False,
            limit=0,
            socket_factory=lambda address: _socket(address, sockets),
            **kept,
        )
    session = aiohttp.ClientSession(
        connector=connector,
        middlewares=(_send_once,),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(),
    )
    _sockets[session] = sockets
    return session


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Gives a lost connection another name than those after which aiohttp repeats a GET, PUT or DELETE.

    A PUT that is repeated could create a second session in Consul; who asks decides what to repeat.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBroke(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "the server disconnected"


def _socket(address: tuple[Any, ...], sockets: weakref.WeakSet[socket.socket]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    sockets.add(made)
    for option in KEEPALIVE:
        made.setsockopt(*option)
    return made


async def close_session(session: aiohttp.ClientSession) -> None:
    """Closes it, and lets the loop see the ends of its connections."""
    await session.close()
    await asyncio.sleep(0)
    sockets = [one for one in _sockets.pop(session, ()) if one.fileno() != -1]
    for one in sockets:
        # TLS would wait half a minute for a server that is busy with a request which nobody awaits now.
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + _FAREWELL
    while any(one.fileno() != -1 for one in sockets) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0)
