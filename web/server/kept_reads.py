"""Answers reads from the read cache on the loop; of those who miss it alike, one asks for all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from discovery import tracing
from manifest_cache.storage.database import StoreError
from web.backend import Backend
from web.response_cache.raw_response import RawResponse
from web.response_cache.read_cache import CacheKey, ReadCache
from web.server.request import Request
from web.telemetry import request_metrics

_PATIENCE = 5.0


class KeptReads:
    """`ask` is the slow way: the application, which fills the cache."""

    def __init__(
        self, cache: ReadCache, looks: SharedLook, ask: Callable[[Request], Awaitable[RawResponse]]
    ) -> None:
        self._cache = cache
        self._looks = looks
        self._ask = ask
        self._being_made: dict[CacheKey, asyncio.Event] = {}
        # Spans and log lines of single requests are made in the application's own layers.
        self._is_watched = tracing.is_wanted() or request_metrics.logger.isEnabledFor(logging.DEBUG)

    async def read(self, request: Request) -> RawResponse:
        """The response to a request that does not wait."""
        accept = request.header(b"accept") or ""
        path = request.path if request.path.isascii() else request.path.encode().decode("latin-1")
        key = CacheKey.of(request.method, path, request.query, accept)
        if key is None or self._is_watched:
            return await self._ask(request)
        begun = time.perf_counter()
        response = await self._kept(key, request, begun)
        if response is not None:
            return response
        if key in self._being_made:
            await self._wait_for(key)
            response = await self._kept(key, request, begun)
            return response or await self._ask(request)
        made = self._being_made[key] = asyncio.Event()
        try:
            return await self._ask(request)
        finally:
            del self._being_made[key]
            made.set()

    async def _kept(self, key: CacheKey, request: Request, begun: float) -> RawResponse | None:
        try:
            index = self._looks.current_or_none()
            if index is None:
                index = await self._looks.index()
        except StoreError:
            # The application knows how to tell.
            return None
        found = self._cache.ready(
            key, index, request.header(b"if-none-match"), request.header(b"accept-encoding")
        )
        if found is None:
            return None
        response, route = found
        request_metrics.count(request.method, route, response.status[:3], time.perf_counter() - begun)
        return response

    async def _wait_for(self, key: CacheKey) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._being_made[key].wait()
        except TimeoutError:
            pass


class SharedLook:
    """On SQLite a look takes microseconds; on PostgreSQL a thread looks for all who came before it began."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, "lictor-index")
        self._current: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None
        self.current_or_none = backend.current_or_none

    async def index(self) -> int:
        """The newest index, never older than at the time of the call. Raises StoreError."""
        index = self._backend.current_or_none()
        if index is not None:
            return index
        if self._next is None:
            self._next = asyncio.create_task(self._look(self._current))
        return await asyncio.shield(self._next)

    async def _look(self, before: asyncio.Task[int] | None) -> int:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        index = self._backend.current_or_none()
        if index is not None:
            return index
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._backend.index)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
