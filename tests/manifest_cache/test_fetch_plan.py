"""Which instances are asked for their manifests: one for all that stand for the same, or each."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from discovery.base import Change, Health, InstanceKey, ServiceInstance
from manifest_cache.errors import ManifestError
from manifest_cache.fetch.fetched import Fetched, ManifestUnchanged
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import FetchJob, Store
from manifest_cache.ledger.ledger import Refresh
from manifest_cache.manifest import parse_manifest
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow, utc_now
from manifest_cache.storage.reader import Reader

BROKEN = ManifestError("http-status", "it answered 500")


def manifest(version: str = "1.0.0", **fields: Any) -> Fetched:
    document = json.dumps({"name": "orders", "version": version, **fields})
    return Fetched(parse_manifest(document), etag=f'"{version}"')


def instance(id_: str, digest: str = "", **fields: Any) -> ServiceInstance:
    meta = {"manifest_digest": digest} if digest else {}
    return ServiceInstance(
        **{"module": "orders", "id": id_, "address": "127.0.0.1", "port": 80, "meta": meta, **fields}
    )


def present(*instances: ServiceInstance) -> Change:
    return Change(source="consul", present=instances)


def gone(*ids: str) -> Change:
    return Change(source="consul", gone=tuple(InstanceKey("orders", "", id_) for id_ in ids))


@pytest.fixture
def impatient(database: Database, database_url: str) -> Store:
    """A store in which it is always somebody's turn."""
    return Store(database, CacheSettings(database_url=database_url, revalidate=1e-6))


@pytest.fixture
def rows(reader: Reader) -> Callable[[], dict[str, InstanceRow]]:
    def read() -> dict[str, InstanceRow]:
        with reader.snapshot() as snapshot:
            return {row.id: row for row in snapshot.instances(["orders"])["orders"]}

    return read


def due(store: Store) -> dict[str, FetchJob]:
    return {job.instance.id: job for job in store.due_fetches(limit=1000)[0]}


def known(store: Store, *ids: str, version: str = "1.0.0") -> None:
    """Makes these instances known, and fetched."""
    store.apply([present(*map(instance, ids))])
    jobs = due(store)
    store.apply_fetches([(jobs[id_], manifest(version)) for id_ in ids])


def scheduled(rows: dict[str, InstanceRow]) -> list[str]:
    return sorted(id_ for id_, row in rows.items() if row.fetch_at is not None)


def test_one_of_each_version_is_asked_again(store: Store, rows: Callable[[], dict[str, InstanceRow]]) -> None:
    known(store, "a", "b", "c")
    known(store, "d", "e", version="1.1.0")
    asked = scheduled(rows())
    assert len(asked) == 2
    assert len({"a", "b", "c"}.intersection(asked)) == len({"d", "e"}.intersection(asked)) == 1
    assert due(store) == {}


def test_it_is_asked_over_and_over(impatient: Store, rows: Callable[[], dict[str, InstanceRow]]) -> None:
    known(impatient, "a", "b", "c")
    for _ in range(5):
        ((_, job),) = due(impatient).items()
        assert job.etag == '"1.0.0"'
        index = impatient.apply_fetches([(job, ManifestUnchanged('"1.0.0"'))])
        assert len(scheduled(rows())) == 1
    assert impatient.apply([]).index == index


def test_those_in_turn_are_asked_together(store: Store, reader: Reader) -> None:
    names = [f"module-{number}" for number in range(200)]
    store.apply([present(*(instance("a", module=name) for name in names))])
    jobs = store.due_fetches(limit=1000)[0]
    answers = {name: parse_manifest(json.dumps({"name": name, "version": "1.0.0"})) for name in names}
    began = utc_now()
    store.apply_fetches([(job, Fetched(answers[job.instance.module], None)) for job in jobs])

    with reader.snapshot() as snapshot:
        moments = [
            row.fetch_at for rows in snapshot.instances(names).values() for row in rows if row.fetch_at
        ]
    # 300 s, spread by a fifth to each side: moments five seconds apart, and somebody at most of them.
    assert len(moments) == 200
    assert 15 < len(set(moments)) <= 26
    assert min(moments) >= began + timedelta(seconds=240)
    assert max(moments) <= utc_now() + timedelta(seconds=365)


@pytest.mark.parametrize("how", ["it goes", "it is not well", "it answers 500", "it registers again"])
def test_another_takes_its_turn(store: Store, rows: Callable[[], dict[str, InstanceRow]], how: str) -> None:
    known(store, "a", "b", "c")
    (asked,) = scheduled(rows())
    if how == "it goes":
        store.apply([gone(asked)])
    elif how == "it is not well":
        store.apply([present(instance(asked, health=Health.CRITICAL))])
    elif how == "it registers again":
        store.apply([present(instance(asked, port=81))])
        assert list(due(store)) == [asked]
    else:
        store.apply([present(instance(asked, port=81))])
        store.apply_fetches([(due(store)[asked], BROKEN)])
    assert len(set(scheduled(rows())) - {asked}) == 1


def test_where_the_one_asked_has_changed_the_others_are_asked(
    impatient: Store, rows: Callable[[], dict[str, InstanceRow]]
) -> None:
    known(impatient, "other", version="0.9.0")
    known(impatient, "a", "b", "c")
    ((asked, job),) = ((id_, job) for id_, job in due(impatient).items() if id_ != "other")
    impatient.apply_fetches([(job, manifest(title="changed"))])
    others = {"a", "b", "c"} - {asked}
    jobs = due(impatient)
    assert others <= set(jobs)
    impatient.apply_fetches([(jobs[id_], manifest(title="changed")) for id_ in others])
    assert len({"a", "b", "c"}.intersection(scheduled(rows()))) == 1, "they need not be asked twice"
    assert len({row.digest for row in rows().values()}) == 2


def test_an_instance_that_is_new_says_nothing_of_the_others(store: Store) -> None:
    known(store, "a", "b")
    store.apply([present(instance("a", port=81))])
    store.apply_fetches([(due(store)["a"], manifest("1.1.0"))])
    assert due(store) == {}


def test_ten_announce_one_unknown_digest(store: Store, rows: Callable[[], dict[str, InstanceRow]]) -> None:
    fetched = manifest()
    announcing = [instance(f"i{n}", fetched.parsed.digest) for n in range(10)]
    applied = store.apply([present(*announcing)])
    assert len(applied.due) == len(due(store)) == 1
    index = store.apply_fetches([(applied.due[0], fetched)])
    assert due(store) == {}
    assert {row.digest for row in rows().values()} == {fetched.parsed.digest}
    assert len(scheduled(rows())) == 1
    store.apply([present(instance("late", fetched.parsed.digest))])
    assert due(store) == {}
    assert index < store.apply([]).index


def test_one_that_announces_it_later_waits_for_the_fetch_under_way(store: Store) -> None:
    fetched = manifest()
    store.apply([present(instance("a", fetched.parsed.digest))])
    assert store.apply([present(instance("b", fetched.parsed.digest))]).due == []
    assert list(due(store)) == ["a"]
    store.apply([present(instance("c"))])
    assert sorted(due(store)) == ["a", "c"], "who announces nothing is asked itself"


@pytest.mark.parametrize("outcome", [BROKEN, manifest("0.1.0")], ids=["fails", "brings something else"])
def test_where_the_first_fetch_does_not_bring_it_the_next_is_asked(
    store: Store, rows: Callable[[], dict[str, InstanceRow]], outcome: Fetched | ManifestError
) -> None:
    fetched = manifest()
    store.apply([present(*(instance(id_, fetched.parsed.digest) for id_ in "abc"))])
    asked = []
    for _ in range(2):
        ((id_, job),) = due(store).items()
        asked.append(id_)
        store.apply_fetches([(job, outcome)])
    ((last, job),) = due(store).items()
    assert {*asked, last} == {"a", "b", "c"}
    store.apply_fetches([(job, fetched)])
    assert rows()[last].digest == fetched.parsed.digest
    assert due(store) == {}


def test_the_first_of_those_that_announce_it_goes(store: Store) -> None:
    store.apply([present(*(instance(id_, "0" * 64) for id_ in "abc"))])
    (first,) = due(store)
    store.apply([gone(first)])
    ((_, job),) = due(store).items()
    assert job.instance.id != first


def test_a_fetch_that_began_before_it_was_asked_for_again(store: Store) -> None:
    """Nobody knows whether what it brings is from before or after."""
    store.apply([present(instance("a"))])
    job = due(store)["a"]
    assert store.request_refresh("orders") is not None
    store.apply_fetches([(job, manifest())])
    assert list(due(store)) == ["a"]
    store.apply_fetches([(job, BROKEN)])
    assert list(due(store)) == ["a"]
    store.apply_fetches([(due(store)["a"], manifest())])
    assert due(store) == {}


def test_a_refresh_asks_all_that_can_be_asked(store: Store, push: PushTables) -> None:
    known(store, "a", "b", "c")
    store.apply([present(instance("ill", health=Health.CRITICAL))])
    push.register(PushRegistration(instance=instance("pushed"), manifest=manifest().parsed))
    index = store.apply([]).index
    assert store.request_refresh("orders") == (Refresh(asked=3, pushed=1, not_well=1), index)
    jobs = due(store)
    assert sorted(jobs) == ["a", "b", "c"]
    assert store.apply_fetches([(job, ManifestUnchanged('"1.0.0"')) for job in jobs.values()]) == index
    assert due(store) == {}


def test_a_refresh_of_what_failed_shows(store: Store, reader: Reader) -> None:
    store.apply([present(instance("a"))])
    index = store.apply_fetches([(due(store)["a"], BROKEN)])
    assert due(store) == {}
    assert store.request_refresh("orders") == (Refresh(asked=1, pushed=0, not_well=0), index + 1)
    with reader.snapshot() as snapshot:
        (event,) = snapshot.events(after=index)
    assert event.type == "instance.changed"
    assert event.data["was"]["manifest_error"]["retry_at"] > event.data["is"]["manifest_error"]["retry_at"]
    assert list(due(store)) == ["a"]


def test_a_refresh_of_what_nobody_knows(store: Store) -> None:
    assert store.request_refresh("orders") is None
    store.apply([present(instance("a"))])
    store.apply([gone("a")])
    refreshed = store.request_refresh("orders")
    assert refreshed is not None
    assert refreshed[0] == Refresh(asked=0, pushed=0, not_well=0)
