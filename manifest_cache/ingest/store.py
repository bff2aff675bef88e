"""Runs the synchronizer's transactions: changes, fetched manifests, due fetches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

import sqlalchemy
from sqlmodel import SQLModel, col, select

from discovery.base import Change, Health, InstanceKey, Lost, ServiceInstance
from manifest_cache.errors import ManifestError
from manifest_cache.fetch.fetched import Fetched, ManifestUnchanged
from manifest_cache.ingest.plausibility import Doubted, Update
from manifest_cache.ledger.ledger import Ledger, Refresh
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow, SourceRow, utc_now
from manifest_cache.storage.raw_rows import ReadTransaction, one_of
from manifest_cache.storage.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class FetchJob:
    """An instance whose manifest is to be fetched, as it stood when the job was made.

    `etag` is what it sent with the manifest known of it, None if there is none; `due_at` is when it
    fell due. Whether it `has_manifest`: then nobody waits for what is fetched.
    """

    source: str
    generation: int
    due_at: datetime | None
    instance: ServiceInstance
    etag: str | None
    has_manifest: bool
    key: tuple[str, InstanceKey] = field(init=False)
    """What tells it from the jobs of other instances."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.source, self.instance.key))

    @property
    def claim(self) -> tuple[str, InstanceKey, int]:
        """What tells it from all other jobs: an instance that registers again has a new one."""
        return *self.key, self.generation


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of changes: the index that shows them, and the fetches that they made due."""

    index: int
    due: list[FetchJob]


Outcome: TypeAlias = Fetched | ManifestUnchanged | ManifestError
"""What became of a fetch: a manifest, the one that is known already, or why there is none."""


class Store:
    """Writes what the synchronizer learns; every call is one transaction.

    Every method raises StoreUnavailable where the database cannot serve; nothing is written then.
    """

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._database = database
        self._settings = settings

    def apply(self, updates: Sequence[Update]) -> Applied:
        """Writes what registries told and how far they are believed, in its order."""
        with self._database.raw_write() as writing:
            ledger = Ledger(writing, self._settings)
            for update in updates:
                if isinstance(update, Change):
                    ledger.change(update)
                elif isinstance(update, Lost):
                    ledger.lost(update)
                elif isinstance(update, Doubted):
                    ledger.doubted(update.source, update.reason)
                else:
                    ledger.trusted(update.source)
            index = ledger.close()
            return Applied(index, [_job(row) for row in ledger.due])

    def believed(self) -> dict[str, set[InstanceKey]]:
        """The keys of all instances that are believed to be there, by source."""
        with self._database.read() as session:
            rows = session.exec(
                select(InstanceRow.source, InstanceRow.module, InstanceRow.node, InstanceRow.id)
            ).all()
        keys: dict[str, set[InstanceKey]] = defaultdict(set)
        for source, module, node, id_ in rows:
            keys[source].add(InstanceKey(module, node, id_))
        return keys

    def sources(self) -> list[str]:
        """The names of all sources that were ever heard of."""
        with self._database.read() as session:
            return list(session.exec(select(SourceRow.name)))

    def accept_requests(self) -> list[str]:
        """The sources that an operator wants believed."""
        with self._database.raw_read() as reading:
            return [name for (name,) in reading.rows("SELECT name FROM sources WHERE accept_requested")]

    def request_acceptance(self, source: str | None = None) -> list[str]:
        """Asks the synchronizer to believe a source that is doubted, or all such; returns which."""
        with self._database.write() as session:
            doubted = session.exec(select(SourceRow).where(col(SourceRow.doubt).is_not(None))).all()
            wanted = [row for row in doubted if source in (None, row.name, row.registry_name)]
            for row in wanted:
                row.accept_requested = True
            return [row.name for row in wanted]

    def request_refresh(self, module: str) -> tuple[Refresh, int] | None:
        """Has the manifests of a module's instances fetched now, by whichever process is to do it.

        Returns of how many, and the index; None if there is no such module.
        """
        with self._database.raw_write() as writing:
            ledger = Ledger(writing, self._settings)
            refresh = ledger.refresh(module)
            index = ledger.close()
            return None if refresh is None else (refresh, index)

    def apply_fetches(self, outcomes: Sequence[tuple[FetchJob, Outcome]]) -> int:
        """Writes what became of fetches; returns the index.

        An outcome is dropped if its instance is gone, or has registered again since the fetch began.
        """
        with self._database.raw_write() as writing:
            ledger = Ledger(writing, self._settings)
            ledger.expect(*_named_in(outcomes))
            for job, outcome in outcomes:
                row = ledger.instance_of(*job.key)
                if row is None or row.generation != job.generation:
                    continue
                asked_again = _is_asked_again(row, job, ledger.now)
                if isinstance(outcome, Fetched):
                    ledger.known_manifest(row, outcome.parsed, outcome.etag)
                elif isinstance(outcome, ManifestUnchanged):
                    ledger.unchanged_manifest(row)
                elif not asked_again:
                    ledger.rejected_manifest(row, outcome.type, outcome.detail)
                if asked_again:
                    ledger.ask_again(row)
            return ledger.close()

    def due_fetches(
        self,
        *,
        limit: int,
        leave_out: Collection[tuple[str, InstanceKey, int]] = (),
        leave_out_hosts: Collection[str] = (),
    ) -> tuple[list[FetchJob], datetime | None]:
        """Up to `limit` jobs that are due, longest due first, and when the next one falls due.

        `leave_out` are the claims of jobs that are under way already, `leave_out_hosts` addresses of
        which there are enough.
        """
        fetch_at, now = col(InstanceRow.fetch_at), utc_now()
        # Asked at each commit, and mostly nothing is due.
        following = self._next_fetch(leave_out_hosts)
        if following is None or following > now:
            return [], following
        with self._database.read() as session:
            connection = session.connection()
            found = connection.execute(
                sqlalchemy.select(*_CLAIM)
                .where(fetch_at <= now, col(InstanceRow.address).not_in(leave_out_hosts))
                .order_by(fetch_at)
                .limit(limit + len(leave_out))
            ).all()
            # Of those under way no more is read than what tells that they are.
            keys = [
                key
                for key, source, *instance, generation in found
                if (source, InstanceKey(*instance), generation) not in leave_out
            ][:limit]
            rows = {
                row.key: row
                for row in UnitOfWork(ReadTransaction.of(connection), InstanceRow).load("key", keys)
            }
            following = session.exec(
                select(fetch_at)
                .where(fetch_at > now, col(InstanceRow.address).not_in(leave_out_hosts))
                .order_by(fetch_at)
                .limit(1)
            ).first()
        return [_job(rows[key]) for key in keys], following

    def _next_fetch(self, leave_out_hosts: Collection[str]) -> datetime | None:
        others = f"AND NOT address {one_of(leave_out_hosts)} " if leave_out_hosts else ""
        wanted = f"WHERE fetch_at IS NOT NULL {others}ORDER BY fetch_at LIMIT 1"
        with self._database.raw_read() as reading:
            first = next(iter(reading.objects(InstanceRow, wanted, *leave_out_hosts)), None)
        return first.fetch_at if first else None

    def mark_unfollowed(self, followed: Collection[str]) -> None:
        """Notes that what registries other than these said is no longer kept current."""
        with self._database.raw_write() as writing:
            ledger = Ledger(writing, self._settings)
            for source in writing.objects(SourceRow, "ORDER BY name"):
                if source.registry_name not in followed:
                    reason = f"{source.registry_name} is not in LICTOR_REGISTRIES"
                    ledger.lost(Lost(source=source.name, reason=reason, retry_in=0))
            ledger.close()


# What tells that a row is under way, behind its key.
_CLAIM = [
    SQLModel.metadata.tables["instances"].c[name]
    for name in ("key", "source", "module", "node", "id", "generation")
]


def _named_in(outcomes: Sequence[tuple[FetchJob, Outcome]]) -> tuple[set[str], set[str]]:
    """The modules that outcomes are about, and the digests of their manifests."""
    fetched = (outcome for _, outcome in outcomes if isinstance(outcome, Fetched))
    return {job.instance.module for job, _ in outcomes}, {outcome.parsed.digest for outcome in fetched}


def _is_asked_again(row: InstanceRow, job: FetchJob, now: datetime) -> bool:
    """Whether the instance fell due again since a fetch of it began, which may have been too soon."""
    return row.fetch_at is not None and job.due_at is not None and job.due_at < row.fetch_at <= now


def _job(row: InstanceRow) -> FetchJob:
    has_manifest = row.digest is not None
    etag = row.etag if has_manifest else None
    return FetchJob(row.source, row.generation, row.fetch_at, _instance(row), etag, has_manifest)


def _instance(row: InstanceRow) -> ServiceInstance:
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
