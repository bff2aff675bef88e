"""Changes all that a reader can see, always together with its events."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlmodel import SQLModel

from discovery.base import Change, Health, InstanceKey, Lost, ServiceInstance
from manifest_cache.ledger.event_log import EventLog, described, described_error
from manifest_cache.ledger.fetch_schedule import FetchSchedule
from manifest_cache.ledger.instance_rows import (
    asked_at,
    definition_of,
    harmless,
    has_place,
    is_row_of,
    key_of,
    remembered_of,
    tombstone_fields,
)
from manifest_cache.ledger.loaded_rows import LoadedRows
from manifest_cache.ledger.module_summary import HEALTHY, ModuleSummary, new_module
from manifest_cache.manifest import ParsedManifest
from manifest_cache.metrics import DOUBTS
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.models import (
    InstanceRow,
    SourceRow,
    TombstoneRow,
    utc_now,
)
from manifest_cache.storage.raw_rows import WriteTransaction
from manifest_cache.storage.raw_statements import statements

logger = logging.getLogger(__name__)

_CONTACT_RESOLUTION = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Refresh:
    """Of how many instances the manifest is fetched now, was pushed, or waits until the instance is well."""

    asked: int
    pushed: int
    not_well: int


class Ledger(LoadedRows):
    """One transaction's worth of changes; `close` settles what they add up to and writes the events.

    A transaction of `Database.writing` is all it works on, so that state and events are committed
    together. Whoever opens one calls `close` before the transaction ends.
    """

    def __init__(self, writing: WriteTransaction, settings: CacheSettings) -> None:
        super().__init__(writing, utc_now())
        self._new_tombstones: dict[tuple[str, InstanceKey], TombstoneRow] = {}
        self._new_modules: set[str] = set()
        self._dirty_modules: dict[str, str] = {}
        self._log = EventLog(writing, self.now)
        self._fetches = FetchSchedule(writing, settings, self.now)

    # What is there

    @property
    def due(self) -> list[InstanceRow]:
        """The instances whose manifests are to be fetched now, because of what was told here."""
        return self._fetches.due

    def expect(self, modules: Iterable[str], digests: Collection[str]) -> None:
        """Loads together what is going to be asked for one by one."""
        self._load(set(modules))
        self._load_manifests(digests)

    def instance_of(self, source: str, key: InstanceKey) -> InstanceRow | None:
        """The instance that a source knows by this key."""
        self._load([key.module])
        return next((row for row in self._instances_of[key.module] if is_row_of(row, source, key)), None)

    # What registries tell

    def change(self, change: Change) -> None:
        """Applies what a source tells. The same told twice changes nothing."""
        source = self._source(change.source)
        self._heard_from(source)
        if not (change.present or change.gone or change.complete):
            return
        names = self._names_in(change)
        self._load(names)
        rows = {
            key_of(row): row
            for name in names
            for row in self._instances_of[name]
            if row.source == source.name
        }
        present = {instance.key: instance for instance in change.present if has_place(instance)}
        gone = set(rows).difference(present) if change.complete else set(change.gone).intersection(rows)
        self._open_modules(sorted({key.module for key in present}), source)
        self._add([instance for key, instance in present.items() if key not in rows], source)
        for key, instance in present.items():
            if key in rows:
                self._alter(rows[key], definition_of(instance), instance.health)
        self._remove([rows[key] for key in sorted(gone)], source)

    def _names_in(self, change: Change) -> set[str]:
        """The modules that a change may be about: those that it names, or all of its source."""
        names = {instance.module for instance in change.present} | {key.module for key in change.gone}
        if change.complete:
            known = "SELECT DISTINCT module FROM instances WHERE source = ?"
            names.update(name for (name,) in self._writing.rows(known, change.source))
            # Those that this transaction added are not stored yet.
            added = (row for rows in self._instances_of.values() for row in rows)
            names.update(row.module for row in added if row.source == change.source)
        return names

    def health(self, row: InstanceRow, health: Health) -> None:
        """Notes how an instance is."""
        self._alter(row, {}, health)

    def lost(self, lost: Lost) -> None:
        """Notes that a source cannot be reached; what it said last still stands."""
        source, reason = self._source(lost.source), harmless(lost.reason)
        if source.connected or source.reason != reason:
            was = {"connected": source.connected, "reason": source.reason}
            if source.connected:
                source.since = self.now
            source.connected, source.reason = False, reason
            self._log.source("registry.lost", source, was)

    def doubted(self, name: str, reason: str) -> None:
        """Notes that what a source tells is not all believed; what was believed before still stands."""
        source = self._source(name)
        if source.doubt != reason:
            was = {"doubt": source.doubt}
            if source.doubt is None:
                source.since = self.now
                DOUBTS.labels(name).inc()
            logger.warning("doubted source=%s: %s", name, reason)
            source.doubt = reason
            self._log.source("registry.doubted", source, was)

    def trusted(self, name: str) -> None:
        """Notes that a source is believed again, if it was doubted."""
        source = self._source(name)
        source.accept_requested = False
        if source.doubt is not None:
            was = {"doubt": source.doubt}
            source.doubt, source.since = None, self.now
            logger.warning("believed again source=%s", name)
            self._log.source("registry.accepted", source, was)

    def _heard_from(self, source: SourceRow) -> None:
        if not source.connected:
            was = {"connected": False, "reason": source.reason}
            source.connected, source.reason, source.since = True, None, self.now
            self._log.source("registry.connected", source, was)
        # A moment that is still to come is one of a clock that was set back.
        if source.last_contact is None or abs(self.now - source.last_contact) >= _CONTACT_RESOLUTION:
            source.last_contact = self.now

    def _open_modules(self, names: Iterable[str], source: SourceRow) -> None:
        """Makes the modules that are new."""
        for name in names:
            if name not in self._module_named:
                self._module_named[name] = self._modules.add(**new_module(name, self.now))
                self._new_modules.add(name)
                self._log.add("module.registered", module=name, registry=source.registry_name)

    def _add(self, instances: Sequence[ServiceInstance], source: SourceRow) -> None:
        self._lift_tombstones(instances, source)
        announced = self._fetches.announced(instances)
        for instance in instances:
            row = self._instances.add(**self._new_instance(instance, source))
            self._instances_of[row.module].append(row)
            self._dirty_modules[row.module] = row.registry_name
            self._fetches.plan(row, announced)
            self._log.instance("instance.added", row, is_=described(row))
        source.instances += len(instances)

    def _lift_tombstones(self, instances: Sequence[ServiceInstance], source: SourceRow) -> None:
        """Takes away the tombstones of instances that come back."""
        keys = {(source.name, instance.key) for instance in instances}
        stored = self._tombstones.load("id", {key.id for _, key in keys})
        back = [row for row in stored if (row.source, key_of(row)) in keys]
        back += [self._new_tombstones.pop(key) for key in keys & self._new_tombstones.keys()]
        self._tombstones.remove(back, "key")

    def _new_instance(self, instance: ServiceInstance, source: SourceRow) -> dict[str, Any]:
        return {
            "source": source.name,
            "registry_name": source.registry_name,
            "module": instance.module,
            "node": instance.node,
            "id": instance.id,
            **definition_of(instance),
            "health": instance.health,
            "version": None,
            "digest": None,
            "etag": None,
            "error_type": None,
            "error_detail": None,
            "error_at": None,
            "manifest_pushed": False,
            "confirmed": False,
            "fetch_failures": 0,
            "generation": 0,
            "first_seen": self.now,
            "last_seen": self.now,
            "last_changed": self.now,
        }

    def _alter(self, row: InstanceRow, definition: Mapping[str, Any], health: Health) -> None:
        before = described(row)
        definition_changed = any(getattr(row, name) != value for name, value in definition.items())
        health_changed = row.health != health
        if not (definition_changed or health_changed):
            return
        became_healthy = row.health not in HEALTHY and health in HEALTHY
        was_asked_at = asked_at(row)
        for name, value in definition.items():
            setattr(row, name, value)
        if asked_at(row) != was_asked_at:
            # What is elsewhere may be other and bear the same ETag.
            row.etag = None
        row.health = health
        row.last_seen = row.last_changed = self.now
        self._dirty_modules[row.module] = row.registry_name
        if definition_changed or became_healthy or health not in HEALTHY:
            row.generation += 1
            self._fetches.plan(row, self._fetches.announced([row]))
        self._log.difference("instance.changed", before, row, leave_out={"health"})
        if health_changed:
            self._log.instance(
                "instance.health_changed", row, was={"health": before["health"]}, is_={"health": row.health}
            )

    def _remove(self, rows: Sequence[InstanceRow], source: SourceRow) -> None:
        for row in rows:
            self._dirty_modules[row.module] = row.registry_name
            self._log.instance("instance.removed", row, was=described(row))
            self._new_tombstones[row.source, key_of(row)] = self._tombstones.add(
                **tombstone_fields(row), gone_at=self.now
            )
        gone = {id(row) for row in rows}
        for name in {row.module for row in rows}:
            self._instances_of[name] = [row for row in self._instances_of[name] if id(row) not in gone]
        self._instances.remove(rows, "key")
        source.instances -= len(rows)

    def forget(self, name: str, reason: str) -> tuple[int, int]:
        """Removes a module that has no instances; returns how many manifests and tombstones went with it."""
        self._load([name])
        module = self._module_named.pop(name)
        self._log.add("module.forgotten", module=name, was=remembered_of(module), reason=reason)
        gone = [
            statements(SQLModel.metadata.tables[table], self._writing.dialect).delete(
                self._writing.cursor, "module", [name]
            )
            for table in ("manifests", "tombstones")
        ]
        self._modules.remove([module], "name")
        return gone[0], gone[1]

    # What manifests say

    def known_manifest(self, row: InstanceRow, parsed: ParsedManifest, etag: str | None) -> None:
        """Notes the manifest that an instance serves, and that it is a good one."""
        before = described(row)
        is_news = self._store_manifest(row.module, parsed)
        became_other = row.confirmed and row.digest is not None and row.digest != parsed.digest
        row.digest, row.version, row.etag = parsed.digest, parsed.version, etag
        self._fetched(row, before)
        if is_news:
            self._share(row.module, parsed)
        if became_other and not row.manifest_pushed:
            self._doubt_siblings(row, before["version"])

    def _doubt_siblings(self, row: InstanceRow, version: str | None) -> None:
        """Has those asked for which a row stood that turned out changed: nothing else told of it."""
        self._fetches.ask_now(
            other
            for other in self._instances_of[row.module]
            if other.version == version and other.digest != row.digest and self._fetches.is_settled(other)
        )

    def _share(self, module: str, parsed: ParsedManifest) -> None:
        """Gives a manifest that is new to those that announce it and wait for it."""
        for row in self._instances_of[module]:
            if row.meta.get("manifest_digest") == parsed.digest and self._fetches.is_awaited(row):
                before = described(row)
                row.digest, row.version, row.etag = parsed.digest, parsed.version, None
                self._fetched(row, before)

    def pushed_manifest(self, row: InstanceRow, parsed: ParsedManifest) -> None:
        """Notes the manifest that came with an instance's registration: none is fetched then."""
        if not row.manifest_pushed:
            # A fetch that is under way tells of what was before.
            row.manifest_pushed = True
            row.generation += 1
        self.known_manifest(row, parsed, None)

    def fetch_manifest(self, row: InstanceRow) -> None:
        """Notes that an instance which pushed its manifest until now has it fetched from now on."""
        row.manifest_pushed = False
        row.generation += 1
        self._fetches.plan(row, self._fetches.announced([row]))

    def unchanged_manifest(self, row: InstanceRow) -> None:
        """Notes that an instance still serves the manifest that is known of it."""
        self._fetched(row, described(row))

    def rejected_manifest(self, row: InstanceRow, error_type: str, detail: str) -> None:
        """Notes why an instance's manifest cannot be taken; the good one known before stays."""
        was = described_error(row)
        row.error_type, row.error_detail, row.error_at = error_type, detail, self.now
        self._fetches.retry(row)
        row.last_changed = self.now
        self._dirty_modules[row.module] = row.registry_name
        self._log.instance(
            "module.manifest_rejected",
            row,
            was={"manifest_error": was},
            is_={"manifest_error": described_error(row)},
        )

    def refresh(self, module: str) -> Refresh | None:
        """Has all instances of a module asked that can be; None if there is no such module."""
        self._load([module])
        if module not in self._module_named:
            return None
        rows = self._instances_of[module]
        before = [(row, described(row)) for row in rows]
        asked = self._fetches.ask_now(rows)
        for row, was in before:
            # Of one whose last fetch failed it is seen when it is tried again.
            if self._log.difference("instance.changed", was, row):
                row.last_changed = self.now
        pushed = sum(row.manifest_pushed for row in rows)
        return Refresh(asked=asked, pushed=pushed, not_well=len(rows) - asked - pushed)

    def ask_again(self, row: InstanceRow) -> None:
        """Notes that an instance that was just asked has to be asked once more."""
        self._fetches.ask_now([row])

    def _fetched(self, row: InstanceRow, before: Mapping[str, Any]) -> None:
        row.error_type = row.error_detail = row.error_at = None
        self._fetches.known(row)
        self._dirty_modules[row.module] = row.registry_name
        if self._log.difference("instance.changed", before, row):
            row.last_changed = self.now

    def _store_manifest(self, module: str, parsed: ParsedManifest) -> bool:
        """Keeps a manifest; False if it is there already."""
        if self._manifest(module, parsed.digest) is not None:
            return False
        self._manifest_of[module, parsed.digest] = self._manifests.add(
            module=module,
            digest=parsed.digest,
            version=parsed.version,
            content=parsed.canonical.decode(),
            first_seen=self.now,
        )
        return True

    # What it adds up to

    def close(self) -> int:
        """Settles what it adds up to, writes all rows and the events that tell of them; returns the index."""
        settlement = ModuleSummary(self._log, self.now, self._manifest)
        for name, registry in sorted(self._dirty_modules.items()):
            module, rows = self._module_named[name], self._instances_of[name]
            settlement.settle(module, rows, registry, is_new=name in self._new_modules)
            self._fetches.elect_fetchers(rows)
        # In the order in which rows refer to each other.
        for table in (self._sources, self._modules, self._manifests, self._instances, self._tombstones):
            table.write()
        return self._log.write()
