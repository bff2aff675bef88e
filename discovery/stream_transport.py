"""Carries httpx' requests to one server: requests in, answers out, over a few connections that are kept.

It stands in for httpx' own transport, which takes three times the processor's time for each answer:
a pool for any number of servers, and a layer for other event loops than asyncio's. h11 reads and
writes HTTP, asyncio moves the bytes. Whoever waits for Consul's answer to a change waits for this.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import h11
import httpx

from discovery.wire import Wire

# Of a head that is longer nothing more is read.
_LONGEST_HEAD = 64 * 1024
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


class StreamTransport(httpx.AsyncBaseTransport):
    """At most `max_connections` are open; one that was not used for `expiry` seconds is not used again.

    Wherever a request is addressed to, it goes to `server`. A request that is cancelled closes its
    connection. Raises what httpx' own transport raises.
    """

    def __init__(self, server: Server, *, max_connections: int, expiry: float) -> None:
        self._server = server
        self._expiry = expiry
        self._places = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        if server.tls is not None:
            server.tls.set_alpn_protocols(["http/1.1"])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        with _limited_to("pool", limits):
            async with asyncio.timeout(limits["pool"]):
                await self._places.acquire()
        connection: _Connection | None = None
        try:
            connection = self._take_idle() or await self._connect(limits)
            body = await request.aread()
            with _limited_to("read", limits):
                head = await connection.exchange(request, body, limits["read"])
        except BaseException:
            self.free(connection)
            raise
        return httpx.Response(
            head.status_code,
            headers=list(head.headers),
            stream=_Body(self, connection, limits),
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()
        for connection in idle:
            await connection.closed

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_ready and time.monotonic() - connection.idle_since < self._expiry:
                return connection
            connection.abort()
        return None

    def free(self, connection: _Connection | None) -> None:
        """Keeps a connection whose answer is complete, and closes any other."""
        if connection is not None:
            if connection.rest():
                self._idle.append(connection)
            else:
                connection.abort()
        self._places.release()

    async def _connect(self, limits: dict[str, float | None]) -> _Connection:
        loop, server = asyncio.get_running_loop(), self._server
        name = server.name if server.tls is not None else None
        with _limited_to("connect", limits):
            async with asyncio.timeout(limits["connect"]):
                if server.unix_socket is not None:
                    path = server.unix_socket
                    _, connection = await loop.create_unix_connection(
                        _Connection, path, ssl=server.tls, server_hostname=name
                    )
                else:
                    _, connection = await loop.create_connection(
                        _Connection,
                        server.host,
                        server.port,
                        ssl=server.tls,
                        server_hostname=name,
                        happy_eyeballs_delay=None if _is_address(server.host) else _NEXT_ADDRESS,
                    )
        connection.set_options(server.socket_options)
        return connection


class _Connection(Wire):
    """One connection, which carries an exchange after the other.

    Raises OSError where it breaks, h11.ProtocolError where what comes is not HTTP, TimeoutError.
    """

    def __init__(self) -> None:
        super().__init__(_MOST_WAITING)
        self.idle_since = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def set_options(self, options: Sequence[tuple[int, int, int]]) -> None:
        connected: socket.socket = self._transport.get_extra_info("socket")
        for option in options:
            connected.setsockopt(*option)

    @property
    def is_ready(self) -> bool:
        """Whether the server is still there; one that spoke unasked has said farewell."""
        return self.is_silent and not self._http.trailing_data[0]

    def rest(self) -> bool:
        """Whether another exchange can follow."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and self.is_ready:
            self._http.start_next_cycle()
            self.idle_since = time.monotonic()
            return True
        return False

    async def exchange(self, request: httpx.Request, body: bytes, limit: float | None) -> h11.Response:
        """Sends a request; returns the head of its answer, which comes within `limit` seconds."""
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        parts = (head, h11.Data(data=body), h11.EndOfMessage())
        self.write(b"".join(self._http.send(part) or b"" for part in parts))
        event = await self.next_event(limit)
        while isinstance(event, h11.InformationalResponse):
            event = await self.next_event(limit)
        if not isinstance(event, h11.Response):
            raise h11.RemoteProtocolError("what came is no answer")
        return event

    async def next_event(self, limit: float | None) -> object:
        """The next part of an answer; each piece of it comes within `limit` seconds."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(limit):
                received = await self.read()
            if not received and self._http.their_state is h11.SEND_RESPONSE:
                raise h11.RemoteProtocolError("the server disconnected before it had answered")
            self._http.receive_data(received)
        return event


class _Body(httpx.AsyncByteStream):
    """The body of an answer, in pieces as they come; its connection is free once it is closed."""

    def __init__(
        self, transport: StreamTransport, connection: _Connection, limits: dict[str, float | None]
    ) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        self._limits = limits

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._connection is not None
        with _limited_to("read", self._limits):
            while isinstance(event := await self._connection.next_event(self._limits["read"]), h11.Data):
                yield bytes(event.data)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.free(connection)


_TIMEOUTS: dict[str, type[httpx.TimeoutException]] = {
    "pool": httpx.PoolTimeout,
    "connect": httpx.ConnectTimeout,
    "read": httpx.ReadTimeout,
}


@contextmanager
def _limited_to(what: str, limits: dict[str, float | None]) -> Iterator[None]:
    """The one border at which what breaks an exchange becomes httpx' own."""
    try:
        yield
    except TimeoutError as exc:
        raise _TIMEOUTS[what](f"took longer than {limits[what]} s") from exc
    except OSError as exc:
        if what == "connect":
            raise httpx.ConnectError(str(exc)) from _told_apart(exc)
        raise httpx.ReadError(str(exc)) from exc
    except h11.LocalProtocolError as exc:
        raise httpx.LocalProtocolError(str(exc)) from exc
    except h11.RemoteProtocolError as exc:
        raise httpx.RemoteProtocolError(str(exc)) from exc


def _is_address(host: str) -> bool:
    """Whether there is nothing to race for: asyncio's race may lose a socket when it is cancelled."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _told_apart(exc: OSError) -> OSError:
    """What asyncio tells in words alone where a name has several addresses and none takes a connection."""
    if exc.errno is None and f"[Errno {errno.ECONNREFUSED}]" in str(exc):
        return ConnectionRefusedError(errno.ECONNREFUSED, str(exc))
    return exc
