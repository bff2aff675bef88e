"""WSGI in front of the application: requests in; answered at once, or held until there is news.

A server that can take a connection out of a thread's hands says so by `DETACHES` in the environ:
then `Detached` is raised, and the thread is free at once. With any other server the thread waits.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus

from werkzeug.datastructures import MIMEAccept, MultiDict
from werkzeug.http import parse_accept_header

from web.api.read import INDEX_HEADER
from web.problems import BadParameter, TooManyWatchers, document
from web.schemas.freshness import CONTACT_HEADER, STALE_HEADER
from web.schemas.parsing import JSON, query_of
from web.schemas.requests import EventsQuery, WaitQuery
from web.telemetry.request_metrics import REQUEST_ID_HEADER
from web.waiting.answer import Answer, Protocol, ask, head, kept
from web.waiting.event_tail import EventFilter
from web.waiting.held_request import Question
from web.waiting.hub import Hub

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

EVENT_STREAM = "text/event-stream"
STREAM = "lictor.stream"
"""In the environ where a stream is wanted: a list, to which the view adds a `StreamStart` if there is one."""
DETACHES = "lictor.detaches"
"""In the environ, true: the server takes `Detached` as word to let go of the connection."""

_API = "/api/v1/"
_EVENTS = "/api/v1/events"
_DEFAULT_WAIT = 300.0
_RETRY_AFTER = "5"
# What clients of the stream are to wait before they come back, in milliseconds.
_RECONNECT = 2000
# How long, in seconds, a thread waits beyond its time for word from the hub.
_GRACE = 30.0
_TO_OURSELVES = Protocol("HTTP/1.1", keeps_alive=False)


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A stream of the events that `wanted` takes, from behind the index `position`."""

    wanted: EventFilter
    position: int


class Detached(BaseException):
    """The request waits: the connection is no longer the thread's.

    `hold` takes the socket, and a function by which the connection comes back once it is answered.
    """

    def __init__(self, hub: Hub, hold: Callable[[socket.socket, Callable[[], None]], None]) -> None:
        super().__init__("the connection waits for a change")
        self.hub = hub
        self.hold = hold


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a request says about waiting, and the request without that."""

    index: int | None
    seconds: float | None
    environ: Mapping[str, Any]

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> _Wish | None:
        """None if it says nothing, or something faulty, which the application then tells."""
        parts = environ.get("QUERY_STRING", "").split("&")
        about = [part for part in parts if _name(part) in WaitQuery.model_fields]
        if not about:
            return None
        try:
            said = query_of(WaitQuery, MultiDict(parse_qsl("&".join(about), keep_blank_values=True)))
        except BadParameter:
            return None
        plain = kept(environ)
        plain["QUERY_STRING"] = "&".join(part for part in parts if part not in about)
        return cls(said.index, said.wait, plain)


class Waiting:
    """The middleware; `app` is asked for each answer, `threads` of the server may wait where none detach."""

    def __init__(self, app: WSGIApplication, hub: Hub, threads: int) -> None:
        self.app = app
        self._hub = hub
        self._threads = threading.BoundedSemaphore(threads)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not environ["PATH_INFO"].startswith(_API):
            return self.app(environ, start_response)
        if _wants_stream(environ):
            return self._stream(environ, start_response)
        wish = _Wish.of(environ) if environ.get("QUERY_STRING") else None
        if wish is None:
            return self.app(environ, start_response)
        return self._blocking(wish, environ, start_response)

    def _blocking(
        self, wish: _Wish, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        question = Question(self.app, wish.environ, _filter_of(wish))
        answer = question.ask()
        if answer.index is None:
            # No read, or a faulty one: the application tells of all that is wrong with it.
            return self.app(environ, start_response)
        index = answer.index if question.events is not None else wish.index
        seconds = _DEFAULT_WAIT if wish.seconds is None else wish.seconds
        if index is None or not seconds or self._hub.is_ending or question.is_answered_by(answer, index):
            return answer.give(start_response)
        if self._hub.is_full:
            return self._refuse(environ, start_response)
        # As Consul does it, so that those who began together do not end together.
        seconds *= 1 + random.random() / 16
        wait = partial(self._hub.wait, question=question, index=index, seconds=seconds)
        if environ.get(DETACHES):
            protocol = Protocol.of(environ)
            raise Detached(
                self._hub, lambda sock, give_back: wait(sock, protocol=protocol, give_back=give_back)
            )
        with self._thread() as ours_and_theirs:
            if ours_and_theirs is None:
                return self._refuse(environ, start_response)
            ours, theirs = ours_and_theirs
            wait(theirs, protocol=_TO_OURSELVES)
            ours.settimeout(seconds + _GRACE)
            with suppress(TimeoutError):
                ours.recv(1)
        return question.ask().give(start_response)

    def _stream(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        starts: list[StreamStart] = []
        answer = ask(self.app, {**environ, STREAM: starts})
        if not starts:
            return answer.give(start_response)
        if self._hub.is_full:
            return self._refuse(environ, start_response)
        (start,) = starts
        headers = _stream_headers(answer)
        preamble = f"retry: {_RECONNECT}\nid: {start.position}\n\n".encode()
        stream = partial(self._hub.stream, wanted=start.wanted, position=start.position)
        if environ.get(DETACHES):
            protocol = Protocol(Protocol.of(environ).version, keeps_alive=False)
            preamble = head(protocol, answer.status, [("Connection", "close"), *headers]) + preamble
            raise Detached(self._hub, lambda sock, _: stream(sock, preamble=preamble))
        with ExitStack() as until_the_end:
            ours_and_theirs = until_the_end.enter_context(self._thread())
            if ours_and_theirs is None:
                return self._refuse(environ, start_response)
            ours, theirs = ours_and_theirs
            stream(theirs, preamble=preamble)
            start_response(answer.status, headers)
            return _Chunks(ours, until_the_end.pop_all().close)

    @contextmanager
    def _thread(self) -> Iterator[tuple[socket.socket, socket.socket] | None]:
        """The two ends of what this thread waits at; None if too many threads wait already."""
        if not self._threads.acquire(blocking=False):
            yield None
            return
        try:
            ours, theirs = socket.socketpair()
            with ours:
                yield ours, theirs
        finally:
            self._threads.release()

    def _refuse(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        problem = TooManyWatchers(
            f"This process holds as many requests that wait as it may. {TooManyWatchers.advice}",
            headers={"Retry-After": _RETRY_AFTER},
        )
        return document(problem)(environ, start_response)


class _Chunks:
    """What the hub sends on a stream, for a thread to pass on; the server calls `close` at its end."""

    def __init__(self, sock: socket.socket, close: Callable[[], None]) -> None:
        self._sock = sock
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._sock.recv(65536):
            yield chunk


def _wants_stream(environ: WSGIEnvironment) -> bool:
    """Whether the log is asked for, and its client takes a stream rather than a list."""
    if environ["PATH_INFO"] != _EVENTS:
        return False
    accepted: MIMEAccept = parse_accept_header(environ.get("HTTP_ACCEPT", ""), MIMEAccept)
    return accepted.best_match((JSON, EVENT_STREAM)) == EVENT_STREAM


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0])


def _filter_of(wish: _Wish) -> EventFilter | None:
    """What a long poll of the event log waits for; None if the request is none."""
    environ = wish.environ
    if wish.index is not None or environ["PATH_INFO"] != _EVENTS or environ["REQUEST_METHOD"] != "GET":
        return None
    try:
        asked = query_of(EventsQuery, MultiDict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)))
    except BadParameter:
        return None
    return EventFilter(asked.module, frozenset(asked.type))


def _stream_headers(answer: Answer) -> list[tuple[str, str]]:
    told = (INDEX_HEADER, STALE_HEADER, CONTACT_HEADER, REQUEST_ID_HEADER)
    states = [line for line in answer.headers if line[0] in told]
    return [
        ("Content-Type", EVENT_STREAM),
        ("Cache-Control", "no-store"),
        # Proxies that collect answers would hold events back.
        ("X-Accel-Buffering", "no"),
        *states,
    ]
