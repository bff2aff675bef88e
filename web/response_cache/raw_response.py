"""A whole response in plain values, and a WSGI application asked for one without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]
RawHeaders = list[tuple[bytes, bytes]]


class RawResponse:
    """The line of status, the headers, the body; for any number of clients."""

    __slots__ = ("_raw_headers", "body", "code", "headers", "status")

    def __init__(self, status: str, headers: Headers, body: bytes) -> None:
        self.status = status
        self.code = int(status[:3])
        self.headers = headers
        self.body = body
        self._raw_headers: RawHeaders | None = None

    @property
    def raw_headers(self) -> RawHeaders:
        """The headers as ASGI has them: bytes, names in lower case."""
        if self._raw_headers is None:
            self._raw_headers = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers
            ]
        return self._raw_headers

    def header(self, wanted: str) -> str | None:
        """The value of the first header of this name, None if there is none."""
        return next((value for name, value in self.headers if name == wanted), None)


def raw_response(app: WSGIApplication, environ: WSGIEnvironment) -> RawResponse:
    """What the application answers."""
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
    return RawResponse(status, headers, content)
