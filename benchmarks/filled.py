"""A database in which instances wait to be fetched from, and how long a synchronizer takes over them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from sqlalchemy import func
from sqlmodel import col, select

from benchmarks.bare import Taken
from benchmarks.stage import HOST, PATIENCE
from discovery.base import Change, ServiceInstance
from discovery.registries import configured
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow
from manifest_cache.sync import Synchronizer


def instance_of(module: str, number: int, port: int) -> ServiceInstance:
    meta = {"manifest_path": f"/{module}"}
    return ServiceInstance(module=module, id=f"{module}-{number}", address=HOST, port=port, meta=meta)


def with_manifest(database: Database) -> int:
    """How many instances have a manifest."""
    with database.read() as session:
        found = select(func.count()).select_from(InstanceRow).where(col(InstanceRow.digest).is_not(None))
        return session.exec(found).one()


def wait_for_source(database: Database) -> None:
    """Returns once a registry was followed."""
    deadline = time.monotonic() + PATIENCE
    while not database.index():
        if time.monotonic() > deadline:
            raise SystemExit(f"no registry was followed within {PATIENCE:g} s")
        time.sleep(0.02)


def wait_for_manifests(database: Database, instances: int) -> None:
    """Returns once so many instances have a manifest."""
    deadline = time.monotonic() + PATIENCE
    while with_manifest(database) < instances:
        if time.monotonic() > deadline:
            raise SystemExit(f"{instances} manifests were not stored within {PATIENCE:g} s")
        time.sleep(0.02)


class Filled:
    """A new database that knows these instances, and no manifest."""

    def __init__(self, url: str, instances: Sequence[ServiceInstance]) -> None:
        self._settings = CacheSettings(database_url=url, registries=("push",))
        self._instances = len(instances)
        database = Database(url)
        database.migrate()
        Store(database, self._settings).apply([Change(source="consul", present=tuple(instances))])
        database.close()

    async def synchronize(self) -> Taken:
        """Runs a synchronizer until every instance has its manifest."""
        database = Database(self._settings.database_url)
        began, used = time.perf_counter(), time.process_time()
        running = asyncio.create_task(Synchronizer(self._settings, configured(self._settings)).run())
        try:
            await asyncio.to_thread(wait_for_manifests, database, self._instances)
            return Taken(time.perf_counter() - began, time.process_time() - used)
        finally:
            running.cancel()
            await asyncio.wait({running})
            database.close()
