"""The rounds of the housekeeping: what is old goes by itself, is counted, and nobody waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from discovery.registries import configured
from manifest_cache.ingest.store import Store
from manifest_cache.retention import housekeeping
from manifest_cache.retention.housekeeping import Housekeeping
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.reader import Reader
from manifest_cache.sync import Synchronizer
from tests.consul_server import eventually
from tests.manifest_cache.test_forgetting import let_pass
from tests.manifest_cache.test_store import complete, fetch_all, gone, instance, jobs, manifest, types
from tests.watching import Beside

COUNTED = (
    "lictor_events_deleted_total",
    "lictor_manifests_collected_total",
    "lictor_modules_forgotten_total",
)


def counted() -> list[float]:
    return [REGISTRY.get_sample_value(name) or 0.0 for name in COUNTED]


def let_events_pass(database: Database) -> None:
    with database.write(quiet=True) as session:
        session.execute(text("UPDATE events SET at = '2020-01-01 00:00:00+00:00'"))


def test_a_round_does_all_and_counts_it(database: Database, settings: CacheSettings) -> None:
    store, keeper = Store(database, settings), Housekeeping(database, settings)
    assert not keeper.step()
    store.apply([complete(*(instance(f"m{number}", "i") for number in range(12)))])
    (job, *_) = jobs(store)
    for version in ("1.0.0", "2.0.0"):
        store.apply_fetches([(job, manifest(job.instance.module, version=version))])
    others = [instance(f"m{number}", "i") for number in range(12) if f"m{number}" != job.instance.module]
    for number in range(10):
        store.apply([complete(instance(job.instance.module, "i", port=number + 1), *others)])
    index = store.apply([gone(*others)]).index
    let_pass(database, settings)
    before, rounds = counted(), 1
    while keeper.step():
        rounds += 1
        assert rounds < 10
    let_events_pass(database)
    while keeper.step():
        pass
    # The module that is left, and its second manifest.
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [index + 10, 1, 11]
    assert rounds == 2, "no more than ten modules are forgotten at once"
    assert types(Reader(database)) == ["module.forgotten"]


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_FIRST_ROUND", 0.1)
    # A round may come before there is anything to remove.
    monkeypatch.setattr(housekeeping, "_BETWEEN_ROUNDS", 0.2)


@pytest.mark.usefixtures("_soon")
def test_the_synchronizer_goes_its_rounds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lictor.db"
    settings = CacheSettings(database_url=url, registries=("push",), event_retention=1)
    database = Database(url)
    database.migrate()
    store = Store(database, settings)
    store.apply([complete(instance())])
    fetch_all(store, manifest())
    let_events_pass(database)
    with Beside(lambda: Synchronizer(settings, configured(settings)).run()):
        eventually(lambda: len(types(Reader(database))) == 1)
    database.close()


@pytest.mark.usefixtures("_soon")
def test_a_database_that_comes_later_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = CacheSettings(database_url=f"sqlite:///{tmp_path}/lictor.db", event_retention=1)
    database = Database(settings.database_url)
    with Beside(lambda: Housekeeping(database, settings).run()):
        eventually(lambda: "cannot remove what is old" in caplog.text)
        database.migrate()
        Store(database, settings).apply([complete(instance())])
        let_events_pass(database)
        eventually(lambda: len(types(Reader(database))) == 1)
    database.close()
