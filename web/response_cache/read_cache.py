"""Answers reads from finished responses while the index stays.

It stands before the application and costs a read one glance at the index. What was committed
before a request came in is in its answer, whichever process wrote it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from manifest_cache.storage.database import StoreError
from manifest_cache.storage.models import SourceRow
from web import backend
from web.api.read import FACTS
from web.backend import Backend
from web.problems import Problem
from web.response_cache.cached_response import KeptAnswer
from web.response_cache.whole_answer import Sent, whole_answer
from web.telemetry.metrics import READ_CACHE
from web.telemetry.request_metrics import ROUTE
from web.waiting.middleware import STREAM

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

REPEAT = "lictor.repeat"
"""Where the environment of a request tells how to answer it again without one, if that can be."""

_PREFIX = "/api/v1/"
_CONTACT_FOR = 1.0
# Whoever waits longer for what another one makes makes it as well.
_PATIENCE = 5.0

_HIT = READ_CACHE.labels("hit")
_QUICK = READ_CACHE.labels("quick")
_MISS = READ_CACHE.labels("miss")
_PASSED = READ_CACHE.labels("passed")


def install(app: Flask) -> None:
    """Puts it before the application, and before what was put there already."""
    behind = backend.of(app)
    cache = ReadCache(app.wsgi_app, behind, behind.settings.read_cache_bytes)
    behind.when_put_back(cache.forget)
    app.wsgi_app = cache  # type: ignore[method-assign]


class _Asked(NamedTuple):
    """All of a request that decides its answer, but for what an answer can be turned into."""

    path: str
    query: str
    accept: str


class ReadCache:
    """A WSGI application before another one. Holds at most `limit` bytes of answers, none if it is 0."""

    def __init__(self, app: WSGIApplication, backend: Backend, limit: int) -> None:
        self._app = app
        self._backend = backend
        self._answers = _Answers(limit)
        self._contacts = _Contacts(backend)
        self._making: dict[_Asked, _Making] = {}

    def index(self) -> int:
        """The newest index. Raises StoreError."""
        return self._backend.index()

    def current_or_none(self) -> int | None:
        """The newest index, None if that cannot be told without a wait."""
        return self._backend.current_or_none()

    def forget(self) -> None:
        """Throws all answers away."""
        self._answers.clear()

    def at_hand(self, repeat: Repeat, index: int) -> tuple[Sent, str] | None:
        """What is answered at this index, and the route of that; None if anything is left to do for it."""
        answer = self._answers.get(repeat.asked)
        now = time.monotonic()
        if answer is None or answer.index != index or answer.needs_refresh(now) or answer.is_too_old(now):
            return None
        sent = answer.at_hand(repeat.if_none_match, repeat.accept_encoding)
        if sent is None:
            return None
        _QUICK.inc()
        return sent, answer.route

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = _asked(environ)
        if asked is None:
            return self._app(environ, start_response)
        try:
            index = self._backend.index()
            sent = self._kept(asked, index, environ) or self._made(asked, index, environ)
        except StoreError:
            # The application knows how to tell.
            _PASSED.inc()
            return self._app(environ, start_response)
        # A copy: who stands before this may change it.
        start_response(sent.status, sent.headers.copy())
        return [sent.body] if sent.body and environ["REQUEST_METHOD"] == "GET" else []

    def _kept(self, asked: _Asked, index: int, environ: WSGIEnvironment) -> Sent | None:
        """The answer that is kept, if it still holds at this index. Raises StoreError."""
        answer = self._answers.get(asked)
        if answer is None or not self._holds(answer, index):
            return None
        _HIT.inc()
        return self._for_client(asked, answer, environ)

    def _holds(self, answer: KeptAnswer, index: int) -> bool:
        # One that is newer than the look was made after it; unless the database was put back.
        if answer.index != index and not index < answer.index <= self._backend.index():
            return False
        now = time.monotonic()
        if answer.needs_refresh(now):
            answer.refresh(self._contacts.of(answer.source_names, now), now)
        return not answer.is_too_old(now)

    def _for_client(self, asked: _Asked, answer: KeptAnswer, environ: WSGIEnvironment) -> Sent:
        environ[ROUTE] = answer.route
        size = answer.size
        repeat = environ[REPEAT] = Repeat(
            self,
            asked,
            environ["REQUEST_METHOD"],
            environ.get("HTTP_IF_NONE_MATCH"),
            environ.get("HTTP_ACCEPT_ENCODING"),
        )
        sent = answer.for_client(repeat.if_none_match, repeat.accept_encoding)
        if answer.size != size:
            self._answers.put(asked, answer)
        return sent

    def _made(self, asked: _Asked, index: int, environ: WSGIEnvironment) -> Sent:
        """An answer that is made now. Of those who want the same at once one makes it for all."""
        while True:
            mine = _Making()
            making = self._making.setdefault(asked, mine)
            if making is mine:
                return self._make(mine, asked, index, environ)
            if not making.done.wait(_PATIENCE) or making.answer is None:
                return self._made_now(asked, index, environ)[0]
            # Not yet if it was begun before this request came in, and something changed in between.
            if making.answer.index >= index:
                _HIT.inc()
                return self._for_client(asked, making.answer, environ)

    def _make(self, making: _Making, asked: _Asked, index: int, environ: WSGIEnvironment) -> Sent:
        try:
            sent, making.answer = self._made_now(asked, index, environ)
            return sent
        finally:
            del self._making[asked]
            making.done.set()

    def _made_now(
        self, asked: _Asked, index: int, environ: WSGIEnvironment
    ) -> tuple[Sent, KeptAnswer | None]:
        """What is sent, and the answer that is kept of it, if it is one. Raises StoreError."""
        _MISS.inc()
        before = self._answers.get(asked)
        answer = before and self._made_from(before, index)
        if answer is None:
            return self._from_app(asked, environ)
        self._answers.put(asked, answer)
        return self._for_client(asked, answer, environ), answer

    def _made_from(self, before: KeptAnswer, index: int) -> KeptAnswer | None:
        """Made of what is known of the answer before: the application takes several times as long."""
        changes = self._backend.changes
        if changes.reach(index) and (answer := self._renewed(before, index)):
            return answer
        try:
            with self._backend.snapshot() as snapshot:
                changes.follow(snapshot)
                return self._renewed(before, index) or before.made_again(snapshot)
        except Problem:
            # The application knows how to tell.
            return None

    def _renewed(self, before: KeptAnswer, index: int) -> KeptAnswer | None:
        """The answer before, if what changed until this index or a later one is nothing to it."""
        answer = before.renewed(self._backend.changes)
        return answer if answer is not None and self._holds(answer, index) else None

    def _from_app(self, asked: _Asked, environ: WSGIEnvironment) -> tuple[Sent, KeptAnswer | None]:
        """What the application sends, and the answer that is kept of it, if it is one."""
        # Whole, whatever this client knows of it: the next one may not.
        whole = {**environ, "REQUEST_METHOD": "GET"}
        whole.pop("HTTP_IF_NONE_MATCH", None)
        sent = whole_answer(self._app, whole)
        facts = whole.get(FACTS)
        environ[ROUTE] = whole.get(ROUTE, "none")
        if facts is None or not sent.status.startswith("200 "):
            return sent, None
        answer = KeptAnswer(sent, facts, environ[ROUTE])
        self._answers.put(asked, answer)
        return self._for_client(asked, answer, environ), answer


@dataclass(frozen=True, slots=True)
class Repeat:
    """A read that was answered from what is kept, and all that it takes to answer the same once more."""

    cache: ReadCache
    asked: _Asked
    method: str
    if_none_match: str | None
    accept_encoding: str | None

    def at_hand(self, index: int) -> tuple[Sent, str] | None:
        """What is answered at this index, and the route of that; None if anything is left to do for it."""
        return self.cache.at_hand(self, index)


class _Making:
    """An answer that is being made; None in the end if it can be for nobody else."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: KeptAnswer | None = None


def _asked(environ: WSGIEnvironment) -> _Asked | None:
    """None where the application is to answer by itself."""
    path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
    accept = environ.get("HTTP_ACCEPT", "")
    if (
        environ["REQUEST_METHOD"] not in ("GET", "HEAD")
        or not path.startswith(_PREFIX)
        or "index=" in query
        or "wait=" in query
        or STREAM in environ
    ):
        return None
    return _Asked(path, query, accept)


class _Answers:
    """Answers within a bound of bytes: those go first that were not wanted for the longest time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[_Asked, KeptAnswer] = OrderedDict()
        self._sizes: dict[_Asked, int] = {}
        self._size = 0

    def get(self, asked: _Asked) -> KeptAnswer | None:
        answer = self._held.get(asked)
        if answer is not None:
            # Another thread may have thrown it away meanwhile.
            with contextlib.suppress(KeyError):
                self._held.move_to_end(asked)
        return answer

    def put(self, asked: _Asked, answer: KeptAnswer) -> None:
        size = answer.size + sum(map(len, asked))
        with self._lock:
            self._throw_away(asked)
            if size > self._limit:
                return
            self._held[asked] = answer
            self._sizes[asked] = size
            self._size += size
            while self._size > self._limit:
                # In one step: `get` takes no lock, and would disturb who goes through them.
                oldest, _ = self._held.popitem(last=False)
                self._size -= self._sizes.pop(oldest)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._sizes.clear()
            self._size = 0

    def _throw_away(self, asked: _Asked) -> None:
        if self._held.pop(asked, None) is not None:
            self._size -= self._sizes.pop(asked)


class _Contacts:
    """The sources as they were at most a second ago."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._known: Mapping[str, SourceRow] = {}
        self._until = 0.0

    def of(self, names: Sequence[str], now: float) -> list[SourceRow]:
        with self._lock:
            if now >= self._until:
                with self._backend.snapshot() as snapshot:
                    self._known = {source.name: source for source in snapshot.sources}
                self._until = now + _CONTACT_FOR
            known = self._known
        return [known[name] for name in names if name in known]
