"""Bounds how many connections a client has at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class NoneFree(Exception):
    """All connections are in use."""


class ConnectionSlots:
    """As many as there may be connections at once."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)

    @asynccontextmanager
    async def free(self, limit: float) -> AsyncIterator[None]:
        """Holds one of them. Raises NoneFree if none is free within `limit` seconds."""
        try:
            async with asyncio.timeout(limit if self._free.locked() else None):
                await self._free.acquire()
        except TimeoutError as exc:
            raise NoneFree from exc
        try:
            yield
        finally:
            self._free.release()
