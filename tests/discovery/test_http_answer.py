"""Answers that are read in the quick way, held against what h11 reads, byte for byte; and what is sent."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TypeAlias

import h11
import pytest

from discovery.http.answer import read_answer
from discovery.http.exchange import Connection
from discovery.http.wire import Wire

pytestmark = pytest.mark.anyio

# The status, the headers and the body; or nothing, where it is no answer.
Read: TypeAlias = tuple[int, dict[str, str], bytes] | None

PLAIN = (
    b"HTTP/1.1 200 OK\r\nServer: some/1.0 (x)\r\nContent-Type: application/json\r\n"
    b'ETag: "abc"\r\ncontent-length:  15 \r\nConnection: close\r\n\r\n{"name": "abcd"}'
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'8\r\n{"name":\r\nA\r\n "abcdef",\r\n002\r\n1}\r\n0\r\n\r\n'
)
ODD_PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\x00",
        b"\xe9",
        b"\x7f",
        b":",
        b",",
        b"0",
        b"9",
        b"-5",
    ),
    *(b"Content-Length: 3\r\n", b"Content-Length: 15\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n folded"),
    *(b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n", b"X" * 300),
)


def by_h11(data: bytes) -> Read:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=65536)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "h"), ("Connection", "close")]))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    if data:
        http.receive_data(b"")
    status, body = 0, b""
    headers: dict[str, str] = {}
    try:
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.Response):
                status = event.status_code
                for name, value in event.headers:
                    headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    return status, headers, body


async def by_us(data: bytes) -> Read:
    ours, peer = socket.socketpair()
    with peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        _, wire = await asyncio.get_running_loop().create_connection(Wire, sock=ours)
        try:
            answer, reading = await read_answer(wire)
            body = b""
            while piece := await reading.read():
                body += piece
        except h11.RemoteProtocolError:
            return None
        finally:
            wire.abort()
    return answer.status, answer.headers, body


def altered(answer: bytes, dice: random.Random) -> bytes:
    """An answer with a few bytes lost, doubled, changed, or others among them."""
    data = bytearray(answer)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                del data[at : at + dice.choice((1, 1, 2, 10))]
            case 1:
                data[at] = dice.randrange(256)
            case 2:
                data[at:at] = dice.choice(ODD_PIECES)
            case 3:
                # Between the lines, where it means most.
                at = data.find(b"\r\n", at) + 2
                data[at:at] = dice.choice(ODD_PIECES)
    return bytes(data)


async def test_a_plain_answer() -> None:
    read = await by_us(PLAIN)

    assert read is not None
    assert read == by_h11(PLAIN)
    assert (read[0], read[1]["content-length"], read[2]) == (200, "15", b'{"name": "abcd"')


async def test_a_plain_answer_in_chunks() -> None:
    read = await by_us(CHUNKED)

    assert read is not None
    assert read == by_h11(CHUNKED)
    assert read[2] == b'{"name": "abcdef",1}'


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("answer", [PLAIN, CHUNKED], ids=["with a length", "in chunks"])
async def test_any_answer_is_read_as_h11_reads_it(answer: bytes, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(100):
        data = altered(answer, dice)
        assert await by_us(data) == by_h11(data), data


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED], ids=["with a length", "in chunks"])
async def test_an_answer_may_come_byte_by_byte(answer: bytes) -> None:
    # What it is read from is asked for more only once all that came was read.
    class Drops(Wire):
        def __init__(self) -> None:
            super().__init__()
            self.left = answer

        async def read(self) -> bytes:
            drop, self.left = self.left[:1], self.left[1:]
            return drop

    found, reading = await read_answer(Drops())
    body = b""
    while piece := await reading.read():
        body += piece
    assert (found.status, found.headers, body) == by_h11(answer)


@pytest.mark.parametrize(
    ("answer", "is_over"),
    [
        pytest.param(CHUNKED, True, id="chunks"),
        pytest.param(CHUNKED + b"x", False, id="more after chunks"),
        pytest.param(CHUNKED.replace(b"0\r\n\r\n", b"0\r\nTrailer: 1\r\n\r\n"), True, id="trailers"),
        pytest.param(CHUNKED.replace(b"8\r\n", b"8;a=b\r\n"), True, id="a chunk with an extension"),
        pytest.param(
            CHUNKED.replace(b"\r\nTr", b"\r\nConnection: close\r\nTr"), False, id="a farewell before chunks"
        ),
        pytest.param(PLAIN, False, id="a farewell"),
        pytest.param(PLAIN.replace(b"Connection: close\r\n", b""), False, id="more than it says"),
        pytest.param(PLAIN.replace(b"Connection: close\r\n", b"")[:-1], True, id="as long as it says"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", False, id="HTTP/1.0"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx", True, id="another status"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nx", False, id="until the end"),
    ],
)
async def test_whether_the_connection_can_carry_another(answer: bytes, is_over: bool) -> None:
    ours, peer = socket.socketpair()
    with peer:
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        _, wire = await asyncio.get_running_loop().create_connection(Wire, sock=ours)
        _, reading = await read_answer(wire)
        while await reading.read():
            assert not answer.endswith(b"x") or not reading.is_over or is_over
        assert reading.is_over == is_over
        wire.abort()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), id="two lengths"),
        pytest.param(PLAIN.replace(b"  15 ", b" 15, 3"), id="two lengths in one"),
        pytest.param(PLAIN.replace(b"  15 ", b" +15"), id="a length with a sign"),
        pytest.param(PLAIN.replace(b"  15 ", b" " + b"9" * 30), id="a length beyond all"),
        pytest.param(PLAIN.replace(b"ETag", b"ETag "), id="a space before the colon"),
        pytest.param(PLAIN[:-5], id="cut off"),
    ],
)
async def test_what_may_mean_either_is_refused(answer: bytes) -> None:
    assert await by_us(answer) is None
    assert by_h11(answer) is None


async def test_chunks_count_for_more_than_a_length() -> None:
    chunked = PLAIN.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    read = await by_us(chunked)

    assert read == by_h11(chunked)
    assert read is not None
    assert read[2] == b"abc"


@pytest.mark.parametrize(
    ("target", "header"),
    [
        ("/a b", "x"),
        ("/", "x\r\nTransfer-Encoding: chunked"),
        ("/\r\n\r\nGET /", "x"),
        ("", "x"),
        ("/", "\x00"),
    ],
)
async def test_nothing_is_sent_that_could_be_taken_for_another_request(target: str, header: str) -> None:
    ours, peer = socket.socketpair()
    with peer:
        _, wire = await asyncio.get_running_loop().create_connection(Wire, sock=ours)
        connection = Connection(wire)
        with pytest.raises(h11.LocalProtocolError):
            await connection.request("GET", target, [("Host", "h"), ("X", header)])
        connection.close()
        assert await asyncio.to_thread(peer.recv, 100) == b""


async def test_no_more_is_taken_from_a_peer_than_is_read() -> None:
    ours, peer = socket.socketpair()
    with peer:
        _, wire = await asyncio.get_running_loop().create_connection(Wire, sock=ours)
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, bytes(20_000_000)))
        came = [len(await wire.read()) for _ in range(10)]
        assert not sending.done()
        while sum(came) < 20_000_000:
            came.append(len(await wire.read()))
        await sending
        assert max(came) < 1_000_000
        wire.abort()
