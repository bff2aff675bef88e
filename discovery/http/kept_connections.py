"""Exchanges with one server over a few connections that are kept: requests in, answers and their bodies out.

Whoever waits for Consul's answer to a change waits for this. A client for any number of servers,
with redirects, cookies and an event loop to choose, takes six times the processor's time.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from discovery.http.answer import Answer
from discovery.http.exchange import Connection
from discovery.http.wire import Wire

# What has come and was not taken yet; more is read once it was.
_MOST_WAITING = 1024 * 1024
# Between tries of a host's addresses, in seconds, as RFC 8305 has it.
_NEXT_ADDRESS = 0.25


@dataclass(frozen=True, slots=True)
class Server:
    """Where it listens: a host and a port, or the path of a Unix socket.

    `tls` is None for plain HTTP. The certificate must be for `name`.
    """

    host: str
    port: int
    unix_socket: str | None
    tls: ssl.SSLContext | None
    name: str
    socket_options: Sequence[tuple[int, int, int]] = ()


class Request(NamedTuple):
    """What is asked; `headers` begin with `Host`, and tell the length of a body."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""


class TookTooLong(Exception):
    """Nothing came of an exchange in time: no connection was free, none was made, or no answer came."""

    def __init__(self, what: Literal["free", "connect", "answer"]) -> None:
        super().__init__(what)
        self.what = what


class KeptConnections:
    """At most `max_connections` are open; one that was not used for `expiry` seconds is not used again."""

    def __init__(self, server: Server, *, max_connections: int, expiry: float) -> None:
        self._server = server
        self._expiry = expiry
        self._places = asyncio.Semaphore(max_connections)
        self._idle: list[_Kept] = []
        if server.tls is not None:
            server.tls.set_alpn_protocols(["http/1.1"])

    async def exchange(
        self, request: Request, take: Callable[[bytes], None], *, limit: float, hold: float = 0.0
    ) -> Answer:
        """Sends a request; returns the head of its answer once its body, piece by piece, went to `take`.

        A free connection, a new one, and each piece of the answer may take `limit` seconds, the pieces
        `hold` longer. One that is cancelled or fails closes its connection. Raises TookTooLong,
        OSError where the connection breaks, `ssl.SSLError` (which is one) where TLS fails, and
        `h11.ProtocolError` where what comes is not HTTP.
        """
        await self._take_place(limit)
        kept: _Kept | None = None
        try:
            kept = self._take_idle() or await self._connect(limit)
            answer = await _exchanged(kept.connection, request, take, limit + hold)
        except BaseException:
            if kept is not None:
                kept.abort()
            self._places.release()
            raise
        self._keep(kept)
        self._places.release()
        return answer

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        for kept in idle:
            kept.abort()
        for kept in idle:
            await kept.closed

    async def _take_place(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit if self._places.locked() else None):
                await self._places.acquire()
        except TimeoutError as exc:
            raise TookTooLong("free") from exc

    def _take_idle(self) -> _Kept | None:
        while self._idle:
            kept = self._idle.pop()
            if kept.connection.is_ready and time.monotonic() - kept.idle_since < self._expiry:
                return kept
            kept.abort()
        return None

    def _keep(self, kept: _Kept) -> None:
        if kept.connection.is_ready:
            kept.idle_since = time.monotonic()
            self._idle.append(kept)
        else:
            kept.abort()

    async def _connect(self, limit: float) -> _Kept:
        try:
            async with asyncio.timeout(limit) as within:
                return await self._connected()
        except TimeoutError as exc:
            if within.expired():
                raise TookTooLong("connect") from exc
            raise
        except OSError as exc:
            if _tells_of_refusal(exc):
                raise ConnectionRefusedError(errno.ECONNREFUSED, str(exc)) from exc
            raise

    async def _connected(self) -> _Kept:
        loop, server = asyncio.get_running_loop(), self._server
        name = server.name if server.tls is not None else None
        if server.unix_socket is not None:
            _, kept = await loop.create_unix_connection(
                _Kept, server.unix_socket, ssl=server.tls, server_hostname=name
            )
        else:
            _, kept = await loop.create_connection(
                _Kept,
                server.host,
                server.port,
                ssl=server.tls,
                server_hostname=name,
                happy_eyeballs_delay=None if _is_address(server.host) else _NEXT_ADDRESS,
            )
        kept.set_options(server.socket_options)
        return kept


class _Kept(Wire):
    """The bytes of a connection that is kept, and the exchanges over it."""

    def __init__(self) -> None:
        super().__init__(_MOST_WAITING)
        self.connection = Connection(self)
        self.idle_since = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_options(self, options: Sequence[tuple[int, int, int]]) -> None:
        connected: socket.socket = self._transport.get_extra_info("socket")
        for option in options:
            connected.setsockopt(*option)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)


async def _exchanged(
    connection: Connection, request: Request, take: Callable[[bytes], None], limit: float
) -> Answer:
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(limit) as within:
            answer = await connection.request(*request)
            while piece := await connection.read():
                take(piece)
                within.reschedule(clock() + limit)
            return answer
    except TimeoutError as exc:
        # The kernel's own, of a connection that died silently, is another.
        if within.expired():
            raise TookTooLong("answer") from exc
        raise


def _is_address(host: str) -> bool:
    """Whether there is nothing to race for: asyncio's race may lose a socket when it is cancelled."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _tells_of_refusal(exc: OSError) -> bool:
    """asyncio tells it in words alone where a name has several addresses and none takes a connection."""
    return exc.errno is None and f"[Errno {errno.ECONNREFUSED}]" in str(exc)
