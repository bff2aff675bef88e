"""The index at a glance: writers in other connections and processes in, never an older index out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.newest_index import COMMIT_NOTICE
from tests.consul_server import eventually
from tests.postgres_server import PostgresServer


def change(number: int) -> Change:
    return Change(source="consul", present=(ServiceInstance(module="m", id=f"m-{number}", address="::1"),))


def test_an_empty_cache_has_the_index_0(database: Database) -> None:
    assert database.index() == 0


def test_every_commit_is_seen_at_once(database: Database, database_url: str, settings: CacheSettings) -> None:
    """Also where looks come so closely that most of them need none of the database."""
    elsewhere = Database(database_url)
    store = Store(elsewhere, settings)
    for number in range(30):
        index = store.apply([change(number)]).index
        assert [database.index() for _ in range(5)] == [index] * 5
        assert database.current_or_none() in (index, None)
    elsewhere.close()


def test_who_must_not_wait_is_told_mostly(
    database: Database, database_url: str, settings: CacheSettings
) -> None:
    index = Store(database, settings).apply([change(1)]).index

    def told() -> bool:
        # On PostgreSQL only what was just looked at can be told again.
        database.index()
        return database.current_or_none() == index

    eventually(told)
    if database.path is not None:
        database.path.rename(f"{database_url.removeprefix('sqlite:///')}.away")
        away = Database(database_url)
        assert away.current_or_none() is None
        away.close()


def test_what_any_thread_has_seen_no_later_look_misses(
    database: Database, database_url: str, settings: CacheSettings
) -> None:
    """Readers on two connections, as in two processes, while changes and heartbeats are written."""
    other = Database(database_url)
    writer = Database(database_url)
    known, going_back, end = [0], [], threading.Event()

    def look(eyes: Database) -> None:
        while not end.is_set():
            before = known[0]
            seen = eyes.current_or_none()
            if seen is None:
                seen = eyes.index()
            if seen < before:
                going_back.append((before, seen))
            # As good as atomic: a number that is too small makes the test weaker, not wrong.
            known[0] = max(known[0], seen, before)

    threads = [threading.Thread(target=look, args=(eyes,)) for eyes in (database, other, database, other)]
    for thread in threads:
        thread.start()
    store, push = Store(writer, settings), PushTables(writer, settings)
    pushed = ServiceInstance(module="p", id="p-1", address="::1")
    for number in range(40):
        index = store.apply([change(number)]).index
        known[0] = max(known[0], index)
        push.register(PushRegistration(instance=pushed))
        push.heartbeat("p", "p-1", pushed.health)
    end.set()
    for thread in threads:
        thread.join(20)
    assert going_back == []
    assert database.index() == other.index() == store.apply([]).index
    for each in (other, writer):
        each.close()


def test_a_writer_that_is_at_work_keeps_nobody_waiting(
    database: Database, database_url: str, settings: CacheSettings
) -> None:
    index = Store(database, settings).apply([change(1)]).index
    other = Database(database_url)
    with other.write():
        assert database.index() == index
        assert database.index() == index
    other.close()


def test_writers_give_notice_only_where_readers_need_it(database: Database) -> None:
    began = time.monotonic()
    with database.write():
        pass
    took = time.monotonic() - began
    assert database.is_sqlite or took >= COMMIT_NOTICE
    with database.write(quiet=True):
        pass


def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(StoreUnavailable):
        database.index()
    assert not (tmp_path / "none.db").exists()
    database.close()


def test_who_waits_for_a_look_that_fails_is_told_that_and_asks_no_more() -> None:
    """A server that hangs would otherwise take as many waits one after the other as there are threads."""
    asking, faults = threading.Barrier(9), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        database = Database(f"postgresql+psycopg://x@127.0.0.1:{server.getsockname()[1]}/x")

        def look() -> None:
            asking.wait()
            try:
                database.index()
            except StoreUnavailable as exc:
                faults.append(exc)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        asking.wait()
        hanging, _ = server.accept()
        # A thread that is so late that it asks for itself makes the test weaker, not wrong.
        time.sleep(0.5)
        server.settimeout(0.1)
        connections = 1
        while any(thread.is_alive() for thread in threads):
            hanging.close()
            with contextlib.suppress(TimeoutError):
                hanging, _ = server.accept()
                connections += 1
        hanging.close()
    database.close()
    assert len(faults) == 8
    assert connections < 5


def test_a_database_is_closed_though_its_server_hangs() -> None:
    order = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        database = Database(f"postgresql+psycopg://x@127.0.0.1:{server.getsockname()[1]}/x")

        def look() -> None:
            with contextlib.suppress(StoreUnavailable):
                database.index()
            order.append("looked")

        thread = threading.Thread(target=look)
        thread.start()
        hanging, _ = server.accept()
        database.close()
        order.append("closed")
        hanging.close()
        server.close()
        thread.join()
    assert order == ["closed", "looked"]


def test_a_server_that_was_away_is_asked_again_when_it_is_back(settings: CacheSettings) -> None:
    with PostgresServer() as server:
        database = Database(server.create_database())
        database.migrate()
        index = Store(database, settings).apply([change(1)]).index
        assert database.index() == index
        server.restart()
        time.sleep(COMMIT_NOTICE)
        with pytest.raises(StoreUnavailable):
            database.index()
        assert database.index() == index
        server.stop()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                database.index()
        database.close()
