"""The PostgreSQL server that tests start: what its users rely on."""

from __future__ import annotations

import socket

import psycopg
import pytest

from tests.postgres_server import PostgresServer


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_databases_are_apart(postgres: PostgresServer) -> None:
    one, other = postgres.create_database(), postgres.create_database()
    run(one, "CREATE TABLE only_here (id int)")
    with pytest.raises(psycopg.errors.UndefinedTable):
        run(other, "SELECT * FROM only_here")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_data_outlives_the_end_of_the_server(end: str) -> None:
    with PostgresServer() as server:
        url = server.create_database()
        run(url, "CREATE TABLE kept (id int)")
        run(url, "CHECKPOINT")
        getattr(server, end)()
        with pytest.raises(psycopg.OperationalError):
            run(url, "SELECT 1")
        server.start()
        assert run(url, "SELECT count(*) FROM kept") == [(0,)]


def test_nothing_is_left_behind() -> None:
    with PostgresServer() as server:
        folder, port = server.folder, server.port
    assert not folder.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
