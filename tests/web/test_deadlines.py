"""How long a client may take, at the ASGI application with deadlines that are shorter than in life."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from tests.consul_server import eventually
from tests.web.asgi_server import AsgiServer
from tests.web.filling import Cache
from tests.web.raw_http import Connection
from web.server import body, protocol

REGISTER = "/api/v1/modules/register"


@pytest.mark.parametrize(
    ("announced", "sent"),
    [({"Content_Length": "900000"}, b" " * 33_000), ({"Transfer_Encoding": "chunked"}, b"1\r\n \r\n")],
)
def test_a_body_that_does_not_come_is_told_so(
    cache: Cache,
    make_app: Callable[..., Flask],
    monkeypatch: pytest.MonkeyPatch,
    announced: dict[str, str],
    sent: bytes,
) -> None:
    monkeypatch.setattr(body, "BODY_WITHIN", 0.3)
    with AsgiServer(make_app()) as server, Connection(server.bind) as client:
        client.ask(REGISTER, method="POST", Content_Type="application/json", **announced)
        client.sock.sendall(sent)
        answer = client.answer()
        assert (answer.status, answer.told["type"]) == (408, "/problems/request-timeout")
        assert answer.headers["connection"] == "close"
        assert client.is_closed()


def test_large_bodies_wait_for_each_other_and_small_ones_for_none(
    cache: Cache, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "MOST_LARGE_BODIES", 1)
    with (
        AsgiServer(make_app()) as server,
        Connection(server.bind) as first,
        Connection(server.bind) as second,
    ):
        for client in (first, second):
            client.ask(REGISTER, method="POST", Content_Type="application/json", Content_Length="200000")
            client.sock.sendall(b" " * 150_000)
        small = server.http.post(REGISTER, json={"name": "weather", "port": 1})
        assert small.status_code == 201
        for client in (first, second):
            client.sock.sendall(b" " * 50_000)
            assert client.answer().status == 422


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"nonsense"]
)
def test_a_request_that_does_not_come_ends_the_connection(
    cache: Cache, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_WITHIN", 0.3)
    with AsgiServer(make_app()) as server, Connection(server.bind) as client, Connection(server.bind) as kept:
        kept.ask("/healthz")
        assert kept.answer().status == 200
        for one in (client, kept):
            one.sock.sendall(sent or b"")
        assert client.is_closed()
        if sent:
            assert kept.is_closed()


def test_who_takes_nothing_of_an_answer_is_cut_off(
    cache: Cache, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALLED_AFTER", 0.3)
    for number in range(27):
        cache.module(f"m{number}", description="x" * 200_000)
    large = "/api/v1/modules?include=manifest"
    with AsgiServer(make_app()) as server:
        whole = len(server.http.get(large, headers={"Connection": "close"}).content)
        for closing in ({}, {"Connection": "close"}):
            with Connection(server.bind, room=4096) as deaf:
                deaf.ask(large, **closing)
                assert deaf.head().status == 200
                eventually(lambda: server.connections == 0)
                assert received(deaf) < whole


def received(client: Connection) -> int:
    """How many bytes come until the connection is closed."""
    count = 0
    try:
        while data := client.sock.recv(1 << 16):
            count += len(data)
    except ConnectionResetError:
        pass
    return count
