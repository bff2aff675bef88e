"""Modules that register over HTTP: what they send goes in, rows and events come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import text

from discovery.base import Health, ServiceInstance
from discovery.errors import UnknownInstance
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.ingest import push_registry as push_module
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.ledger import ledger
from manifest_cache.manifest import ParsedManifest, parse_manifest
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.models import InstanceRow, utc_now
from manifest_cache.storage.reader import Reader

INSTANCE = ServiceInstance(module="orders", id="orders-1", address="127.0.0.1", port=9000)


def manifest(version: str = "1.0.0") -> ParsedManifest:
    return parse_manifest(json.dumps({"name": "orders", "version": version}))


def row(reader: Reader) -> InstanceRow:
    with reader.snapshot() as snapshot:
        (found,) = snapshot.instances(["orders"])["orders"]
    return found


def types(reader: Reader, after: int) -> list[str]:
    with reader.snapshot() as snapshot:
        return [event.type for event in snapshot.events(after=after)]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock forward by so many seconds."""

    def advance(seconds: float) -> None:
        def shifted() -> object:
            return utc_now() + timedelta(seconds=seconds)

        monkeypatch.setattr(push_module, "utc_now", shifted)
        monkeypatch.setattr(ledger, "utc_now", shifted)

    return advance


def test_a_registration_is_readable_when_it_returns(push: PushTables, reader: Reader) -> None:
    registered = push.register(PushRegistration(instance=INSTANCE, manifest=manifest()))
    assert registered.heartbeat_interval == 30.0
    assert registered.deregister_after == 600.0
    with reader.snapshot() as snapshot:
        assert snapshot.index == registered.index
        found = snapshot.module("orders")
    assert found is not None
    assert (found.status, found.version, found.registries) == ("available", "1.0.0", ["push"])


def test_a_pushed_manifest_is_never_fetched(push: PushTables, store: Store) -> None:
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest()))
    push.heartbeat("orders", "orders-1", Health.CRITICAL)
    push.heartbeat("orders", "orders-1", Health.PASSING)
    assert store.due_fetches(limit=10) == ([], None)


def test_without_a_manifest_it_is_fetched(push: PushTables, store: Store) -> None:
    push.register(PushRegistration(instance=INSTANCE))
    (job,), _ = store.due_fetches(limit=10)
    assert job.instance == INSTANCE


def test_a_fetch_from_before_the_manifest_was_pushed_is_dropped(
    push: PushTables, store: Store, reader: Reader
) -> None:
    push.register(PushRegistration(instance=INSTANCE))
    (job,), _ = store.due_fetches(limit=10)
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest("2.0.0")))
    store.apply_fetches([(job, Fetched(manifest("1.0.0"), None))])
    assert row(reader).version == "2.0.0"
    assert store.due_fetches(limit=10) == ([], None)


def test_registering_again_replaces(push: PushTables, reader: Reader, store: Store) -> None:
    first = push.register(PushRegistration(instance=INSTANCE, manifest=manifest()))
    same = push.register(PushRegistration(instance=INSTANCE, manifest=manifest()))
    assert same.index == first.index, "nothing new, so no event"
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest("2.0.0"), heartbeat_interval=5))
    assert types(reader, same.index) == ["instance.changed", "module.manifest_changed"]
    assert push.heartbeat("orders", "orders-1", Health.PASSING).heartbeat_interval == 5
    push.register(PushRegistration(instance=INSTANCE))
    assert len(store.due_fetches(limit=10)[0]) == 1, "without a manifest it is fetched from now on"


def test_a_heartbeat_alone_is_no_event(push: PushTables, reader: Reader) -> None:
    index = push.register(PushRegistration(instance=INSTANCE, manifest=manifest())).index
    assert push.heartbeat("orders", "orders-1", Health.PASSING, "fine").index == index
    assert reader.index() == index


def test_a_heartbeat_tells_health(push: PushTables, reader: Reader) -> None:
    index = push.register(PushRegistration(instance=INSTANCE, manifest=manifest())).index
    push.heartbeat("orders", "orders-1", Health.WARNING, "disk nearly full")
    assert types(reader, index) == ["instance.health_changed", "module.degraded"]


@pytest.mark.parametrize(("module", "id_"), [("orders", "nobody"), ("nothing", "orders-1")])
def test_unknown_instances_are_told_to_register(push: PushTables, module: str, id_: str) -> None:
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest()))
    with pytest.raises(UnknownInstance, match="register it again"):
        push.heartbeat(module, id_, Health.PASSING)
    with pytest.raises(UnknownInstance, match="register it again"):
        push.deregister(module, id_)


def test_deregistration(push: PushTables, reader: Reader) -> None:
    index = push.register(PushRegistration(instance=INSTANCE, manifest=manifest())).index
    assert push.deregister("orders", "orders-1") == reader.index()
    assert types(reader, index) == ["instance.removed", "module.unavailable"]
    assert push.expire() is None, "its lease is gone with it"


def test_silence_makes_critical_and_then_removes(
    push: PushTables, reader: Reader, later: Callable[[float], None]
) -> None:
    registration = PushRegistration(
        instance=INSTANCE, manifest=manifest(), heartbeat_interval=10, deregister_after=60
    )
    index = push.register(registration).index
    later(29)
    push.expire()
    assert row(reader).health == Health.PASSING
    later(31)
    push.expire()
    assert row(reader).health == Health.CRITICAL
    assert types(reader, index) == ["instance.health_changed", "module.unavailable"]
    later(90)
    push.expire()
    assert row(reader).health == Health.CRITICAL
    later(92)
    assert push.expire() is None
    assert types(reader, index)[2:] == ["instance.removed"]


def test_a_heartbeat_brings_a_silent_instance_back(
    push: PushTables, reader: Reader, later: Callable[[float], None]
) -> None:
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest(), heartbeat_interval=10))
    later(31)
    push.expire()
    index = reader.index()
    push.heartbeat("orders", "orders-1", Health.PASSING)
    assert types(reader, index) == ["instance.health_changed", "module.available"]
    later(60)
    push.expire()
    assert row(reader).health == Health.PASSING


def test_a_time_in_which_nobody_listened_counts_for_nothing(
    push: PushTables, reader: Reader, later: Callable[[float], None]
) -> None:
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest(), heartbeat_interval=10))
    later(3600)
    push.extend()
    push.expire()
    assert row(reader).health == Health.PASSING
    later(3631)
    push.expire()
    assert row(reader).health == Health.CRITICAL


def test_a_time_in_which_no_heartbeat_could_be_stored_counts_for_nothing(
    push: PushTables, database: Database, reader: Reader, later: Callable[[float], None]
) -> None:
    push.register(PushRegistration(instance=INSTANCE, manifest=manifest(), heartbeat_interval=10))
    later(31)
    with database.write() as session:
        session.execute(text("ALTER TABLE push_leases RENAME TO hidden"))
    with pytest.raises(StoreUnavailable):
        push.expire()
    with database.write() as session:
        session.execute(text("ALTER TABLE hidden RENAME TO push_leases"))
    push.expire()
    assert row(reader).health == Health.PASSING
    later(62)
    push.expire()
    assert row(reader).health == Health.CRITICAL
