"""A migrated database of each kind, and what writes to and reads from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifest_cache.ingest.push_registry import PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.reader import Reader


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/lictor.db"
    url: str = request.getfixturevalue("postgres").create_database()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def settings(database_url: str) -> CacheSettings:
    return CacheSettings(database_url=database_url)


@pytest.fixture
def store(database: Database, settings: CacheSettings) -> Store:
    return Store(database, settings)


@pytest.fixture
def reader(database: Database) -> Reader:
    return Reader(database)


@pytest.fixture
def push(database: Database, settings: CacheSettings) -> PushTables:
    return PushTables(database, settings)
