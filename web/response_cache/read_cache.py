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
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from manifest_cache.storage.database import StoreError
from manifest_cache.storage.models import SourceRow
from web import backend
from web.backend import Backend
from web.problems import Problem
from web.request_context import RequestContext, context_of, set_context
from web.response_cache.cached_response import CachedResponse
from web.response_cache.raw_response import RawResponse, raw_response
from web.telemetry.metrics import READ_CACHE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

_EXTENSION = "lictor.read_cache"
_PREFIX = "/api/v1/"
_CONTACT_FOR = 1.0
# How long a request waits for another one that makes the same answer, in seconds.
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
    app.extensions[_EXTENSION] = cache
    app.wsgi_app = cache  # type: ignore[method-assign]


def of(app: Flask) -> ReadCache:
    found: ReadCache = app.extensions[_EXTENSION]
    return found


class CacheKey(NamedTuple):
    """All of a request that decides its answer, but for what an answer can be turned into."""

    path: str
    query: str
    accept: str

    @classmethod
    def of(cls, method: str, path: str, query: str, accept: str) -> CacheKey | None:
        """None where the application is to answer by itself; the path is decoded as WSGI does it."""
        if (
            method not in ("GET", "HEAD")
            or not path.startswith(_PREFIX)
            or "index=" in query
            or "wait=" in query
        ):
            return None
        return cls(path, query, accept)


class ReadCache:
    """A WSGI application before another one. Holds at most `limit` bytes of answers, none if it is 0."""

    def __init__(self, app: WSGIApplication, backend: Backend, limit: int) -> None:
        self._app = app
        self._backend = backend
        self._answers = _Answers(limit)
        self._contacts = _Contacts(backend)
        self._making: dict[CacheKey, _Making] = {}

    def forget(self) -> None:
        """Throws all answers away."""
        self._answers.clear()

    def ready(
        self, key: CacheKey, index: int, if_none_match: str | None, accept_encoding: str | None
    ) -> tuple[RawResponse, str] | None:
        """The response at this index, and its route, if nothing is left to do for it; else None."""
        answer = self._answers.get(key)
        now = time.monotonic()
        if answer is None or answer.index != index or answer.needs_refresh(now) or answer.is_too_old(now):
            return None
        response = answer.ready(if_none_match, accept_encoding)
        if response is None:
            return None
        _QUICK.inc()
        return response, answer.route

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        key = _key_of(environ)
        if key is None:
            return self._app(environ, start_response)
        try:
            index = self._backend.index()
            response = self._kept(key, index, environ) or self._made(key, index, environ)
        except StoreError:
            # The application knows how to tell.
            _PASSED.inc()
            return self._app(environ, start_response)
        # A copy: who stands before this may change it.
        start_response(response.status, response.headers.copy())
        return [response.body] if response.body and environ["REQUEST_METHOD"] == "GET" else []

    def _kept(self, key: CacheKey, index: int, environ: WSGIEnvironment) -> RawResponse | None:
        """The answer that is kept, if it still holds at this index. Raises StoreError."""
        answer = self._answers.get(key)
        if answer is None or not self._holds(answer, index):
            return None
        _HIT.inc()
        return self._for_client(key, answer, environ)

    def _holds(self, answer: CachedResponse, index: int) -> bool:
        # One that is newer than the look was made after it; unless the database was put back.
        if answer.index != index and not index < answer.index <= self._backend.index():
            return False
        now = time.monotonic()
        if answer.needs_refresh(now):
            answer.refresh(self._contacts.of(answer.source_names, now), now)
        return not answer.is_too_old(now)

    def _for_client(self, key: CacheKey, answer: CachedResponse, environ: WSGIEnvironment) -> RawResponse:
        context_of(environ).route = answer.route
        size = answer.size
        response = answer.for_client(environ.get("HTTP_IF_NONE_MATCH"), environ.get("HTTP_ACCEPT_ENCODING"))
        if answer.size != size:
            self._answers.put(key, answer)
        return response

    def _made(self, key: CacheKey, index: int, environ: WSGIEnvironment) -> RawResponse:
        """An answer that is made now. Of those who want the same at once one makes it for all."""
        while True:
            mine = _Making()
            making = self._making.setdefault(key, mine)
            if making is mine:
                return self._make(mine, key, index, environ)
            if not making.done.wait(_PATIENCE) or making.answer is None:
                return self._made_now(key, index, environ)[0]
            # Not yet if it was begun before this request came in, and something changed in between.
            if making.answer.index >= index:
                _HIT.inc()
                return self._for_client(key, making.answer, environ)

    def _make(self, making: _Making, key: CacheKey, index: int, environ: WSGIEnvironment) -> RawResponse:
        try:
            response, making.answer = self._made_now(key, index, environ)
            return response
        finally:
            del self._making[key]
            making.done.set()

    def _made_now(
        self, key: CacheKey, index: int, environ: WSGIEnvironment
    ) -> tuple[RawResponse, CachedResponse | None]:
        """What is response, and the answer that is kept of it, if it is one. Raises StoreError."""
        _MISS.inc()
        before = self._answers.get(key)
        answer = before and self._made_from(before, index)
        if answer is None:
            return self._from_app(key, environ)
        self._answers.put(key, answer)
        return self._for_client(key, answer, environ), answer

    def _made_from(self, before: CachedResponse, index: int) -> CachedResponse | None:
        """Makes it from the answer before: the application takes several times as long."""
        changes = self._backend.changes
        if changes.covers(index) and (answer := self._renewed(before, index)):
            return answer
        try:
            with self._backend.snapshot() as snapshot:
                changes.follow(snapshot)
                return self._renewed(before, index) or before.made_again(snapshot)
        except Problem:
            # The application knows how to tell.
            return None

    def _renewed(self, before: CachedResponse, index: int) -> CachedResponse | None:
        """The answer before, if what changed until this index or a later one is nothing to it."""
        answer = before.renewed(self._backend.changes)
        return answer if answer is not None and self._holds(answer, index) else None

    def _from_app(self, key: CacheKey, environ: WSGIEnvironment) -> tuple[RawResponse, CachedResponse | None]:
        """What the application sends, and the answer that is kept of it, if it is one."""
        # Whole, whatever this client knows of it: the next one may not.
        whole = {**environ, "REQUEST_METHOD": "GET"}
        whole.pop("HTTP_IF_NONE_MATCH", None)
        context = RequestContext()
        set_context(whole, context)
        response = raw_response(self._app, whole)
        context_of(environ).route = context.route
        if context.facts is None or response.code != HTTPStatus.OK:
            return response, None
        answer = CachedResponse(response, context.facts, context.route)
        self._answers.put(key, answer)
        return self._for_client(key, answer, environ), answer


class _Making:
    """An answer that is being made; None in the end if it can be for nobody else."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: CachedResponse | None = None


def _key_of(environ: WSGIEnvironment) -> CacheKey | None:
    if context_of(environ).can_wait:
        # It may be the beginning of a stream.
        return None
    return CacheKey.of(
        environ["REQUEST_METHOD"],
        environ.get("PATH_INFO", ""),
        environ.get("QUERY_STRING", ""),
        environ.get("HTTP_ACCEPT", ""),
    )


class _Answers:
    """Answers within a bound of bytes: those go first that were not wanted for the longest time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[CacheKey, CachedResponse] = OrderedDict()
        self._sizes: dict[CacheKey, int] = {}
        self._size = 0

    def get(self, key: CacheKey) -> CachedResponse | None:
        answer = self._held.get(key)
        if answer is not None:
            # Another thread may have thrown it away meanwhile.
            with contextlib.suppress(KeyError):
                self._held.move_to_end(key)
        return answer

    def put(self, key: CacheKey, answer: CachedResponse) -> None:
        size = answer.size + sum(map(len, key))
        with self._lock:
            self._throw_away(key)
            if size > self._limit:
                return
            self._held[key] = answer
            self._sizes[key] = size
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

    def _throw_away(self, key: CacheKey) -> None:
        if self._held.pop(key, None) is not None:
            self._size -= self._sizes.pop(key)


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
