"""Stores modules that register over HTTP and stay by heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from discovery.base import Change, Health, InstanceKey, ServiceInstance
from discovery.errors import UnknownInstance
from manifest_cache.ledger.event_log import index_of
from manifest_cache.ledger.ledger import Ledger
from manifest_cache.manifest import ParsedManifest
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.models import InstanceRow, PushLeaseRow, utc_now
from manifest_cache.storage.raw_rows import ReadTransaction, WriteTransaction

logger = logging.getLogger(__name__)

SOURCE = "push"
MISSED_BEATS = 3
"""How many heartbeats may fail to come before an instance is critical."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRegistration:
    """What a module pushes of an instance; None stands for the settings' default, in seconds.

    With a `manifest` nothing is fetched; without one it is fetched from the instance.
    """

    instance: ServiceInstance
    manifest: ParsedManifest | None = None
    heartbeat_interval: float | None = None
    deregister_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushAccepted:
    """A registration as it stands: the instance, the index that shows it, what is expected of the module."""

    instance: InstanceRow
    index: int
    heartbeat_interval: float
    deregister_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a heartbeat is answered with: the index, and in how many seconds the next one is expected."""

    index: int
    heartbeat_interval: float


class PushTables:
    """Takes registrations, heartbeats and deregistrations, and lets those expire that are silent.

    Each call is one transaction: what it says is readable by every process when it returns.
    Every method raises StoreUnavailable where the database cannot serve.
    """

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._database = database
        self._settings = settings
        self._missed = False

    def register(self, registration: PushRegistration) -> PushAccepted:
        """Registers an instance, or replaces the one with the same module and id."""
        instance = registration.instance
        interval = registration.heartbeat_interval or self._settings.heartbeat_interval
        deregister_after = registration.deregister_after or self._settings.deregister_after
        with self._database.write() as session:
            ledger = Ledger(WriteTransaction.of(session.connection()), self._settings)
            ledger.change(Change(source=SOURCE, present=(instance,)))
            row = _known(ledger, instance.key)
            if registration.manifest is not None:
                ledger.pushed_manifest(row, registration.manifest)
            elif row.manifest_pushed:
                ledger.fetch_manifest(row)
            index = ledger.close()
            stored = _row(session, instance.key)
            lease = PushLeaseRow(
                instance=stored.key or 0,
                heartbeat_interval=interval,
                deregister_after=deregister_after,
                last_beat=ledger.now,
                expires_at=ledger.now + _patience(interval),
                reported=instance.health,
            )
            session.merge(lease)
        return PushAccepted(
            instance=stored, index=index, heartbeat_interval=interval, deregister_after=deregister_after
        )

    def heartbeat(self, module: str, id_: str, health: Health, note: str = "") -> Heartbeat:
        """Notes that an instance lives and how it is; an event only if its health changed.

        Raises UnknownInstance: it must register again.
        """
        key = InstanceKey(module, "", id_)
        beat = self._quiet_beat(key, health, note)
        return beat if beat is not None else self._changing_beat(key, health, note)

    def deregister(self, module: str, id_: str) -> int:
        """Removes an instance; returns the index. Raises UnknownInstance."""
        key = InstanceKey(module, "", id_)
        with self._database.raw_write() as writing:
            ledger = Ledger(writing, self._settings)
            _known(ledger, key)
            ledger.change(Change(source=SOURCE, gone=(key,)))
            return ledger.close()

    def expire(self) -> datetime | None:
        """Makes silent instances critical, removes those that were it too long; when to look next.

        While the database could not serve no heartbeat could be taken either: after such a time
        every instance gets its whole lease again.
        """
        try:
            if self._missed:
                self.extend()
            following = self._expire_due()
        except StoreUnavailable:
            self._missed = True
            raise
        self._missed = False
        return following

    def _expire_due(self) -> datetime | None:
        with self._database.raw_read() as reading:
            first = next(iter(reading.objects(PushLeaseRow, "ORDER BY expires_at LIMIT 1")), None)
        following = first.expires_at if first else None
        if following is None or following > utc_now():
            return following
        with self._database.write() as session:
            self._expire(session)
            return _next_expiry(session)

    def extend(self) -> None:
        """Gives every instance its whole lease again, after a time in which none was watched."""
        with self._database.write(quiet=True) as session:
            now = utc_now()
            for lease in session.exec(select(PushLeaseRow)):
                seconds = lease.deregister_after if lease.lapsed else lease.heartbeat_interval * MISSED_BEATS
                lease.expires_at = max(lease.expires_at, now + timedelta(seconds=seconds))

    def _quiet_beat(self, key: InstanceKey, health: Health, note: str) -> Heartbeat | None:
        """A heartbeat that says nothing new: one statement. None if there is more to it."""
        with self._database.write(quiet=True) as session:
            found = session.exec(
                select(PushLeaseRow, InstanceRow.health)
                .join(InstanceRow, col(InstanceRow.key) == PushLeaseRow.instance)
                .where(*_is(key))
            ).first()
            if found is None or found[1] != health:
                return None
            lease = found[0]
            lease.last_beat = utc_now()
            lease.expires_at = lease.last_beat + _patience(lease.heartbeat_interval)
            lease.note, lease.lapsed, lease.reported = note, False, health
            return Heartbeat(
                index=index_of(ReadTransaction.of(session.connection())),
                heartbeat_interval=lease.heartbeat_interval,
            )

    def _changing_beat(self, key: InstanceKey, health: Health, note: str) -> Heartbeat:
        with self._database.write() as session:
            ledger = Ledger(WriteTransaction.of(session.connection()), self._settings)
            row = _known(ledger, key)
            ledger.health(row, health)
            lease = session.get_one(PushLeaseRow, row.key)
            lease.last_beat = ledger.now
            lease.expires_at = ledger.now + _patience(lease.heartbeat_interval)
            lease.note, lease.lapsed, lease.reported = note, False, health
            return Heartbeat(index=ledger.close(), heartbeat_interval=lease.heartbeat_interval)

    def _expire(self, session: Session) -> None:
        ledger = Ledger(WriteTransaction.of(session.connection()), self._settings)
        expired = session.exec(
            select(PushLeaseRow, InstanceRow)
            .join(InstanceRow, col(InstanceRow.key) == PushLeaseRow.instance)
            .where(col(PushLeaseRow.expires_at) <= ledger.now)
        ).all()
        removed = [InstanceKey(row.module, row.node, row.id) for lease, row in expired if lease.lapsed]
        for lease, row in expired:
            if not lease.lapsed:
                logger.warning("no heartbeats module=%s instance=%s: critical", row.module, row.id)
                lease.lapsed = True
                lease.expires_at = ledger.now + timedelta(seconds=lease.deregister_after)
                ledger.health(_known(ledger, InstanceKey(row.module, row.node, row.id)), Health.CRITICAL)
        for key in removed:
            logger.warning("no heartbeats module=%s instance=%s: removed", key.module, key.id)
        session.flush()
        ledger.change(Change(source=SOURCE, gone=tuple(removed)))
        ledger.close()


def _is(key: InstanceKey) -> Sequence[Any]:
    return (
        InstanceRow.source == SOURCE,
        InstanceRow.module == key.module,
        InstanceRow.node == key.node,
        InstanceRow.id == key.id,
    )


def _row(session: Session, key: InstanceKey) -> InstanceRow:
    return session.exec(select(InstanceRow).where(*_is(key))).one()


def _known(ledger: Ledger, key: InstanceKey) -> InstanceRow:
    row = ledger.instance_of(SOURCE, key)
    if row is None:
        raise UnknownInstance(
            f"no instance {key.id!r} of the module {key.module!r} is registered by push: register it again"
        )
    return row


def _patience(interval: float) -> timedelta:
    return timedelta(seconds=interval * MISSED_BEATS)


def _next_expiry(session: Session) -> datetime | None:
    return session.exec(select(func.min(PushLeaseRow.expires_at))).one()
