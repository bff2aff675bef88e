"""Makes a span of each request, where traces are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

from discovery import tracing
from web.request_context import context_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def install(app: Flask) -> None:
    """Puts it before everything else that the application has, if the environment asks for traces."""
    if tracing.is_wanted():
        app.wsgi_app = _Traced(app.wsgi_app)  # type: ignore[method-assign]


class _Traced:
    """A request's span is a part of its caller's, if that sent a `traceparent`.

    A request that waits has one when it is answered, not while it waits.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        carried = {name: environ.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
        attributes = {"http.request.method": method, "url.path": environ.get("PATH_INFO", "")}
        with tracing.span(method, "server", attributes, parent=carried) as span:

            def start(
                line: str, headers: list[tuple[str, str]], exc_info: Any = None
            ) -> Callable[..., object]:
                span.tell("http.response.status_code", int(line[:3]))
                if line.startswith("5"):
                    span.fail()
                return start_response(line, headers, exc_info) if exc_info else start_response(line, headers)

            try:
                return self._app(environ, start)
            finally:
                if (route := context_of(environ).route) != "none":
                    span.rename(f"{method} {route}")
                    span.tell("http.route", route)
