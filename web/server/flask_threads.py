"""Asks the Flask application in a bounded pool of threads, which never meet a client."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from a2wsgi.wsgi import build_environ
from flask import Flask

from web.request_context import RequestContext, set_context
from web.response_cache.raw_response import RawResponse, raw_response
from web.server.request import Body, Request
from web.telemetry.request_metrics import REQUEST_ID_HEADER

_NOTHING = Body(b"", 0)


class FlaskThreads:
    """A pool of `threads`, as large as the database's pool of connections allows for."""

    def __init__(self, app: Flask, threads: int) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(threads, "lictor-flask")

    async def ask(
        self, request: Request, body: Body = _NOTHING, context: RequestContext | None = None
    ) -> RawResponse:
        """The whole response."""
        context = context or RequestContext()
        context.request_id = request.id
        environ = _environ(request.scope, body)
        set_context(environ, context)
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self._pool, raw_response, self._app, environ)
        # It may be given to others, who have ids of their own.
        response.headers = [line for line in response.headers if line[0] != REQUEST_ID_HEADER]
        return response

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _environ(scope: Mapping[str, Any], body: Body) -> dict[str, Any]:
    # It is typed for a body that is still to come.
    environ = cast("dict[str, Any]", build_environ(cast("Any", scope), cast("Any", io.BytesIO(body.content))))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["CONTENT_LENGTH"] = str(body.length)
    environ["wsgi.errors"] = sys.stderr
    return environ
