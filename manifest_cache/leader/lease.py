"""Reads, takes, renews and releases the lease in the row `leadership`."""

from __future__ import annotations

from collections.abc import Collection

from manifest_cache.storage.database import Database, FencedDatabase
from manifest_cache.storage.models import LeadershipRow, utc_now


class Lease:
    """Every call is one transaction, and raises StoreUnavailable where the database cannot serve."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def look(self) -> LeadershipRow:
        """How it stands: nobody holds it, or somebody does."""
        with self._database.read() as session:
            return session.get(LeadershipRow, 1) or LeadershipRow()

    def take(self, holder: str, seen: LeadershipRow, *, silent: bool = False) -> FencedDatabase | None:
        """Takes the lead with a new token, or returns None if another was quicker.

        `seen` is what the wish to lead is founded on: nobody must have taken the lead since. With
        `silent` it is founded on a leader's silence, so that one must not have renewed it either.
        """
        with self._database.write(quiet=True) as session:
            row = session.get(LeadershipRow, 1) or LeadershipRow()
            if row.token != seen.token or (silent and row.renewed_at != seen.renewed_at):
                return None
            row.token += 1
            row.holder, row.locks = holder, []
            row.since = row.renewed_at = utc_now()
            session.add(row)
            return FencedDatabase(self._database, row.token)

    def renew(self, fenced: FencedDatabase, locks: Collection[str]) -> None:
        """Shows that the leader lives, and which locks prove it. Raises Fenced."""
        with fenced.write(quiet=True) as session:
            row = session.get_one(LeadershipRow, 1)
            if row.locks != sorted(locks):
                row.locks = sorted(locks)

    def release(self, fenced: FencedDatabase) -> None:
        """Lets another take the lead at once. Raises Fenced if one has."""
        with fenced.write(quiet=True) as session:
            row = session.get_one(LeadershipRow, 1)
            row.holder, row.locks = None, []
