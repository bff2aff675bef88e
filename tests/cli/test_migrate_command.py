"""`lictor migrate`: from which schema to which; and what the commands say of a schema that is not theirs."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.cli.command import Lictor
from tests.postgres_server import PostgresServer


def set_revision(lictor: Lictor, revision: str) -> None:
    with closing(sqlite3.connect(lictor.database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def test_an_empty_database_is_migrated_once(lictor: Lictor) -> None:
    first, second = lictor.run("migrate"), lictor.run("migrate")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("sqlite:///lictor.db was empty and is now at schema ")
    assert second.stdout.endswith(" already: nothing to do.\n")
    assert lictor.run("modules").returncode == 0


def test_migrating_as_json(lictor: Lictor) -> None:
    first, second = lictor.json("migrate"), lictor.json("migrate")
    assert first["before"] is None
    assert second["before"] == second["after"] == first["after"]


def test_a_postgresql_database(lictor: Lictor, postgres: PostgresServer) -> None:
    url = postgres.create_database()
    assert lictor.json("migrate", LICTOR_DATABASE_URL=url)["before"] is None
    assert lictor.run("modules", LICTOR_DATABASE_URL=url).returncode == 0
    assert not lictor.database.exists()


@pytest.mark.parametrize("command", ["modules", "events", "serve", "sync"])
def test_an_unmigrated_database_is_told(lictor: Lictor, command: str) -> None:
    with closing(sqlite3.connect(lictor.database)) as connection:
        connection.execute("CREATE TABLE something (a)")
    done = lictor.run(command)
    assert done.returncode == 1
    assert "run `lictor migrate`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["modules", "migrate", "serve", "sync", "up"])
def test_a_newer_schema_is_told_and_left_alone(lictor: Lictor, command: str) -> None:
    lictor.run("migrate")
    set_revision(lictor, "9999")
    done = lictor.run(command)
    assert done.returncode == 1
    assert (
        "has the schema 9999, which this Lictor does not know: it was migrated by a newer one" in done.stderr
    )
    assert "Traceback" not in done.stderr
