"""Databases that are empty, old, new, away, locked, read-only or full, and commits that wake others."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlmodel import select

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.store import Store
from manifest_cache.leader import database_lock
from manifest_cache.ledger.event_log import index_of
from manifest_cache.ledger.ledger import Ledger
from manifest_cache.settings import CacheSettings
from manifest_cache.storage import schema
from manifest_cache.storage.database import Database, SchemaMismatch, StoreUnavailable
from manifest_cache.storage.models import ModuleRow, SourceRow, utc_now
from manifest_cache.storage.reader import Reader
from manifest_cache.storage.unit_of_work import UnitOfWork
from tests.consul_server import eventually
from tests.postgres_server import PostgresServer

CHANGE = Change(
    source="consul", present=(ServiceInstance(module="m", id="m-1", address="127.0.0.1"),), complete=True
)

NOW = {"now": "2026-01-01 00:00:00+00:00"}


def write(database: Database) -> int:
    return Store(database, CacheSettings()).apply([CHANGE]).index


def test_an_empty_database_asks_for_a_migration(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(SchemaMismatch, match="lictor migrate"):
        database.check_schema()
    assert database.migrate() == (None, schema.HEAD)
    assert database.migrate() == (schema.HEAD, schema.HEAD)
    database.check_schema()
    database.close()


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="newer"):
        database.check_schema()
    with pytest.raises(SchemaMismatch, match="newer"):
        database.migrate()


def test_several_migrate_at_once(database_url: str) -> None:
    results: list[object] = []

    def migrate() -> None:
        database = Database(database_url)
        try:
            results.append(database.migrate()[1])
        except Exception as exc:
            results.append(exc)
        database.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [schema.HEAD] * 4


def test_writers_take_turns_and_indexes_have_no_holes(database: Database, settings: CacheSettings) -> None:
    def add(number: int) -> None:
        store = Store(database, settings)
        for step in range(5):
            instance = ServiceInstance(module=f"m{number}", id=f"{step}", address="127.0.0.1")
            store.apply([Change(source=f"consul/{number}", present=(instance,))])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Reader(database).snapshot() as snapshot:
        indexes = [event.index for event in snapshot.events(limit=1000)]
        assert len(snapshot.modules()) == 4
    assert indexes == list(range(1, len(indexes) + 1))
    assert len(indexes) == 4 * (3 + 5)


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    source = SourceRow(name="x", registry_name="x", connected=False, since=utc_now())

    def fail() -> None:
        with database.write() as session:
            session.add(source)
            session.flush()
            raise RuntimeError("after the row")

    def fail_as_the_driver_does() -> None:
        with database.raw_write() as writing:
            rows = UnitOfWork(writing, SourceRow)
            rows.add(**source.model_dump())
            rows.write()
            raise RuntimeError("after the row")

    for failing in (fail, fail_as_the_driver_does):
        with pytest.raises(RuntimeError, match="after the row"):
            failing()
    with Reader(database).snapshot() as snapshot:
        assert list(snapshot.sources) == []
    assert write(database) > 0, "nothing was left open"


def test_a_commit_wakes_whoever_watches(database_url: str, database: Database) -> None:
    other = Database(database_url)
    with closing(database.watch()) as watch:
        index = write(other)
        assert watch.wait(20)
        assert Reader(database).index() == index
    other.close()


@pytest.mark.parametrize("what", ["removed", "replaced", "renamed"])
def test_a_watch_wakes_though_the_signals_file_became_another(tmp_path: Path, what: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    database.migrate()
    store = Store(database, CacheSettings())
    index = write(database)
    signal, other = tmp_path / "lictor.db-signal", tmp_path / "other"
    other.touch()
    if what == "removed":
        signal.unlink()
    else:
        _ = other.rename(signal) if what == "replaced" else signal.rename(other)
    for number in range(2):
        watch = database.watch()
        instance = ServiceInstance(module="m", id=f"another-{number}", address="127.0.0.1")
        assert store.apply([Change(source="consul", present=(instance,))]).index > index
        assert watch.wait(60)
        watch.close()
    database.close()


@pytest.mark.parametrize("what", ["removed", "replaced", "renamed"])
def test_a_watch_on_a_file_that_tells_no_more_is_lost(tmp_path: Path, what: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    signal, other = tmp_path / "lictor.db-signal", tmp_path / "other"
    other.touch()
    with closing(database.watch()) as watch:
        signal.chmod(0o600)
        assert watch.wait(20), "it is the same file still"
        if what == "removed":
            signal.unlink()
        else:
            _ = other.rename(signal) if what == "replaced" else signal.rename(other)
        with pytest.raises(OSError, match=r"lictor\.db-signal"):
            watch.wait(20)
    database.close()


def test_many_writers_keep_one_file_open_for_the_signal(tmp_path: Path) -> None:
    def open_ones(name: str = "lictor.db-signal") -> int:
        found = (os.path.realpath(number) for number in Path("/proc/self/fd").iterdir())
        return sum(path.startswith(f"{tmp_path}/{name}") for path in found)

    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    database.migrate()
    threads = [threading.Thread(target=write, args=[database]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert open_ones() == 1
    assert open_ones("lictor.db") > 1
    database.close()
    assert open_ones("lictor.db") == 0


def test_one_connection_serves_many_threads_in_turn(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/lictor.db", connections=1)
    database.migrate()
    inside, most, seen = 0, 0, []

    def use() -> None:
        nonlocal inside, most
        for _ in range(20):
            with database.raw_read() as reading:
                inside += 1
                most = max(most, inside)
                seen.append(index_of(reading))
                inside -= 1
            write(database)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 6 * 20
    assert most == 1
    database.close()


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    index = write(database)
    with database.write():
        assert Reader(database).index() == index


def test_a_locked_sqlite_database_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifest_cache.storage.database.BUSY_TIMEOUT", 0.1)
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    database.migrate()
    blocker = sqlite3.connect(tmp_path / "lictor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        write(database)
    assert Reader(database).index() == 0, "reads go on"
    blocker.execute("ROLLBACK")
    assert write(database) > 0
    blocker.close()
    database.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    database.migrate()
    index = write(database)
    with database.raw_read() as reading:
        pages = reading.value("PRAGMA page_count")
        # The driver's own limit: what SQLite says is what it says of a full disk.
        reading.rows(f"PRAGMA max_page_count = {pages}")
    many = [
        ServiceInstance(module=f"m{n}", id=str(n), address="::1", meta={"a": "b" * 500}) for n in range(500)
    ]
    full = Change(source="consul", present=tuple(many))
    for _ in range(2):
        # The second time on the same connection: on a full disk there may be no new one.
        with pytest.raises(StoreUnavailable, match="full"):
            Store(database, CacheSettings()).apply([full])
        assert Reader(database).index() == index
    database.close()


def test_a_missing_folder_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/nowhere/lictor.db")
    with pytest.raises(StoreUnavailable, match="unable to open"):
        database.check_schema()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "lictor.db").write_bytes(b"no database at all" * 1000)
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    with pytest.raises(StoreUnavailable, match="not a database"):
        database.check_schema()


def test_a_read_only_file_is_read_and_not_written(tmp_path: Path) -> None:
    writable = Database(f"sqlite:///{tmp_path}/lictor.db")
    writable.migrate()
    index = write(writable)
    database = Database(f"sqlite:///file:{tmp_path}/lictor.db?mode=ro&uri=true")
    assert Reader(database).index() == index
    altered = ServiceInstance(module="m", id="m-2", address="127.0.0.1")
    with pytest.raises(StoreUnavailable, match="readonly"):
        Store(database, CacheSettings()).apply([Change(source="consul", present=(altered,))])
    assert Reader(database).index() == index
    database.close()
    writable.close()


@pytest.mark.parametrize(
    "place",
    ["host={host}&port={port}", "host={host}:{port}", "host={host}:1&host={host}:{port}"],
    ids=["apart", "together", "the second of two"],
)
def test_a_server_that_the_query_of_the_url_names(postgres: PostgresServer, place: str) -> None:
    """As for the folder of a Unix socket, which has no other place in a URL."""
    direct = make_url(postgres.create_database())
    query = place.format(host=direct.host, port=direct.port)
    database = Database(f"postgresql+psycopg://{direct.username}@/{direct.database}?{query}")
    database.migrate()
    lock = database_lock.for_database(database)
    with closing(database.watch()) as watch:
        index = write(database)
        assert watch.wait(20)
    assert database.index() == index
    assert lock.acquire()
    lock.release()
    database.close()


def test_a_role_without_rights_is_told_so(postgres: PostgresServer) -> None:
    owner = Database(postgres.create_database())
    owner.migrate()
    role = f"nobody_{secrets.token_hex(4)}"
    with owner.write() as session:
        session.execute(text(f"CREATE ROLE {role} LOGIN"))
    nobody = Database(owner.url.set(username=role).render_as_string(hide_password=False))
    for ask in (nobody.check_schema, lambda: Reader(nobody).index(), lambda: write(nobody)):
        with pytest.raises(StoreUnavailable, match="permission denied"):
            ask()
    nobody.close()
    owner.close()


def test_a_server_that_goes_after_all_was_read(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres.create_database())
    database.migrate()
    with database.raw_read() as reading:
        served_by = reading.value("SELECT pg_backend_pid()")
        with database.write() as session:
            session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": served_by})
    with database.raw_read() as reading:
        assert reading.value("SELECT pg_backend_pid()") != served_by
    assert not caplog.records
    database.close()


def test_a_server_that_goes_while_one_writes_is_unavailable(postgres: PostgresServer) -> None:
    database = Database(postgres.create_database(), connections=1)
    database.migrate()
    other = Database(database.url.render_as_string(hide_password=False))

    def go() -> None:
        with database.raw_write() as writing:
            served_by = writing.value("SELECT pg_backend_pid()")
            with other.read() as session:
                session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": served_by})
            index_of(writing)

    with pytest.raises(StoreUnavailable):
        go()
    assert write(database) > 0, "the next one has a connection that is sound"
    other.close()
    database.close()


def test_writers_on_postgresql_see_what_was_committed_while_they_waited(postgres: PostgresServer) -> None:
    database = Database(postgres.create_database())
    database.migrate()
    seen: list[int] = []

    def look() -> None:
        with database.raw_write(quiet=True) as writing:
            seen.append(index_of(writing))

    waiting = threading.Thread(target=look)
    with database.raw_write() as writing:
        ledger = Ledger(writing, CacheSettings())
        ledger.change(CHANGE)
        waiting.start()
        waiting_here = (
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
            "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        )
        with database.raw_read() as reading:
            eventually(lambda: reading.value(waiting_here) == 1)
        index = ledger.close()
    waiting.join(60)
    assert seen == [index]
    database.close()


def test_postgresql_that_is_away_comes_back() -> None:
    with PostgresServer() as server:
        database = Database(server.create_database())
        database.migrate()
        index = write(database)
        server.stop()
        with pytest.raises(StoreUnavailable):
            Reader(database).index()
        server.start()
        assert Reader(database).index() == index
        database.close()


def test_a_writer_that_is_paused_in_its_transaction_does_not_keep_others_out(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = Database(postgres.create_database())
    paused.migrate()
    monkeypatch.setattr("manifest_cache.storage.database.IDLE_TIMEOUT", 0.1)
    other = Database(paused.url.render_as_string(hide_password=False))

    def pause() -> None:
        with paused.write() as session:
            write(other)
            session.exec(select(ModuleRow)).all()

    with pytest.raises(StoreUnavailable):
        pause()
    paused.close()
    other.close()
