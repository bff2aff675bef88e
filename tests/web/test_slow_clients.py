"""Clients that are slow, silent or gone, and workers that are replaced: all others are served meanwhile."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.consul_server import eventually
from tests.web.filling import Cache
from tests.web.gunicorn_server import Gunicorn, answers, running

HEAD = b"GET /api/v1/modules HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def connect(bind: str) -> socket.socket:
    host, _, port = bind.partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


@contextmanager
def dribbling(bind: str, number: int) -> Iterator[None]:
    """Clients that never come to the end of what they ask: half of them say nothing at all."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(bind)) for _ in range(number)]
        for client in clients[::2]:
            client.sendall(HEAD)
        end = threading.Event()

        def dribble() -> None:
            while not end.wait(0.2):
                for client in clients[::2]:
                    try:
                        client.sendall(b"x")
                    except OSError:
                        # The server has had enough of it.
                        client.close()
                        clients[clients.index(client)] = stack.enter_context(connect(bind))

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def test_slow_clients_do_not_hold_the_service(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    with running(tmp_path, http, database_url=database_url, bind=bind, workers="2", threads="2") as server:
        with dribbling(bind, 200):
            began = time.monotonic()
            for _ in range(50):
                assert http.get("/api/v1/modules").status_code == 200
            # With a thread for each of them it would take minutes.
            assert time.monotonic() - began < 100
        assert server.end() == 0
    assert "Traceback" not in server.log


NEVER_DONE = {
    "an end": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "an old end": b"GET /healthz HTTP/1.0\r\n\r\n",
    "a body": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b" " * 40_000,
    "chunks": b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab",
    "on demand": b"POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("sent", NEVER_DONE.values(), ids=NEVER_DONE)
def test_who_is_answered_and_never_done_holds_nobody_up(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path, sent: bytes
) -> None:
    few = running(tmp_path, http, database_url=database_url, bind=bind, workers="1", threads="1")
    with few as server, ExitStack() as stack:
        (worker,) = server.workers
        began, before = time.monotonic(), files_of(worker)
        clients = [stack.enter_context(connect(bind)) for _ in range(20)]
        for client in clients:
            client.sendall(sent)
        assert http.get("/healthz").status_code == 200
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.")
        # With seconds of waiting for each of them it would take longer.
        assert time.monotonic() - began < 30
        eventually(lambda: files_of(worker) <= before)
        stack.close()
        assert server.end() == 0
    assert "Traceback" not in server.log


def files_of(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: x\r\n"
IN_PIECES = {
    "a head": ([b"GET /healthz HT", b"TP/1.1\r\nHost: x\r", b"\n\r", b"\n"], ["200"]),
    "the next one": ([GET + b"GET /hea", b"lthz HTTP/1.1\r\nHost: x\r\n\r\n"], ["200", "200"]),
    "a body": ([POST + b"Content-Length: 4\r\n\r\n{", b"  ", b"}"], ["405"]),
    "a large body": ([POST + b"Content-Length: 50000\r\n\r\n", b" " * 49_999, b" "], ["405"]),
    "chunks": ([POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n", b"x\r\n", b"0\r\n\r\n"], ["405"]),
}  # fmt: skip
# Answered before all of it has come. On a loaded machine the rest may come too late for the next one.
ANSWERED_EARLY = {"a large body", "chunks"}


def test_requests_that_come_in_pieces(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind):
        for name, (pieces, statuses) in IN_PIECES.items():
            with connect(bind) as client:
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(0.05)
                client.sendall(b"GET /api/v1/modules HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answered = b"".join(iter(lambda: client.recv(65536), b"")).decode()
            found = re.findall(r"HTTP/1.1 (\d+)", answered)
            if name in ANSWERED_EARLY and found == statuses:
                continue
            assert found == [*statuses, "200"], name
            assert answered.endswith('{"items":[],"next":null,"index":0}'), name


def test_who_breaks_off_is_forgotten(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        for sent in (b"", b"GET", HEAD):
            with connect(bind) as client:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                # What was sent and not read makes the kernel end it roughly.
                with suppress(ConnectionResetError):
                    assert client.recv(100) == b""
        assert server.end() == 0
    assert "Traceback" not in server.log


def test_who_is_gone_before_it_is_refused_takes_no_worker_along(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, workers="1") as server:
        (worker,) = server.workers
        # All of it has come, and the client is gone, before the worker sees any of it.
        os.kill(worker, signal.SIGSTOP)
        with connect(bind) as client:
            client.sendall(HEAD + b"a" * 40_000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.kill(worker, signal.SIGCONT)
        assert http.get("/healthz").status_code == 200
        assert server.workers == [worker]
        assert server.end() == 0
    assert "Traceback" not in server.log


def test_more_connections_than_files_end_no_worker(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, workers="1") as server:
        (worker,) = server.workers
        files = files_of(worker) + 10
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (files, files))
        with ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(connect(bind))
            eventually(lambda: files_of(worker) >= files - 1)
            assert server.workers == [worker]
        eventually(lambda: answers(http))
        assert server.workers == [worker]
        assert server.end() == 0
    assert "Traceback" not in server.log


UNSOUND: dict[bytes, tuple[int, str | None]] = {
    b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": (414, "path-too-long"),
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n": (431, "headers-too-large"),
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n": (431, "headers-too-large"),
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": (414, "path-too-long"),
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000: (431, "headers-too-large"),
    b"GET /?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": (400, None),
    b"nonsense\r\n\r\n": (400, None),
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n": (400, None),
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": (400, None),
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n": (400, None),
    b"GET / HTTP/1.1\r\nHost: x\r\n a: b\r\n\r\n": (400, None),
    b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n": (400, None),
}


def test_what_is_no_sound_request_is_told_so(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind):
        for sent, (status, slug) in UNSOUND.items():
            with connect(bind) as client:
                client.sendall(sent)
                answered = b"".join(iter(lambda: client.recv(65536), b""))
            head, _, body = answered.partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), sent[:50]
            if slug is None:
                # What is no HTTP at all is answered by the library, in plain words.
                assert body == b"Invalid HTTP request received."
                continue
            assert b"\r\ncontent-type: application/problem+json\r\n" in head.lower()
            problem = json.loads(body)
            assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)


def test_no_request_fails_while_workers_are_replaced(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    faults: list[str] = []
    served: list[int] = []
    end = threading.Event()

    def ask(keep: int) -> None:
        """With a connection for each request, or with one that is kept."""
        limits = httpx.Limits(max_keepalive_connections=keep)
        with httpx.Client(base_url=f"http://{bind}", trust_env=False, limits=limits, timeout=20) as client:
            while not end.is_set():
                try:
                    served.append(client.get("/api/v1/modules").status_code)
                except httpx.TransportError as exc:
                    faults.append(f"{keep}: {exc!r}")

    with running(tmp_path, http, database_url=database_url, bind=bind, workers="2") as server:
        clients = [threading.Thread(target=ask, args=(number % 2,)) for number in range(8)]
        for client in clients:
            client.start()
        for _ in range(3):
            replace_workers(server)
        end.set()
        for client in clients:
            client.join(30)
        assert faults == []
        assert set(served) == {200}
        assert len(served) > 100


def replace_workers(server: Gunicorn) -> None:
    def ended() -> int:
        return server.log.count("Worker exiting")

    before = ended()
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: ended() >= before + 2, limit=40)
