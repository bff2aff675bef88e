"""`lictor accept`: what is doubted is accepted, and where nothing is, that is said."""

from __future__ import annotations

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.plausibility import Doubted
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from tests.cli.command import Lictor


def test_nothing_is_doubted(lictor: Lictor) -> None:
    lictor.run("migrate")
    done = lictor.run("accept")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no registry is doubted" in done.stderr
    assert "consul is not doubted" in lictor.run("accept", "consul").stderr


def test_a_doubted_registry_is_told_of_and_accepted(lictor: Lictor) -> None:
    lictor.run("migrate")
    database = Database(f"sqlite:///{lictor.database}")
    store = Store(database, CacheSettings())
    instance = ServiceInstance(module="m", id="m-1", address="127.0.0.1")
    store.apply([Change(source="consul", present=(instance,)), Doubted("consul", "9 of 10 are missing")])
    told = lictor.run("modules")
    assert told.returncode == 0
    assert "consul has been doubted" in told.stderr
    assert "9 of 10 are missing" in told.stderr
    assert lictor.json("accept") == {"accepted": ["consul"]}
    assert store.accept_requests() == ["consul"]
    database.close()
