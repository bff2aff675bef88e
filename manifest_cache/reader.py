"""The readers' side of the database: questions in, rows out, each answer from one consistent state."""

from __future__ import annotations

import difflib
import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import String, cast, func, or_
from sqlmodel import Session, col, select

from discovery.base import Health
from manifest_cache.database import Database
from manifest_cache.event_log import index_of
from manifest_cache.models import Event, Instance, Manifest, Module, PushLease, Source, Tombstone

# A commit whose signal is lost is noticed this much later, in seconds.
_SIGNAL_LOST = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFilter:
    """Which modules are wanted; what is not given does not narrow.

    `status` and `datacenter`: any of these. `tag`: all of these. `q`: part of the name or title,
    in whatever case.
    """

    status: Sequence[str] = ()
    tag: Sequence[str] = ()
    datacenter: Sequence[str] = ()
    q: str = ""


class Reader:
    """Reads what the cache holds. Rows are detached: they may be used after the snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One consistent state of the whole cache. Raises StoreUnavailable."""
        with self._database.read() as session:
            yield Snapshot(session)

    def index(self) -> int:
        with self._database.read() as session:
            return index_of(session.connection())

    def wait(self, index: int, timeout: float) -> int:
        """Waits up to `timeout` seconds for the index to pass `index`; returns the index then."""
        deadline = time.monotonic() + timeout
        # The watch is opened first: what is committed after the look at the index wakes it.
        watch = self._database.watch()
        try:
            while (now := self.index()) <= index and (left := deadline - time.monotonic()) > 0:
                watch.wait(min(left, _SIGNAL_LOST))
            return now
        finally:
            watch.close()


class Snapshot:
    """One state of the cache; `index` is the index that it is true for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.index = index_of(session.connection())
        self.sources = session.exec(select(Source).order_by(col(Source.name))).all()

    def modules(
        self, wanted: ModuleFilter = ModuleFilter(), *, limit: int = 100, after: str | None = None
    ) -> Sequence[Module]:
        """Modules in the order of their names, those after the name `after`."""
        query = select(Module).where(*_conditions(wanted))
        if after is not None:
            query = query.where(col(Module.name) > after)
        return self._session.exec(query.order_by(col(Module.name)).limit(limit)).all()

    def module_names(
        self, wanted: ModuleFilter = ModuleFilter(), *, limit: int = 100, after: str | None = None
    ) -> Sequence[str]:
        """The names of modules in their order, those after the name `after`."""
        query = select(Module.name).where(*_conditions(wanted))
        if after is not None:
            query = query.where(col(Module.name) > after)
        return self._session.exec(query.order_by(col(Module.name)).limit(limit)).all()

    def modules_named(self, names: Collection[str]) -> Sequence[Module]:
        """Those of the modules that are there."""
        return self._session.exec(select(Module).where(col(Module.name).in_(names))).all()

    def changed_modules(self, after: int) -> dict[str, int]:
        """The modules that events after this index tell of, with the index of the last one."""
        query = select(Event.module, func.max(Event.index)).where(col(Event.index) > after)
        rows = self._session.exec(query.group_by(col(Event.module))).all()
        return {name: index for name, index in rows if name is not None and index is not None}

    def status_counts(self, wanted: ModuleFilter = ModuleFilter()) -> dict[str, int]:
        """How many modules there are of each status."""
        query = select(Module.status, func.count()).where(*_conditions(wanted)).group_by(Module.status)
        return dict(self._session.exec(query).all())

    def health_counts(self) -> dict[str, int]:
        """How many instances there are of each health."""
        query = select(Instance.health, func.count()).group_by(col(Instance.health))
        return {str(health): number for health, number in self._session.exec(query)}

    def module(self, name: str) -> Module | None:
        return self._session.get(Module, name)

    def sources_of(self, names: Collection[str]) -> set[str]:
        """The names of the sources that the instances of these modules come from."""
        query = select(Instance.source).where(col(Instance.module).in_(names))
        return set(self._session.exec(query.distinct()))

    def near_names(self, name: str, limit: int = 3) -> list[str]:
        """Names of modules that look like `name`, the likest first."""
        names = self._session.exec(select(Module.name)).all()
        return difflib.get_close_matches(name, names, n=limit, cutoff=0.6)

    def instances(self, names: Collection[str], *, passing: bool = False) -> dict[str, list[Instance]]:
        """All instances of these modules, by module; only those to send traffic to if `passing`."""
        query = _instances(passing).where(col(Instance.module).in_(names))
        found: dict[str, list[Instance]] = defaultdict(list)
        for row in self._session.exec(query):
            found[row.module].append(row)
        return found

    def instance_page(
        self, module: str, *, passing: bool = False, limit: int = 100, after: int | None = None
    ) -> Sequence[Instance]:
        """Instances of one module in the order of their keys, those after the key `after`."""
        query = _instances(passing).where(Instance.module == module)
        if after is not None:
            query = query.where(col(Instance.key) > after)
        rows: Sequence[Instance] = self._session.exec(query.limit(limit)).all()
        return rows

    def tombstones(self, module: str, *, limit: int = 100, before: int | None = None) -> Sequence[Tombstone]:
        """Instances of a module that are gone, the last to go first, those before the key `before`."""
        query = select(Tombstone).where(Tombstone.module == module).order_by(col(Tombstone.key).desc())
        if before is not None:
            query = query.where(col(Tombstone.key) < before)
        return self._session.exec(query.limit(limit)).all()

    def leases(self, instances: Collection[int]) -> dict[int, PushLease]:
        """The leases of these instances (their keys) that were pushed."""
        query = select(PushLease).where(col(PushLease.instance).in_(instances))
        return {lease.instance: lease for lease in self._session.exec(query)}

    def manifests(self, names: Collection[str]) -> dict[str, Manifest]:
        """The current manifests of these modules, without those that have none yet."""
        query = (
            select(Manifest)
            .join(Module, (col(Module.name) == Manifest.module) & (col(Module.digest) == Manifest.digest))
            .where(col(Module.name).in_(names))
        )
        return {manifest.module: manifest for manifest in self._session.exec(query)}

    def manifest(self, module: str, digest: str) -> Manifest | None:
        return self._session.get(Manifest, (module, digest))

    def manifest_history(
        self, module: str, *, limit: int = 100, after: str | None = None
    ) -> Sequence[Manifest]:
        """A module's manifests, the newest first, those behind the one with the digest `after`."""
        query = select(Manifest).where(Manifest.module == module)
        last = self.manifest(module, after) if after else None
        if last is not None:
            older = col(Manifest.first_seen) < last.first_seen
            beside = (col(Manifest.first_seen) == last.first_seen) & (col(Manifest.digest) > last.digest)
            query = query.where(or_(older, beside))
        order = col(Manifest.first_seen).desc(), col(Manifest.digest)
        return self._session.exec(query.order_by(*order).limit(limit)).all()

    @cached_property
    def oldest_event(self) -> Event | None:
        """The first line of the log that is kept; None if there was none yet."""
        return self._session.exec(select(Event).order_by(col(Event.index)).limit(1)).first()

    @property
    def retained_after(self) -> int:
        """The index after which the log is complete: 0 as long as nothing was removed from it."""
        oldest = self.oldest_event
        return oldest.index - 1 if oldest is not None and oldest.index else 0

    def events(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        module: str | None = None,
        types: Collection[str] = (),
        newest_first: bool = False,
    ) -> Sequence[Event]:
        """Lines of the log with an index above `after`, in the order of the index or against it.

        Where `after` is below `retained_after`, lines are missing at the beginning.
        """
        query = select(Event).where(col(Event.index) > after)
        if module is not None:
            query = query.where(Event.module == module)
        if types:
            query = query.where(col(Event.type).in_(types))
        order = col(Event.index).desc() if newest_first else col(Event.index)
        return self._session.exec(query.order_by(order).limit(limit)).all()


def _instances(passing: bool) -> Any:
    query = select(Instance).order_by(col(Instance.key))
    return query.where(Instance.health == Health.PASSING) if passing else query


def _conditions(wanted: ModuleFilter) -> list[Any]:
    conditions: list[Any] = []
    if wanted.status:
        conditions.append(col(Module.status).in_(wanted.status))
    conditions += [_listed(col(Module.tags), tag) for tag in wanted.tag]
    if wanted.datacenter:
        conditions.append(or_(*(_listed(col(Module.datacenters), name) for name in wanted.datacenter)))
    if wanted.q:
        name, title = func.lower(Module.name), func.lower(func.coalesce(Module.title, ""))
        part = wanted.q.lower()
        conditions.append(name.contains(part, autoescape=True) | title.contains(part, autoescape=True))
    return conditions


def _listed(column: Any, item: str) -> Any:
    """Whether a JSON list of strings holds `item`: the same text on every database."""
    # Within a JSON text a quotation mark that belongs to a string is escaped, so this matches whole items.
    return cast(column, String).contains(json.dumps(item), autoescape=True)
