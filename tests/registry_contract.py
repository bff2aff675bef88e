"""What every registry keeps: each subclass plays modules of its registry, and inherits the tests.

The tests look at the tables only, for there all registries end.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from discovery.registries import REGISTRIES, configured
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow
from manifest_cache.storage.reader import Reader
from manifest_cache.sync import Synchronizer
from tests.consul_server import eventually
from tests.watching import Beside


class RegistryContract(ABC):
    """One test class for each registry. The fixtures of the subclass are made before `world` is called."""

    registry: str

    @abstractmethod
    def given(self) -> Any:
        """What replaces the environment's word on how to reach the registry; None if nothing does."""

    @abstractmethod
    def put(self, database_url: str, name: str, id_: str, port: int, health: str = "passing") -> None:
        """Registers an instance, or alters one that is registered."""

    @abstractmethod
    def remove(self, database_url: str, name: str, id_: str) -> None:
        """Deregisters an instance."""

    @abstractmethod
    def garbage(self, database_url: str) -> AbstractContextManager[Any]:
        """Has the registry receive, or answer, what makes no sense, for as long as the block lasts."""

    @pytest.fixture
    def name(self) -> str:
        return f"contract-{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def settings(self, tmp_path: Path) -> CacheSettings:
        return CacheSettings.load(
            database_url=f"sqlite:///{tmp_path / 'lictor.db'}", registries=(self.registry,), doubt=0.0
        )

    @pytest.fixture
    def reader(self, settings: CacheSettings) -> Iterator[Reader]:
        database = Database(settings.database_url)
        database.migrate()
        yield Reader(database)
        database.close()

    @pytest.fixture
    def following(self, settings: CacheSettings, reader: Reader) -> Callable[[], Beside]:
        given = {self.registry: self.given()}
        return lambda: Beside(lambda: Synchronizer(settings, configured(settings, {}, given)).run())

    @pytest.fixture
    def instances(self, reader: Reader, name: str) -> Callable[[], dict[str, InstanceRow]]:
        def read() -> dict[str, InstanceRow]:
            with reader.snapshot() as snapshot:
                return {row.id: row for row in snapshot.instances([name]).get(name, [])}

        return read

    def test_first_everything_then_changes(
        self,
        settings: CacheSettings,
        following: Callable[[], Beside],
        instances: Callable[[], dict[str, InstanceRow]],
        name: str,
    ) -> None:
        url = settings.database_url
        self.put(url, name, f"{name}-1", 9001)
        self.put(url, name, f"{name}-2", 9002)
        with following():
            eventually(lambda: sorted(row.port for row in instances().values()) == [9001, 9002])
            self.put(url, name, f"{name}-3", 9003)
            eventually(lambda: f"{name}-3" in instances())
            self.put(url, name, f"{name}-1", 9009)
            eventually(lambda: instances()[f"{name}-1"].port == 9009)
            self.put(url, name, f"{name}-2", 9002, "critical")
            eventually(lambda: instances()[f"{name}-2"].health == "critical")
        assert {row.registry_name for row in instances().values()} == {self.registry}

    def test_gone_is_gone(
        self,
        settings: CacheSettings,
        reader: Reader,
        following: Callable[[], Beside],
        instances: Callable[[], dict[str, InstanceRow]],
        name: str,
    ) -> None:
        url = settings.database_url
        self.put(url, name, f"{name}-1", 9001)
        self.put(url, name, f"{name}-2", 9002)
        with following():
            eventually(lambda: len(instances()) == 2)
            self.remove(url, name, f"{name}-1")
            eventually(lambda: list(instances()) == [f"{name}-2"])
        with reader.snapshot() as snapshot:
            removed = snapshot.events(module=name, types=["instance.removed"])
        assert [event.instance for event in removed] == [f"{name}-1"]

    def test_a_synchronizer_that_comes_back_changes_nothing_that_stayed(
        self,
        settings: CacheSettings,
        reader: Reader,
        following: Callable[[], Beside],
        instances: Callable[[], dict[str, InstanceRow]],
        name: str,
    ) -> None:
        url = settings.database_url
        self.put(url, name, f"{name}-1", 9001)
        with following():
            eventually(instances)
        before = instances()[f"{name}-1"]
        self.put(url, name, f"{name}-2", 9002)
        with following():
            eventually(lambda: len(instances()) == 2)
        after = instances()[f"{name}-1"]
        assert (after.key, after.first_seen, after.port) == (before.key, before.first_seen, before.port)
        with reader.snapshot() as snapshot:
            added = snapshot.events(module=name, types=["instance.added"])
        assert [event.instance for event in added].count(f"{name}-1") == 1

    def test_garbage_loses_nothing(
        self,
        settings: CacheSettings,
        following: Callable[[], Beside],
        instances: Callable[[], dict[str, InstanceRow]],
        name: str,
    ) -> None:
        url = settings.database_url
        self.put(url, name, f"{name}-1", 9001)
        with following():
            eventually(instances)
            with self.garbage(url):
                assert list(instances()) == [f"{name}-1"]
            self.put(url, name, f"{name}-2", 9002)
            eventually(lambda: sorted(instances()) == [f"{name}-1", f"{name}-2"])

    def test_it_ends_soon_after_it_is_cancelled(
        self,
        settings: CacheSettings,
        following: Callable[[], Beside],
        instances: Callable[[], dict[str, InstanceRow]],
        name: str,
    ) -> None:
        self.put(settings.database_url, name, f"{name}-1", 9001)
        with following() as running:
            eventually(instances)
            began = time.monotonic()
            running.stop()
            # A second is the promise, the rest is for a loaded machine.
            assert time.monotonic() - began < 10

    def test_it_describes_itself(self, settings: CacheSettings) -> None:
        (registry,) = configured(settings, {}, {self.registry: self.given()})
        assert type(registry) is REGISTRIES[self.registry]
        assert registry.name == self.registry
        assert 0 <= registry.policy.max_drop <= 1
        assert registry.confirmed_by in ("watch", "lease")
