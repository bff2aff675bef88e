"""Older databases in, the current schema out, with everything that was in them."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlmodel import SQLModel, select

from discovery.base import Health
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.settings import CacheSettings
from manifest_cache.storage import schema
from manifest_cache.storage.database import Database, SchemaMismatch
from manifest_cache.storage.models import PushLeaseRow
from manifest_cache.storage.reader import Reader
from manifest_cache.webhooks.positions import Positions
from tests.manifest_cache.test_push import INSTANCE

NOW = {"now": "2026-01-01 00:00:00+00:00"}


def difference(database: Database) -> object:
    """In what its tables differ from the models."""
    with database.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": False})
        return compare_metadata(context, SQLModel.metadata)


def test_the_migrations_make_the_models_tables(database: Database) -> None:
    assert difference(database) == []


def test_every_migration_is_a_revision_that_the_program_knows() -> None:
    scripts = ScriptDirectory(str(schema.MIGRATIONS))
    known = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(known)) == schema.REVISIONS


def test_an_older_schema_asks_for_a_migration_and_loses_nothing(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as session:
        schema.upgrade(session.connection(), "0001")
        session.execute(
            text("INSERT INTO sources VALUES ('consul', 'consul', true, NULL, :now, NULL, 7)"), NOW
        )
    with pytest.raises(SchemaMismatch, match=r"older schema 0001.*lictor migrate"):
        database.check_schema()
    assert database.migrate() == ("0001", schema.HEAD)
    with Reader(database).snapshot() as snapshot:
        assert [(source.name, source.instances) for source in snapshot.sources] == [("consul", 7)]
    database.close()


def test_pushed_instances_keep_their_leases(database_url: str, settings: CacheSettings) -> None:
    database = Database(database_url)
    with database.write() as session:
        schema.upgrade(session.connection(), "0003")
        _push_an_instance(session.connection())
    assert database.migrate() == ("0003", schema.HEAD)
    with database.read() as session:
        assert [lease.heartbeat_interval for lease in session.exec(select(PushLeaseRow))] == [5.0]
    beat = PushTables(database, settings).heartbeat("m", "m-1", Health.PASSING)
    assert beat.heartbeat_interval == 5.0
    database.close()


@pytest.mark.parametrize("was_made_anew", [False, True])
def test_no_instance_gets_the_key_of_another(
    database_url: str, settings: CacheSettings, was_made_anew: bool
) -> None:
    """A column that was added once had SQLite make the table again, without its memory of keys."""
    database = Database(database_url)
    with database.write() as session:
        schema.upgrade(session.connection(), "0006")
        if was_made_anew and database.is_sqlite:
            operations = Operations(MigrationContext.configure(session.connection()))
            with operations.batch_alter_table("instances", recreate="always"):
                pass
        _push_an_instance(session.connection())
    database.migrate()
    assert difference(database) == []
    push = PushTables(database, settings)
    push.heartbeat("m", "m-1", Health.PASSING)
    push.deregister("m", "m-1")
    assert push.register(PushRegistration(instance=INSTANCE)).instance.key == 8
    database.close()


@pytest.mark.parametrize("revision", ["0003", schema.HEAD])
def test_numbers_do_not_end_at_two_billion(database_url: str, settings: CacheSettings, revision: str) -> None:
    database, last = Database(database_url), 2**31 - 1
    with database.write() as session:
        schema.upgrade(session.connection(), revision)
        _push_an_instance(session.connection())
    database.migrate()
    push = PushTables(database, settings)
    push.register(PushRegistration(instance=INSTANCE))
    push.deregister(INSTANCE.module, INSTANCE.id)
    with database.write() as session:
        for table, key in (("events", "index"), ("instances", "key"), ("tombstones", "key")):
            session.connection().execute(
                text(_SET_LAST[database.is_sqlite].format(table=table, key=key, last=last))
            )
    registered = push.register(PushRegistration(instance=INSTANCE))
    assert registered.index > last
    assert registered.instance.key == last + 1
    assert push.heartbeat(INSTANCE.module, INSTANCE.id, Health.PASSING).index == registered.index
    assert push.deregister(INSTANCE.module, INSTANCE.id) > registered.index
    assert set(Positions(database).begin(["audit"])) == {"audit"}
    with Reader(database).snapshot() as snapshot:
        assert [row.key for row in snapshot.tombstones(INSTANCE.module)] == [last + 1]
    database.close()


_SET_LAST = {
    True: "UPDATE sqlite_sequence SET seq = {last} WHERE name = '{table}'",
    False: "SELECT setval(pg_get_serial_sequence('{table}', '{key}'), {last})",
}


def _push_an_instance(connection: Connection) -> None:
    """As the first releases stored it, under the key 7."""
    for statement in (
        "INSERT INTO modules (name, status, total, passing, warning, critical, maintenance, tags, "
        "datacenters, registries, first_seen, last_changed) "
        "VALUES ('m', 'available', 1, 1, 0, 0, 0, '[]', '[]', '[]', :now, :now)",
        "INSERT INTO instances (key, source, module, node, id, registry, datacenter, address, port, scheme, "
        "tags, meta, health, manifest_pushed, fetch_failures, generation, first_seen, last_seen, "
        "last_changed) VALUES (7, 'push', 'm', '', 'm-1', 'push', '', '::1', 80, 'http', '[]', '{}', "
        "'passing', false, 0, 0, :now, :now, :now)",
        "INSERT INTO push_leases VALUES (7, 5.0, 600.0, :now, :now, 'passing', '', false)",
    ):
        connection.execute(text(statement), NOW)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(pg_get_serial_sequence('instances', 'key'), 7)"))
