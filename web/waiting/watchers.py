"""Holds all who wait in this process: woken by commits, they get answers and events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from manifest_cache.storage.database import StoreError
from web.backend import Backend
from web.response_cache.raw_response import RawResponse
from web.waiting.blocking_queries import BlockingQueries
from web.waiting.commits import Commits
from web.waiting.event_streams import EventStreams, Page, read_news, read_page
from web.waiting.event_tail import EventFilter, Line
from web.waiting.held_request import Question

logger = logging.getLogger(__name__)

# Files and connections that the process needs besides those that wait.
_OTHER_FILES = 512


class _News(NamedTuple):
    """The newest index, and what came to the log; None where nobody wants to know, or it is too much."""

    newest: int
    lines: list[Line] | None
    follows: bool


class Watchers:
    """One for each process; it begins to listen for commits when the first client has to wait."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # One for the database, one to wait for commits where no file tells of them.
        self._threads = ThreadPoolExecutor(2, "lictor-watchers")
        self._queries = BlockingQueries()
        self._streams = EventStreams(self._read_page)
        self._commits = Commits(backend.watch, self._threads, self._on_commit)
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0
        self._most = _most(backend.settings.max_watchers)
        self._database_is_away = False
        self.is_ending = False

    @property
    def is_full(self) -> bool:
        return self._count >= self._most

    async def wait(
        self, question: Question, index: int, seconds: float, gone: asyncio.Future[None]
    ) -> RawResponse | None:
        """The response when there is news for a client that knows all up to `index`, or time is up."""
        with self._counted(follows=question.events is not None):
            return await self._queries.wait(question, index, seconds, gone)

    async def events(
        self, wanted: EventFilter, position: int, gone: asyncio.Future[None]
    ) -> AsyncIterator[bytes]:
        """Yields the events behind `position` that are wanted, until the client is `gone`."""
        with self._counted(follows=True):
            async for chunk in self._streams.events(wanted, position, gone):
                yield chunk

    def end(self) -> None:
        """Nobody waits any longer: they are answered, streams end."""
        self.is_ending = True
        self._queries.end()
        self._streams.end()

    async def close(self) -> None:
        self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _counted(self, *, follows: bool) -> Iterator[None]:
        self._count += 1
        try:
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._commits.listen()),
                    asyncio.create_task(self._look_at_commits()),
                ]
            elif self._count == 1 or (follows and not self._streams.follows):
                # Whoever comes first, or first wants to follow the log, comes while nobody looks at it.
                self._changed.set()
            yield
        finally:
            self._count -= 1

    def _on_commit(self) -> None:
        self._changed.set()

    async def _look_at_commits(self) -> None:
        while True:
            await self._changed.wait()
            # One look sees all commits before it.
            self._changed.clear()
            if not self._count:
                self._streams.rest()
                continue
            try:
                news = await self._news()
            except StoreError as exc:
                # The next word of commits comes within a second or so.
                self._tell_database_is_away(exc)
                continue
            except Exception:
                # Without this everybody would wait until their time is up.
                logger.exception("those who wait could not be told what is new")
                continue
            self._database_is_away = False
            if news.follows:
                self._streams.extend(news.lines, news.newest)
            self._queries.look(news.newest, news.lines, self._backend.changes)

    async def _news(self) -> _News:
        """Raises StoreError."""
        if not self._streams and not self._queries.follow_the_log:
            self._streams.rest()
        follows = bool(self._streams) or self._queries.follow_the_log
        loop = asyncio.get_running_loop()
        after = self._streams.seen if self._streams.follows else None
        return await loop.run_in_executor(self._threads, self._read_news, follows, after)

    def _read_news(self, follows: bool, after: int | None) -> _News:
        """In a thread: reads what came to the log after this index. Raises StoreError."""
        if not follows:
            index = self._backend.index()
            if not self._queries.are_many or self._backend.changes.covers(index):
                return _News(index, None, follows)
        with self._backend.snapshot() as snapshot:
            self._backend.changes.follow(snapshot)
            lines = None if after is None or not follows else read_news(snapshot, after)
            return _News(snapshot.index, lines, follows)

    async def _read_page(self, wanted: EventFilter, position: int) -> Page | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._page, wanted, position)

    def _page(self, wanted: EventFilter, position: int) -> Page | None:
        with self._backend.snapshot() as snapshot:
            return read_page(snapshot, wanted, position)

    def _tell_database_is_away(self, exc: StoreError) -> None:
        if not self._database_is_away:
            logger.warning("those who wait go on waiting, for the database cannot be read: %s", exc)
        self._database_is_away = True


def _most(wanted: int) -> int:
    """As many as the limit of open files allows for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - _OTHER_FILES))
