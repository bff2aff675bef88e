"""A full disk under PostgreSQL: writes are refused, reads go on, and all is well when there is room again."""

from __future__ import annotations

from contextlib import closing

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.reader import Reader
from tests.postgres_server import PostgresServer
from tests.small_disk import SmallDisk


def many(number: int) -> Change:
    """A module with enough instances to need room."""
    present = (
        ServiceInstance(module=f"m{number}", id=str(n), address="::1", meta={"said": "x" * 500})
        for n in range(100)
    )
    return Change(source="consul", present=tuple(present))


def names(reader: Reader) -> list[str]:
    with reader.snapshot() as snapshot:
        return [module.name for module in snapshot.modules(limit=1000)]


def fill_up(store: Store, number: int, index: int) -> tuple[int, int, str]:
    """Stores modules until one is refused; the number of that one, the index before it, and why."""
    while True:
        try:
            index = store.apply([many(number)]).index
        except StoreUnavailable as exc:
            return number, index, exc.reason
        number += 1


def test_what_was_stored_before_a_disk_was_full_stays(
    postgres: PostgresServer, small_disk: SmallDisk
) -> None:
    with (
        postgres.database_on(small_disk.folder / "tables") as url,
        closing(Database(url)) as database,
    ):
        database.migrate()
        store, reader = Store(database, CacheSettings(database_url=url)), Reader(database)
        index = store.apply([many(0)]).index
        # Connected while there is room: PostgreSQL may have to write before it takes a new connection.
        assert reader.index() == database.index() == index
        small_disk.fill()
        number, index, reason = fill_up(store, 1, index)
        assert "No space left on device" in reason
        assert names(reader) == sorted(f"m{n}" for n in range(number))
        assert reader.index() == database.index() == index
        small_disk.free()
        assert store.apply([many(number)]).index > index
        assert f"m{number}" in names(reader)
