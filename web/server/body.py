"""Gathers a request's body on the loop, within bounds and a deadline: no thread waits for a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from web.problems import RequestTimeout
from web.server.limits import BODY_WITHIN, CLOSE, MOST_LARGE_BODIES, SMALL_BODY
from web.server.request import Body, Request

Receive = Callable[[], Awaitable[Any]]


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


class Bodies:
    """Gathers bodies of at most `longest` bytes; few large ones at once, for they are held in memory."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._large = asyncio.Semaphore(MOST_LARGE_BODIES)

    async def gather(self, request: Request, receive: Receive) -> Body:
        """The body; what is longer than allowed is not gathered to its end.

        Raises RequestTimeout if it does not come in time, ClientLeft if it never will.
        """
        announced = request.header(b"content-length") or "0"
        if announced.isdigit() and int(announced) > self._longest:
            return Body(b"", int(announced))
        try:
            async with asyncio.timeout(BODY_WITHIN):
                return await self._gathered(receive)
        except TimeoutError:
            raise RequestTimeout(f"{RequestTimeout.meaning} {RequestTimeout.advice}", headers=CLOSE) from None

    async def _gathered(self, receive: Receive) -> Body:
        content = bytearray()
        if await _fill(content, receive, SMALL_BODY):
            async with self._large:
                await _fill(content, receive, self._longest)
        return Body(bytes(content), len(content))


async def _fill(content: bytearray, receive: Receive, most: int) -> bool:
    """Adds what comes until there is more than `most`; False if that was all."""
    while len(content) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        content += message.get("body", b"")
        if not message.get("more_body", False):
            return False
    return True
