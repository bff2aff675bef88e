"""Answers readers' queries, each from one consistent snapshot."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from discovery.base import Health
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import (
    EventRow,
    InstanceRow,
    ManifestRow,
    ModuleRow,
    PushLeaseRow,
    SourceRow,
    TombstoneRow,
)
from manifest_cache.storage.raw_rows import ReadTransaction, Stored, one_of

_NEWEST = 'SELECT max("index") FROM events'


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
    """Reads what the cache holds. UnitOfWork are detached: they may be used after the snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One consistent state of the whole cache. Raises StoreUnavailable."""
        with self._database.raw_read() as reading:
            yield Snapshot(reading)

    def index(self) -> int:
        with self._database.raw_read() as reading:
            return reading.value(_NEWEST) or 0


class Snapshot:
    """One state of the cache; `index` is the index that it is true for."""

    def __init__(self, reading: ReadTransaction) -> None:
        self._reading = reading
        self.index: int = reading.value(_NEWEST) or 0
        self.sources = reading.objects(SourceRow, "ORDER BY name")

    def modules(
        self, wanted: ModuleFilter = ModuleFilter(), *, limit: int = 100, after: str | None = None
    ) -> Sequence[ModuleRow]:
        """Modules in the order of their names, those after the name `after`."""
        sql, parameters = _where(wanted, after)
        return self._reading.objects(ModuleRow, f"{sql} ORDER BY name LIMIT ?", *parameters, limit)

    def module_names(
        self, wanted: ModuleFilter = ModuleFilter(), *, limit: int = 100, after: str | None = None
    ) -> Sequence[str]:
        """The names of modules in their order, those after the name `after`."""
        sql, parameters = _where(wanted, after)
        rows = self._reading.rows(f"SELECT name FROM modules {sql} ORDER BY name LIMIT ?", *parameters, limit)
        return [name for (name,) in rows]

    def modules_named(self, names: Collection[str]) -> Sequence[ModuleRow]:
        """Those of the modules that are there."""
        return self._reading.objects(ModuleRow, f"WHERE name {one_of(names)}", *names)

    def last_changes(self, after: int) -> dict[str | None, int] | None:
        """The modules that events after this index tell of, with the index of the last one.

        None stands for all that tell of none. None is returned where such events are gone from the log.
        """
        # Grouped by what no index has, or SQLite goes through all of that by modules and the index.
        name = "module || ''"
        rows = self._reading.rows(
            f'SELECT {name}, max("index"), min("index") FROM events WHERE "index" > ? GROUP BY {name}', after
        )
        first = min((first for _, _, first in rows), default=None)
        # The beginning goes first: where the next one is there, all behind it are.
        if first != after + 1 and after < self.retained_after:
            return None
        return {module: last for module, last, _ in rows}

    def status_counts(self, wanted: ModuleFilter = ModuleFilter()) -> dict[str, int]:
        """How many modules there are of each status."""
        sql, parameters = _where(wanted)
        return dict(
            self._reading.rows(f"SELECT status, count(*) FROM modules {sql} GROUP BY status", *parameters)
        )

    def health_counts(self) -> dict[str, int]:
        """How many instances there are of each health."""
        return dict(self._reading.rows("SELECT health, count(*) FROM instances GROUP BY health"))

    def module(self, name: str) -> ModuleRow | None:
        return next(iter(self.modules_named([name])), None)

    def sources_of(self, names: Collection[str]) -> set[str]:
        """The names of the sources that the instances of these modules come from."""
        sql = f"SELECT DISTINCT source FROM instances WHERE module {one_of(names)}"
        return {source for (source,) in self._reading.rows(sql, *names)}

    def near_names(self, name: str, limit: int = 3) -> list[str]:
        """Names of modules that look like `name`, the likest first."""
        return like(name, [known for (known,) in self._reading.rows("SELECT name FROM modules")], limit)

    def instances(self, names: Collection[str]) -> dict[str, list[InstanceRow]]:
        """All instances of these modules, by module."""
        stored = self.stored_instances(names)
        return defaultdict(list, {name: [row.object() for row in rows] for name, rows in stored.items()})

    def stored_instances(self, names: Collection[str]) -> dict[str, list[Stored[InstanceRow]]]:
        """The same, for who may have seen them before."""
        found: dict[str, list[Stored[InstanceRow]]] = defaultdict(list)
        for row in self._reading.stored(InstanceRow, f"WHERE module {one_of(names)} ORDER BY key", *names):
            found[row.value("module")].append(row)
        return found

    def instance_page(
        self, module: str, *, passing: bool = False, limit: int = 100, after: int | None = None
    ) -> Sequence[InstanceRow]:
        """Instances of one module in the order of their keys, those after the key `after`."""
        sql, parameters = "WHERE module = ? AND key > ?", [module, after or 0]
        if passing:
            sql, parameters = f"{sql} AND health = ?", [*parameters, Health.PASSING.value]
        return self._reading.objects(InstanceRow, f"{sql} ORDER BY key LIMIT ?", *parameters, limit)

    def tombstones(
        self, module: str, *, limit: int = 100, before: int | None = None
    ) -> Sequence[TombstoneRow]:
        """Instances of a module that are gone, the last to go first, those before the key `before`."""
        sql = "WHERE module = ?"
        parameters: list[object] = [module]
        if before is not None:
            sql, parameters = f"{sql} AND key < ?", [module, before]
        return self._reading.objects(TombstoneRow, f"{sql} ORDER BY key DESC LIMIT ?", *parameters, limit)

    def leases(self, instances: Collection[int]) -> dict[int, PushLeaseRow]:
        """The leases of these instances (their keys) that were pushed."""
        rows = self._reading.objects(PushLeaseRow, f"WHERE instance {one_of(instances)}", *instances)
        return {lease.instance: lease for lease in rows}

    def manifests(self, names: Collection[str]) -> dict[str, ManifestRow]:
        """The current manifests of these modules, without those that have none yet."""
        rows = self._reading.objects(
            ManifestRow,
            "JOIN modules ON modules.name = manifests.module AND modules.digest = manifests.digest "
            f"WHERE modules.name {one_of(names)}",
            *names,
        )
        return {manifest.module: manifest for manifest in rows}

    def manifest(self, module: str, digest: str) -> ManifestRow | None:
        found = self._reading.objects(ManifestRow, "WHERE module = ? AND digest = ?", module, digest)
        return next(iter(found), None)

    def manifest_history(
        self, module: str, *, limit: int = 100, after: str | None = None
    ) -> Sequence[ManifestRow]:
        """A module's manifests, the newest first, those behind the one with the digest `after`."""
        sql, parameters = "WHERE module = ?", [module]
        if after is not None:
            last = "(SELECT first_seen FROM manifests WHERE module = ? AND digest = ?)"
            sql += f" AND (first_seen < {last} OR (first_seen = {last} AND digest > ?))"
            parameters += [module, after, module, after, after]
        order = "ORDER BY first_seen DESC, digest"
        return self._reading.objects(ManifestRow, f"{sql} {order} LIMIT ?", *parameters, limit)

    @cached_property
    def oldest_event(self) -> EventRow | None:
        """The first line of the log that is kept; None if there was none yet."""
        return next(iter(self._reading.objects(EventRow, 'ORDER BY "index" LIMIT 1')), None)

    @cached_property
    def retained_after(self) -> int:
        """The index after which the log is complete: 0 as long as nothing was removed from it."""
        oldest: int | None = self._reading.value('SELECT min("index") FROM events')
        return oldest - 1 if oldest else 0

    def events(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        module: str | None = None,
        types: Collection[str] = (),
        newest_first: bool = False,
    ) -> Sequence[EventRow]:
        """Lines of the log with an index above `after`, in the order of the index or against it.

        Where `after` is below `retained_after`, lines are missing at the beginning.
        """
        sql = 'WHERE "index" > ?'
        parameters: list[object] = [after]
        if module is not None:
            sql, parameters = f"{sql} AND module = ?", [*parameters, module]
        if types:
            sql, parameters = f"{sql} AND type {one_of(types)}", [*parameters, *types]
        order = "DESC" if newest_first else "ASC"
        return self._reading.objects(EventRow, f'{sql} ORDER BY "index" {order} LIMIT ?', *parameters, limit)


def like(name: str, names: Collection[str], limit: int = 3) -> list[str]:
    """Those of the names that look like `name`, the likest first."""
    return difflib.get_close_matches(name, names, n=limit, cutoff=0.6)


def _where(wanted: ModuleFilter, after: str | None = None) -> tuple[str, list[str]]:
    """The condition in SQL, and its parameters."""
    conditions: list[str] = []
    parameters: list[str] = []
    if after is not None:
        conditions.append("name > ?")
        parameters.append(after)
    if wanted.status:
        conditions.append(f"status {one_of(wanted.status)}")
        parameters += wanted.status
    for tag in wanted.tag:
        conditions.append(_LISTED.format("tags"))
        parameters.append(_listed(tag))
    if wanted.datacenter:
        conditions.append(f"({' OR '.join([_LISTED.format('datacenters')] * len(wanted.datacenter))})")
        parameters += map(_listed, wanted.datacenter)
    if wanted.q:
        # As it stands as well: not every database knows the cases of all letters.
        conditions.append(f"({_CONTAINS.format('name')} OR {_CONTAINS.format(_TITLE)} OR {_HOLDS_AS_IT_IS})")
        parameters += [_part(wanted.q.lower()), _part(wanted.q.lower()), _part(wanted.q)]
    return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), parameters


_TITLE = "coalesce(title, '')"
_CONTAINS = "lower({}) LIKE ? ESCAPE '/'"
_HOLDS_AS_IT_IS = f"{_TITLE} LIKE ? ESCAPE '/'"
# Whether a JSON list of strings holds one, the same text on every database: LIKE takes any case on SQLite.
_LISTED = "replace(CAST({0} AS VARCHAR), ?, '') <> CAST({0} AS VARCHAR)"


def _listed(item: str) -> str:
    # Within a JSON text a quotation mark that belongs to a string is escaped, so this matches whole items.
    return json.dumps(item)


def _part(text: str) -> str:
    """The pattern of LIKE for what has this text in it."""
    escaped = text.replace("/", "//").replace("%", "/%").replace("_", "/_")
    return f"%{escaped}%"
