"""Modules without instances, and tombstones: when they are forgotten, when not, and by whose word."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import col, select, update

from discovery.base import Change, Lost
from manifest_cache.ingest.plausibility import Doubted, Trusted
from manifest_cache.ingest.store import Store
from manifest_cache.retention.modules import Forgetting, Forgotten, ModuleInUse, NoSuchModule
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import EventRow, ManifestRow, ModuleRow, SourceRow, TombstoneRow, utc_now
from manifest_cache.storage.reader import Reader
from tests.consul_server import eventually
from tests.manifest_cache.test_store import (
    complete,
    fetch_all,
    gone,
    instance,
    last,
    manifest,
    module,
    present,
    tombstones,
    types,
)

LOST = Lost(source="consul", reason="connection refused", retry_in=1)


@pytest.fixture
def forgetting(database: Database, settings: CacheSettings) -> Forgetting:
    return Forgetting(database, settings)


def let_pass(database: Database, settings: CacheSettings) -> None:
    """As if all that is there had been so for longer than it is remembered."""
    long_ago = utc_now() - timedelta(seconds=settings.forget_after + 1)
    with database.write(quiet=True) as session:
        session.exec(update(ModuleRow).values(last_changed=long_ago))
        session.exec(update(TombstoneRow).values(gone_at=long_ago))


def names(reader: Reader) -> list[str]:
    with reader.snapshot() as snapshot:
        return [row.name for row in snapshot.modules()]


def left_of(database: Database, name: str) -> tuple[int, int]:
    with database.read() as session:
        manifests = session.exec(select(ManifestRow).where(ManifestRow.module == name)).all()
        graves = session.exec(select(TombstoneRow).where(TombstoneRow.module == name)).all()
    return len(manifests), len(graves)


def test_an_operator_forgets_a_module(
    forgetting: Forgetting, store: Store, reader: Reader, database: Database
) -> None:
    store.apply([complete(instance(), instance("mailer", "m1"))])
    fetch_all(store, manifest(title="Finances"))
    before = store.apply([gone(instance())]).index
    assert forgetting.forget("financial") == Forgotten(before + 1, 1, 1)
    assert names(reader) == ["mailer"]
    assert left_of(database, "financial") == (0, 0)
    event = last(reader, "module.forgotten")
    assert (event.index, event.module, event.data["is"]) == (before + 1, "financial", None)
    was = {"status": "unavailable", "version": "1.0.0", "title": "Finances"}
    assert event.data["was"] == {**was, "digest": manifest(title="Finances").parsed.digest}
    assert event.data["reason"] == "an operator said so"


def test_a_module_with_instances_is_not_forgotten(
    forgetting: Forgetting, store: Store, reader: Reader
) -> None:
    both = instance(id_="financial-1"), instance(id_="financial-2")
    index = store.apply([complete(*both), present(instance(id_="financial-3"), source="push")]).index
    with pytest.raises(
        ModuleInUse, match=r"financial has 3 instances \(consul tells of 2, push tells of 1\)"
    ):
        forgetting.forget("financial")
    assert reader.index() == index


def test_an_unknown_module_is_not_forgotten(forgetting: Forgetting, store: Store) -> None:
    store.apply([complete(instance())])
    with pytest.raises(NoSuchModule, match="there is no module finacial") as told:
        forgetting.forget("finacial")
    assert told.value.near == ["financial"]


def test_a_module_that_was_forgotten_registers_anew(
    forgetting: Forgetting, store: Store, reader: Reader
) -> None:
    store.apply([complete(instance())])
    fetch_all(store, manifest())
    first = module(reader)
    store.apply([gone(instance())])
    before = forgetting.forget("financial").index
    store.apply([present(instance())])
    assert types(reader, before) == ["module.registered", "instance.added", "module.available"]
    assert module(reader).digest is None
    assert module(reader).first_seen > first.first_seen
    assert tombstones(reader) == []
    fetch_all(store, manifest())
    assert module(reader).version == "1.0.0"


def test_a_fetch_that_ends_after_its_module_was_forgotten_is_dropped(
    forgetting: Forgetting, store: Store, reader: Reader
) -> None:
    store.apply([complete(instance())])
    (job,), _ = store.due_fetches(limit=1)
    store.apply([gone(instance())])
    index = forgetting.forget("financial").index
    assert store.apply_fetches([(job, manifest())]) == index
    assert names(reader) == []


def test_a_module_is_forgotten_by_age(
    forgetting: Forgetting, store: Store, reader: Reader, database: Database, settings: CacheSettings
) -> None:
    store.apply([complete(instance(), instance("mailer", "m1"))])
    fetch_all(store, manifest())
    before = store.apply([gone(instance())]).index
    assert forgetting.forget_old(10) == ()
    let_pass(database, settings)
    assert forgetting.forget_old(10) == ["financial"]
    assert forgetting.forget_old(10) == ()
    assert names(reader) == ["mailer"]
    assert left_of(database, "financial") == (0, 0)
    assert types(reader, before) == ["module.forgotten"]
    assert "LICTOR_FORGET_AFTER" in last(reader, "module.forgotten").data["reason"]


def test_no_more_are_forgotten_at_once_than_asked_for(
    forgetting: Forgetting, store: Store, database: Database, settings: CacheSettings
) -> None:
    store.apply([complete(*(instance(f"m{number}", "i") for number in range(5))), complete()])
    let_pass(database, settings)
    assert [len(forgetting.forget_old(2)) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize(
    ("trouble", "end"),
    [
        pytest.param(LOST, Change(source="consul"), id="lost"),
        pytest.param(Doubted("consul", "9 of 10 are missing"), Trusted("consul"), id="doubted"),
    ],
)
def test_a_module_is_not_forgotten_while_its_source_may_be_wrong(
    forgetting: Forgetting,
    store: Store,
    database: Database,
    settings: CacheSettings,
    trouble: Lost | Doubted,
    end: Change | Trusted,
) -> None:
    other = instance("mailer", "m1")
    store.apply([complete(instance()), complete(other, source="consul/dc2")])
    store.apply([gone(instance()), gone(other, source="consul/dc2"), trouble])
    let_pass(database, settings)
    assert forgetting.forget_old(10) == ["mailer"], "another source's troubles are not its own"
    assert forgetting.forget_old(10) == ()
    store.apply([end])
    assert forgetting.forget_old(10) == ["financial"]


def test_a_module_of_unknown_source_waits_for_all(
    forgetting: Forgetting, store: Store, database: Database, settings: CacheSettings
) -> None:
    store.apply([complete(instance()), complete(instance("mailer", "m1"), source="consul/dc2")])
    store.apply([gone(instance()), LOST])
    with database.write() as session:
        # As a module is that lost its instances before there were tombstones.
        session.exec(update(TombstoneRow).values(module="mailer"))
    let_pass(database, settings)
    assert forgetting.forget_old(10) == ()
    store.apply([Change(source="consul")])
    assert forgetting.forget_old(10) == ["financial"]


def test_a_source_that_was_not_heard_since_the_start_may_have_it_back(
    store: Store, database: Database, settings: CacheSettings
) -> None:
    store.apply([complete(instance()), complete()])
    let_pass(database, settings)
    with database.write() as session:
        session.exec(update(SourceRow).values(last_contact=utc_now() - timedelta(days=8)))
    forgetting = Forgetting(database, settings)
    assert forgetting.forget_old(10) == ()
    store.apply([complete()])
    assert forgetting.forget_old(10) == ["financial"]


def test_pushing_modules_are_given_time_to_come_back(store: Store, database: Database) -> None:
    settings = CacheSettings(database_url=str(database.url), deregister_after=1)
    store.apply([present(instance(), source="push"), gone(instance(), source="push")])
    let_pass(database, settings)
    forgetting = Forgetting(database, settings)
    assert forgetting.forget_old(10) == ()
    eventually(lambda: forgetting.forget_old(10) == ["financial"])


def test_old_tombstones_go(
    forgetting: Forgetting, store: Store, reader: Reader, database: Database, settings: CacheSettings
) -> None:
    ids = [f"i{number}" for number in range(4)]
    store.apply([complete(*(instance(id_=id_) for id_ in ids))])
    index = store.apply([gone(*(instance(id_=id_) for id_ in ids[:2]))]).index
    let_pass(database, settings)
    index = store.apply([gone(instance(id_=ids[2]))]).index
    assert [forgetting.drop_tombstones(1) for _ in range(3)] == [1, 1, 0]
    assert [row.id for row in tombstones(reader)] == [ids[2]]
    assert reader.index() == index


def test_tombstones_of_a_module_without_instances_stay_with_it(
    forgetting: Forgetting, store: Store, reader: Reader, database: Database, settings: CacheSettings
) -> None:
    store.apply([complete(instance()), complete()])
    let_pass(database, settings)
    assert forgetting.drop_tombstones(10) == 0
    assert len(tombstones(reader)) == 1


def test_nothing_of_a_forgotten_module_is_missing_in_the_log(
    forgetting: Forgetting, store: Store, database: Database
) -> None:
    store.apply([complete(instance()), complete()])
    index = forgetting.forget("financial").index
    with database.read() as session:
        assert len(session.exec(select(EventRow).where(col(EventRow.index) <= index)).all()) == index
