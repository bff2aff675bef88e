"""Requests that wait, each in a thread, as under the test client: what they mean is the same everywhere."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from prometheus_client import REGISTRY
from werkzeug.test import TestResponse

from discovery.base import Health, ServiceInstance
from manifest_cache.storage.database import StoreUnavailable
from tests.consul_server import eventually
from tests.postgres_server import PostgresServer
from tests.web.filling import Cache, instance, told
from web import backend
from web.waiting import event_streams
from web.waiting.answer import Protocol
from web.waiting.event_tail import EventFilter
from web.waiting.held_request import Question
from web.waiting.hub import Hub
from web.waiting.middleware import Detached
from web.worker import WaitingWorker

API = "/api/v1"
STREAM = {"Accept": "text/event-stream"}


class Asking:
    """A request beside the test, which waits."""

    def __init__(self, client: FlaskClient, path: str, **more: Any) -> None:
        self._answers: list[TestResponse] = []
        # A client of its own, as test clients are not for several threads.
        own = client.application.test_client()
        self._thread = threading.Thread(target=lambda: self._answers.append(own.get(path, **more)))
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def answer(self) -> TestResponse:
        self._thread.join(30)
        (answer,) = self._answers
        return answer


def waiting(kind: str) -> float:
    return REGISTRY.get_sample_value("lictor_watchers", {"kind": kind}) or 0


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_blocking_query_ends_when_the_index_passes(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    asking = Asking(client, f"{API}/modules?index={index}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    assert asking.waits
    newest = cache.announce(instance("mailer"))
    answer = asking.answer()
    assert (answer.status_code, told(answer)["index"]) == (200, newest)
    assert [module["name"] for module in told(answer)["items"]] == ["financial", "mailer"]
    eventually(lambda: waiting("blocking") == 0)


def test_an_index_that_has_passed_does_not_wait(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    answer = client.get(f"{API}/modules/financial?wait=10m&index={index - 1}")
    assert answer.status_code == 200
    assert answer.data == client.get(f"{API}/modules/financial").data


@pytest.mark.parametrize("query", ["wait=10m", "index=99999&wait=0", "%69ndex=99999&wait=50ms"])
def test_who_need_not_wait_long(cache: Cache, client: FlaskClient, query: str) -> None:
    cache.module("financial")
    assert client.get(f"{API}/modules?{query}").status_code == 200


def test_an_index_in_the_future_waits(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    asking = Asking(client, f"{API}/modules?index={index + 1}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    heard = cache.announce(instance("mailer"))
    while heard <= index + 1:
        heard = cache.announce(instance("mailer", heard))
    assert told(asking.answer())["index"] > index + 1


def test_a_module_that_is_not_there_is_waited_for(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    asking = Asking(client, f"{API}/modules/mailer?index={index}&wait=1m")
    eventually(lambda: waiting("blocking") == 1)
    cache.announce(instance("mailer"))
    assert told(asking.answer())["name"] == "mailer"
    gone = client.get(f"{API}/modules/nobody?index={cache.index()}&wait=50ms")
    assert (gone.status_code, told(gone)["type"]) == (404, "/problems/unknown-module")


def test_what_stayed_the_same_comes_as_304(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    etag = client.get(f"{API}/modules/financial/manifest").headers["ETag"]
    asking = Asking(
        client, f"{API}/modules/financial/manifest?index={index}", headers={"If-None-Match": etag}
    )
    eventually(lambda: waiting("blocking") == 1)
    newest = cache.announce(instance("mailer"))
    answer = asking.answer()
    assert (answer.status_code, answer.headers["X-Lictor-Index"], answer.data) == (304, str(newest), b"")


def test_whose_module_changed_is_answered_first(cache: Cache, client: FlaskClient) -> None:
    names = [f"module-{number}" for number in range(8)]
    cache.announce(*(instance(name) for name in names))
    asked: list[str] = []
    app = client.application

    def noting(environ: Any, start_response: Any) -> Any:
        asked.append(environ["QUERY_STRING"])
        return app.wsgi_app(environ, start_response)

    hub = Hub(backend.of(app))
    index = cache.index()
    with ExitStack() as clients:
        clients.callback(hub.end)
        for name in names:
            environ = app.test_request_context(f"{API}/modules/lookup?name={name}").request.environ
            question = Question(noting, environ)
            assert question.ask().index == index
            ours, theirs = socket.socketpair()
            clients.enter_context(ours)
            hub.wait(theirs, question, index=index, seconds=60, protocol=Protocol("HTTP/1.1", False))
        eventually(lambda: waiting("blocking") == len(names))
        asked.clear()
        cache.announce(instance("module-6", health=Health.CRITICAL))
        eventually(lambda: waiting("blocking") == 0)
        assert asked[0] == "name=module-6"
        assert sorted(asked) == [f"name={name}" for name in names]


def test_a_poll_waits_for_an_event_that_passes(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    asking = Asking(client, f"{API}/events?after={index}&wait=1m&module=mailer")
    eventually(lambda: waiting("poll") == 1)
    cache.announce(instance("financial", 2))
    cache.announce(instance("mailer"))
    assert {event["module"] for event in told(asking.answer())["items"]} == {"mailer"}
    assert told(client.get(f"{API}/events?after={cache.index()}&wait=50ms"))["items"] == []


def test_who_leaves_while_answered_takes_nobody_along(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    app = client.application
    busy, free = threading.Event(), threading.Event()
    leaving, leaving_theirs = socket.socketpair()

    def asked(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"].endswith("/modules"):
            busy.set()
            free.wait(30)
        else:
            # Of those who wait alike one is gone just before it is told that its time is up.
            leaving.close()
        return app.wsgi_app(environ, start_response)

    def question(path: str, events: EventFilter | None = None) -> Question:
        return Question(asked, app.test_request_context(f"{API}/{path}").request.environ, events)

    hub, protocol = Hub(backend.of(app)), Protocol("HTTP/1.1", keeps_alive=False)
    with ExitStack() as closing:
        closing.callback(hub.end)
        first, first_theirs = socket.socketpair()
        closing.enter_context(first)
        hub.wait(first_theirs, question("modules"), index=index - 1, seconds=60, protocol=protocol)
        assert busy.wait(30)
        poll = question(f"events?after={index}&module=mailer", EventFilter("mailer"))
        staying, staying_theirs = socket.socketpair()
        closing.enter_context(staying)
        hub.wait(leaving_theirs, poll, index=index - 1, seconds=0, protocol=protocol)
        hub.wait(staying_theirs, poll, index=index - 1, seconds=60, protocol=protocol)
        free.set()
        eventually(lambda: waiting("poll") == 1)
        cache.announce(instance("mailer"))
        staying.settimeout(20)
        assert staying.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_threads_that_may_wait_are_bounded(cache: Cache, make_app: Callable[..., Flask]) -> None:
    client = make_app(threads=4).test_client()
    index = cache.module("financial")
    asking = [Asking(client, f"{API}/modules?index={index}&wait=1m") for _ in range(2)]
    eventually(lambda: waiting("blocking") == 2)
    for headers in ({}, STREAM):
        path = f"{API}/events" if headers else f"{API}/modules?index={index}"
        refused = client.get(path, headers=headers)
        assert (refused.status_code, told(refused)["type"]) == (503, "/problems/too-many-watchers")
        assert refused.headers["Retry-After"]
    cache.announce(instance("mailer"))
    assert [one.answer().status_code for one in asking] == [200, 200]


def test_a_stream_that_cannot_begin_keeps_no_thread(
    cache: Cache, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file_left() -> None:
        raise OSError(errno.EMFILE, "too many files")

    client = make_app(threads=2).test_client()
    with monkeypatch.context() as without_files:
        without_files.setattr(socket, "socketpair", no_file_left)
        with pytest.raises(OSError, match="too many files"):
            client.get(f"{API}/events", headers=STREAM)
    answer = client.get(f"{API}/events", headers=STREAM)
    assert answer.status_code == 200
    answer.close()


def test_all_are_answered_when_the_process_ends(cache: Cache, make_app: Callable[..., Flask]) -> None:
    app = make_app()
    client = app.test_client()
    index = cache.module("financial")
    asking = Asking(client, f"{API}/modules?index={index}&wait=10m")
    eventually(lambda: waiting("blocking") == 1)
    app.extensions["lictor"].close()
    assert asking.answer().status_code == 200
    assert client.get(f"{API}/modules?index={index}&wait=10m").status_code == 200


def test_who_comes_to_wait_as_the_worker_is_told_to_end_is_answered(
    cache: Cache, client: FlaskClient
) -> None:
    index = cache.module("financial")
    app, configuration = client.application, Config()
    worker = WaitingWorker(0, os.getpid(), [], None, 60, configuration, Logger(configuration))
    worker.method_queue.init()
    hub = Hub(backend.of(app))
    environ = app.test_request_context(f"{API}/modules/financial").request.environ

    def hold(sock: socket.socket, give_back: Callable[[], None]) -> None:
        # At this very moment, between two steps of the worker's.
        worker.handle_exit(signal.SIGTERM, None)
        question, protocol = Question(app.wsgi_app, environ), Protocol("HTTP/1.1", keeps_alive=True)
        hub.wait(sock, question, index=index, seconds=60, protocol=protocol, give_back=give_back)

    done: Future[Detached] = Future()
    done.set_result(Detached(hub, hold))
    ours, theirs = socket.socketpair()
    with ours, closing(worker.tmp):
        worker.finish_request(SimpleNamespace(sock=theirs), done)
        # As the worker does when its loop has ended.
        hub.end()
        assert ours.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def blocks(answer: TestResponse, count: int) -> list[str]:
    """The first blocks of a stream."""
    text = ""
    chunks = iter(answer.response)
    while text.count("\n\n") < count:
        text += bytes(next(chunks)).decode()  # type: ignore[arg-type]
    answer.close()
    return list(islice(text.split("\n\n"), count))


def test_a_stream(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    answer = client.get(f"{API}/events?after={index - 2}", headers=STREAM)
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Lictor-Index"] == str(index)
    first, one, other = blocks(answer, 3)
    assert first == f"retry: 2000\nid: {index - 2}"
    listed = client.get(f"{API}/events?after={index - 2}").text
    for frame, id_ in ((one, index - 1), (other, index)):
        number, _, data = frame.split("\n")
        assert number == f"id: {id_}"
        # To the byte as the list has it.
        assert data.removeprefix("data: ") in listed
    eventually(lambda: waiting("stream") == 0)


def test_a_stream_from_an_index_that_is_not_there_yet(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    answer = client.get(f"{API}/events?after={index + 2}", headers=STREAM)
    newest = index
    while newest < index + 3:
        newest = cache.announce(instance("mailer", newest))
    assert blocks(answer, 2)[1].startswith(f"id: {index + 3}\n")


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
    cache: Cache, client: FlaskClient, path: str, headers: dict[str, str], parameter: str
) -> None:
    answer = client.get(f"{API}/events{path}", headers={**STREAM, **headers})
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert parameter in {error["parameter"] for error in told(answer)["errors"]}


@pytest.mark.parametrize("how", ["Last-Event-ID", "after"])
def test_a_resume_from_before_what_is_kept(cache: Cache, client: FlaskClient, how: str) -> None:
    cache.module("financial")
    with cache.database.write() as session:
        session.connection().exec_driver_sql('DELETE FROM events WHERE "index" < 5')
    query, headers = ("", {how: "2"}) if how == "Last-Event-ID" else ("?after=2", {})
    answer = client.get(f"{API}/events{query}", headers={**STREAM, **headers})
    assert (answer.status_code, told(answer)["type"]) == (410, "/problems/events-gone")


def test_who_takes_both_gets_the_list(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    for accept in ("*/*", "text/event-stream;q=0.5, application/json"):
        assert client.get(f"{API}/events", headers={"Accept": accept}).content_type == "application/json"
    head = client.head(f"{API}/events", headers=STREAM)
    assert (head.status_code, head.content_type) == (200, "text/event-stream")
    assert client.get(f"{API}/modules", headers=STREAM).status_code == 406


@pytest.mark.parametrize("accept", ["text/*", "Text/Event-Stream", "text/event-stream, */*;q=0.1"])
def test_who_takes_a_stream_before_all_gets_one(cache: Cache, client: FlaskClient, accept: str) -> None:
    index = cache.module("financial")
    # Nothing of the first is kept for the second.
    for _ in range(2):
        answer = client.get(f"{API}/events?after={index - 1}", headers={"Accept": accept})
        assert (answer.status_code, answer.content_type) == (200, "text/event-stream")
        assert blocks(answer, 2)[1].startswith(f"id: {index}\n")


def test_who_would_take_a_stream_too_may_wait_for_the_list(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial")
    both = {"Accept": "application/json, text/event-stream"}
    asking = Asking(client, f"{API}/events?after={index}&wait=1m", headers=both)
    eventually(lambda: waiting("poll") == 1)
    cache.announce(instance("mailer"))
    assert told(asking.answer())["items"][0]["index"] == index + 1


def test_a_silent_stream_is_kept_alive(
    cache: Cache, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "_BEAT", 0.1)
    cache.module("financial")
    answer = client.get(f"{API}/events", headers=STREAM)
    text = ""
    for chunk in answer.response:
        text += bytes(chunk).decode()  # type: ignore[arg-type]
        if text.count(":\n") >= 3:
            break
    answer.close()
    # Comments alone: no blank line, which some clients take for an event without data.
    assert text.partition("\n\n")[2].replace(":\n", "") == ""


def test_who_takes_nothing_for_long_is_dropped(
    cache: Cache, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "_BEAT", 0.1)
    monkeypatch.setattr(event_streams, "_PATIENCE", 0.5)
    cache.announce(*(instance("large", number, meta={"note": "x" * 500}) for number in range(1500)))
    dropped = REGISTRY.get_sample_value("lictor_streams_dropped_total", {"reason": "stalled"}) or 0
    answer = client.get(f"{API}/events?after=0", headers=STREAM)
    eventually(lambda: waiting("stream") == 0)
    assert REGISTRY.get_sample_value("lictor_streams_dropped_total", {"reason": "stalled"}) == dropped + 1
    answer.close()


def test_the_database_goes_away_and_comes_back(make_app: Callable[..., Flask]) -> None:
    with PostgresServer() as server:
        url = server.create_database()
        with Cache(url) as cache:
            index = cache.module("financial")
            client = make_app(database_url=url).test_client()
            asking = Asking(client, f"{API}/modules?index={index}&wait=2m")
            stream = client.get(f"{API}/events", headers=STREAM)
            eventually(lambda: waiting("blocking") == 1 and waiting("stream") == 1)
            server.stop()
            hurried = client.get(f"{API}/modules?index={index}&wait=100ms")
            assert (hurried.status_code, told(hurried)["type"]) == (503, "/problems/database-unavailable")
            server.start()
            newest = eventually(lambda: announced(cache, instance("mailer")))
            assert told(asking.answer())["index"] == newest
            assert blocks(stream, 2)[1].startswith(f"id: {index + 1}\n")


def announced(cache: Cache, one: ServiceInstance) -> int:
    """The index, or 0 while the database cannot be written to."""
    try:
        return cache.announce(one)
    except StoreUnavailable:
        return 0
