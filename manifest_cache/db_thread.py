"""Runs blocking database calls one after the other, beside an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from discovery import tracing
from discovery.timing.backoff import Backoff
from manifest_cache.metrics import DATABASE_FAILURES, DATABASE_SECONDS
from manifest_cache.storage.database import StoreUnavailable

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class WriterThread:
    """One thread for all database calls of a process, so that the event loop never waits for a disk.

    It is a daemon: a database that hangs does not keep the process from ending. What it was doing
    then is a transaction that was not committed.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """The result of the function, run in the thread. Cancelling does not stop a call that runs."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        # So that what the call does belongs to the same trace.
        context = contextvars.copy_context()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = context.run(function, *args, **kwargs)
            except BaseException as exc:
                _settle(loop, future, exc, None)
            else:
                _settle(loop, future, None, result)

        self._calls.put(run)
        return await future

    async def run_with_retry(
        self, what: str, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """The result of a call of the database, which is tried again until the database serves."""
        backoff = Backoff(shortest=0.05, longest=5.0)
        while True:
            try:
                with DATABASE_SECONDS.labels(what).time(), tracing.span(what):
                    return await self.call(function, *args, **kwargs)
            except StoreUnavailable as exc:
                DATABASE_FAILURES.inc()
                pause = backoff.next()
                logger.warning("cannot %s retry_in=%.1fs: %s", what, pause, exc)
                await asyncio.sleep(pause)

    def close(self, timeout: float) -> None:
        """Lets the calls end that were begun, for at most `timeout` seconds."""
        self._calls.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _settle(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    exc: BaseException | None,
    result: Any,
) -> None:
    def settle() -> None:
        if future.cancelled():
            return
        if exc is not None:
            future.set_exception(exc)
        else:
            future.set_result(result)

    # The loop may have been closed while the call ran: then nobody waits for the result.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)
