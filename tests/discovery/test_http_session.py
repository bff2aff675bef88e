"""The connections under the asynchronous clients, with servers that treat connections badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from discovery.http.session import ConnectionBroke, close_session, open_session

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Client:
    """Asks a server for one thing over and over."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, method: str = "GET", **options: object) -> bytes:
        """The body of the answer."""
        async with self._session.request(method, self._url, **options) as response:  # type: ignore[arg-type]
            assert response.status == 200
            return await response.read()


@asynccontextmanager
async def client_of(handler: Handler, *, idle: float = 60.0) -> AsyncGenerator[tuple[Client, list[int]]]:
    """A client of a server, and the numbers of requests that each connection carried."""
    carried: list[int] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(carried)
        carried.append(0)
        serving.append(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                carried[number] += 1
                await handler(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, port = server.sockets[0].getsockname()
        session = open_session(max_idle_seconds=idle)
        yield Client(session, f"http://127.0.0.1:{port}/"), carried
        await close_session(session)
        await asyncio.gather(*filter(None, serving))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.anyio
async def test_a_connection_carries_one_request_after_the_other() -> None:
    async with client_of(answer) as (client, carried):
        for _ in range(5):
            assert await client.ask() == b"ok"
        assert carried == [5]


@pytest.mark.anyio
async def test_where_none_is_kept_each_request_has_its_own() -> None:
    async with client_of(answer, idle=0.0) as (client, carried):
        for _ in range(3):
            assert await client.ask() == b"ok"
        assert carried == [1, 1, 1]


@pytest.mark.anyio
async def test_a_connection_that_the_server_left_is_not_used_again() -> None:
    left = asyncio.Event()

    async def answer_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        writer.write_eof()
        # The client hangs up as well once it has heard it.
        await reader.read()
        left.set()

    async with client_of(answer_and_hang_up) as (client, carried):
        for _ in range(3):
            assert await client.ask() == b"ok"
            await left.wait()
            left.clear()
        assert carried == [1, 1, 1]


@pytest.mark.anyio
async def test_what_a_server_says_unasked_answers_nothing() -> None:
    async with client_of(answer_twice) as (client, carried):
        for _ in range(3):
            assert await client.ask() == b"ok"
        assert carried == [1, 1, 1]


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_is_sent_once_though_its_connection_ends(method: str) -> None:
    async with client_of(hang_up) as (client, carried):
        with pytest.raises(ConnectionBroke, match="the server disconnected"):
            await client.ask(method)
        assert carried == [1]


@pytest.mark.anyio
async def test_an_answer_that_is_cut_off() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        writer.close()

    async with client_of(cut) as (client, carried):
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.ask()
        assert carried == [1]


@pytest.mark.anyio
async def test_no_header_smuggles_another_in() -> None:
    async with client_of(answer) as (client, carried):
        with pytest.raises(ValueError, match="header"):
            await client.ask(headers={"X-One": "1\r\nX-Two: 2"})
        assert sum(carried) == 0


@pytest.mark.anyio
async def test_a_caller_that_gives_up_leaves_its_connection_to_nobody() -> None:
    asked = asyncio.Event()
    gone = asyncio.Event()

    async def be_silent_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked.is_set():
            writer.write(ANSWER)
            return
        asked.set()
        await reader.read()
        gone.set()

    async with client_of(be_silent_once) as (client, carried):
        caller = asyncio.create_task(client.ask())
        await asked.wait()
        caller.cancel()
        await gone.wait()
        assert await client.ask() == b"ok"
        assert carried == [1, 1]
