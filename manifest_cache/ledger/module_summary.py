"""Sums a module's instances up into its status, counts and version, and logs what changed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from discovery.base import Health
from manifest_cache.ledger.event_log import EventLog
from manifest_cache.manifest import version_key
from manifest_cache.storage.models import InstanceRow, ManifestRow, ModuleRow

HEALTHY = (Health.PASSING, Health.WARNING)
"""The health of instances that have something to say of their module."""


class ModuleSummary:
    """What becomes of modules in one transaction; `manifest_of` looks up a stored manifest."""

    def __init__(
        self, log: EventLog, now: datetime, manifest_of: Callable[[str, str], ManifestRow | None]
    ) -> None:
        self._log = log
        self._now = now
        self._manifest_of = manifest_of

    def settle(self, module: ModuleRow, rows: Sequence[InstanceRow], registry: str, *, is_new: bool) -> None:
        """Brings a module in line with its instances; `registry` is the one that told last of it."""
        status, digest = module.status, module.digest
        sums = _aggregate(rows)
        if any(getattr(module, name) != value for name, value in sums.items()):
            module.last_changed = self._now
        for name, value in sums.items():
            setattr(module, name, value)
        current = _current(rows, module.digest)
        if current is not None and (current.digest, current.version) != (module.digest, module.version):
            self._make_current(module, current, registry)
        if module.status != status or is_new:
            self._log.add(
                f"module.{module.status}",
                module=module.name,
                registry=registry,
                was=None if is_new else {"status": status},
                is_={"status": module.status},
            )
        if module.digest != digest:
            module.last_changed = self._now
        self._update_versions(module, rows, registry)

    def _make_current(self, module: ModuleRow, row: InstanceRow, registry: str) -> None:
        was = {"digest": module.digest, "version": module.version} if module.digest else None
        module.digest, module.version = row.digest, row.version
        manifest = self._manifest_of(module.name, row.digest or "")
        module.title = _title(manifest) if manifest else None
        self._log.add(
            "module.manifest_changed",
            module=module.name,
            instance=row.id,
            registry=registry,
            was=was,
            is_={"digest": row.digest, "version": row.version},
        )

    def _update_versions(self, module: ModuleRow, rows: Sequence[InstanceRow], registry: str) -> None:
        """Notes whether the healthy instances serve one version, and one manifest of each."""
        digests: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.health in HEALTHY and row.version and row.digest:
                digests[row.version].add(row.digest)
        versions = sorted(digests, key=version_key)
        drifting = [version for version in versions if len(digests[version]) > 1]
        if versions != module.versions and max(len(versions), len(module.versions)) > 1:
            self._version_event("module.version_skew", "versions", module, versions, registry)
        if drifting != module.drifting:
            self._version_event("module.drift", "drifting", module, drifting, registry)
        if (versions, drifting) != (module.versions, module.drifting):
            module.versions, module.drifting, module.last_changed = versions, drifting, self._now

    def _version_event(
        self, type_: str, column: str, module: ModuleRow, versions: Sequence[str], registry: str
    ) -> None:
        was = {column: getattr(module, column)}
        self._log.add(type_, module=module.name, registry=registry, was=was, is_={column: versions})


def new_module(name: str, now: datetime) -> dict[str, Any]:
    """The columns of a module of which no instance is known yet."""
    return {
        "name": name,
        "status": "unavailable",
        **dict.fromkeys(("version", "digest", "title")),
        **dict.fromkeys(("total", *Health), 0),
        **{listed: [] for listed in ("tags", "datacenters", "registries", "versions", "drifting")},
        "first_seen": now,
        "last_changed": now,
    }


def _aggregate(rows: Sequence[InstanceRow]) -> dict[str, Any]:
    """What a module's instances add up to, as columns of the module."""
    count = Counter(row.health for row in rows)
    if rows and count[Health.PASSING] == len(rows):
        status = "available"
    elif count[Health.PASSING] or count[Health.WARNING]:
        status = "degraded"
    else:
        status = "unavailable"
    return {
        "status": status,
        "total": len(rows),
        **{health.value: count[health] for health in Health},
        "tags": sorted({tag for row in rows for tag in row.tags}),
        "datacenters": sorted({row.datacenter for row in rows if row.datacenter}),
        "registries": sorted({row.registry_name for row in rows}),
    }


def _current(rows: Sequence[InstanceRow], digest: str | None) -> InstanceRow | None:
    """The instance whose manifest is the module's: of the passing ones, that of the highest version.

    Where several have it with different manifests, the one that is current already stays.
    """
    passing = [row for row in rows if row.health == Health.PASSING and row.digest and row.version]
    return max(
        passing,
        key=lambda row: (version_key(row.version or ""), row.digest == digest, row.last_changed),
        default=None,
    )


def _title(manifest: ManifestRow) -> str | None:
    title = json.loads(manifest.content).get("title")
    return title if isinstance(title, str) else None
