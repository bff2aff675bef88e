"""Reads and stores how far each receiver of webhooks has got.

A position is written down within a second of the delivery, and not with each: a receiver that is
served fast gets after a crash at the most what it got in the second before once more.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, update
from sqlmodel import col, select

from manifest_cache.db_thread import WriterThread
from manifest_cache.ledger.event_log import index_of
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, WebhookPositionRow
from manifest_cache.storage.raw_rows import ReadTransaction

# A position is written this soon after a delivery, and one that only passed over events this late.
_AFTER_DELIVERY = 1.0
_AFTER_SKIPPING = 60.0
# Who wrote this recently leads still, as far as that can be known.
_SURE_TO_LEAD = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a receiver stands: what its messages' ids begin with, and the last event that is settled."""

    series: str
    position: int
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events behind a position in their order; `missing` are the first and last that are kept no longer."""

    events: Sequence[EventRow]
    missing: tuple[int, int] | None = None


class Positions:
    """The transactions; all raise StoreUnavailable, and those that write what the database's fence raises."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last: tuple[tuple[int, int, int], Backlog] | None = None

    def begin(self, names: Collection[str]) -> dict[str, Place]:
        """Where these receivers stand; one that is new begins at the newest event.

        What is known of other receivers is kept as long as it leads to events that are.
        """
        with self._database.write(quiet=True) as session:
            newest = index_of(ReadTransaction.of(session.connection()))
            oldest = session.exec(select(func.min(EventRow.index))).one() or 0
            rows = {row.receiver: row for row in session.exec(select(WebhookPositionRow))}
            for name, row in rows.items():
                if name not in names and row.position < oldest - 1:
                    session.delete(row)
            places = {}
            for name in names:
                is_new = name not in rows
                row = rows.get(name) or WebhookPositionRow(receiver=name, series=_series(), position=newest)
                session.add(row)
                places[name] = Place(row.series, row.position, is_new)
            return places

    def known(self) -> dict[str, int]:
        """The last event that is settled, by receiver."""
        with self._database.read() as session:
            return {row.receiver: row.position for row in session.exec(select(WebhookPositionRow))}

    def behind(self, position: int, limit: int) -> Backlog:
        """The next events behind a position.

        Receivers that have everything ask for the same ones at the same time: they are read once.
        """
        newest = self._database.index()
        if newest <= position:
            return Backlog(())
        asked = (newest, position, limit)
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._read_behind(position, limit)
        return self._last[1]

    def _read_behind(self, position: int, limit: int) -> Backlog:
        with self._database.read() as session:
            query = (
                select(EventRow)
                .where(col(EventRow.index) > position)
                .order_by(col(EventRow.index))
                .limit(limit)
            )
            events = session.exec(query).all()
            first = events[0].index or 0 if events else position + 1
            # A number may be left out of the log; only where its beginning is gone something is missing.
            is_whole = first == position + 1 or session.exec(select(func.min(EventRow.index))).one() != first
        return Backlog(events, None if is_whole else (position + 1, first - 1))

    def save(self, positions: Mapping[str, int]) -> None:
        """Writes positions down, even none: a leader that was replaced learns of it by this."""
        with self._database.write(quiet=True) as session:
            for name, position in positions.items():
                statement = update(WebhookPositionRow).where(col(WebhookPositionRow.receiver) == name)
                session.connection().execute(statement.values(position=position))


class PositionWriter:
    """Writes positions down soon after they moved, those of all receivers together."""

    def __init__(self, positions: Positions, thread: WriterThread) -> None:
        self._positions = positions
        self._thread = thread
        self._moved: dict[str, int] = {}
        self._delivered = asyncio.Event()
        self._saved_at = -_AFTER_SKIPPING
        self._saving = asyncio.Lock()

    def move(self, receiver: str, position: int, *, delivered: bool) -> None:
        """The receiver is done with the events up to this one."""
        self._moved[receiver] = position
        if delivered:
            self._delivered.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_AFTER_SKIPPING):
                    await self._delivered.wait()
            except TimeoutError:
                pass
            self._delivered.clear()
            if self._moved:
                await self.save()
            await asyncio.sleep(_AFTER_DELIVERY)

    async def make_sure(self) -> None:
        """Raises what the database's fence raises if another leads by now."""
        async with self._saving:
            if time.monotonic() - self._saved_at > _SURE_TO_LEAD:
                await self._save()

    async def save(self) -> None:
        async with self._saving:
            await self._save()

    async def _save(self) -> None:
        moved = dict(self._moved)
        await self._thread.run_with_retry("write positions of webhooks", self._positions.save, moved)
        self._saved_at = time.monotonic()
        # What moved on meanwhile is for the next time.
        self._moved = {name: at for name, at in self._moved.items() if at != moved.get(name)}


def _series() -> str:
    return f"msg_{secrets.token_hex(8)}"
