"""Reads an HTTP/1 answer: the bytes of a connection in, its head and the pieces of its body out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import h11

from discovery.wire import Wire

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""The name of a header."""

# Of a head that is longer nothing more is read.
_LONGEST_HEAD = 64 * 1024
# The head of an answer with a document, as servers send it at once and without anything odd in it.
_PLAIN = re.compile(rb"HTTP/1\.[01] 200(?: [\t -~]*+)?\r\n((?:%s:[\t -~]*+\r\n)*+)\r\n" % TOKEN)
_FIELD = re.compile(rb"([^:]++):[\t ]*+([\t -~]*+)\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; header names are in lower case, of several with one name the first counts."""

    status: int
    headers: dict[str, str]


class Reading(Protocol):
    """The body of an answer while it comes."""

    async def read(self) -> bytes:
        """Its next piece; nothing at its end."""


async def read_answer(wire: Wire) -> tuple[Answer, Reading]:
    """The head of the answer that comes next, and what its body is read from.

    h11 reads whatever is not quite plain, and says what is wrong with it: raises `h11.ProtocolError`.
    """
    received = await wire.read()
    if (head := _PLAIN.match(received)) is not None:
        fields = _FIELD.findall(head[1])
        headers = _by_name(fields)
        # Who says the length twice, or that it is chunked as well, may mean either.
        if len(headers) == len(fields) and "transfer-encoding" not in headers:
            length = headers.get("content-length", "")
            if _LENGTH.fullmatch(length):
                return Answer(200, headers), _PlainBody(wire, received[head.end() :], int(length))
    odd = _OddAnswer(wire, received)
    return await odd.head(), odd


class _PlainBody:
    """A body of so many bytes, of which some may have come."""

    def __init__(self, wire: Wire, begun: bytes, length: int) -> None:
        self._wire = wire
        self._begun = begun
        self._length = length
        self._left = length

    async def read(self) -> bytes:
        if not self._left:
            return b""
        piece, self._begun = self._begun or await self._wire.read(), b""
        if not piece:
            raise h11.RemoteProtocolError(
                "peer closed connection without sending complete message body "
                f"(received {self._length - self._left} bytes, expected {self._length})"
            )
        piece = piece[: self._left]
        self._left -= len(piece)
        return piece


class _OddAnswer:
    """An answer of any kind, read by h11."""

    def __init__(self, wire: Wire, received: bytes) -> None:
        self._wire = wire
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)
        # It was sent already: how an answer is read depends on nothing else in it.
        self._http.send(
            h11.Request(method="GET", target="/", headers=[("Host", ""), ("Connection", "close")])
        )
        self._http.send(h11.EndOfMessage())
        self._receive(received)

    async def head(self) -> Answer:
        event = await self._next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next_event()
        if not isinstance(event, h11.Response):
            raise h11.RemoteProtocolError("what came is no answer")
        return Answer(event.status_code, _by_name(event.headers))

    async def read(self) -> bytes:
        while isinstance(event := await self._next_event(), h11.Data):
            if event.data:
                return bytes(event.data)
        return b""

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._receive(await self._wire.read())
        return event

    def _receive(self, received: bytes) -> None:
        if not received and self._http.their_state is h11.SEND_RESPONSE:
            raise h11.RemoteProtocolError("the server disconnected before it had answered")
        self._http.receive_data(received)


def _by_name(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in fields:
        named.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").rstrip("\t "))
    return named
