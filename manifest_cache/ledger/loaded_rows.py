"""The rows that one transaction works on, each loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from manifest_cache.storage.models import InstanceRow, ManifestRow, ModuleRow, SourceRow, TombstoneRow
from manifest_cache.storage.raw_rows import WriteTransaction
from manifest_cache.storage.unit_of_work import UnitOfWork


class LoadedRows:
    """The tables of a transaction that began at `now`; a ledger adds what changes in them."""

    def __init__(self, writing: WriteTransaction, now: datetime) -> None:
        self.now = now
        self._writing = writing
        self._sources = UnitOfWork(writing, SourceRow)
        self._modules = UnitOfWork(writing, ModuleRow)
        self._manifests = UnitOfWork(writing, ManifestRow)
        self._instances = UnitOfWork(writing, InstanceRow)
        self._tombstones = UnitOfWork(writing, TombstoneRow)
        self._source_named: dict[str, SourceRow] = {}
        self._module_named: dict[str, ModuleRow] = {}
        self._manifest_of: dict[tuple[str, str], ManifestRow] = {}
        self._digests: set[str] = set()
        self._instances_of: dict[str, list[InstanceRow]] = {}

    def _load(self, names: Iterable[str]) -> None:
        """Loads the modules of these names, and all their instances, that were not loaded yet."""
        unknown = [name for name in names if name not in self._instances_of]
        self._module_named |= {row.name: row for row in self._modules.load("name", unknown)}
        self._instances_of |= {name: [] for name in unknown}
        for row in self._instances.load("module", unknown):
            self._instances_of[row.module].append(row)

    def _source(self, name: str) -> SourceRow:
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

    def _manifest(self, module: str, digest: str) -> ManifestRow | None:
        self._load_manifests([digest])
        return self._manifest_of.get((module, digest))

    def _load_manifests(self, digests: Collection[str]) -> None:
        unknown = set(digests) - self._digests
        self._digests |= unknown
        found = self._manifests.load("digest", unknown)
        self._manifest_of |= {(row.module, row.digest): row for row in found}
