"""Several datacenters in one cache: each is a source of its own, and turns stale alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from discovery.registries import configured
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow, SourceRow
from manifest_cache.storage.reader import Reader
from manifest_cache.sync import Synchronizer
from tests.consul_server import ConsulServer, eventually, federate
from tests.watching import Beside


def definition(name: str) -> dict[str, Any]:
    return {"Name": name, "Tags": ["module"], "Address": "127.0.0.1", "Port": 1}


def test_one_that_is_cut_off_turns_stale_alone(
    consul_server: Callable[..., ConsulServer], tmp_path: Path
) -> None:
    one, two = consul_server(), consul_server(hcl=['datacenter = "dc2"'])
    federate(one, two)
    for server, name in ((one, "near"), (two, "far"), (one, "both"), (two, "both")):
        with server.client() as client:
            client.register(definition(name))
    settings = CacheSettings(
        database_url=f"sqlite:///{tmp_path}/lictor.db", consul_datacenters=("dc1", "dc2")
    )
    database = Database(settings.database_url)
    database.migrate()
    reader = Reader(database)

    def sources() -> dict[str, SourceRow]:
        with reader.snapshot() as snapshot:
            return {source.name: source for source in snapshot.sources if source.name != "push"}

    def instances(name: str) -> list[InstanceRow]:
        with reader.snapshot() as snapshot:
            return snapshot.instances([name])[name]

    def places(name: str) -> list[tuple[str, str]]:
        return sorted((row.source, row.datacenter) for row in instances(name))

    def connected() -> dict[str, bool]:
        return {name: source.is_current for name, source in sources().items()}

    with Beside(lambda: Synchronizer(settings, configured(settings, {}, {"consul": one.config()})).run()):
        eventually(lambda: places("near") == [("consul", "dc1")])
        eventually(lambda: places("far") == [("consul/dc2", "dc2")])
        eventually(lambda: places("both") == [("consul", "dc1"), ("consul/dc2", "dc2")])
        two.kill()
        eventually(lambda: connected() == {"consul": True, "consul/dc2": False})
        assert places("far"), "what it said last still stands"
        with one.client() as client:
            client.register(definition("nearer"))
        eventually(lambda: places("nearer"))
    near = settings.model_copy(update={"consul_datacenters": ("local",)})
    with Beside(lambda: Synchronizer(near, configured(near, {}, {"consul": one.config()})).run()):
        eventually(lambda: connected() == {"consul": True, "consul/dc2": False})
        assert places("near") == [("consul", "dc1")], "going over to a list and back renames nothing"
    database.close()
