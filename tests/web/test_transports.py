"""Reads, pushes, blocking queries and streams over TLS and a Unix socket; how each signal ends it all."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.consul_server import eventually
from tests.web.filling import Cache
from tests.web.gunicorn_server import Gunicorn, running

API = "/api/v1"
Connecting = Callable[[Path, str, str], AbstractContextManager[httpx.Client]]


@contextmanager
def over_tls(folder: Path, database_url: str, bind: str) -> Iterator[httpx.Client]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    arguments = ("--certfile", str(folder / "certificate.pem"), "--keyfile", str(folder / "key.pem"))
    with (
        httpx.Client(base_url=f"https://{bind}", verify=context, trust_env=False, timeout=30) as client,
        running(folder, client, *arguments, database_url=database_url, bind=bind, workers="1"),
    ):
        yield client


@contextmanager
def over_a_unix_socket(folder: Path, database_url: str, bind: str) -> Iterator[httpx.Client]:
    path = folder / "lictor.sock"
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(base_url="http://localhost", transport=transport, timeout=30) as client:
        (folder / "token").write_text("secret")
        client.headers["Authorization"] = "Bearer secret"
        settings = {"bind": f"unix:{path}", "push_token_file": str(folder / "token"), "workers": "1"}
        with running(folder, client, unix=path, database_url=database_url, **settings):
            yield client


@pytest.mark.parametrize("connected", [over_tls, over_a_unix_socket])
def test_all_of_it_works(
    cache: Cache, database_url: str, bind: str, tmp_path: Path, connected: object
) -> None:
    index = cache.module("financial")
    with connected(tmp_path, database_url, bind) as client:  # type: ignore[operator]
        for _ in range(3):
            assert client.get(f"{API}/modules").headers["X-Lictor-Index"] == str(index)
        asked: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: asked.append(client.get(f"{API}/modules?index={index}&wait=1m"))
        )
        with client.stream("GET", f"{API}/events", headers={"Accept": "text/event-stream"}) as stream:
            waiting.start()
            eventually(lambda: 'lictor_watchers{kind="blocking"} 1.0' in client.get("/metrics").text)
            pushed = client.post(
                f"{API}/modules/register", json={"name": "weather", "address": "127.0.0.1", "port": 1}
            )
            assert pushed.status_code == 201, pushed.text
            waiting.join(30)
            assert asked[0].json()["index"] == pushed.json()["index"]
            lines = stream.iter_lines()
            assert f"id: {index + 1}" in (next(lines) for _ in range(4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_each_signal_ends_it_in_good_order(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path, number: signal.Signals
) -> None:
    index = cache.module("financial")
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        host, _, port = bind.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(f"GET {API}/modules?index={index} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: 'lictor_watchers{kind="blocking"} 1.0' in http.get("/metrics").text)
            server.process.send_signal(number)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        assert server.process.wait(8) == 0
    _is_calm(server)


def test_a_worker_that_is_told_to_end_as_it_starts_ends(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        server.process.terminate()
        assert server.process.wait(15) == 0
    _is_calm(server)


def _is_calm(server: Gunicorn) -> None:
    for trouble in ("Traceback", "ERROR", "WARNING", "Bad file descriptor"):
        assert trouble not in server.log, server.log
