"""Calls a WSGI application without a server and returns its whole response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]


class Sent(NamedTuple):
    """A whole answer: the line of status, the headers, the body."""

    status: str
    headers: Headers
    body: bytes


def whole_answer(app: WSGIApplication, environ: WSGIEnvironment) -> Sent:
    said: list[Any] = []

    def start(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
        said[:] = [status, headers]
        return lambda data: None

    body = app(environ, start)
    try:
        content = b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    status, headers = said
    return Sent(status, headers, content)
