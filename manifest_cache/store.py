"""The synchronizer's side of the database: changes and fetched manifests in, due fetches out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sqlmodel import col, select

from discovery.base import Change, Health, Lost, ServiceInstance
from manifest_cache.database import Database
from manifest_cache.errors import ManifestError
from manifest_cache.fetcher import Fetched, NotModified
from manifest_cache.ledger import Ledger
from manifest_cache.models import Instance, Source, utc_now
from manifest_cache.settings import CacheSettings


@dataclass(frozen=True, slots=True)
class FetchJob:
    """An instance whose manifest is to be fetched, as it stood when the job was made.

    `etag` is what it sent with the manifest known of it, None if there is none.
    """

    key: int
    generation: int
    instance: ServiceInstance
    etag: str | None


Outcome: TypeAlias = Fetched | NotModified | ManifestError
"""What became of a fetch: a manifest, the one that is known already, or why there is none."""


class Store:
    """Writes what the synchronizer learns; every call is one transaction.

    Every method raises StoreUnavailable where the database cannot serve; nothing is written then.
    """

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._database = database
        self._settings = settings

    def apply(self, updates: Sequence[Change | Lost]) -> int:
        """Writes what registries told, in its order; returns the index."""
        with self._database.write() as session:
            ledger = Ledger(session, self._settings)
            for update in updates:
                if isinstance(update, Change):
                    ledger.change(update)
                else:
                    ledger.lost(update)
            return ledger.close()

    def apply_fetches(self, outcomes: Sequence[tuple[FetchJob, Outcome]]) -> int:
        """Writes what became of fetches; returns the index.

        An outcome is dropped if its instance is gone, or has registered anew since the fetch began.
        """
        with self._database.write() as session:
            ledger = Ledger(session, self._settings)
            for job, outcome in outcomes:
                row = ledger.instance(job.instance.module, job.key)
                if row is None or row.generation != job.generation:
                    continue
                if isinstance(outcome, Fetched):
                    ledger.known_manifest(row, outcome.parsed, outcome.etag)
                elif isinstance(outcome, NotModified):
                    ledger.unchanged_manifest(row)
                else:
                    ledger.rejected_manifest(row, outcome.type, outcome.detail)
            return ledger.close()

    def due_fetches(
        self, *, limit: int, leave_out: Collection[int] = ()
    ) -> tuple[list[FetchJob], datetime | None]:
        """Up to `limit` jobs that are due, longest due first, and when the next one falls due.

        `leave_out` are the keys of jobs that are under way already.
        """
        with self._database.read() as session:
            rows = session.exec(
                select(Instance)
                .where(col(Instance.fetch_at).is_not(None), col(Instance.key).not_in(leave_out))
                .order_by(col(Instance.fetch_at))
                .limit(limit + 1)
            ).all()
        now = utc_now()
        due = [row for row in rows if row.fetch_at and row.fetch_at <= now]
        following = rows[len(due)].fetch_at if len(rows) > len(due) else None
        return [_job(row) for row in due[:limit]], following

    def mark_unfollowed(self, followed: Collection[str]) -> None:
        """Notes that what registries other than these said is no longer kept current."""
        with self._database.write() as session:
            ledger = Ledger(session, self._settings)
            for source in session.exec(select(Source).where(col(Source.registry_name).not_in(followed))):
                reason = f"{source.registry_name} is not in LICTOR_REGISTRIES"
                ledger.lost(Lost(source=source.name, reason=reason, retry_in=0))
            ledger.close()


def _job(row: Instance) -> FetchJob:
    return FetchJob(row.key or 0, row.generation, _instance(row), row.etag if row.digest else None)


def _instance(row: Instance) -> ServiceInstance:
    return ServiceInstance(
        module=row.module,
        id=row.id,
        address=row.address,
        port=row.port,
        scheme=row.scheme,
        node=row.node,
        datacenter=row.datacenter,
        tags=tuple(row.tags),
        meta=row.meta,
        health=Health(row.health),
    )
