"""A module registers by push with the real Lictor, and is read there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from werkzeug.serving import make_server

import discovery
from discovery import HTTPCheck
from manifest_cache.storage.database import Database
from tests.consul_server import eventually
from tests.discovery.health_server import HealthServer
from web import create_app
from web.settings import Settings

MANIFEST = {"version": "1.2.0", "name": "financial", "title": "Größe 🏛", "x": [1.0, 1e21, None]}


@pytest.fixture
def lictor(tmp_path: Path) -> Iterator[str]:
    """A Lictor with an empty database; its address."""
    url = f"sqlite:///{tmp_path}/lictor.db"
    database = Database(url)
    database.migrate()
    database.close()
    app = create_app(Settings.load(database_url=url))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        app.extensions["lictor"].close()


def read(lictor: str, path: str) -> Any:
    return httpx.get(f"{lictor}/api/v1{path}").raise_for_status().json()


def test_the_whole_road(lictor: str) -> None:
    with (
        HealthServer() as module,
        discovery.register(
            name="financial",
            port=module.port,
            tags=["ledger"],
            meta={"team": "red"},
            check=HTTPCheck("/health", interval="50ms"),
            manifest=MANIFEST,
            via="push",
            lictor_url=lictor,
        ) as registration,
    ):
        assert registration.wait_registered(10)
        told = read(lictor, "/modules/financial")
        assert (told["status"], told["version"]) == ("available", "1.2.0")
        assert told["digest"] == registration.announcement.meta["manifest_digest"]
        (instance,) = told["instances"]
        assert (instance["id"], instance["port"], instance["address"]) == (
            registration.id,
            module.port,
            "127.0.0.1",
        )
        assert instance["tags"] == ["module", "ledger"]
        assert read(lictor, "/modules/financial/manifest") == MANIFEST
        for status, health in ((429, "warning"), (500, "critical"), (200, "passing")):
            module.status = status
            eventually(lambda: read(lictor, "/modules/financial")["instances"][0]["health"] == health)  # noqa: B023
    assert read(lictor, "/modules/financial")["instances"] == []


def test_a_path_to_the_manifest_is_taken(lictor: str) -> None:
    road = {"via": "push", "lictor_url": lictor}
    with discovery.register(name="financial", port=8001, manifest_path="/about", **road) as registration:  # type: ignore[arg-type]
        assert registration.wait_registered(10), registration.reason
        (instance,) = read(lictor, "/modules/financial/instances")["items"]
        assert instance["meta"] == {"manifest_path": "/about"}
        httpx.delete(f"{lictor}/api/v1/modules/financial/instances/{registration.id}").raise_for_status()
        registration.report("warning")
        eventually(lambda: read(lictor, "/modules/financial/instances")["items"])
        eventually(lambda: read(lictor, "/modules/financial/instances")["items"][0]["health"] == "warning")
