"""The least that fetching costs: addresses in, documents out, with nothing checked and nothing bounded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

import aiohttp

from benchmarks.stage import HOST

IN_FLIGHT = 50

Get: TypeAlias = Callable[[str], Awaitable[bytes]]


class Taken(NamedTuple):
    """How long something took, and how much of a core's time."""

    seconds: float
    processor: float


async def timed(get: Get, modules: Sequence[str]) -> Taken:
    """Gets the manifest of each module, so many in flight, and reads its name."""
    waiting = iter(modules)

    async def work() -> None:
        for module in waiting:
            if json.loads(await get(module))["name"] != module:
                raise SystemExit(f"the manifest of {module} is another's")

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return Taken(time.perf_counter() - began, time.process_time() - used)


def over_streams(port: int) -> Get:
    """asyncio's streams alone: all that comes until the end is the answer."""

    async def get(module: str) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(f"GET /{module} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read(-1)
        writer.close()
        return answer.partition(b"\r\n\r\n")[2]

    return get


@asynccontextmanager
async def over_aiohttp(port: int) -> AsyncIterator[Get]:
    """aiohttp alone: the client under Lictor's fetcher, without what the fetcher does around it."""
    connector = aiohttp.TCPConnector(force_close=True, limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get(module: str) -> bytes:
            async with session.get(f"http://{HOST}:{port}/{module}") as answer:
                body: bytes = await answer.read()
                return body

        yield get
