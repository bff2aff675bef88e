"""Notices commits of any process on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from discovery.timing.backoff import Backoff
from manifest_cache.storage.commit_signal import CommitWatch
from manifest_cache.storage.database import StoreUnavailable

logger = logging.getLogger(__name__)

# A commit whose signal is lost is told of this much later, in seconds.
_SIGNAL_LOST = 1.0


class Commits:
    """Calls `on_commit` on the loop: once it listens, after each commit, and at times without one.

    `watch` opens the watch, in `thread`, for that may take seconds. Where it cannot be opened, or is
    lost, it is opened again, and `on_commit` called meanwhile too: whoever listens then looks for itself.
    """

    def __init__(
        self, watch: Callable[[], CommitWatch], thread: Executor, on_commit: Callable[[], None]
    ) -> None:
        self._watch = watch
        self._thread = thread
        self._on_commit = on_commit

    async def listen(self) -> None:
        """Listens until it is cancelled."""
        backoff = Backoff(0.2, 5.0)
        while True:
            try:
                watch = await self._opened()
                try:
                    await self._listen_at(watch, backoff)
                finally:
                    watch.close()
            except (StoreUnavailable, OSError) as exc:
                pause = backoff.next()
                logger.warning("no word of commits; listening again in %.1f s: %s", pause, exc)
                self._on_commit()
                await asyncio.sleep(pause)

    async def _opened(self) -> CommitWatch:
        opening = asyncio.get_running_loop().run_in_executor(self._thread, self._watch)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _listen_at(self, watch: CommitWatch, backoff: Backoff) -> None:
        """Raises OSError where the watch is lost."""
        loop = asyncio.get_running_loop()
        if watch.fileno() < 0:
            while True:
                self._on_commit()
                await loop.run_in_executor(self._thread, watch.wait, _SIGNAL_LOST)
                backoff.reset()
        file = watch.fileno()
        lost: asyncio.Future[None] = loop.create_future()
        loop.add_reader(file, partial(self._take, watch, file, lost))
        try:
            while True:
                self._on_commit()
                await asyncio.wait([lost], timeout=_SIGNAL_LOST)
                if lost.done():
                    lost.result()
                backoff.reset()
        finally:
            if not lost.done():
                loop.remove_reader(file)

    def _take(self, watch: CommitWatch, file: int, lost: asyncio.Future[None]) -> None:
        try:
            watch.wait(0)
        except OSError as exc:
            # At once: the number of a closed file is soon that of a client's connection.
            asyncio.get_running_loop().remove_reader(file)
            lost.set_exception(exc)
            return
        self._on_commit()


def _close_opened(opening: asyncio.Future[CommitWatch]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
