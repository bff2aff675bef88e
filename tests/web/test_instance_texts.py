"""Texts of instances that are kept: the same as those written again, whatever changes, within their bound."""

from __future__ import annotations

import json

import pytest

from discovery.base import Health
from manifest_cache.storage.reader import Reader
from tests.web.filling import Cache, instance
from web.rendering.instance_json import InstanceTexts, filled_in

NAMES = ("financial", "weather")


def texts(kept: InstanceTexts, cache: Cache) -> dict[str, tuple[bytes, bool]]:
    with Reader(cache.database).snapshot() as snapshot:
        found = kept.of(snapshot, snapshot.stored_instances(NAMES))
        return {
            name: (filled_in(text.encode(), snapshot.sources), lasts) for name, (text, lasts) in found.items()
        }


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_what_is_kept_is_what_is_written_anew(cache: Cache) -> None:
    kept, small = InstanceTexts(2**20), InstanceTexts(1000)
    for change in (
        lambda: cache.announce(*(instance("financial", number) for number in range(1, 6))),
        lambda: cache.push(instance("weather", node="", datacenter="")),
        lambda: cache.announce(instance("financial", 2, health=Health.CRITICAL)),
        lambda: cache.announce(instance("financial", 2), instance("financial", 3, meta={"last_seen": "x"})),
        lambda: cache.serve("financial", version="1.0.0"),
        lambda: cache.registry.heartbeat("weather", "weather-1", Health.WARNING),
        lambda: cache.lose(),
        lambda: cache.remove(instance("financial", 1)),
    ):
        change()
        again = texts(InstanceTexts(2**20), cache)
        for _ in range(2):
            assert texts(kept, cache) == texts(small, cache) == again
    financial, _ = again["financial"]
    assert [one["id"] for one in json.loads(b"[" + financial + b"]")] == [
        f"financial-{n}" for n in range(2, 6)
    ]


def test_what_lasts_until_an_instance_changes(cache: Cache) -> None:
    cache.announce(instance("financial"))
    cache.push(instance("weather", node="", datacenter=""))
    found = texts(InstanceTexts(2**20), cache)
    # When a pushed one was last seen moves by itself.
    assert {name: lasts for name, (_, lasts) in found.items()} == {"financial": True, "weather": False}
