"""What readers ask for goes in; the rows of one consistent state come out."""

from __future__ import annotations

from typing import Any

from discovery.base import Health
from manifest_cache.ingest.store import Store
from manifest_cache.storage.database import Database
from manifest_cache.storage.reader import ModuleFilter, Reader
from tests.manifest_cache.test_store import complete, fetch_all, instance, jobs, manifest, present


def test_filters(store: Store, reader: Reader) -> None:
    store.apply(
        [
            complete(
                instance("alpha", "a", tags=("module", "web")),
                instance("beta", "b", tags=("module", 'we"b'), datacenter="dc2"),
                instance("gamma", "c", tags=("module", "web", "x_y"), health=Health.CRITICAL),
            )
        ]
    )
    fetch_all_by_name = [(job, manifest(job.instance.module, title="Käse 100%")) for job in jobs(store)]
    store.apply_fetches(fetch_all_by_name[:1])

    def names(**wanted: Any) -> list[str]:
        with reader.snapshot() as snapshot:
            return [found.name for found in snapshot.modules(ModuleFilter(**wanted))]

    assert names() == ["alpha", "beta", "gamma"]
    assert names(tag=["web"]) == ["alpha", "gamma"]
    assert names(tag=["web", "x_y"]) == ["gamma"]
    assert names(tag=['we"b']) == ["beta"]
    assert names(tag=["xyy"]) == []
    assert names(tag=["we"]) == []
    assert names(tag=["WEB"]) == []
    assert names(datacenter=["dc2", "dc3"]) == ["beta"]
    assert names(datacenter=["DC2"]) == []
    assert names(status=["unavailable"]) == ["gamma"]
    assert names(q="ALPH") == ["alpha"]
    assert names(q="100%") == ["alpha"]
    assert names(q="_") == []
    with reader.snapshot() as snapshot:
        assert snapshot.status_counts() == {"available": 2, "unavailable": 1}
        assert snapshot.near_names("alhpa") == ["alpha"]


def test_a_title_is_found_by_its_letters_whatever_they_are(
    store: Store, reader: Reader, database: Database
) -> None:
    store.apply([complete(instance())])
    fetch_all(store, manifest(title="Übersicht ÉTÉ"))

    def finds(q: str) -> bool:
        with reader.snapshot() as snapshot:
            return bool(snapshot.modules(ModuleFilter(q=q)))

    assert finds("Übersicht")
    assert finds("sicht É")
    assert not finds("Ubersicht")
    # PostgreSQL knows the cases of the letters that its locale has: here none but ASCII's.
    assert finds("über") == finds("été") == database.is_sqlite


def test_pages_stay_in_order(store: Store, reader: Reader) -> None:
    store.apply([complete(*(instance("m", f"i{n}") for n in range(5)), instance("a", "a"))])
    with reader.snapshot() as snapshot:
        assert [found.name for found in snapshot.modules(limit=1, after="a")] == ["m"]
        page = snapshot.instance_page("m", limit=2)
        rest = snapshot.instance_page("m", limit=10, after=page[-1].key)
    assert len(page) == 2
    assert len(rest) == 3
    assert {row.id for row in [*page, *rest]} == {f"i{n}" for n in range(5)}


def test_history_is_newest_first(store: Store, reader: Reader) -> None:
    store.apply([complete(instance())])
    (job,) = jobs(store)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        store.apply_fetches([(job, manifest(version=version))])
    with reader.snapshot() as snapshot:
        first = snapshot.manifest_history("financial", limit=2)
        rest = snapshot.manifest_history("financial", limit=2, after=first[-1].digest)
    assert [kept.version for kept in [*first, *rest]] == ["1.2.0", "1.1.0", "1.0.0"]


def test_a_snapshot_does_not_move(store: Store, reader: Reader, database: Database) -> None:
    store.apply([complete(instance())])
    with reader.snapshot() as snapshot:
        store.apply([present(instance("later", "l"))])
        assert snapshot.module("later") is None
        assert len(snapshot.events()) == snapshot.index
