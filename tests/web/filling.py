"""Fills a cache through the public interfaces: instances, manifests and troubles in, rows out."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

from werkzeug.test import TestResponse

from discovery.base import Change, Health, Lost, ServiceInstance
from manifest_cache.errors import FetchFailed
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import FetchJob, Store
from manifest_cache.manifest import parse_manifest
from manifest_cache.retention.events import drop_events
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import utc_now

REASON = "connecting to http://127.0.0.1:8500: Connection refused"


def instance(module: str, number: int = 1, **more: Any) -> ServiceInstance:
    told = {"address": f"10.0.0.{number}", "port": 8000, "node": "node-a", "datacenter": "dc1", **more}
    return ServiceInstance(module=module, id=f"{module}-{number}", **told)


def told(answer: TestResponse) -> Any:
    """What an answer says in JSON."""
    return json.loads(answer.data)


class Cache:
    """A migrated database and its writers."""

    def __init__(self, url: str) -> None:
        settings = CacheSettings(database_url=url)
        self.database = Database(url)
        self.database.migrate()
        self.store = Store(self.database, settings)
        self.registry = PushTables(self.database, settings)

    def announce(self, *instances: ServiceInstance, source: str = "consul") -> int:
        return self.store.apply([Change(source=source, present=instances)]).index

    def remove(self, *instances: ServiceInstance, source: str = "consul") -> int:
        return self.store.apply([Change(source=source, gone=tuple(one.key for one in instances))]).index

    def module(self, name: str, *health: Health, version: str | None = "1.0.0", **said: Any) -> int:
        """A module of Consul with an instance of each health, and its manifest."""
        self.announce(*(instance(name, n, health=one) for n, one in enumerate(health or [Health.PASSING], 1)))
        return self.serve(name, version=version, **said) if version else self.index()

    def serve(self, name: str, **said: Any) -> int:
        """What the module's instances are found to serve, where a fetch is due."""
        manifest = parse_manifest(json.dumps({"name": name, **said}))
        return self.store.apply_fetches([(job, Fetched(manifest, None)) for job in self._due(name)])

    def refuse(self, name: str, reason: str = "answered 404") -> int:
        """The module's fetches that are due fail."""
        failed = FetchFailed("http-status", reason, url="http://10.0.0.1:8000/manifest", status=404)
        return self.store.apply_fetches([(job, failed) for job in self._due(name)])

    def push(self, one: ServiceInstance) -> int:
        return self.registry.register(PushRegistration(instance=one)).index

    def lose(self, source: str = "consul", reason: str = REASON) -> int:
        return self.store.apply([Lost(source=source, reason=reason, retry_in=1)]).index

    def drop_events(self) -> None:
        """The log as it is once all events but the newest are too old."""
        drop_events(self.database, utc_now(), 10_000)

    def index(self) -> int:
        return self.store.apply([]).index

    def _due(self, name: str) -> list[FetchJob]:
        jobs, _ = self.store.due_fetches(limit=1000)
        return [job for job in jobs if job.instance.module == name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.database.close()
