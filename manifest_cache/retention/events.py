"""Deletes expired events and the manifests that nothing else references.

Nothing is written in the log about that: it is what was that goes, not what is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import String, cast
from sqlmodel import Session, col, delete, or_, select

from manifest_cache.ledger.event_log import index_of
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, InstanceRow, ManifestRow, ModuleRow
from manifest_cache.storage.raw_rows import ReadTransaction

# For each the log is searched for what it still tells of the module.
_MANIFESTS = 20

# A module and the digest of one of its manifests.
_Named = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many events and manifests went."""

    events: int
    manifests: int


def drop_events(database: Database, before: datetime, limit: int) -> Dropped:
    """Deletes up to `limit` of the events from before a moment, the oldest first, never the newest of all.

    Fewer go at once where they tell of many manifests; none go only where none are left to go.
    A manifest goes when the last event that told of it does, unless its module or an instance has
    it: what is left behind then is told of by a later event, and goes with that. Raises
    StoreUnavailable.
    """
    # What takes long is looked up beforehand: meanwhile others can write.
    with database.read() as session:
        index = index_of(ReadTransaction.of(session.connection()))
        old, named = _telling_of_few(_oldest(session, before, index, limit))
        if not old:
            return Dropped(0, 0)
        last = old[-1].index or 0
        unnamed = [one for one in named if not _is_named(session, one, last)]
    with database.write(quiet=True) as session:
        session.exec(delete(EventRow).where(col(EventRow.index) <= last))
        manifests = sum(_collect(session, one) for one in unnamed if not _is_named(session, one, index))
    return Dropped(len(old), manifests)


def _oldest(session: Session, before: datetime, index: int, limit: int) -> Sequence[EventRow]:
    """The first events of the log up to one that is to stay: young enough, or the newest.

    So those that stay have no gap, even if a clock was wrong once.
    """
    rows = session.exec(select(EventRow).order_by(col(EventRow.index)).limit(limit)).all()
    stay = (number for number, row in enumerate(rows) if row.at >= before or row.index == index)
    return rows[: next(stay, len(rows))]


def _telling_of_few(events: Sequence[EventRow]) -> tuple[Sequence[EventRow], set[_Named]]:
    """The first of the events, up to those that tell of too many manifests, and which these are."""
    named: set[_Named] = set()
    for number, event in enumerate(events, 1):
        named |= _named_in(event)
        if len(named) >= _MANIFESTS:
            return events[:number], named
    return events, named


def _named_in(event: EventRow) -> set[_Named]:
    said = (event.data.get("was") or {}, event.data.get("is") or {})
    return {(event.module, one["digest"]) for one in said if event.module and one.get("digest")}


def _is_named(session: Session, named: _Named, after: int) -> bool:
    """Whether an event with an index above `after` tells of a manifest."""
    module, digest = named
    query = (
        select(EventRow.index)
        .where(EventRow.module == module, col(EventRow.index) > after)
        .where(cast(col(EventRow.data), String).contains(digest))
        .order_by(col(EventRow.index))
        .limit(1)
    )
    return session.exec(query).first() is not None


def _collect(session: Session, named: _Named) -> int:
    """Deletes a manifest unless its module or an instance has it; returns how many went."""
    module, digest = named
    is_ones = or_(
        select(InstanceRow.key).where(InstanceRow.module == module, InstanceRow.digest == digest).exists(),
        select(ModuleRow.name).where(ModuleRow.name == module, ModuleRow.digest == digest).exists(),
    )
    is_it = col(ManifestRow.module) == module, col(ManifestRow.digest) == digest
    result: Any = session.exec(delete(ManifestRow).where(*is_it, ~is_ones))
    return int(result.rowcount)
