"""Requests that wait, at the ASGI application: what they mean. Those at gunicorn are in test_watchers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY

from discovery.base import Health, ServiceInstance
from manifest_cache.storage.database import StoreUnavailable
from tests.consul_server import eventually
from tests.postgres_server import PostgresServer
from tests.web.asgi_server import AsgiServer
from tests.web.filling import Cache, instance
from tests.web.filling import told as told_by_flask
from tests.web.raw_http import Connection
from web.server import protocol, waiting_requests
from web.waiting import event_streams

API = "/api/v1"
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def server(cache: Cache, make_app: Callable[..., Flask]) -> Iterator[AsgiServer]:
    with AsgiServer(make_app()) as server:
        yield server


@pytest.fixture
def http(server: AsgiServer) -> httpx.Client:
    return server.http


def told(answer: httpx.Response) -> Any:
    return json.loads(answer.content)


class Asking:
    """A request beside the test, which waits."""

    def __init__(self, http: httpx.Client, path: str, **more: Any) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(http.get(path, timeout=60, **more))
        )
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def answer(self) -> httpx.Response:
        self._thread.join(30)
        (answer,) = self._answers
        return answer


def waiting(kind: str) -> float:
    return REGISTRY.get_sample_value("lictor_watchers", {"kind": kind}) or 0


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_blocking_query_ends_when_the_index_passes(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    asking = Asking(http, f"{API}/modules?index={index}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    assert asking.waits
    newest = cache.announce(instance("mailer"))
    answer = asking.answer()
    assert (answer.status_code, told(answer)["index"]) == (200, newest)
    assert [module["name"] for module in told(answer)["items"]] == ["financial", "mailer"]
    eventually(lambda: waiting("blocking") == 0)


def test_an_index_that_has_passed_does_not_wait(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    answer = http.get(f"{API}/modules/financial?wait=10m&index={index - 1}")
    assert answer.status_code == 200
    assert answer.content == http.get(f"{API}/modules/financial").content


@pytest.mark.parametrize("query", ["wait=10m", "index=99999&wait=0", "%69ndex=99999&wait=50ms"])
def test_who_need_not_wait_long(cache: Cache, http: httpx.Client, query: str) -> None:
    cache.module("financial")
    assert http.get(f"{API}/modules?{query}").status_code == 200


def test_an_index_in_the_future_waits(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    asking = Asking(http, f"{API}/modules?index={index + 1}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    heard = cache.announce(instance("mailer"))
    while heard <= index + 1:
        heard = cache.announce(instance("mailer", heard))
    assert told(asking.answer())["index"] > index + 1


def test_a_module_that_is_not_there_is_waited_for(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    asking = Asking(http, f"{API}/modules/mailer?index={index}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    cache.announce(instance("mailer"))
    assert told(asking.answer())["name"] == "mailer"
    gone = http.get(f"{API}/modules/nobody?index={cache.index()}&wait=50ms")
    assert (gone.status_code, told(gone)["type"]) == (404, "/problems/unknown-module")


def test_what_stayed_the_same_comes_as_304(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    etag = http.get(f"{API}/modules/financial/manifest").headers["ETag"]
    asking = Asking(http, f"{API}/modules/financial/manifest?index={index}", headers={"If-None-Match": etag})
    eventually(lambda: waiting("blocking") == 1)
    newest = cache.announce(instance("mailer"))
    answer = asking.answer()
    assert (answer.status_code, answer.headers["X-Lictor-Index"], answer.content) == (304, str(newest), b"")


def test_whose_module_changed_is_answered_first(cache: Cache, make_app: Callable[..., Flask]) -> None:
    names = [f"module-{number}" for number in range(8)]
    cache.announce(*(instance(name) for name in names))
    asked: list[str] = []
    app = make_app()
    inner = app.wsgi_app

    def noting(environ: Any, start_response: Any) -> Any:
        asked.append(environ["QUERY_STRING"])
        return inner(environ, start_response)

    app.wsgi_app = noting  # type: ignore[method-assign]
    index = cache.index()
    with AsgiServer(app) as server:
        asking = [Asking(server.http, f"{API}/modules/lookup?name={name}&index={index}") for name in names]
        eventually(lambda: waiting("blocking") == len(names))
        asked.clear()
        cache.announce(instance("module-6", health=Health.CRITICAL))
        assert {one.answer().status_code for one in asking} == {200}
        assert asked[0] == "name=module-6"
        assert sorted(asked) == [f"name={name}" for name in names]


def test_a_poll_waits_for_an_event_that_passes(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    asking = Asking(http, f"{API}/events?after={index}&wait=1m&module=mailer")
    eventually(lambda: waiting("poll") == 1)
    cache.announce(instance("financial", 2))
    cache.announce(instance("mailer"))
    assert {event["module"] for event in told(asking.answer())["items"]} == {"mailer"}
    assert told(http.get(f"{API}/events?after={cache.index()}&wait=50ms"))["items"] == []


def test_who_leaves_takes_nobody_along(cache: Cache, server: AsgiServer) -> None:
    index = cache.module("financial")
    path = f"{API}/events?after={index}&wait=1m&module=mailer"
    with Connection(server.bind) as leaving, Connection(server.bind) as staying:
        for client in (leaving, staying):
            client.ask(path)
        eventually(lambda: waiting("poll") == 2)
        leaving.sock.close()
        eventually(lambda: waiting("poll") == 1)
        cache.announce(instance("mailer"))
        assert staying.answer().told["items"][0]["module"] == "mailer"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("modules?index=99999", {}),
        ("modules/nobody?index=99999&wait=1s", {}),
        ("events?after=99999&wait=1m", {}),
        ("events", STREAM),
    ],
)
def test_a_server_that_cannot_hold_requests_says_so(
    cache: Cache, client: FlaskClient, path: str, headers: dict[str, str]
) -> None:
    """The Flask application alone, as any WSGI server runs it."""
    cache.module("financial")
    answer = client.get(f"{API}/{path}", headers=headers)
    assert (answer.status_code, told_by_flask(answer)["type"]) == (501, "/problems/cannot-wait")
    assert "lictor serve" in told_by_flask(answer)["detail"]


@pytest.mark.parametrize("path", ["modules?index=0", "modules?index=99999&wait=0", "events?after=0&wait=1m"])
def test_any_server_answers_who_need_not_wait(cache: Cache, client: FlaskClient, path: str) -> None:
    cache.module("financial")
    answer = client.get(f"{API}/{path}")
    assert (answer.status_code, bool(told_by_flask(answer)["items"])) == (200, True)


def test_all_are_answered_when_the_process_ends(cache: Cache, make_app: Callable[..., Flask]) -> None:
    index = cache.module("financial")
    with AsgiServer(make_app()) as server, Connection(server.bind) as kept:
        kept.ask(f"{API}/modules")
        assert kept.answer().status == 200
        asking = Asking(server.http, f"{API}/modules?index={index}&wait=10m")
        eventually(lambda: waiting("blocking") == 1)
        server.end()
        answer = asking.answer()
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        # Whoever comes to wait now does not.
        kept.ask(f"{API}/modules?index={index}&wait=10m")
        late = kept.answer()
        assert (late.status, late.headers["connection"]) == (200, "close")


def blocks(chunks: Iterable[str], count: int) -> list[str]:
    """The first blocks of a stream."""
    text = ""
    for chunk in chunks:
        text += chunk
        if text.count("\n\n") >= count:
            break
    return text.split("\n\n")[:count]


def test_a_stream(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    with http.stream("GET", f"{API}/events?after={index - 2}", headers=STREAM) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Lictor-Index"] == str(index)
        first, one, other = blocks(answer.iter_text(), 3)
    assert first == f"retry: 2000\nid: {index - 2}"
    listed = http.get(f"{API}/events?after={index - 2}").text
    for frame, id_ in ((one, index - 1), (other, index)):
        number, _, data = frame.split("\n")
        assert number == f"id: {id_}"
        # To the byte as the list has it.
        assert data.removeprefix("data: ") in listed
    eventually(lambda: waiting("stream") == 0)


def test_a_stream_from_an_index_that_is_not_there_yet(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    with http.stream("GET", f"{API}/events?after={index + 2}", headers=STREAM) as answer:
        newest = index
        while newest < index + 3:
            newest = cache.announce(instance("mailer", newest))
        assert blocks(answer.iter_text(), 2)[1].startswith(f"id: {index + 3}\n")


@pytest.mark.parametrize(
    ("path", "headers", "parameter"),
    [
        ("?limit=5", {}, "limit"),
        ("?index=5", {}, "index"),
        ("?wait=5s&cursor=x", {}, "wait"),
        ("?type=none", {}, "type"),
        ("", {"Last-Event-ID": "-1"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "12x"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "9" * 30}, "Last-Event-ID"),
    ],
)
def test_faults_of_a_stream_are_named(
    cache: Cache, http: httpx.Client, path: str, headers: dict[str, str], parameter: str
) -> None:
    answer = http.get(f"{API}/events{path}", headers={**STREAM, **headers})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert parameter in {error["parameter"] for error in told(answer)["errors"]}


@pytest.mark.parametrize("how", ["Last-Event-ID", "after"])
def test_a_resume_from_before_what_is_kept(cache: Cache, http: httpx.Client, how: str) -> None:
    cache.module("financial")
    with cache.database.write() as session:
        session.connection().exec_driver_sql('DELETE FROM events WHERE "index" < 5')
    query, headers = ("", {how: "2"}) if how == "Last-Event-ID" else ("?after=2", {})
    answer = http.get(f"{API}/events{query}", headers={**STREAM, **headers})
    assert (answer.status_code, told(answer)["type"]) == (410, "/problems/events-gone")


def test_who_takes_both_gets_the_list(cache: Cache, http: httpx.Client) -> None:
    cache.module("financial")
    for accept in ("*/*", "text/event-stream;q=0.5, application/json"):
        assert (
            http.get(f"{API}/events", headers={"Accept": accept}).headers["content-type"]
            == "application/json"
        )
    head = http.head(f"{API}/events", headers=STREAM)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")
    assert http.get(f"{API}/modules", headers=STREAM).status_code == 406


@pytest.mark.parametrize("accept", ["text/*", "Text/Event-Stream", "text/event-stream, */*;q=0.1"])
def test_who_takes_a_stream_before_all_gets_one(cache: Cache, http: httpx.Client, accept: str) -> None:
    index = cache.module("financial")
    # Nothing of the first is kept for the second.
    for _ in range(2):
        with http.stream("GET", f"{API}/events?after={index - 1}", headers={"Accept": accept}) as answer:
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
            assert blocks(answer.iter_text(), 2)[1].startswith(f"id: {index}\n")


def test_who_would_take_a_stream_too_may_wait_for_the_list(cache: Cache, http: httpx.Client) -> None:
    index = cache.module("financial")
    both = {"Accept": "application/json, text/event-stream"}
    asking = Asking(http, f"{API}/events?after={index}&wait=1m", headers=both)
    eventually(lambda: waiting("poll") == 1)
    cache.announce(instance("mailer"))
    assert told(asking.answer())["items"][0]["index"] == index + 1


def test_a_silent_stream_is_kept_alive(
    cache: Cache, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "_BEAT", 0.1)
    cache.module("financial")
    text = ""
    with http.stream("GET", f"{API}/events", headers=STREAM) as answer:
        for chunk in answer.iter_text():
            text += chunk
            if text.count(":\n") >= 5:
                break
    # Comments alone: no blank line, which some clients take for an event without data.
    assert text.partition("\n\n")[2].replace(":\n", "") == ""


def test_who_takes_nothing_for_long_is_dropped(
    cache: Cache, server: AsgiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (protocol, waiting_requests):
        monkeypatch.setattr(module, "STALLED_AFTER", 0.5)
    cache.announce(*(instance("large", number, meta={"note": "x" * 500}) for number in range(5000)))
    dropped = REGISTRY.get_sample_value("lictor_streams_dropped_total", {"reason": "stalled"}) or 0
    with Connection(server.bind, room=4096) as deaf:
        deaf.ask(f"{API}/events?after=0", **STREAM)
        eventually(lambda: waiting("stream") == 1)
        eventually(lambda: waiting("stream") == 0)
    assert REGISTRY.get_sample_value("lictor_streams_dropped_total", {"reason": "stalled"}) == dropped + 1


def test_the_database_goes_away_and_comes_back(make_app: Callable[..., Flask]) -> None:
    with PostgresServer() as database, ExitStack() as stack:
        url = database.create_database()
        cache = stack.enter_context(Cache(url))
        index = cache.module("financial")
        http = stack.enter_context(AsgiServer(make_app(database_url=url))).http
        asking = Asking(http, f"{API}/modules?index={index}&wait=2m")
        stream = stack.enter_context(http.stream("GET", f"{API}/events", headers=STREAM))
        eventually(lambda: waiting("blocking") == 1 and waiting("stream") == 1)
        database.stop()
        hurried = http.get(f"{API}/modules?index={index}&wait=100ms")
        assert (hurried.status_code, told(hurried)["type"]) == (503, "/problems/database-unavailable")
        database.start()
        newest = eventually(lambda: announced(cache, instance("mailer")))
        assert told(asking.answer())["index"] == newest
        assert blocks(stream.iter_text(), 2)[1].startswith(f"id: {index + 1}\n")


def test_a_database_that_is_away_for_a_moment_is_told_of(
    cache: Cache, make_app: Callable[..., Flask]
) -> None:
    app = make_app()
    away = [True]

    @app.before_request
    def first_is_too_early() -> None:
        if away:
            away.pop()
            raise StoreUnavailable("the database system is starting up")

    with AsgiServer(app) as server:
        answer = server.http.get(f"{API}/modules?index={cache.module('financial')}&wait=10s")
        assert (answer.status_code, told(answer)["type"]) == (503, "/problems/database-unavailable")
        assert not away


def announced(cache: Cache, one: ServiceInstance) -> int:
    """The index, or 0 while the database cannot be written to."""
    try:
        return cache.announce(one)
    except StoreUnavailable:
        return 0
