"""The bytes of one connection: what a peer sends in, pieces of bounded size out when they are wanted."""

from __future__ import annotations

import asyncio


class Wire(asyncio.Protocol):
    """One end of a connection, for one reader at a time.

    While `enough` bytes wait to be read no more is taken from the peer. asyncio's own streams do the
    same at half again the cost of a whole exchange.
    """

    def __init__(self, enough: int = 64 * 1024) -> None:
        self._enough = enough
        self._came: list[bytes] = []
        self._size = 0
        self._ended = False
        self._broke: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the peer is there and has sent nothing that was not read."""
        return not (self._came or self._ended)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def abort(self) -> None:
        """Closes it at once; what was not sent is lost."""
        self._transport.abort()

    async def read(self) -> bytes:
        """What came since the last time, at least one byte; nothing once the peer has ended.

        Raises OSError if the connection broke.
        """
        if self.is_silent:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._broke is not None and not self._came:
            raise self._broke
        came = b"".join(self._came)
        self._came.clear()
        if self._size >= self._enough:
            self._transport.resume_reading()
        self._size = 0
        return came

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came.append(data)
        self._size += len(data)
        if self._size >= self._enough:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._broke = True, exc
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
