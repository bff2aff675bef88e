"""Consul answers, and says itself that the answer is not whole: nothing is lost by it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import select

from discovery.registries import configured
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, InstanceRow, SourceRow
from manifest_cache.sync import Synchronizer
from tests.consul_proxy import Asked, ConsulProxy, Meddling
from tests.consul_server import RunningConsul, eventually
from tests.watching import Beside

FILTERED = {"x-consul-results-filtered-by-acls": "true"}


def definition(name: str) -> dict[str, Any]:
    return {"Name": name, "Tags": ["module"], "Address": "127.0.0.1", "Port": 1}


def without(path: str) -> Callable[[Asked], Meddling | None]:
    """What a token sees that lost the right to a path: of a list nothing, of a map nothing."""
    empty = b"{}" if path == "/v1/catalog/services" else b"[]"
    return lambda asked: Meddling(headers=FILTERED, body=empty) if asked.path == path else None


def test_rights_that_are_taken_away_and_given_back(consul: RunningConsul, tmp_path: Path) -> None:
    name = f"unsure-{uuid.uuid4().hex[:8]}"
    database = Database(f"sqlite:///{tmp_path}/lictor.db")
    database.migrate()

    def doubt() -> str | None:
        with database.read() as session:
            source = session.get(SourceRow, "consul")
            return source.doubt if source else None

    def is_known(module: str) -> bool:
        with database.read() as session:
            return bool(session.exec(select(InstanceRow).where(InstanceRow.module == module)).all())

    settings = CacheSettings(database_url=f"sqlite:///{tmp_path}/lictor.db")
    with consul.client() as client, ConsulProxy(consul.http_addr) as proxy:
        client.register(definition(name))
        with Beside(
            lambda: Synchronizer(settings, configured(settings, {}, {"consul": proxy.config()})).run()
        ):
            eventually(lambda: is_known(name))
            for number, path in enumerate(("/v1/catalog/services", f"/v1/health/service/{name}")):
                proxy.meddle = without(path)
                client.register({**definition(name), "Port": 2 + number})
                client.register(definition(f"{name}-wake-{number}"))
                eventually(lambda: "token" in (doubt() or ""))
                assert is_known(name)
                proxy.meddle = lambda asked: None
                client.register(definition(f"{name}-done-{number}"))
                eventually(lambda: doubt() is None)
        with database.read() as session:
            removed = session.exec(select(EventRow).where(EventRow.type == "instance.removed")).all()
        assert name not in {event.module for event in removed}
    database.close()
