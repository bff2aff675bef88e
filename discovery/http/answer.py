"""Reads an HTTP/1 answer: the bytes of a connection in, its head and the pieces of its body out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import h11

from discovery.http.wire import Wire

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""The name of a header."""

# Of a head that is longer nothing more is read.
_LONGEST_HEAD = 64 * 1024
# The head of an answer with a document, as servers send it at once and without anything odd in it.
_PLAIN = re.compile(rb"HTTP/1\.([01]) 200(?: [\t -~]*+)?\r\n((?:%s:[\t -~]*+\r\n)*+)\r\n" % TOKEN)
_FIELD = re.compile(rb"([^:]++):[\t ]*+([\t -~]*+)\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
# The line before a chunk, the lines after the last one, and what may yet become either.
_CHUNK = re.compile(rb"(?=0{0,7}[1-9A-Fa-f])([0-9A-Fa-f]{1,8})\r\n")
_LAST_CHUNK = re.compile(rb"0{1,8}\r\n\r\n")
_BEGUN_LINE = re.compile(rb"[0-9A-Fa-f]{0,8}(?:\r(?:\n\r?)?)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; header names are in lower case, of several with one name the first counts."""

    status: int
    headers: dict[str, str]


class Reading(Protocol):
    """The body of an answer while it comes."""

    @property
    def is_over(self) -> bool:
        """Whether all of it was read, nothing came behind it, and the connection can carry another answer."""

    async def read(self) -> bytes:
        """Its next piece; nothing at its end."""


async def read_answer(wire: Wire) -> tuple[Answer, Reading]:
    """The head of the answer that comes next, and what its body is read from.

    h11 reads whatever is not quite plain, and says what is wrong with it: raises `h11.ProtocolError`.
    """
    received = await wire.read()
    if (head := _PLAIN.match(received)) is not None:
        fields = _FIELD.findall(head[2])
        headers = _by_name(fields)
        # Who says anything twice may mean either.
        if len(headers) == len(fields):
            answer, begun = Answer(200, headers), received[head.end() :]
            length, coding = headers.get("content-length"), headers.get("transfer-encoding")
            keeps = head[1] == b"1" and headers.get("connection", "keep-alive") == "keep-alive"
            if coding is None and length is not None and _LENGTH.fullmatch(length):
                return answer, _PlainBody(wire, begun, int(length), keeps)
            if coding == "chunked" and length is None and head[1] == b"1":
                return answer, _ChunkedBody(wire, received[: head.end()], begun, keeps)
    odd = _OddAnswer(wire, received)
    return await odd.head(), odd


class _PlainBody:
    """A body of so many bytes, of which some may have come."""

    def __init__(self, wire: Wire, begun: bytes, length: int, keeps: bool) -> None:
        self._wire = wire
        self._begun = begun
        self._length = length
        self._left = length
        self._keeps = keeps

    @property
    def is_over(self) -> bool:
        return self._keeps and not (self._left or self._begun)

    async def read(self) -> bytes:
        if not self._left:
            return b""
        came = self._begun or await self._wire.read()
        if not came:
            raise h11.RemoteProtocolError(
                "peer closed connection without sending complete message body "
                f"(received {self._length - self._left} bytes, expected {self._length})"
            )
        piece, self._begun = came[: self._left], came[self._left :]
        self._left -= len(piece)
        return piece


class _ChunkedBody:
    """A body in chunks; where one begins oddly, h11 reads on as if the body began there."""

    def __init__(self, wire: Wire, head: bytes, begun: bytes, keeps: bool) -> None:
        self._wire = wire
        self._head = head
        self._came = begun
        self._at = 0
        # Of the chunk that is read.
        self._left = 0
        self._is_first = True
        self._is_read = False
        self._keeps = keeps
        self._odd: _OddAnswer | None = None

    @property
    def is_over(self) -> bool:
        if self._odd is not None:
            return self._odd.is_over
        return self._keeps and self._is_read and self._at == len(self._came)

    async def read(self) -> bytes:
        if not (self._left or self._is_read or self._odd):
            await self._begin_chunk()
        if self._odd is not None:
            return await self._odd.read()
        if self._is_read:
            return b""
        if self._at == len(self._came):
            await self._receive()
        piece = self._came[self._at : self._at + self._left]
        self._at += len(piece)
        self._left -= len(piece)
        return piece

    async def _begin_chunk(self) -> None:
        if not self._is_first:
            await self._end_chunk()
        while (line := _CHUNK.match(self._came, self._at)) is None:
            if (last := _LAST_CHUNK.match(self._came, self._at)) is not None:
                self._at, self._is_read = last.end(), True
                return
            if not _BEGUN_LINE.fullmatch(self._came, self._at):
                self._odd = _OddAnswer(self._wire, self._head + self._came[self._at :])
                await self._odd.head()
                return
            await self._receive()
        self._at, self._left, self._is_first = line.end(), int(line[1], 16), False

    async def _end_chunk(self) -> None:
        while len(self._came) < self._at + 2:
            await self._receive()
        if not self._came.startswith(b"\r\n", self._at):
            raise h11.RemoteProtocolError("a chunk does not end where it says")
        self._at += 2

    async def _receive(self) -> None:
        received = await self._wire.read()
        if not received:
            raise h11.RemoteProtocolError(
                "peer closed connection without sending complete message body (incomplete chunked read)"
            )
        self._came, self._at = self._came[self._at :] + received, 0


class _OddAnswer:
    """An answer of any kind, read by h11."""

    def __init__(self, wire: Wire, received: bytes) -> None:
        self._wire = wire
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)
        # It was sent already: how an answer is read depends on nothing else in it.
        self._http.send(h11.Request(method="GET", target="/", headers=[("Host", "")]))
        self._http.send(h11.EndOfMessage())
        self._receive(received)

    @property
    def is_over(self) -> bool:
        return self._http.their_state is h11.DONE and self._http.trailing_data == (b"", False)

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
