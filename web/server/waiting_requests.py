"""Requests that wait, as coroutines: blocking queries, long polls of the event log, event streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from web.api.events import EVENT_STREAM, prefers_stream
from web.api.read import INDEX_HEADER
from web.backend import Backend
from web.problems import TooManyWatchers
from web.request_context import RequestContext
from web.response_cache.raw_response import RawResponse
from web.schemas.freshness import CONTACT_HEADER, STALE_HEADER
from web.server.body import Receive
from web.server.flask_threads import FlaskThreads
from web.server.limits import STALLED_AFTER
from web.server.request import API, Request
from web.telemetry.metrics import STREAMS_DROPPED
from web.waiting.held_request import Ask, Question, Wish
from web.waiting.watchers import Watchers

_EVENTS = f"{API}events"
_DEFAULT_WAIT = 300.0
_RETRY_AFTER = "5"
# What clients of a stream are to wait before they come back, in milliseconds.
_RECONNECT = 2000
_A_MOMENT = 0.1
_TOLD = (INDEX_HEADER, STALE_HEADER, CONTACT_HEADER)

SendStream = Callable[[RawResponse | None, bytes], Awaitable[None]]
"""Takes the response's head with the first chunk, and None with the others; an empty one is the last."""


class WaitingRequests:
    """`ask` answers a request that does not wait; `flask` is asked how a stream begins."""

    def __init__(self, backend: Backend, ask: Ask, flask: FlaskThreads) -> None:
        self._ask = ask
        self._flask = flask
        self._watchers = Watchers(backend)

    def end(self) -> None:
        """Nobody waits any longer: queries are answered, streams end."""
        self._watchers.end()

    async def close(self) -> None:
        await self._watchers.close()

    def wants_stream(self, request: Request) -> bool:
        return request.path == _EVENTS and prefers_stream(request.header(b"accept") or "")

    def wish_of(self, request: Request) -> Wish | None:
        """What the request says about waiting; None if it says nothing, or something faulty."""
        return Wish.of(request)

    async def blocking_query(self, request: Request, wish: Wish, receive: Receive) -> RawResponse | None:
        """The response, once there is news or time is up; None if the client left. Raises TooManyWatchers."""
        question = Question(self._ask, request.with_query(wish.query), wish.events(request))
        answer = await question.ask()
        if answer.index is None:
            if answer.response.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return answer.response
            # No read, or a faulty one: the application tells of all that is wrong with it.
            return await self._ask(request)
        index = answer.index if question.events is not None else wish.index
        seconds = _DEFAULT_WAIT if wish.seconds is None else wish.seconds
        if index is None or not seconds or self._watchers.is_ending or question.is_answered_by(answer, index):
            return answer.response
        self._refuse_beyond_limit()
        # As Consul does it, so that those who began together do not end together.
        seconds *= 1 + random.random() / 16
        async with _disconnect(receive) as gone:
            return await self._watchers.wait(question, index, seconds, gone)

    async def stream(self, request: Request, receive: Receive, send: SendStream) -> RawResponse | None:
        """Sends events until the client leaves; else returns a response. Raises TooManyWatchers."""
        context = RequestContext(can_wait=True)
        response = await self._flask.ask(request, context=context)
        start = context.stream
        if start is None:
            return response
        self._refuse_beyond_limit()
        preamble = f"retry: {_RECONNECT}\nid: {start.position}\n\n".encode()
        head = RawResponse(response.status, _stream_headers(response), b"")
        async with _disconnect(receive) as gone:
            await send(head, preamble)
            async for chunk in self._watchers.events(start.wanted, start.position, gone):
                begun = time.monotonic()
                await send(None, chunk)
                # The chunk before it may have begun to wait a little earlier.
                if time.monotonic() - begun >= STALLED_AFTER / 2:
                    await _count_if_dropped(gone)
            if not gone.done():
                await send(None, b"")
        return None

    def _refuse_beyond_limit(self) -> None:
        if self._watchers.is_full:
            raise TooManyWatchers(
                f"This process holds as many requests that wait as it may. {TooManyWatchers.advice}",
                headers={"Retry-After": _RETRY_AFTER},
            )


@asynccontextmanager
async def _disconnect(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is done when the client has left."""
    task = asyncio.create_task(_until_disconnect(receive))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _count_if_dropped(gone: asyncio.Task[None]) -> None:
    """Counts a stream that ended because its client took nothing; one that is slow goes on."""
    # Word of the end of a connection comes some steps of the loop after the end.
    await asyncio.wait([gone], timeout=_A_MOMENT)
    if gone.done():
        STREAMS_DROPPED.labels("stalled").inc()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _stream_headers(response: RawResponse) -> list[tuple[str, str]]:
    states = [line for line in response.headers if line[0] in _TOLD]
    return [
        ("Content-Type", EVENT_STREAM),
        ("Cache-Control", "no-store"),
        # Proxies that collect answers would hold events back.
        ("X-Accel-Buffering", "no"),
        *states,
    ]
