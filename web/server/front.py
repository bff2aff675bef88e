"""The ASGI application: each request in, answered from what is kept, when there is news, or by Flask."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from typing import Any

from flask import Flask

from web import backend
from web.problems import HeadersTooLarge, InternalError, PathTooLong, Problem, document
from web.response_cache import read_cache
from web.response_cache.raw_response import RawResponse
from web.server.body import Bodies, ClientLeft, Receive
from web.server.ending import ENDING, SIGNALS
from web.server.flask_threads import FlaskThreads
from web.server.kept_reads import KeptReads, SharedLook
from web.server.limits import CLOSE, LONGEST_HEAD, LONGEST_LINE, MOST_HEADERS
from web.server.request import Request
from web.server.waiting_requests import WaitingRequests
from web.telemetry.request_metrics import REQUEST_ID_HEADER, count, id_of

logger = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[None]]

# They have a thread of their own: a liveness probe must not wait for the database.
_WITHOUT_DATABASE = ("/healthz", "/metrics")
_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()


class Front:
    """One for each process; what it holds is made when the server starts it (the `lifespan` of ASGI)."""

    def __init__(self, flask: Flask) -> None:
        self._flask = flask
        self._parts: _Parts | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            if self._parts is None:
                # A server without a lifespan begins with the first request.
                self._parts = _Parts(self._flask)
            await self._parts.serve(scope, receive, send)

    async def _live(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        self._parts = _Parts(self._flask)
        ending = scope.setdefault("state", {})[ENDING] = asyncio.Event()
        watch = asyncio.create_task(self._parts.end_when(ending))
        await send({"type": "lifespan.startup.complete"})
        # Only now does the server handle them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        await receive()
        watch.cancel()
        await self._parts.close()
        await send({"type": "lifespan.shutdown.complete"})


class _Parts:
    """The three ways, and who chooses between them."""

    def __init__(self, flask: Flask) -> None:
        self._backend = backend.of(flask)
        self._flask = FlaskThreads(flask, self._backend.settings.threads)
        self._probes = FlaskThreads(flask, 1)
        self._looks = SharedLook(self._backend)
        self._reads = KeptReads(read_cache.of(flask), self._looks, self._flask.ask)
        self._waiting = WaitingRequests(self._backend, self._reads.read, self._flask)
        self._bodies = Bodies(flask.config["MAX_CONTENT_LENGTH"])

    async def end_when(self, ending: asyncio.Event) -> None:
        await ending.wait()
        self._waiting.end()

    async def close(self) -> None:
        await self._waiting.close()
        self._looks.close()
        self._flask.close()
        self._probes.close()
        self._backend.close()

    async def serve(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope)
        request.id = id_of(request.header(_REQUEST_ID))
        try:
            response = await self._answer(request, receive, send)
        except ClientLeft:
            return
        except Problem as problem:
            response = _rendered(problem)
            count(request.method, "none", response.status[:3], 0.0)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = _rendered(InternalError("An unexpected fault; the log of the server tells more."))
        if response is not None:
            await give(request, response, send)

    async def _answer(self, request: Request, receive: Receive, send: Send) -> RawResponse | None:
        """The response; None where it was sent already. Raises Problem, or ClientLeft."""
        _check_head(request)
        if request.reads_the_api:
            if self._waiting.wants_stream(request):
                return await self._waiting.stream(request, receive, partial(_send_stream, request, send))
            if request.query and (wish := self._waiting.wish_of(request)):
                return await self._waiting.blocking_query(request, wish, receive)
            return await self._reads.read(request)
        if request.method in ("GET", "HEAD"):
            flask = self._probes if request.path in _WITHOUT_DATABASE else self._flask
            return await flask.ask(request)
        return await self._flask.ask(request, await self._bodies.gather(request, receive))


async def give(request: Request, response: RawResponse, send: Send) -> None:
    """Sends a whole response under the request's own id."""
    headers = [*response.raw_headers, (_REQUEST_ID, request.id.encode())]
    await send({"type": "http.response.start", "status": response.code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def _send_stream(request: Request, send: Send, response: RawResponse | None, chunk: bytes) -> None:
    """Sends the beginning of a stream, or what comes after; an empty chunk ends it."""
    if response is not None:
        headers = [*response.raw_headers, (_REQUEST_ID, request.id.encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.code, "headers": headers})
    await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})


def _check_head(request: Request) -> None:
    """Raises Problem where the head is too long in one of its parts."""
    headers = request.scope["headers"]
    if len(request.scope["raw_path"]) + len(request.query) > LONGEST_LINE:
        raise PathTooLong(f"{PathTooLong.meaning} {PathTooLong.advice}", headers=CLOSE)
    size = sum(map(len, chain.from_iterable(headers)))
    has_long_line = size >= LONGEST_LINE and any(len(a) + len(b) >= LONGEST_LINE for a, b in headers)
    if has_long_line or size > LONGEST_HEAD or len(headers) > MOST_HEADERS:
        raise HeadersTooLarge(f"{HeadersTooLarge.meaning} {HeadersTooLarge.advice}", headers=CLOSE)


def _rendered(problem: Problem) -> RawResponse:
    response = document(problem)
    return RawResponse(response.status, response.headers.to_wsgi_list(), response.get_data())
