"""Changes of state in, rows and their events out: all that a reader can see is changed here."""

from __future__ import annotations

import json
import logging
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert
from sqlmodel import Session, SQLModel, col, select

from discovery.base import Change, Health, InstanceKey, Lost, ServiceInstance
from manifest_cache.manifest import ParsedManifest, version_key
from manifest_cache.models import Instance, Manifest, Module, Source, utc_now
from manifest_cache.settings import CacheSettings
from manifest_cache.working_set import Rows, chunks

logger = logging.getLogger(__name__)

_EVENTS = SQLModel.metadata.tables["events"]
_HEALTHY = (Health.PASSING, Health.WARNING)
_FIRST_RETRY = 1.0
_CONTACT_RESOLUTION = timedelta(seconds=5)


class Ledger:
    """One transaction's worth of changes; `close` settles what they add up to and writes the events.

    A session of `Database.write` is all it works on, so that state and events are committed
    together. Whoever opens one calls `close` before the session ends.
    """

    def __init__(self, session: Session, settings: CacheSettings) -> None:
        self.settings = settings
        self.now = utc_now()
        self._connection = session.connection()
        self._sources = Rows(self._connection, Source)
        self._modules = Rows(self._connection, Module)
        self._manifests = Rows(self._connection, Manifest)
        self._instances = Rows(self._connection, Instance)
        self._source_named: dict[str, Source] = {}
        self._module_named: dict[str, Module] = {}
        self._manifest_of: dict[tuple[str, str], Manifest] = {}
        self._instances_of: dict[str, list[Instance]] = {}
        self._fresh: set[str] = set()
        self._touched: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        self._planned: list[Instance] = []

    # What is there

    @property
    def due(self) -> list[Instance]:
        """The instances whose manifests are to be fetched now, because of what was told here."""
        return [row for row in self._planned if row.fetch_at == self.now]

    def instance_of(self, source: str, key: InstanceKey) -> Instance | None:
        """The instance that a source knows by this key."""
        self._load([key.module])
        return next((row for row in self._instances_of[key.module] if _is(row, source, key)), None)

    def _load(self, names: Iterable[str]) -> None:
        """Loads the modules of these names, and all their instances, that were not loaded yet."""
        unknown = [name for name in names if name not in self._instances_of]
        self._module_named |= {row.name: row for row in self._modules.load("name", unknown)}
        self._instances_of |= {name: [] for name in unknown}
        for row in self._instances.load("module", unknown):
            self._instances_of[row.module].append(row)

    def _source(self, name: str) -> Source:
        if name not in self._source_named:
            self._source_named |= {row.name: row for row in self._sources.load("name", [name])}
        if name not in self._source_named:
            self._source_named[name] = self._sources.add(
                name=name,
                registry_name=name.partition("/")[0],
                connected=False,
                reason=None,
                since=self.now,
                last_contact=None,
                instances=0,
                doubt=None,
                accept_requested=False,
            )
        return self._source_named[name]

    def _manifest(self, module: str, digest: str) -> Manifest | None:
        if (module, digest) not in self._manifest_of:
            found = self._manifests.load("digest", [digest])
            self._manifest_of |= {(row.module, row.digest): row for row in found}
        return self._manifest_of.get((module, digest))

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
            InstanceKey(row.module, row.node, row.id): row
            for name in names
            for row in self._instances_of[name]
            if row.source == source.name
        }
        present = {instance.key: instance for instance in change.present}
        gone = set(rows).difference(present) if change.complete else set(change.gone).intersection(rows)
        self._open_modules(sorted({key.module for key in present}), source)
        self._add([instance for key, instance in present.items() if key not in rows], source)
        for key, instance in present.items():
            if key in rows:
                self._alter(rows[key], _definition(instance), instance.health)
        self._remove([rows[key] for key in sorted(gone)], source)

    def _names_in(self, change: Change) -> set[str]:
        """The modules that a change may be about: those that it names, or all of its source."""
        names = {instance.module for instance in change.present} | {key.module for key in change.gone}
        if change.complete:
            known = select(Instance.module).where(Instance.source == change.source).distinct()
            names.update(self._connection.execute(known).scalars())
        return names

    def health(self, row: Instance, health: Health) -> None:
        """Notes how an instance is."""
        self._alter(row, {}, health)

    def lost(self, lost: Lost) -> None:
        """Notes that a source cannot be reached; what it said last still stands."""
        source = self._source(lost.source)
        if source.connected or source.reason != lost.reason:
            was = {"connected": source.connected, "reason": source.reason}
            if source.connected:
                source.since = self.now
            source.connected, source.reason = False, lost.reason
            self._registry_event("registry.lost", source, was)

    def doubted(self, name: str, reason: str) -> None:
        """Notes that what a source tells is not all believed; what was believed before still stands."""
        source = self._source(name)
        if source.doubt != reason:
            was = {"doubt": source.doubt}
            if source.doubt is None:
                source.since = self.now
            logger.warning("doubted source=%s: %s", name, reason)
            source.doubt = reason
            self._registry_event("registry.doubted", source, was)

    def trusted(self, name: str) -> None:
        """Notes that a source is believed again, if it was doubted."""
        source = self._source(name)
        source.accept_requested = False
        if source.doubt is not None:
            was = {"doubt": source.doubt}
            source.doubt, source.since = None, self.now
            logger.warning("believed again source=%s", name)
            self._registry_event("registry.accepted", source, was)

    def _heard_from(self, source: Source) -> None:
        if not source.connected:
            was = {"connected": False, "reason": source.reason}
            source.connected, source.reason, source.since = True, None, self.now
            self._registry_event("registry.connected", source, was)
        if source.last_contact is None or self.now - source.last_contact >= _CONTACT_RESOLUTION:
            source.last_contact = self.now

    def _open_modules(self, names: Iterable[str], source: Source) -> None:
        """Makes the modules that are new."""
        for name in names:
            if name not in self._module_named:
                self._module_named[name] = self._modules.add(**_new_module(name, self.now))
                self._fresh.add(name)
                self._event("module.registered", module=name, registry=source.registry_name)

    def _add(self, instances: Sequence[ServiceInstance], source: Source) -> None:
        announced = self._announced(instances)
        for instance in instances:
            row = self._instances.add(**self._new_instance(instance, source))
            self._instances_of[row.module].append(row)
            self._touched[row.module] = row.registry_name
            self._plan_fetch(row, announced)
            self._instance_event("instance.added", row, is_=described(row))
        source.instances += len(instances)

    def _new_instance(self, instance: ServiceInstance, source: Source) -> dict[str, Any]:
        return {
            "source": source.name,
            "registry_name": source.registry_name,
            "module": instance.module,
            "node": instance.node,
            "id": instance.id,
            **_definition(instance),
            "health": instance.health,
            "version": None,
            "digest": None,
            "etag": None,
            "error_type": None,
            "error_detail": None,
            "error_at": None,
            "manifest_pushed": False,
            "fetch_failures": 0,
            "generation": 0,
            "first_seen": self.now,
            "last_seen": self.now,
            "last_changed": self.now,
        }

    def _alter(self, row: Instance, definition: Mapping[str, Any], health: Health) -> None:
        before = described(row)
        definition_changed = any(getattr(row, name) != value for name, value in definition.items())
        health_changed = row.health != health
        if not (definition_changed or health_changed):
            return
        became_healthy = row.health not in _HEALTHY and health in _HEALTHY
        for name, value in definition.items():
            setattr(row, name, value)
        row.health = health
        row.last_seen = row.last_changed = self.now
        self._touched[row.module] = row.registry_name
        if definition_changed or became_healthy or health not in _HEALTHY:
            row.generation += 1
            self._plan_fetch(row, self._announced([row]))
        self._instance_difference("instance.changed", before, row, leave_out={"health"})
        if health_changed:
            self._instance_event(
                "instance.health_changed", row, was={"health": before["health"]}, is_={"health": row.health}
            )

    def _remove(self, rows: Sequence[Instance], source: Source) -> None:
        for row in rows:
            self._touched[row.module] = row.registry_name
            self._instance_event("instance.removed", row, was=described(row))
        gone = {id(row) for row in rows}
        for name in {row.module for row in rows}:
            self._instances_of[name] = [row for row in self._instances_of[name] if id(row) not in gone]
        self._instances.remove(rows, "key")
        source.instances -= len(rows)

    # What manifests say

    def known_manifest(self, row: Instance, parsed: ParsedManifest, etag: str | None) -> None:
        """Notes the manifest that an instance serves, and that it is a good one."""
        before = described(row)
        self._store_manifest(row.module, parsed)
        row.digest, row.version, row.etag = parsed.digest, parsed.version, etag
        self._fetched(row, before)

    def pushed_manifest(self, row: Instance, parsed: ParsedManifest) -> None:
        """Notes the manifest that came with an instance's registration: none is fetched then."""
        if not row.manifest_pushed:
            # A fetch that is under way tells of what was before.
            row.manifest_pushed = True
            row.generation += 1
        self.known_manifest(row, parsed, None)
        row.fetch_at = None

    def fetch_manifest(self, row: Instance) -> None:
        """Notes that an instance which pushed its manifest until now has it fetched from now on."""
        row.manifest_pushed = False
        row.generation += 1
        self._plan_fetch(row, self._announced([row]))

    def unchanged_manifest(self, row: Instance) -> None:
        """Notes that an instance still serves the manifest that is known of it."""
        self._fetched(row, described(row))

    def rejected_manifest(self, row: Instance, error_type: str, detail: str) -> None:
        """Notes why an instance's manifest cannot be taken; the good one known before stays."""
        was = _error(row)
        pause = min(self.settings.fetch_retry_max, _FIRST_RETRY * 2.0 ** min(row.fetch_failures, 30))
        row.error_type, row.error_detail, row.error_at = error_type, detail, self.now
        row.fetch_failures += 1
        row.fetch_at = self.now + timedelta(seconds=pause * random.uniform(0.75, 1.25))
        row.last_changed = self.now
        self._instance_event(
            "module.manifest_rejected",
            row,
            was={"manifest_error": was},
            is_={"manifest_error": _error(row)},
        )

    def _fetched(self, row: Instance, before: Mapping[str, Any]) -> None:
        row.error_type = row.error_detail = row.error_at = None
        row.fetch_failures = 0
        row.fetch_at = self._revalidation()
        self._touched[row.module] = row.registry_name
        if self._instance_difference("instance.changed", before, row):
            row.last_changed = self.now

    def _store_manifest(self, module: str, parsed: ParsedManifest) -> None:
        if self._manifest(module, parsed.digest) is None:
            self._manifest_of[module, parsed.digest] = self._manifests.add(
                module=module,
                digest=parsed.digest,
                version=parsed.version,
                content=parsed.canonical.decode(),
                first_seen=self.now,
            )

    def _announced(self, instances: Iterable[ServiceInstance | Instance]) -> dict[tuple[str, str], str]:
        """The versions of manifests that these instances announce by digest and that are known."""
        wanted = {
            (instance.module, digest)
            for instance in instances
            if (digest := instance.meta.get("manifest_digest"))
        }
        return {
            (module, digest): version
            for some in chunks(sorted({digest for _, digest in wanted}))
            for module, digest, version in self._connection.execute(
                select(Manifest.module, Manifest.digest, Manifest.version).where(
                    col(Manifest.digest).in_(some)
                )
            )
            if (module, digest) in wanted
        }

    def _plan_fetch(self, row: Instance, announced: Mapping[tuple[str, str], str]) -> None:
        """When the row's manifest is asked for next: now, unless it is known or the instance not well."""
        digest = row.meta.get("manifest_digest", "")
        version = announced.get((row.module, digest))
        row.fetch_failures = 0
        if row.health not in _HEALTHY or row.manifest_pushed:
            row.fetch_at = None
        elif version is None:
            row.fetch_at = self.now
            self._planned.append(row)
        else:
            row.digest, row.version, row.etag = digest, version, None
            row.error_type = row.error_detail = row.error_at = None
            row.fetch_at = self._revalidation()

    def _revalidation(self) -> datetime:
        # Spread, so that what was learnt together is not asked for together for ever.
        return self.now + timedelta(seconds=self.settings.revalidate * random.uniform(0.8, 1.2))

    # What it adds up to

    def close(self) -> int:
        """Settles what it adds up to, writes all rows and the events that tell of them; returns the index."""
        for name, registry in sorted(self._touched.items()):
            self._settle_module(self._module_named[name], self._instances_of[name], registry)
        # In the order in which rows refer to each other.
        for rows in (self._sources, self._modules, self._manifests, self._instances):
            rows.write()
        if self._events:
            self._connection.execute(insert(_EVENTS), self._events)
        return index_of(self._connection)

    def _settle_module(self, module: Module, rows: Sequence[Instance], registry: str) -> None:
        status, digest = module.status, module.digest
        is_new = module.name in self._fresh
        sums = _sums(rows)
        if any(getattr(module, name) != value for name, value in sums.items()):
            module.last_changed = self.now
        for name, value in sums.items():
            setattr(module, name, value)
        current = _current(rows, module.digest)
        if current is not None and (current.digest, current.version) != (module.digest, module.version):
            self._make_current(module, current, registry)
        if module.status != status or is_new:
            self._event(
                f"module.{module.status}",
                module=module.name,
                registry=registry,
                was=None if is_new else {"status": status},
                is_={"status": module.status},
            )
        if module.digest != digest:
            module.last_changed = self.now
        self._settle_versions(module, rows, registry)

    def _settle_versions(self, module: Module, rows: Sequence[Instance], registry: str) -> None:
        """Notes whether the healthy instances serve one version, and one manifest of each."""
        digests: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.health in _HEALTHY and row.version and row.digest:
                digests[row.version].add(row.digest)
        versions = sorted(digests, key=version_key)
        drifting = [version for version in versions if len(digests[version]) > 1]
        if versions != module.versions and max(len(versions), len(module.versions)) > 1:
            self._version_event("module.version_skew", "versions", module, versions, registry)
        if drifting != module.drifting:
            self._version_event("module.drift", "drifting", module, drifting, registry)
        if (versions, drifting) != (module.versions, module.drifting):
            module.versions, module.drifting, module.last_changed = versions, drifting, self.now

    def _version_event(
        self, type_: str, column: str, module: Module, versions: Sequence[str], registry: str
    ) -> None:
        was = {column: getattr(module, column)}
        self._event(type_, module=module.name, registry=registry, was=was, is_={column: versions})

    def _make_current(self, module: Module, row: Instance, registry: str) -> None:
        was = {"digest": module.digest, "version": module.version} if module.digest else None
        module.digest, module.version = row.digest, row.version
        manifest = self._manifest(module.name, row.digest or "")
        module.title = _title(manifest) if manifest else None
        self._event(
            "module.manifest_changed",
            module=module.name,
            instance=row.id,
            registry=registry,
            was=was,
            is_={"digest": row.digest, "version": row.version},
        )

    # The log

    def _event(
        self,
        type_: str,
        *,
        module: str | None = None,
        instance: str | None = None,
        registry: str | None = None,
        was: Mapping[str, Any] | None = None,
        is_: Mapping[str, Any] | None = None,
        **where: str,
    ) -> None:
        self._events.append(
            {
                "at": self.now,
                "type": type_,
                "module": module,
                "instance": instance,
                "registry": registry,
                "data": {**where, "was": was, "is": is_},
            }
        )

    def _instance_event(
        self,
        type_: str,
        row: Instance,
        was: Mapping[str, Any] | None = None,
        is_: Mapping[str, Any] | None = None,
    ) -> None:
        self._event(
            type_,
            module=row.module,
            instance=row.id,
            registry=row.registry_name,
            was=was,
            is_=is_,
            source=row.source,
            node=row.node,
        )

    def _instance_difference(
        self,
        type_: str,
        before: Mapping[str, Any],
        row: Instance,
        leave_out: Collection[str] = (),
    ) -> bool:
        """Logs what of an instance is other than before; False if nothing is."""
        after = described(row)
        differing = [name for name in after if after[name] != before[name] and name not in leave_out]
        if differing:
            self._instance_event(
                type_,
                row,
                was={name: before[name] for name in differing},
                is_={name: after[name] for name in differing},
            )
        return bool(differing)

    def _registry_event(self, type_: str, source: Source, was: Mapping[str, Any]) -> None:
        self._event(
            type_,
            registry=source.registry_name,
            was=was,
            is_={"connected": source.connected, "reason": source.reason, "doubt": source.doubt},
            source=source.name,
        )


def index_of(connection: Connection) -> int:
    """The index of the newest event that the connection sees, 0 if there is none."""
    newest: int | None = connection.execute(select(func.max(_EVENTS.c.index))).scalar()
    return newest or 0


def described(row: Instance) -> dict[str, Any]:
    """All of an instance that a reader can see but for the times, as plain JSON values."""
    return {
        "address": row.address,
        "port": row.port,
        "scheme": row.scheme,
        "datacenter": row.datacenter,
        "tags": row.tags,
        "meta": row.meta,
        "health": str(row.health),
        "version": row.version,
        "digest": row.digest,
        "manifest_error": _error(row),
    }


def _error(row: Instance) -> dict[str, Any] | None:
    if row.error_type is None:
        return None
    return {
        "type": row.error_type,
        "detail": row.error_detail,
        "at": row.error_at and _rfc3339(row.error_at),
        "retry_at": row.fetch_at and _rfc3339(row.fetch_at),
    }


def _new_module(name: str, now: datetime) -> dict[str, Any]:
    return {
        "name": name,
        "status": "unavailable",
        **dict.fromkeys(("version", "digest", "title")),
        **dict.fromkeys(("total", *Health), 0),
        **{listed: [] for listed in ("tags", "datacenters", "registries", "versions", "drifting")},
        "first_seen": now,
        "last_changed": now,
    }


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is(row: Instance, source: str, key: InstanceKey) -> bool:
    return (row.source, row.module, row.node, row.id) == (source, *key)


def _definition(instance: ServiceInstance) -> dict[str, Any]:
    return {
        "address": instance.address,
        "port": instance.port,
        "scheme": instance.scheme,
        "datacenter": instance.datacenter,
        "tags": list(instance.tags),
        "meta": dict(instance.meta),
    }


def _sums(rows: Sequence[Instance]) -> dict[str, Any]:
    """What a module's instances add up to, as columns of the module."""
    count = {health: sum(row.health == health for row in rows) for health in Health}
    if rows and count[Health.PASSING] == len(rows):
        status = "available"
    elif count[Health.PASSING] or count[Health.WARNING]:
        status = "degraded"
    else:
        status = "unavailable"
    return {
        "status": status,
        "total": len(rows),
        **{str(health): number for health, number in count.items()},
        "tags": sorted({tag for row in rows for tag in row.tags}),
        "datacenters": sorted({row.datacenter for row in rows if row.datacenter}),
        "registries": sorted({row.registry_name for row in rows}),
    }


def _current(rows: Sequence[Instance], digest: str | None) -> Instance | None:
    """The instance whose manifest is the module's: of the passing ones, that of the highest version.

    Where several have it with different manifests, the one that is current already stays.
    """
    passing = [row for row in rows if row.health == Health.PASSING and row.digest and row.version]
    return max(
        passing,
        key=lambda row: (version_key(row.version or ""), row.digest == digest, row.last_changed),
        default=None,
    )


def _title(manifest: Manifest) -> str | None:
    title = json.loads(manifest.content).get("title")
    return title if isinstance(title, str) else None
