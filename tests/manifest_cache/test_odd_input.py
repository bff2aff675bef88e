"""What registries and modules tell that not every database takes: it harms nobody else."""

from __future__ import annotations

import secrets

import pytest

from discovery.base import Lost
from manifest_cache.ingest.store import Store
from manifest_cache.storage.reader import Reader
from tests.manifest_cache.test_store import (
    complete,
    fetch_all,
    instance,
    last,
    manifest,
    module,
    only_instance,
    present,
)


def test_whatever_a_registry_answers_instead_of_an_answer(store: Store, reader: Reader) -> None:
    said = "answered 500: \x00\x1b[31m\ud800 nonsense"
    store.apply([Lost(source="consul", reason=said, retry_in=1)])
    assert last(reader, "registry.lost").data["is"]["reason"] == "answered 500: ��[31m� nonsense"
    index = store.apply([Lost(source="consul", reason=said, retry_in=1)]).index
    assert index == reader.index() == 1, "the same told again is no event"


def test_who_is_too_long_to_be_known_keeps_nobody_else_out(
    store: Store, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL has no place in an index for so much: nothing could be stored any more."""
    endless = secrets.token_hex(4000)
    store.apply([complete(instance(endless, "a"), instance(id_=endless), instance(node=endless), instance())])
    assert only_instance(reader).id == "financial-1"
    with reader.snapshot() as snapshot:
        assert [found.name for found in snapshot.modules()] == ["financial"]
        assert snapshot.sources[0].instances == 1
    assert caplog.text.count("left out") == 3
    assert endless not in caplog.text
    longest = instance(*(secrets.token_urlsafe(750)[:1000] for _ in range(2)), node=secrets.token_hex(225))
    store.apply([present(longest)])
    assert only_instance(reader, longest.module).id == longest.id


def test_strange_text_is_kept_or_replaced_but_never_fatal(store: Store, reader: Reader) -> None:
    odd = instance("mod-ü☃", "id/with space?#%", meta={"k": "\x00\ud800"[:1]}, tags=("module", "日本"))
    store.apply([complete(odd)])
    fetch_all(store, manifest("mod-ü☃", note="nul\x00inside"))
    assert only_instance(reader, "mod-ü☃").id == "id/with space?#%"
    assert module(reader, "mod-ü☃").version == "1.0.0"
