"""The same call down every way at a real gunicorn: by Flask, from what is kept, after a wait."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from tests.consul_server import eventually
from tests.faults.proxy import Proxy, Trouble
from tests.web.filling import Cache, instance
from tests.web.gunicorn_server import Gunicorn, running
from tests.web.raw_http import Connection
from tests.web.test_metrics import counted
from tests.web.test_read_cache import changes

API = "/api/v1"
BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


def head(target: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {API}{target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


MODULES = head("/modules")
HEADS = [
    MODULES,
    head("/modules", method="HEAD"),
    head("/modules?include=manifest,instances", "Accept-Encoding: gzip"),
    head("/modules?fields=name,status,instances", "Accept: application/json", "User-Agent: test"),
    head("/modules/lookup?name=weather,financial,nobody"),
    head("/modules/financial", "If-None-Match: *"),
    head("/modules/financial", 'If-None-Match: "0", W/"5"'),
    head("/modules/financial/manifest", "Accept-Encoding: br, gzip;q=0.5"),
    head("/modules/financial/instances?passing"),
    head("/modules/weather?max_stale=1h"),
    head("/modules?status=nonsense"),
    head("/events?after=3&limit=5"),
]


def wire(client: Connection, request: bytes) -> bytes:
    """The next answer to it, byte for byte, but for what is another one each time."""
    client.sock.sendall(request)
    said = b""
    while b"\r\n\r\n" not in said:
        said += received(client)
    begin, _, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", begin)
    if length is not None and not request.startswith(b"HEAD"):
        while len(body) < int(length[1]):
            body += received(client)
    return (
        re.sub(rb"\r\n(date|x-request-id|x-lictor-contact): [^\r]+", rb"\r\n\1", begin) + b"\r\n\r\n" + body
    )


def received(client: Connection) -> bytes:
    data = client.sock.recv(1 << 16)
    assert data, "the connection was closed before the end of the answer"
    return data


def reads(http: httpx.Client, outcome: str) -> float:
    """How many there were with this outcome."""
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "lictor_read_cache_total" and sample.labels == {"outcome": outcome}:
                return sample.value
    return 0.0


def quick(http: httpx.Client) -> float:
    """How many needed no thread."""
    return reads(http, "quick")


@contextmanager
def serving(
    folder: Path, http: httpx.Client, *, database_url: str, bind: str, workers: str = "1", threads: str = "4"
) -> Iterator[Gunicorn]:
    settings = {"database_url": database_url, "bind": bind, "workers": workers, "threads": threads}
    with running(folder, http, unix=None, **settings) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log
        assert "[ERROR]" not in server.log


def waited(request: bytes, how: str) -> bytes:
    """The same request, which says that it may wait."""
    line, end, rest = request.partition(b" HTTP/1.1")
    return line + (b"&" if b"?" in line else b"?") + how.encode() + end + rest


@BOTH
def test_each_way_gives_the_same_bytes(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with serving(tmp_path, http, database_url=database_url, bind=bind), Connection(bind) as client:
        for number, _ in enumerate(changes(cache)):
            for request in HEADS:
                # The index is new: nothing is kept yet, and Flask has to answer.
                expected = wire(client, request)
                for way in (
                    request,
                    waited(request, "index=0&wait=1ms"),
                    waited(request, "index=99999&wait=1ms"),
                ):
                    assert wire(client, way) == expected, (number, way)
        assert quick(http) > len(HEADS) * number


def test_what_differs_in_one_byte_is_another_request(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    known = head("/modules/financial", "X-Request-Id: one")
    with serving(tmp_path, http, database_url=database_url, bind=bind), Connection(bind) as client:
        for _ in range(3):
            wire(client, MODULES)
        before = quick(http)
        for _ in range(3):
            for id_ in ("one", "two"):
                client.sock.sendall(known.replace(b"one", id_.encode()))
                assert client.answer().headers["x-request-id"] == id_
        # Neither a body, nor what ends the connection, can be overlooked.
        with_body = head("/modules", "Content-Length: 5") + b"GET /"
        assert wire(client, with_body) == wire(client, with_body) == wire(client, MODULES)
        chunked = head("/modules", "Transfer-Encoding: chunked")
        for chunk in (b"5\r\nGET /\r\n0\r\n\r\n", b"0\r\n\r\n"):
            assert wire(client, chunked + chunk) == wire(client, MODULES)
        ids = set()
        for _ in range(5):
            client.sock.sendall(MODULES)
            ids.add(client.answer().headers["x-request-id"])
        assert len(ids) == 5
        assert quick(http) > before
        client.sock.sendall(head("/modules", "Connection: close"))
        assert client.answer().headers["connection"] == "close"
        assert client.is_closed()


def test_they_come_in_any_pieces(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    other = head("/modules/financial")
    with serving(tmp_path, http, database_url=database_url, bind=bind), Connection(bind) as client:
        for _ in range(2):
            expected = wire(client, MODULES)
        client.sock.sendall(other)
        told = client.answer().told
        for pieces in (
            [MODULES[:20], MODULES[20:]],
            [MODULES + other[:5], other[5:]],
            [MODULES + other],
            [MODULES + MODULES + other + MODULES],
            [MODULES, MODULES, other],
            [MODULES[:-1], MODULES[-1:] + other],
        ):
            for piece in pieces:
                client.sock.sendall(piece)
            asked = b"".join(pieces)
            for _ in range(asked.count(MODULES) + asked.count(other)):
                last = client.answer()
                assert last.status == 200
            assert (last.told == told) is asked.endswith(other), pieces
        assert wire(client, MODULES) == expected


@BOTH
def test_what_was_written_before_they_came_is_in_their_answers(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    """Readers on kept connections to two workers, and writers: whatever anybody has seen, all see."""
    known, going_back, end = [0], [], threading.Event()

    def read() -> None:
        with Connection(bind) as client:
            while not end.is_set():
                before = known[0]
                client.sock.sendall(MODULES)
                index = client.answer().index
                if index < before:
                    going_back.append((before, index))
                # As good as atomic: a number that is too small makes the test weaker, not wrong.
                known[0] = max(known[0], before, index)

    with serving(tmp_path, http, workers="2", database_url=database_url, bind=bind):
        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for number in range(40):
            known[0] = max(known[0], cache.announce(instance("catalog", number)))
            before = quick(http)
            # The next change comes when the readers are back on the quick way.
            eventually(lambda before=before: quick(http) > before)  # type: ignore[misc]
        end.set()
        for reader in readers:
            reader.join(20)
    assert going_back == []


def test_of_those_who_want_the_same_at_once_one_has_it_made(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        stack.enter_context(serving(tmp_path, http, database_url=database_url, bind=bind))
        clients = [stack.enter_context(Connection(bind)) for _ in range(20)]
        for client in clients:
            wire(client, MODULES)
        before = reads(http, "miss")
        for number in range(5):
            index = cache.announce(instance("catalog", number))
            for client in clients:
                client.sock.sendall(MODULES)
            assert {client.answer().index for client in clients} == {index}
        assert reads(http, "miss") - before == 5
        # It may be one that is gone before it is answered.
        index = cache.announce(instance("mailer"))
        for number, client in enumerate(clients):
            client.sock.sendall(MODULES)
            if number < 5:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sock.close()
        assert {client.answer().index for client in clients[5:]} == {index}


def test_they_are_counted_like_any_other(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    index = cache.module("financial")
    known = head("/modules/financial", f'If-None-Match: "{index}"')
    asked = {"200": head("/modules/financial"), "304": known}
    with serving(tmp_path, http, database_url=database_url, bind=bind), Connection(bind) as client:
        for request in asked.values():
            for _ in range(10):
                wire(client, request)
        text = http.get("/metrics").text
    for status in asked:
        assert counted(text, "/api/v1/modules/<name>", status) == 10


def test_where_each_request_is_logged_they_are(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    settings = {"database_url": database_url, "bind": bind, "workers": "1", "log_level": "debug"}
    with running(tmp_path, http, unix=None, **settings) as server, Connection(bind) as client:
        for _ in range(5):
            wire(client, MODULES)
        assert len(re.findall(r"GET /api/v1/modules 200 [^\n]* request=", server.log)) == 5


def large(cache: Cache) -> bytes:
    """A request with an answer that is larger than what a connection takes at once."""
    for number in range(8):
        cache.module(f"m{number}", description="x" * 200_000)
    return head("/modules?include=manifest")


@contextmanager
def not_reading(bind: str, number: int) -> Iterator[list[Connection]]:
    """Clients with little room for what they do not read."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(bind)) for _ in range(number)]
        for client in clients:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        yield clients


def test_clients_that_do_not_read_hold_nobody_up(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    request = large(cache)
    with ExitStack() as stack:
        stack.enter_context(serving(tmp_path, http, database_url=database_url, bind=bind, threads="1"))
        reading = stack.enter_context(Connection(bind))
        expected = wire(reading, request)
        clients = stack.enter_context(not_reading(bind, 6))
        for client in clients:
            wire(client, MODULES)
        assert wire(reading, request) == expected
        before = quick(http)
        for client in clients:
            client.sock.sendall(request)
        eventually(lambda: quick(http) >= before + 4)
        for _ in range(10):
            assert http.get(f"{API}/modules").status_code == 200
        # One leaves within its answer, the others take theirs, and go on.
        clients.pop().sock.close()
        for client in clients:
            assert wire(client, b"") == expected
            assert wire(client, MODULES).startswith(b"HTTP/1.1 200 OK\r\n")
        assert len(expected) > 1_600_000


def test_over_a_unix_socket(cache: Cache, database_url: str, tmp_path: Path) -> None:
    cache.module("financial")
    path = tmp_path / "lictor.sock"
    with (
        httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(path))) as client,
        running(tmp_path, client, unix=path, database_url=database_url, bind=f"unix:{path}", workers="1"),
    ):
        for number in range(10):
            index = cache.announce(instance("catalog", number))
            for _ in range(2):
                assert client.get(f"{API}/modules").json()["index"] == index
        assert quick(client) > 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_hangs_holds_only_who_needs_it(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    url = make_url(database_url)
    with Proxy((url.host or "", url.port or 0)) as proxy, ExitStack() as stack:
        proxied = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        settings = {"database_url": proxied, "bind": bind, "workers": "1", "threads": "2"}
        stack.enter_context(running(tmp_path, http, unix=None, **settings))
        clients = [stack.enter_context(Connection(bind)) for _ in range(3)]
        for client in clients * 2:
            expected = wire(client, MODULES)
        proxy.make(Trouble.HALF_OPEN)
        for client in clients:
            client.sock.sendall(MODULES)

        def all_wait() -> bool:
            """A look holds for some milliseconds, and nobody waits before the next."""
            for client in clients:
                if not client.is_quiet:
                    assert client.answer().status == 200
                    client.sock.sendall(MODULES)
            return proxy.suffered > 0 and all(client.is_quiet for client in clients)

        eventually(all_wait)
        for _ in range(5):
            assert http.get("/healthz").status_code == 200
        proxy.make(Trouble.NONE)
        # Whoever waited is answered, if only with what is wrong; then all is as before.
        for client in clients:
            assert client.answer().status in (200, 503)
        eventually(lambda: wire(clients[0], MODULES) == expected)
