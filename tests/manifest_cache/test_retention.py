"""Events and manifests that are old enough go in; what is left, and what never goes, is looked at."""

from __future__ import annotations

from datetime import timedelta

import pytest

from discovery.base import Change, Health
from manifest_cache.ingest.store import Store
from manifest_cache.retention.events import Dropped, drop_events
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, utc_now
from manifest_cache.storage.reader import Reader
from tests.manifest_cache.test_store import (
    complete,
    fetch_all,
    gone,
    instance,
    jobs,
    manifest,
    module,
    present,
)


def drop_all(database: Database, limit: int = 1000) -> Dropped:
    return drop_events(database, utc_now(), limit)


def indexes(reader: Reader) -> list[int | None]:
    with reader.snapshot() as snapshot:
        return [event.index for event in snapshot.events(limit=1000)]


def digests(reader: Reader, name: str = "financial") -> set[str]:
    with reader.snapshot() as snapshot:
        return {row.digest for row in snapshot.manifest_history(name)}


def test_young_events_stay(database: Database, store: Store, reader: Reader) -> None:
    index = store.apply([complete(instance())]).index
    assert drop_events(database, utc_now() - timedelta(minutes=1), 1000) == Dropped(0, 0)
    assert indexes(reader) == list(range(1, index + 1))


def test_an_empty_log_is_no_trouble(database: Database, reader: Reader) -> None:
    assert drop_all(database) == Dropped(0, 0)
    with reader.snapshot() as snapshot:
        assert (snapshot.oldest_event, snapshot.retained_after) == (None, 0)


def test_old_events_go_step_by_step_and_the_newest_never(
    database: Database, store: Store, reader: Reader
) -> None:
    index = store.apply([complete(instance(), instance("mailer", "m1"), instance("weather", "w1"))]).index
    assert drop_all(database, limit=3) == Dropped(3, 0)
    with reader.snapshot() as snapshot:
        assert snapshot.retained_after == 3
        assert snapshot.oldest_event is not None
        assert snapshot.oldest_event.index == 4
    assert drop_all(database, limit=1000) == Dropped(index - 4, 0)
    assert drop_all(database) == Dropped(0, 0)
    assert indexes(reader) == [index]
    assert reader.index() == database.index() == index
    assert store.apply([present(instance(port=9))]).index == index + 1


def test_nothing_goes_from_the_middle_of_the_log(database: Database, store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    between = utc_now()
    index = store.apply([present(instance(port=9))]).index
    with database.write() as session:
        # A clock that was ahead when the second event was written.
        ahead = session.get_one(EventRow, 2)
        ahead.at = between + timedelta(hours=1)
    assert drop_events(database, between, 1000) == Dropped(1, 0)
    assert indexes(reader) == list(range(2, index + 1))


def test_a_manifest_goes_with_the_last_event_that_tells_of_it(
    database: Database, store: Store, reader: Reader
) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    first, second = manifest(version="1.0.0"), manifest(version="2.0.0")
    store.apply_fetches([(job, first)])
    between = utc_now()
    store.apply_fetches([(job, second)])
    assert drop_events(database, between, 1000).manifests == 0
    assert digests(reader) == {first.parsed.digest, second.parsed.digest}, "events tell what was before"
    store.apply([present(instance(health=Health.CRITICAL))])
    assert drop_all(database).manifests == 1
    assert digests(reader) == {second.parsed.digest}
    assert module(reader).version == "2.0.0"


@pytest.mark.parametrize("keep_instance", [True, False], ids=["an instance has it", "its module has it"])
def test_a_manifest_that_is_served_stays(
    database: Database, store: Store, reader: Reader, keep_instance: bool
) -> None:
    one, other = instance(id_="a"), instance(id_="b")
    store.apply([complete(one, other)])
    due = {job.instance.id: job for job in jobs(store)}
    kept = manifest(version="1.0.0")
    store.apply_fetches([(due["a"], kept)])
    if keep_instance:
        store.apply_fetches([(due["b"], manifest(version="2.0.0"))])
    else:
        store.apply([gone(one)])
    index = store.apply([present(instance("mailer", "m1"))]).index
    assert drop_all(database).manifests == 0
    assert indexes(reader) == [index]
    assert kept.parsed.digest in digests(reader)


def test_a_manifest_that_was_kept_for_an_instance_goes_later(
    database: Database, store: Store, reader: Reader
) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    store.apply_fetches([(job, manifest(version="1.0.0"))])
    drop_all(database)
    store.apply_fetches([(job, manifest(version="2.0.0"))])
    store.apply([present(instance("mailer", "m1"))])
    assert drop_all(database).manifests == 1
    assert digests(reader) == {manifest(version="2.0.0").parsed.digest}


def test_many_manifests_go_in_several_steps(database: Database, store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    for number in range(50):
        store.apply_fetches([(job, manifest(version=f"1.{number}.0"))])
    store.apply([present(instance("mailer", "m1"))])
    by_step = []
    while (dropped := drop_all(database)).events:
        by_step.append(dropped.manifests)
    assert sum(by_step) == 49
    assert max(by_step) <= 21
    assert len(digests(reader)) == 1


def test_one_manifest_of_two_modules_goes_from_each_alone(
    database: Database, store: Store, reader: Reader
) -> None:
    store.apply([complete(instance("a", "a1"), instance("b", "b1"))])
    due = {job.instance.module: job for job in jobs(store)}
    for name in ("a", "b"):
        store.apply_fetches([(due[name], manifest(name, version="1.0.0"))])
    store.apply_fetches([(due["a"], manifest("a", version="2.0.0"))])
    store.apply([present(instance("c", "c1"))])
    assert drop_all(database).manifests == 1
    assert digests(reader, "a") == {manifest("a", version="2.0.0").parsed.digest}
    assert digests(reader, "b") == {manifest("b", version="1.0.0").parsed.digest}


def test_what_comes_back_after_its_manifest_went_has_it_fetched_anew(
    database: Database, store: Store, reader: Reader
) -> None:
    announced = instance(meta={"manifest_digest": manifest(version="1.0.0").parsed.digest})
    store.apply([complete(announced)])
    (job,) = jobs(store)
    store.apply_fetches([(job, manifest(version="1.0.0"))])
    store.apply([Change(source="consul", gone=(announced.key,)), present(instance(id_="other"))])
    fetch_all(store, manifest(version="2.0.0"))
    store.apply([present(instance("mailer", "m1"))])
    assert drop_all(database).manifests == 1
    store.apply([present(announced)])
    assert announced.id in {job.instance.id for job in jobs(store)}
