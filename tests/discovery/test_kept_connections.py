"""The connections under the asynchronous Consul client, with servers that treat connections badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import h11
import pytest

from discovery.consul.dev_agent import free_ports
from discovery.http.kept_connections import KeptConnections, Request, Server, TookTooLong

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Client:
    """Asks for one thing, over connections that are kept."""

    def __init__(self, connections: KeptConnections, limit: float = 30.0) -> None:
        self._connections = connections
        self._limit = limit
        self.pieces: list[int] = []

    async def get(self) -> bytes:
        """The body of the answer."""
        body = bytearray()
        self.pieces = []

        def take(piece: bytes) -> None:
            self.pieces.append(len(piece))
            body.extend(piece)

        request = Request("GET", "/", [("Host", "here")])
        answer = await self._connections.exchange(request, take, limit=self._limit)
        assert answer.status == 200
        return bytes(body)


@asynccontextmanager
async def client_of(
    handler: Handler, *, expiry: float = 60.0, limit: float = 30.0
) -> AsyncGenerator[tuple[Client, list[int]]]:
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
        to = Server(host="127.0.0.1", port=port, unix_socket=None, tls=None, name="127.0.0.1")
        connections = KeptConnections(to, max_connections=2, expiry=expiry)
        yield Client(connections, limit), carried
        await connections.aclose()
        await asyncio.gather(*filter(None, serving))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.anyio
async def test_a_connection_carries_one_request_after_the_other() -> None:
    async with client_of(answer) as (client, carried):
        for _ in range(5):
            assert await client.get() == b"ok"
        assert carried == [5]
        await asyncio.gather(*(client.get() for _ in range(6)))
        assert len(carried) == 2


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
            assert await client.get() == b"ok"
            await left.wait()
            left.clear()
        assert carried == [1, 1, 1]


@pytest.mark.anyio
async def test_what_a_server_says_unasked_answers_nothing() -> None:
    async with client_of(answer_twice) as (client, carried):
        for _ in range(3):
            assert await client.get() == b"ok"
        assert carried == [1, 1, 1]


@pytest.mark.anyio
async def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    async with client_of(answer, expiry=0.0) as (client, carried):
        for _ in range(2):
            assert await client.get() == b"ok"
        assert carried == [1, 1]


@pytest.mark.anyio
async def test_a_large_answer_is_read_as_it_is_taken() -> None:
    size = 8_000_000

    async def answer_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):
            writer.write(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with client_of(answer_much) as (client, _):
        assert len(await client.get()) == size
        assert max(client.pieces) <= 1024 * 1024, "it does not wait in memory as a whole"


@pytest.mark.anyio
async def test_an_answer_that_is_cut_off() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        writer.close()

    async with client_of(cut) as (client, _):
        with pytest.raises(h11.RemoteProtocolError):
            await client.get()


@pytest.mark.anyio
async def test_whoever_is_cancelled_leaves_no_place_taken() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with client_of(hang, limit=0.2) as (client, carried):
        for _ in range(3):
            with pytest.raises(TookTooLong, match="answer"):
                await client.get()
            task = asyncio.create_task(client.get())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert sum(carried) >= 3


@pytest.mark.anyio
async def test_a_name_with_several_addresses_that_all_refuse() -> None:
    (port,) = free_ports(1)
    to = Server(host="localhost", port=port, unix_socket=None, tls=None, name="localhost")
    connections = KeptConnections(to, max_connections=1, expiry=60)
    with pytest.raises(ConnectionRefusedError):
        await Client(connections).get()


@pytest.mark.anyio
async def test_whoever_finds_no_connection_free() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with client_of(hang) as (client, _):
        busy = [asyncio.create_task(client.get()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TookTooLong, match="free"):
            await Client(client._connections, limit=0.05).get()
        for task in busy:
            task.cancel()
        await asyncio.wait(busy)
