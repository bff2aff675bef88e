"""The application over a real database, asked through its URL, and what fills it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.web.filling import Cache
from tests.web.gunicorn_server import free_port
from web import create_app
from web.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LICTOR_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy: that is quicker than migrating one for each test."""
    path = tmp_path_factory.mktemp("empty") / "lictor.db"
    Cache(f"sqlite:///{path}").database.close()
    return path


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLite's, or that of the kind which a test asks for by indirect parametrization."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path}/lictor.db"
    url: str = request.getfixturevalue("postgres").create_database()
    return url


@pytest.fixture
def cache(database_url: str, tmp_path: Path, empty_cache: Path) -> Iterator[Cache]:
    """A migrated database, and the means to fill it."""
    if database_url.startswith("sqlite"):
        shutil.copy(empty_cache, tmp_path / "lictor.db")
    with Cache(database_url) as cache:
        yield cache


@pytest.fixture
def make_app(database_url: str) -> Iterator[Callable[..., Flask]]:
    """Makes applications with settings of their own: `make_app(bind="0.0.0.0:80")`."""
    with ExitStack() as closing:

        def make(**settings: Any) -> Flask:
            app = create_app(Settings.load(**{"database_url": database_url, **settings}))
            closing.callback(app.extensions["lictor"].close)
            return app

        yield make


@pytest.fixture
def client(cache: Cache, make_app: Callable[..., Flask]) -> FlaskClient:
    """Asks an application with default settings over the database of `cache`."""
    return make_app().test_client()


@pytest.fixture
def bind() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def http(bind: str) -> Iterator[httpx.Client]:
    # A connection for each request: the kernel chooses among the workers for each again.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://{bind}", trust_env=False, limits=limits, timeout=20) as client:
        yield client
