"""What readers ask of the log: which modules changed since an index, at a cost that does not grow with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sqlmodel import col, delete

from discovery.base import Change, Health, Lost, ServiceInstance
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow
from manifest_cache.storage.reader import Reader

MODULES = [ServiceInstance(module=f"m-{n}", id=f"m-{n}-1", address="10.0.0.1", port=1) for n in range(3)]


def flip(store: Store, instance: ServiceInstance, health: Health) -> int:
    return store.apply([Change(source="consul", present=(replace(instance, health=health),))]).index


def test_the_last_changes_are_told_by_module(store: Store, reader: Reader) -> None:
    before = store.apply([Change(source="consul", present=tuple(MODULES), complete=True)]).index
    flip(store, MODULES[0], Health.WARNING)
    first = flip(store, MODULES[0], Health.CRITICAL)
    second = flip(store, MODULES[2], Health.CRITICAL)
    lost = store.apply([Lost(source="consul", reason="away", retry_in=1)]).index
    with reader.snapshot() as snapshot:
        assert snapshot.last_changes(before) == {"m-0": first, "m-2": second, None: lost}
        assert snapshot.last_changes(first) == {"m-2": second, None: lost}
        assert snapshot.last_changes(lost) == {}


def test_the_last_changes_are_unknown_where_the_log_begins_later(
    store: Store, reader: Reader, database: Database
) -> None:
    before = store.apply([Change(source="consul", present=tuple(MODULES), complete=True)]).index
    first = flip(store, MODULES[0], Health.WARNING)
    last = flip(store, MODULES[1], Health.CRITICAL)
    with database.write() as session:
        session.execute(delete(EventRow).where(col(EventRow.index) <= first))
    with reader.snapshot() as snapshot:
        assert snapshot.retained_after >= first
        assert snapshot.last_changes(before) is None
        assert snapshot.last_changes(snapshot.retained_after) == {"m-1": last}
        assert snapshot.last_changes(last) == {}


def test_a_long_log_makes_no_work_for_who_knows_most_of_it(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/lictor.db", connections=1)
    database.migrate()
    store = Store(database, CacheSettings())
    store.apply([Change(source="consul", present=tuple(MODULES), complete=True)])
    with database.write() as session:
        session.connection().exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "INSERT INTO events (at, type, module, data) "
            "SELECT '2026-01-01 00:00:00', 'instance.changed', 'm-' || i % 1000, '{}' FROM n"
        )
    known = database.index()
    changed = flip(store, MODULES[1], Health.CRITICAL)

    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with database.raw_read() as reading:
        # Called once in so many steps of SQLite's machine, on the connection that is used next.
        reading.cursor.connection.set_progress_handler(count, 1000)
    with Reader(database).snapshot() as snapshot:
        assert snapshot.last_changes(known) == {"m-1": changed}
    database.close()
    assert steps <= 1
