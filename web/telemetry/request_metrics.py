"""Gives each request an id and measures its time."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, request

from web.request_context import context_of
from web.telemetry.metrics import REQUESTS
from web.telemetry.request_id import request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
_SOUND = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def install(app: Flask) -> None:
    """Puts it before everything else that the application has."""
    app.before_request(_name_route)
    app.wsgi_app = _Observed(app.wsgi_app)  # type: ignore[method-assign]


def _name_route() -> None:
    if request.url_rule is not None:
        context_of(request.environ).route = request.url_rule.rule


class _Observed:
    """Takes over the id that a caller sent as `X-Request-Id`, if it is a sound one, and makes one else."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun = time.perf_counter()
        context = context_of(environ)
        id_ = context.request_id or id_of(environ.get("HTTP_X_REQUEST_ID"))
        token = request_id.set(id_)
        status = "500"

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., object]:
            nonlocal status
            status = line[:3]
            headers.append((REQUEST_ID_HEADER, id_))
            return start_response(line, headers, exc_info) if exc_info else start_response(line, headers)

        try:
            return self._app(environ, start)
        finally:
            took = time.perf_counter() - begun
            method = environ["REQUEST_METHOD"]
            count(method, context.route, status, took)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("%s %s %s %.1fms", method, environ.get("PATH_INFO", ""), status, took * 1000)
            request_id.reset(token)


def id_of(sent: str | None) -> str:
    """The id that a caller sent, if it is a sound one; else a new one."""
    return sent if sent and _SOUND.match(sent) else next(request_ids)


def count(method: str, route: str, status: str, took: float) -> None:
    """Adds a request that took so many seconds."""
    # Whatever a caller may think of must not become a series of its own.
    _series(method if method in _METHODS else "other", route, status).observe(took)


@functools.lru_cache(maxsize=1024)
def _series(method: str, route: str, status: str) -> Any:
    return REQUESTS.labels(method, route, status)


class _RequestIds:
    """Ids that no other process makes either; after a fork each has a beginning of its own."""

    def __init__(self) -> None:
        self._owner = 0

    def __next__(self) -> str:
        if self._owner != os.getpid():
            self._beginning = os.urandom(8).hex()
            self._numbers = itertools.count(1)
            # Last, for another thread may look meanwhile.
            self._owner = os.getpid()
        return f"{self._beginning}-{next(self._numbers)}"


request_ids = _RequestIds()
"""Makes an id for a request that brought none."""
