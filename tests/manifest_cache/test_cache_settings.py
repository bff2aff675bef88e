"""Settings of the cache that cannot work are refused at the start, by variable, and without secrets."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.errors import ConfigError
from manifest_cache.retention.housekeeping import Housekeeping
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database


def fault_of(**setting: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        CacheSettings.load(**setting)
    (fault,) = raised.value.faults
    return fault


def test_the_longest_times_there_are(database: Database) -> None:
    settings = CacheSettings(event_retention="36500d", forget_after="36500d")
    assert not Housekeeping(database, settings).step()


@pytest.mark.parametrize("path", ["manifest", "//elsewhere/manifest", "/my manifest", "/manifest#top"])
def test_a_path_at_which_no_manifest_can_be(path: str) -> None:
    assert fault_of(manifest_path=path).startswith("LICTOR_MANIFEST_PATH: ")


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mysql://lictor:s3cret@db/lictor", "must begin with sqlite:/// or postgresql://"),
        ("postgresql://lictor:s3cret@db:port/lictor", "must be like postgresql://"),
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///file:lictor.db?uri=true", "must name a file"),
    ],
)
def test_a_database_that_cannot_be(url: str, advice: str) -> None:
    fault = fault_of(database_url=url)
    assert fault.startswith(f"LICTOR_DATABASE_URL: {advice}")
    assert "s3cret" not in fault
