"""Gives each event stream what it has not got yet, as fast as its client reads.

A stream takes its next chunk from the tail of the log, which all share, or from the database where it is
further behind. So a slow client costs a chunk of memory and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from manifest_cache.storage.database import StoreError
from manifest_cache.storage.reader import Snapshot
from web.telemetry.metrics import WATCHERS
from web.waiting.event_tail import EventFilter, Line, Tail, chunk_of

logger = logging.getLogger(__name__)

_STREAMS = WATCHERS.labels("stream")
_BEAT = 15.0
_COMMENT = b":\n"
_PAGE = 200
# Further behind than this many, each stream reads the log for itself.
_MOST_LINES = 5000


@dataclass(frozen=True, slots=True)
class Page:
    """What one stream gets from the database, and how far it is then."""

    chunk: bytes
    position: int


ReadPage = Callable[[EventFilter, int], Awaitable[Page | None]]


class EventStreams:
    """All of it runs on the event loop; `read` reads a page of the log for a stream that is far behind."""

    def __init__(self, read: ReadPage) -> None:
        self._read = read
        self._tail = Tail()
        self.follows = False
        self._is_ending = False
        self._count = 0
        # Done with True where there is news, and with False where a client is to get a sign of life.
        self._idle: set[asyncio.Future[bool]] = set()
        # What streams alike get next, for as long as the tail stays.
        self._chunks: dict[tuple[EventFilter, int], Page] = {}

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def seen(self) -> int:
        """The index up to which the log was looked at."""
        return self._tail.end

    def extend(self, lines: list[Line] | None, index: int) -> None:
        """Takes over what came to the log up to `index`; None where that was not read."""
        if lines is None:
            self._tail.reset(index)
        else:
            self._tail.extend(lines, index)
        self.follows = True
        self._chunks.clear()
        self._wake()

    def rest(self) -> None:
        """Nobody wants to know what comes to the log for now."""
        self.follows = False

    def end(self) -> None:
        self._is_ending = True
        self._wake()

    async def events(
        self, wanted: EventFilter, position: int, gone: asyncio.Future[None]
    ) -> AsyncIterator[bytes]:
        """Yields what is to be sent to one client, until it is `gone` or what comes next was deleted."""
        self._count += 1
        _STREAMS.inc()
        try:
            while not self._is_ending and not gone.done():
                page = await self._next(wanted, position)
                if page is None:
                    # What comes next is deleted: whoever resumes is told so.
                    return
                position = page.position
                if page.chunk:
                    yield page.chunk
                elif self._is_up_to_date(position) and not await self._news(gone):
                    yield _COMMENT
        finally:
            self._count -= 1
            _STREAMS.dec()

    def _is_up_to_date(self, position: int) -> bool:
        """Whether there is nothing to send; a position may be ahead of what was looked at."""
        return position >= self._tail.end or not self.follows

    async def _next(self, wanted: EventFilter, position: int) -> Page | None:
        if self._is_up_to_date(position):
            return Page(b"", position)
        if position < self._tail.start:
            try:
                return await self._read(wanted, position)
            except StoreError as exc:
                # The next look at the database has it go on.
                logger.debug("a stream waits for the database: %s", exc)
                self.follows = False
                return Page(b"", position)
        page = self._chunks.get((wanted, position))
        if page is None:
            chunk, last = chunk_of(self._tail.behind(position), wanted)
            page = self._chunks[wanted, position] = Page(chunk, self._tail.end if last is None else last)
        return page

    async def _news(self, gone: asyncio.Future[None]) -> bool:
        """Waits for the next look at the log; False if it took as long as a client may wait for a sign."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()
        # Not asyncio.wait, which takes as long as all else that a change costs for each stream.
        beat = loop.call_later(_BEAT, _finish, woken, False)
        self._idle.add(woken)

        def leave(_: asyncio.Future[None]) -> None:
            _finish(woken, True)

        gone.add_done_callback(leave)
        try:
            return await woken
        finally:
            gone.remove_done_callback(leave)
            beat.cancel()
            self._idle.discard(woken)

    def _wake(self) -> None:
        idle, self._idle = self._idle, set()
        for woken in idle:
            _finish(woken, True)


def _finish(woken: asyncio.Future[bool], news: bool) -> None:
    if not woken.done():
        woken.set_result(news)


def read_page(snapshot: Snapshot, wanted: EventFilter, position: int) -> Page | None:
    """The next events of one stream; None if the next one is not kept any longer."""
    if 0 < position < snapshot.retained_after:
        return None
    rows = snapshot.events(after=position, limit=_PAGE, module=wanted.module, types=wanted.types)
    lines = [Line.of(row) for row in rows]
    chunk = b"".join(line.frame for line in lines)
    return Page(chunk, lines[-1].index if len(lines) == _PAGE else max(snapshot.index, position))


def read_news(snapshot: Snapshot, after: int) -> list[Line] | None:
    """All that came to the log after this index; None if that is too much to be read for all."""
    if not after <= snapshot.index <= after + _MOST_LINES:
        return None
    lines: list[Line] = []
    while rows := snapshot.events(after=lines[-1].index if lines else after, limit=_MOST_LINES):
        lines += map(Line.of, rows)
        if len(rows) < _MOST_LINES:
            break
    return lines
