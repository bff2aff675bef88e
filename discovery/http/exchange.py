"""Requests over one connection, one after another: a request in, its answer's head and body out.

The answer of nearly every server is read as it stands, any other by h11: no client with pools,
redirects, cookies and proxies is half as quick.
"""

from __future__ import annotations

import asyncio
import re
import ssl

import h11

from discovery.http.answer import TOKEN, Answer, Reading, read_answer
from discovery.http.wire import Wire

# So that what is sent can be taken for no other request, whatever its parts are made of.
_TARGET = re.compile(r"[!-~]+")
_FIELD = re.compile(rf"{TOKEN.decode()}: [\t -~]*")


class Connection:
    """A connection, which carries an exchange after the other: each answer is read to its end first.

    Raises OSError where the connection breaks, and `h11.ProtocolError` where what comes is not HTTP.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._reading: Reading | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a request can be sent: a peer that spoke unasked has said farewell."""
        return (self._reading is None or self._reading.is_over) and self._wire.is_silent

    async def request(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes = b""
    ) -> Answer:
        """Sends a request; returns the head of its answer.

        `headers` begin with `Host`, and tell the length of a body. `HEAD` and `CONNECT` are answered
        in other ways, and not for this.
        """
        fields = [f"{name}: {value}" for name, value in headers]
        if not (_TARGET.fullmatch(target) and all(map(_FIELD.fullmatch, fields))):
            raise h11.LocalProtocolError("the target or a header of the request has no place in HTTP")
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""])
        self._wire.write(head.encode() + body)
        answer, self._reading = await read_answer(self._wire)
        return answer

    async def read(self) -> bytes:
        """The next piece of the answer's body, as it comes; nothing at its end."""
        if self._reading is None:
            raise h11.LocalProtocolError("nothing was asked for yet")
        return await self._reading.read()

    def close(self) -> None:
        """Nothing more is wanted, and no peer should be able to draw out the farewell."""
        self._wire.abort()


async def connect(address: str, port: int, *, tls: ssl.SSLContext | None, host: str) -> Connection:
    """A connection to an IP address; `host` is the name or address that its certificate must be for.

    Raises OSError where there is none; `ssl.SSLError`, which is one, where TLS fails.
    """
    _, wire = await asyncio.get_running_loop().create_connection(
        Wire, address, port, ssl=tls, server_hostname=host if tls is not None else None
    )
    return Connection(wire)
