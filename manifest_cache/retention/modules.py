"""Forgets modules without instances and old tombstones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func
from sqlmodel import Session, col, delete, select

from discovery.registries import confirmed_by
from manifest_cache.ledger.ledger import Ledger
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow, ModuleRow, SourceRow, TombstoneRow, utc_now
from manifest_cache.storage.raw_rows import WriteTransaction
from manifest_cache.storage.reader import like


class CannotForget(Exception):
    """A module is not forgotten; the message says why."""


class NoSuchModule(CannotForget):
    """There is no module of this name; `near` are names like it."""

    def __init__(self, name: str, near: Sequence[str]) -> None:
        super().__init__(f"there is no module {name}")
        self.near = near


class ModuleInUse(CannotForget):
    """The module has instances; `told_by` says how many each source tells of."""

    def __init__(self, name: str, told_by: Mapping[str, int]) -> None:
        number = sum(told_by.values())
        instances = "1 instance" if number == 1 else f"{number} instances"
        sources = ", ".join(f"{source} tells of {count}" for source, count in sorted(told_by.items()))
        super().__init__(f"{name} has {instances} ({sources}): it can be forgotten when they are gone")
        self.told_by = told_by


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went with a module that was forgotten, and the index that shows it."""

    index: int
    manifests: int
    tombstones: int


class Forgetting:
    """Removes modules that have no instances, and tombstones.

    Every method raises StoreUnavailable where the database cannot serve.
    """

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._database = database
        self._settings = settings
        self._began = utc_now()

    def forget(self, name: str) -> Forgotten:
        """Removes a module, by word of an operator. Raises CannotForget."""
        with self._database.write() as session:
            if session.get(ModuleRow, name) is None:
                raise NoSuchModule(name, like(name, session.exec(select(ModuleRow.name)).all()))
            counts = select(InstanceRow.source, func.count()).where(InstanceRow.module == name)
            told_by = dict(session.exec(counts.group_by(InstanceRow.source)).all())
            if told_by:
                raise ModuleInUse(name, told_by)
            ledger = Ledger(WriteTransaction.of(session.connection()), self._settings)
            manifests, tombstones = ledger.forget(name, "an operator said so")
            return Forgotten(ledger.close(), manifests, tombstones)

    def forget_old(self, limit: int) -> Sequence[str]:
        """Removes up to `limit` modules that had no instances for long; returns their names.

        A module stays while one of its sources is lost or doubted, or has not been heard since this
        object was made: its instances may be back, and only nobody could say so.
        """
        with self._database.read() as session:
            if not self._forgettable(session, limit):
                return ()
        with self._database.write() as session:
            ledger = Ledger(WriteTransaction.of(session.connection()), self._settings)
            # Looked for again: some may be back since.
            names = self._forgettable(session, limit)
            for name in names:
                ledger.forget(name, "it had no instances for LICTOR_FORGET_AFTER")
            ledger.close()
            return names

    def drop_tombstones(self, limit: int) -> int:
        """Removes up to `limit` old ones; returns how many.

        Those of modules without instances stay as long as the module: they say who told of it.
        """
        lives = (
            select(ModuleRow.name).where(ModuleRow.name == TombstoneRow.module, ModuleRow.total > 0).exists()
        )
        old = select(TombstoneRow.key).where(col(TombstoneRow.gone_at) < utc_now() - self._patience, lives)
        with self._database.read() as session:
            keys = session.exec(old.order_by(col(TombstoneRow.gone_at)).limit(limit)).all()
        if keys:
            with self._database.write(quiet=True) as session:
                session.exec(delete(TombstoneRow).where(col(TombstoneRow.key).in_(keys)))
        return len(keys)

    @property
    def _patience(self) -> timedelta:
        return timedelta(seconds=self._settings.forget_after)

    def _forgettable(self, session: Session, limit: int) -> Sequence[str]:
        silent = [source.name for source in session.exec(select(SourceRow)) if not self._is_heard(source)]
        its = select(TombstoneRow.key).where(TombstoneRow.module == ModuleRow.name)
        query = select(ModuleRow.name).where(
            ModuleRow.total == 0,
            col(ModuleRow.last_changed) < utc_now() - self._patience,
            ~its.where(col(TombstoneRow.source).in_(silent)).exists(),
        )
        if silent:
            # Where it is not known who told of it, it may have been one of these.
            query = query.where(its.exists())
        return session.exec(query.order_by(col(ModuleRow.last_changed)).limit(limit)).all()

    def _is_heard(self, source: SourceRow) -> bool:
        if not source.is_current:
            return False
        if confirmed_by(source.name) == "lease":
            # A module that could not register while nobody served has done so by then.
            return utc_now() - self._began >= timedelta(seconds=self._settings.deregister_after)
        return source.last_contact is not None and source.last_contact >= self._began
