"""`lictor refresh`: a module's manifests are asked for, and a module that nobody knows is told of."""

from __future__ import annotations

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from tests.cli.command import Lictor


def test_a_module_is_refreshed(lictor: Lictor) -> None:
    lictor.run("migrate")
    database = Database(f"sqlite:///{lictor.database}")
    instance = ServiceInstance(module="financial", id="f-1", address="127.0.0.1", port=80)
    index = Store(database, CacheSettings()).apply([Change(source="consul", present=(instance,))]).index
    done = lictor.run("refresh", "financial")
    assert (done.returncode, done.stdout) == (0, "The manifest of 1 instance is fetched now.\n")
    told = lictor.json("refresh", "financial")
    assert (told["module"], told["asked"], told["index"]) == ("financial", 1, index)
    database.close()


def test_an_unknown_module(lictor: Lictor) -> None:
    lictor.run("migrate")
    done = lictor.run("refresh", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no module nobody" in done.stderr
