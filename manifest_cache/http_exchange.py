"""One request over a connection of its own: an address and a request in, the answer's head and body out.

Each manifest comes from another origin, so that there is no connection to use again and nothing for
a pool to do. h11 reads the answer, asyncio moves the bytes: no client with pools, redirects, cookies
and proxies is as quick by a third.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import h11

_READ = 64 * 1024
# Of a head that is longer nothing more is read.
_LONGEST_HEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; header names are in lower case, of several with one name the first counts."""

    status: int
    headers: dict[str, str]


class Connection:
    """A connection that carries one request and its answer.

    Raises OSError where the connection breaks, and `h11.ProtocolError` where what comes is not HTTP.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)

    async def get(self, target: str, headers: list[tuple[str, str]]) -> Answer:
        """Sends the request; returns the head of its answer. `headers` begin with `Host`."""
        return await self._request(h11.Request(method="GET", target=target, headers=headers))

    async def post(self, target: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """As `get`, with a body whose `Content-Length` is among the headers."""
        return await self._request(h11.Request(method="POST", target=target, headers=headers), body)

    async def _request(self, request: h11.Request, body: bytes = b"") -> Answer:
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(part) or b"" for part in parts))
        event = await self._next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next_event()
        if not isinstance(event, h11.Response):
            raise h11.RemoteProtocolError("what came is no answer")
        return Answer(event.status_code, _by_name(event.headers))

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The body, in pieces as they come."""
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    def close(self) -> None:
        """Nothing more is wanted, and no peer should be able to draw out the farewell."""
        self._writer.transport.abort()

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            received = await self._reader.read(_READ)
            if not received and self._http.their_state is h11.SEND_RESPONSE:
                raise h11.RemoteProtocolError("the server disconnected before it had answered")
            self._http.receive_data(received)
        return event


async def connect(address: str, port: int, *, tls: ssl.SSLContext | None, host: str) -> Connection:
    """A connection to an IP address; `host` is the name or address that its certificate must be for.

    Raises OSError where there is none; `ssl.SSLError`, which is one, where TLS fails.
    """
    name = host if tls is not None else None
    return Connection(
        *await asyncio.open_connection(address, port, ssl=tls, server_hostname=name, limit=_READ)
    )


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in headers:
        named.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return named
