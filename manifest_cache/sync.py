"""The synchronizer: follows registries, fetches manifests, writes both down while it leads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar

from discovery.base import Lost, Watcher
from discovery.registry import Registry, RegistryLock
from discovery.registry.watch_loop import watch_with_retry
from discovery.timing.backoff import Backoff
from manifest_cache.db_thread import WriterThread
from manifest_cache.fetch.fetcher import FetchConfig, ManifestFetcher
from manifest_cache.fetch.scheduler import Fetching
from manifest_cache.ingest.batches import batches
from manifest_cache.ingest.inbox import Inbox
from manifest_cache.ingest.plausibility import Accept, PlausibilityFilter, Update
from manifest_cache.ingest.push_registry import PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.leader.election import Election, own_name
from manifest_cache.metrics import STORING_SECONDS
from manifest_cache.retention.housekeeping import Housekeeping
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, FencedDatabase, StoreUnavailable
from manifest_cache.storage.models import utc_now
from manifest_cache.wakeup import LONGEST, wait_for
from manifest_cache.webhooks.service import Webhooks

logger = logging.getLogger(__name__)


Result = TypeVar("Result")

# How long a signal is waited for before the watching thread looks whether it should end.
_SIGNAL_SLICE = 0.5
# Our own commits are signalled like those of others: while one follows the other, what others may have
# asked for is looked up this often, in seconds.
_COMMITS_TOGETHER = 0.05
# Whoever waits for what was committed is answered first, and what it made due begun: in seconds.
_BEHIND_READERS = 0.01
_CLOSING = 0.5
# No wait for what expires takes that long: the machine slept, or its clock was set.
_ASLEEP = timedelta(seconds=3 * LONGEST)


class Synchronizer:
    """Keeps a database in step with the registries that `settings` name, or stands by while another does.

    `registries` are those, configured (`discovery.registries.configured`). The database must have
    the current schema.
    """

    def __init__(self, settings: CacheSettings, registries: Sequence[Registry]) -> None:
        self._settings = settings
        self._registries = registries

    async def run(self) -> None:
        """Runs until it is cancelled, and ends within two seconds then.

        Raises SchemaMismatch. Whatever else fails is logged and tried again.
        """
        database = Database(self._settings.database_url)
        name = own_name()
        try:
            await Election(database, self._lock(name), name).run(self._lead)
        finally:
            database.close()

    def _lock(self, name: str) -> RegistryLock | None:
        """The lock of the first registry that has one."""
        return next((lock for registry in self._registries if (lock := registry.lock(name))), None)

    async def _lead(self, database: FencedDatabase) -> None:
        await LeaderTerm(self._settings, self._registries, database).run()


class LeaderTerm:
    """The time in which this process leads: all that a synchronizer does for the cache, it does in one."""

    def __init__(
        self, settings: CacheSettings, registries: Sequence[Registry], database: FencedDatabase
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = Store(self._database, settings)
        self._push = PushTables(self._database, settings)
        self._registries = registries
        self._inbox = Inbox()
        self._plausibility = PlausibilityFilter({registry.name: registry.policy for registry in registries})
        self._webhooks = Webhooks(self._database, settings)
        self._leases = asyncio.Event()
        self._requests = asyncio.Event()

    async def run(self) -> None:
        """Runs until it is cancelled, and ends within a second then.

        Raises SchemaMismatch at the start, and Fenced when another has taken the lead. Whatever else
        fails is logged and tried again.
        """
        self._thread = WriterThread("lictor database")
        try:
            await self._begin()
            async with (
                ManifestFetcher(_fetch_config(self._settings)) as fetcher,
                asyncio.TaskGroup() as self._group,
            ):
                group = self._group
                self._fetching = Fetching(fetcher, self._store, self._run_with_retry)
                group.create_task(self._fetching.run(), name="fetch")
                group.create_task(self._follow_registries(), name="follow registries")
                group.create_task(self._write_changes(), name="write changes")
                group.create_task(self._take_acceptances(), name="take acceptances")
                group.create_task(self._notice_commits(), name="notice commits")
                keeper = Housekeeping(self._database, self._settings)
                group.create_task(keeper.run(), name="keep house")
                group.create_task(self._webhooks.run(), name="webhooks")
                if any(registry.confirmed_by == "lease" for registry in self._registries):
                    group.create_task(self._expire(), name="expire")
        finally:
            self._thread.close(_CLOSING)

    async def _begin(self) -> None:
        await self._run_with_retry("check the schema", self._database.check_schema)
        await self._run_with_retry("read sources", self._store.mark_unfollowed, self._settings.registries)
        await self._run_with_retry("extend leases", self._push.extend)
        self._plausibility.start_from(await self._run_with_retry("read instances", self._store.believed))

    async def _follow_registries(self) -> None:
        known = await self._run_with_retry("read sources", self._store.sources)
        for registry in self._registries:
            following = self._follow_registry(registry, known)
            self._group.create_task(following, name=f"follow registry {registry.name}")

    async def _follow_registry(self, registry: Registry, known: Collection[str]) -> None:
        async with aclosing(registry.watchers(known)) as watchers:
            async for one in watchers:
                if isinstance(one, Lost):
                    self._inbox.put(one)
                else:
                    self._group.create_task(self._follow(one), name=f"follow {one.source}")

    async def _follow(self, watcher: Watcher) -> None:
        logger.info("following source=%s", watcher.source)
        async for update in watch_with_retry(watcher):
            self._inbox.put(update)

    async def _write_changes(self) -> None:
        while True:
            heard_at, updates = await self._next_updates()
            for portion in batches(updates) if updates else ():
                applied = await self._run_with_retry("write changes", self._store.apply, portion)
                STORING_SECONDS.observe(time.monotonic() - heard_at)
                # What falls due by this is known: the schedule need not be read for it.
                self._fetching.begin_due(applied.due)

    async def _next_updates(self) -> tuple[float, list[Update]]:
        """What registries told, as far as it is believed, or what is believed now without new word.

        Before it the time, on the monotonic clock, since when the first of it is known.
        """
        ends_at = self._plausibility.doubt_ends_at
        try:
            async with asyncio.timeout(None if ends_at is None else max(0.0, ends_at - time.monotonic())):
                told = await self._inbox.take()
        except TimeoutError:
            now = time.monotonic()
            return now, self._plausibility.recheck(now)
        updates = [update for one in told for update in self._plausibility.apply(one, time.monotonic())]
        return self._inbox.taken_since, updates

    async def _take_acceptances(self) -> None:
        """Believes what an operator says is to be believed."""
        known: set[str] = set()
        while True:
            self._requests.clear()
            requested = await self._run_with_retry("read requests", self._store.accept_requests)
            for source in requested:
                # A request stands until its source was heard, which may take days.
                if source not in known:
                    logger.warning("accepted by an operator source=%s", source)
                self._inbox.put(Accept(source))
            known = set(requested)
            await wait_for(self._requests)

    async def _expire(self) -> None:
        looked_at = utc_now()
        while True:
            self._leases.clear()
            if utc_now() - looked_at > _ASLEEP:
                # Whoever was silent meanwhile may have slept as well.
                await self._run_with_retry("extend leases", self._push.extend)
            following = await self._run_with_retry("expire leases", self._push.expire)
            looked_at = utc_now()
            await wait_for(self._leases, following)

    async def _notice_commits(self) -> None:
        """Wakes the schedule when a web worker took in a registration, or an operator asked for something."""
        loop = asyncio.get_running_loop()
        ended = threading.Event()

        def committed() -> None:
            self._webhooks.notice()
            self._leases.set()
            self._requests.set()
            self._fetching.wake()

        def notice() -> None:
            backoff = Backoff(longest=LONGEST)
            while not ended.is_set():
                try:
                    watch = self._database.watch()
                except StoreUnavailable:
                    ended.wait(backoff.next())
                    continue
                try:
                    while not ended.is_set():
                        if watch.wait(_SIGNAL_SLICE) and not ended.wait(_BEHIND_READERS):
                            loop.call_soon_threadsafe(committed)
                            ended.wait(_COMMITS_TOGETHER)
                except OSError:
                    ended.wait(backoff.next())
                finally:
                    watch.close()

        threading.Thread(target=notice, name="lictor commits", daemon=True).start()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def _run_with_retry(
        self, what: str, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """Calls the database until it serves; nothing that was learnt is dropped meanwhile."""
        return await self._thread.run_with_retry(what, function, *args, **kwargs)


def _fetch_config(settings: CacheSettings) -> FetchConfig:
    return FetchConfig(
        allow=settings.fetch_allow,
        concurrency=settings.fetch_concurrency,
        # All instances may be on one host, and a host that hangs must leave places to others.
        per_host=max(1, settings.fetch_concurrency // 2),
        deadline=settings.fetch_deadline,
        max_bytes=settings.fetch_max_bytes,
        manifest_path=settings.manifest_path,
    )
