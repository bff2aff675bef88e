"""What registries and fetches tell goes in; rows, events and due fetches come out."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from discovery.base import Change, Health, InstanceKey, Lost, ServiceInstance
from manifest_cache.errors import ManifestError
from manifest_cache.fetch.fetched import Fetched, ManifestUnchanged
from manifest_cache.ingest.plausibility import Doubted, Trusted
from manifest_cache.ingest.store import FetchJob, Outcome, Store
from manifest_cache.manifest import parse_manifest
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, InstanceRow, ModuleRow, SourceRow, TombstoneRow, utc_now
from manifest_cache.storage.reader import Reader


def instance(module: str = "financial", id_: str = "financial-1", **fields: Any) -> ServiceInstance:
    place = {"address": "127.0.0.1", "port": 8001, "node": "n1", "datacenter": "dc1"}
    values: dict[str, Any] = {**place, "tags": ("module",), **fields}
    return ServiceInstance(module=module, id=id_, **values)


def complete(*instances: ServiceInstance, source: str = "consul") -> Change:
    return Change(source=source, present=instances, complete=True)


def present(*instances: ServiceInstance, source: str = "consul") -> Change:
    return Change(source=source, present=instances)


def manifest(name: str = "financial", version: str = "1.0.0", **fields: Any) -> Fetched:
    document = json.dumps({"name": name, "version": version, **fields})
    return Fetched(parse_manifest(document, module=name), etag=f'"{version}"')


def jobs(store: Store) -> list[FetchJob]:
    return store.due_fetches(limit=1000)[0]


def fetch_all(store: Store, outcome: Outcome) -> int:
    return store.apply_fetches([(job, outcome) for job in jobs(store)])


def types(reader: Reader, after: int = 0) -> list[str]:
    with reader.snapshot() as snapshot:
        return [event.type for event in snapshot.events(after=after, limit=1000)]


def last(reader: Reader, type_: str) -> EventRow:
    with reader.snapshot() as snapshot:
        return snapshot.events(types=[type_], newest_first=True, limit=1)[0]


def module(reader: Reader, name: str = "financial") -> ModuleRow:
    with reader.snapshot() as snapshot:
        found = snapshot.module(name)
    assert found is not None
    return found


def instances(reader: Reader, name: str = "financial") -> list[InstanceRow]:
    with reader.snapshot() as snapshot:
        return snapshot.instances([name])[name]


def only_instance(reader: Reader, name: str = "financial") -> InstanceRow:
    (row,) = instances(reader, name)
    return row


def test_first_sight_of_a_module(store: Store, reader: Reader) -> None:
    index = store.apply([complete(instance())]).index

    assert types(reader) == [
        "registry.connected",
        "module.registered",
        "instance.added",
        "module.available",
    ]
    with reader.snapshot() as snapshot:
        assert snapshot.index == index == 4
        assert [source.name for source in snapshot.sources] == ["consul"]
        assert snapshot.sources[0].connected
        assert snapshot.sources[0].instances == 1
    found = module(reader)
    assert (found.status, found.total, found.passing) == ("available", 1, 1)
    assert (found.tags, found.datacenters, found.registries) == (["module"], ["dc1"], ["consul"])
    assert (found.version, found.digest) == (None, None)


def test_the_same_told_again_is_no_event(store: Store, reader: Reader) -> None:
    index = store.apply([complete(instance())]).index
    assert store.apply([complete(instance()), present(instance())]).index == index
    assert store.apply([Change(source="consul")]).index == index


def test_a_contact_is_noted_though_the_clock_was_set_back(
    store: Store, reader: Reader, database: Database
) -> None:
    store.apply([complete(instance())])
    with database.write() as session:
        session.get_one(SourceRow, "consul").last_contact = utc_now() + timedelta(hours=1)
    store.apply([Change(source="consul")])
    with reader.snapshot() as snapshot:
        (source,) = snapshot.sources
    assert source.last_contact is not None
    assert source.last_contact <= utc_now()


@pytest.mark.parametrize(
    ("healths", "status"),
    [
        ([Health.PASSING, Health.PASSING], "available"),
        ([Health.PASSING, Health.WARNING], "degraded"),
        ([Health.WARNING, Health.WARNING], "degraded"),
        ([Health.PASSING, Health.CRITICAL], "degraded"),
        ([Health.WARNING, Health.MAINTENANCE], "degraded"),
        ([Health.CRITICAL, Health.MAINTENANCE], "unavailable"),
        ([Health.MAINTENANCE], "unavailable"),
    ],
)
def test_status_follows_the_health_of_the_instances(
    store: Store, reader: Reader, healths: list[Health], status: str
) -> None:
    store.apply([complete(*(instance(id_=f"i{n}", health=health) for n, health in enumerate(healths)))])
    found = module(reader)
    assert found.status == status
    assert found.total == len(healths)
    assert found.maintenance == healths.count(Health.MAINTENANCE)
    assert types(reader)[-1] == f"module.{status}"


def test_a_flip_of_health_is_two_events(store: Store, reader: Reader) -> None:
    before = store.apply([complete(instance())]).index
    store.apply([present(instance(health=Health.CRITICAL))])
    assert types(reader, before) == ["instance.health_changed", "module.unavailable"]
    event = last(reader, "instance.health_changed")
    assert event.data["was"] == {"health": "passing"}
    assert event.data["is"] == {"health": "critical"}


def test_an_altered_registration_names_what_is_other(store: Store, reader: Reader) -> None:
    before = store.apply([complete(instance())]).index
    store.apply([present(instance(port=9001, meta={"zone": "b"}))])
    assert types(reader, before) == ["instance.changed"]
    event = last(reader, "instance.changed")
    assert event.data["was"] == {"port": 8001, "meta": {}}
    assert event.data["is"] == {"port": 9001, "meta": {"zone": "b"}}
    assert event.data["source"] == "consul"
    assert event.data["node"] == "n1"


def test_a_complete_change_removes_what_it_does_not_name(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(), instance("orders", "orders-1"))])
    before = store.apply([present(instance("elsewhere", "e1"), source="push")]).index
    store.apply([complete(instance())])
    assert types(reader, before) == ["instance.removed", "module.unavailable"]
    assert module(reader, "orders").status == "unavailable"
    assert module(reader, "orders").total == 0
    assert module(reader, "elsewhere").total == 1


def test_the_last_instance_goes_and_the_manifest_stays(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    fetch_all(store, manifest())
    store.apply([Change(source="consul", gone=(InstanceKey("financial", "n1", "financial-1"),))])
    found = module(reader)
    assert (found.status, found.version) == ("unavailable", "1.0.0")
    with reader.snapshot() as snapshot:
        assert "financial" in snapshot.manifests(["financial"])


def gone(*instances: ServiceInstance, source: str = "consul") -> Change:
    return Change(source=source, gone=tuple(one.key for one in instances))


def tombstones(reader: Reader, name: str = "financial") -> list[TombstoneRow]:
    with reader.snapshot() as snapshot:
        return list(snapshot.tombstones(name))


def test_an_instance_that_goes_leaves_a_tombstone(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(meta={"zone": "b"}), instance(id_="financial-2"))])
    fetch_all(store, manifest())
    store.apply([present(instance(meta={"zone": "b"}, health=Health.CRITICAL))])
    last_known = {row.id: row for row in instances(reader)}["financial-1"]
    store.apply([gone(instance())])
    (tombstone,) = tombstones(reader)
    remembered = set(TombstoneRow.model_fields) - {"key", "gone_at"}
    assert {name: getattr(tombstone, name) for name in remembered} == {
        name: getattr(last_known, name) for name in remembered
    }
    assert (tombstone.health, tombstone.version, tombstone.meta) == ("critical", "1.0.0", {"zone": "b"})
    assert tombstone.gone_at == last(reader, "instance.removed").at


def test_an_instance_that_comes_back_has_no_tombstone(store: Store, reader: Reader) -> None:
    both = instance(), instance(id_="financial-2")
    store.apply([complete(*both)])
    store.apply([complete()])
    assert [row.id for row in tombstones(reader)] == ["financial-2", "financial-1"], "the last to go first"
    store.apply([present(both[0])])
    assert [row.id for row in tombstones(reader)] == ["financial-2"]
    store.apply([present(both[1])])
    assert tombstones(reader) == []


def test_only_what_comes_back_loses_its_tombstone(store: Store, reader: Reader) -> None:
    here = instance()
    store.apply([complete(here, instance(node="n2")), present(here, source="push")])
    store.apply([gone(here, instance(node="n2")), gone(here, source="push")])
    store.apply([present(here)])
    assert {(row.source, row.node) for row in tombstones(reader)} == {("consul", "n2"), ("push", "n1")}


def test_gone_and_back_in_one_batch(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(), instance(id_="financial-2"))])
    went = gone(instance()), gone(instance(id_="financial-2"))
    store.apply([*went, present(instance()), gone(instance()), present(instance())])
    assert [row.id for row in tombstones(reader)] == ["financial-2"]
    store.apply([present(instance(id_="financial-2")), went[1]])
    assert [row.id for row in tombstones(reader)] == ["financial-2"]


def test_one_id_on_two_nodes_is_two_instances(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(node="n1"), instance(node="n2", health=Health.CRITICAL))])
    assert module(reader).total == 2
    store.apply([Change(source="consul", gone=(InstanceKey("financial", "n2", "financial-1"),))])
    assert only_instance(reader).node == "n1"


def test_one_id_in_two_modules_is_two_instances(store: Store, reader: Reader) -> None:
    store.apply([complete(instance("a", "same", node="n1"), instance("b", "same", node="n2"))])
    assert module(reader, "a").total == module(reader, "b").total == 1


def test_altered_and_gone_in_one_batch(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    store.apply(
        [
            present(instance(port=9)),
            Change(source="consul", gone=(instance().key,)),
            present(instance(port=10)),
        ]
    )
    assert only_instance(reader).port == 10


def test_all_that_was_told_is_gone_in_one_batch(store: Store, reader: Reader) -> None:
    store.apply([complete(instance()), complete()])
    assert module(reader).total == 0


def test_a_lost_registry_keeps_what_it_said(store: Store, reader: Reader) -> None:
    before = store.apply([complete(instance())]).index
    lost = Lost(source="consul", reason="connection refused", retry_in=1)
    after = store.apply([lost]).index
    assert store.apply([lost]).index == after, "the same reason told again is nothing new"
    with reader.snapshot() as snapshot:
        (source,) = snapshot.sources
        assert not source.connected
        assert source.reason == "connection refused"
        assert snapshot.module("financial") is not None
    store.apply([complete(instance())])
    assert types(reader, before) == ["registry.lost", "registry.connected"]


def test_a_registry_that_is_followed_no_longer_is_said_to_be_lost(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    store.mark_unfollowed(["push"])
    event = last(reader, "registry.lost")
    assert event.registry_name == "consul"
    assert "LICTOR_REGISTRIES" in event.data["is"]["reason"]


def test_a_fetched_manifest_becomes_the_modules(store: Store, reader: Reader) -> None:
    before = store.apply([complete(instance())]).index
    fetched = manifest(title="Finances")
    fetch_all(store, fetched)
    assert types(reader, before) == ["instance.changed", "module.manifest_changed"]
    found, row = module(reader), only_instance(reader)
    assert (found.version, found.digest, found.title) == ("1.0.0", fetched.parsed.digest, "Finances")
    assert (row.version, row.digest) == ("1.0.0", fetched.parsed.digest)
    with reader.snapshot() as snapshot:
        kept = snapshot.manifests(["financial"])["financial"]
    assert kept.content.encode() == fetched.parsed.canonical


def test_an_unchanged_manifest_is_no_event(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    index = store.apply_fetches([(job, manifest())])
    assert store.apply_fetches([(job, ManifestUnchanged('"1.0.0"'))]) == index
    assert store.apply_fetches([(job, manifest())]) == index


def test_the_current_manifest_is_the_highest_version_that_passes(store: Store, reader: Reader) -> None:
    versions = {"a": "1.9.0", "b": "1.10.0", "c": "1.10.0-rc.1", "d": "2.0.0"}
    healths = {"d": Health.WARNING}
    store.apply([complete(*(instance(id_=i, health=healths.get(i, Health.PASSING)) for i in versions))])
    store.apply_fetches([(job, manifest(version=versions[job.instance.id])) for job in jobs(store)])
    assert module(reader).version == "1.10.0"
    store.apply([present(instance(id_="d"))])
    assert module(reader).version == "2.0.0"
    store.apply([present(instance(id_="d", health=Health.CRITICAL))])
    assert module(reader).version == "1.10.0"
    store.apply([complete()])
    assert module(reader).version == "1.10.0", "with none passing the last one stays"


def test_version_skew_and_drift(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(id_="a"), instance(id_="b"), instance(id_="c"))])
    due = {job.instance.id: job for job in jobs(store)}
    store.apply_fetches([(due["a"], manifest()), (due["b"], manifest())])
    assert (module(reader).versions, module(reader).drifting) == (["1.0.0"], [])
    store.apply_fetches([(due["c"], manifest(version="1.1.0")), (due["b"], manifest(title="other"))])
    assert (module(reader).versions, module(reader).drifting) == (["1.0.0", "1.1.0"], ["1.0.0"])
    assert last(reader, "module.version_skew").data["is"] == {"versions": ["1.0.0", "1.1.0"]}
    assert last(reader, "module.drift").data["is"] == {"drifting": ["1.0.0"]}
    store.apply_fetches([(due[id_], manifest(version="1.1.0")) for id_ in ("a", "b")])
    assert (module(reader).versions, module(reader).drifting) == (["1.1.0"], [])
    assert last(reader, "module.drift").data["is"] == {"drifting": []}


def test_a_source_is_doubted_and_believed_again(store: Store, reader: Reader) -> None:
    before = store.apply([complete(instance())]).index
    store.apply([Doubted("consul", "9 of 10 are missing"), Doubted("consul", "9 of 10 are missing")])
    with reader.snapshot() as snapshot:
        assert not snapshot.sources[0].is_current
        assert snapshot.sources[0].doubt == "9 of 10 are missing"
    assert store.request_acceptance("push") == []
    assert store.request_acceptance("consul") == store.accept_requests() == ["consul"]
    store.apply([Trusted("consul"), Trusted("consul")])
    assert store.accept_requests() == []
    with reader.snapshot() as snapshot:
        assert snapshot.sources[0].is_current
    assert types(reader, before) == ["registry.doubted", "registry.accepted"]


def test_a_rejected_manifest_leaves_the_good_one(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    before = store.apply_fetches([(job, manifest())])
    store.apply_fetches([(job, ManifestError("http-status", "it answered 500"))])
    assert types(reader, before) == ["module.manifest_rejected"]
    row = only_instance(reader)
    assert (row.error_type, row.error_detail) == ("http-status", "it answered 500")
    assert row.version == module(reader).version == "1.0.0"
    store.apply_fetches([(job, ManifestUnchanged('"1.0.0"'))])
    assert only_instance(reader).error_type is None
    assert last(reader, "instance.changed").data["is"] == {"manifest_error": None}


def test_pauses_between_failing_fetches_grow(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    pauses = []
    for _ in range(12):
        store.apply_fetches([(job, ManifestError("timeout", "it never came"))])
        row = only_instance(reader)
        assert row.fetch_at is not None
        assert row.error_at is not None
        pauses.append((row.fetch_at - row.error_at).total_seconds())
    assert pauses[0] < 2
    assert 200 < pauses[-1] <= 300 * 1.25
    assert jobs(store) == []


def test_fetches_follow_health_and_registration(store: Store, reader: Reader) -> None:
    store.apply([complete(instance(health=Health.CRITICAL))])
    assert jobs(store) == []
    store.apply([present(instance(health=Health.WARNING))])
    (first,) = jobs(store)
    store.apply_fetches([(first, manifest())])
    assert jobs(store) == []
    store.apply([present(instance(health=Health.WARNING, port=8002))])
    (second,) = jobs(store)
    assert second.instance.port == 8002
    assert second.etag is None
    store.apply([present(instance(health=Health.MAINTENANCE, port=8002))])
    assert jobs(store) == []


@pytest.mark.parametrize(
    ("moved", "etag"),
    [
        ({"port": 9000}, None),
        ({"address": "127.0.0.2"}, None),
        ({"scheme": "https"}, None),
        ({"meta": {"manifest_path": "/other"}}, None),
        ({"meta": {"manifest_port": "9000"}}, None),
        ({"tags": ("module", "new"), "meta": {"team": "red"}}, '"1.0.0"'),
        ({"health": Health.CRITICAL}, '"1.0.0"'),
    ],
    ids=["port", "address", "scheme", "path", "manifest's port", "what is elsewhere", "health"],
)
def test_an_etag_is_good_only_where_it_was_sent(store: Store, moved: Any, etag: str | None) -> None:
    store.apply([complete(instance())])
    fetch_all(store, manifest())
    store.apply([present(instance(**moved))])
    store.apply([present(instance(**(moved | {"health": Health.PASSING})))])
    (job,) = jobs(store)
    assert job.etag == etag


def test_an_outcome_from_before_a_new_registration_is_dropped(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (old,) = jobs(store)
    store.apply([present(instance(port=8002))])
    store.apply_fetches([(old, manifest())])
    assert module(reader).version is None
    assert len(jobs(store)) == 1


def test_an_outcome_of_an_instance_that_went_is_dropped(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    store.apply([complete()])
    store.apply_fetches([(job, manifest())])
    assert module(reader).version is None


def test_a_known_digest_in_the_meta_costs_no_fetch(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    fetched = manifest()
    fetch_all(store, fetched)
    announced = instance(id_="financial-2", meta={"manifest_digest": fetched.parsed.digest})
    store.apply([present(announced)])
    assert jobs(store) == []
    with reader.snapshot() as snapshot:
        assert {row.version for row in snapshot.instances(["financial"])["financial"]} == {"1.0.0"}
    store.apply([present(instance("other", "o", meta={"manifest_digest": fetched.parsed.digest}))])
    assert len(jobs(store)) == 1, "a digest counts for the module that it belongs to"


def test_what_a_change_makes_due_is_told_at_once(store: Store) -> None:
    applied = store.apply([complete(instance(id_="a"), instance(id_="b", health=Health.CRITICAL))])
    assert applied.due == jobs(store)
    assert [job.instance.id for job in applied.due] == ["a"]
    assert store.apply([present(instance(id_="a"))]).due == []


def test_due_fetches_tell_when_the_next_one_is(store: Store) -> None:
    assert store.due_fetches(limit=10) == ([], None)
    store.apply([complete(instance(id_="a"), instance(id_="b"))])
    due, _ = store.due_fetches(limit=1)
    assert len(due) == 1
    rest, following = store.due_fetches(limit=10, leave_out=[due[0].claim])
    assert len(rest) == 1
    assert following is None
    store.apply_fetches([(job, manifest()) for job in jobs(store)])
    none, following = store.due_fetches(limit=10)
    assert none == []
    assert following is not None


def test_due_fetches_leave_hosts_out(store: Store) -> None:
    store.apply([complete(instance(id_="a"), instance(id_="b", address="127.0.0.2"))])
    due, _ = store.due_fetches(limit=10, leave_out_hosts=["127.0.0.1"])
    assert [job.instance.id for job in due] == ["b"]


def test_many_at_once(store: Store, reader: Reader) -> None:
    everything = [instance(f"m{n % 100}", f"m{n % 100}-{n}", node=f"n{n % 7}") for n in range(2000)]
    store.apply([complete(*everything)])
    with reader.snapshot() as snapshot:
        assert snapshot.index == 1 + 100 + 2000 + 100
        assert snapshot.sources[0].instances == 2000
        assert len(snapshot.modules(limit=1000)) == 100
        assert [event.index for event in snapshot.events(limit=3000)] == list(range(1, 2202))
