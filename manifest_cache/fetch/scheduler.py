"""Fetches the manifests that are due, many at a time and never too many from one host."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from discovery.base import InstanceKey
from manifest_cache.errors import ManifestError
from manifest_cache.fetch.fetcher import ManifestFetcher
from manifest_cache.ingest.store import FetchJob, Outcome, Store
from manifest_cache.wakeup import wait_for

logger = logging.getLogger(__name__)

RunWithRetry: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
"""Calls a function of the database, named for the log, until it serves."""

# How many jobs are taken from the schedule at once, so that it is read seldom when much is due.
_AHEAD = 1000
# Maximum number of outcomes in one transaction, which keeps others from writing.
_BATCH = 500
# How long to batch outcomes under load, in seconds.
_GATHERING = 0.15
# By what a host's places are divided while its last fetch timed out.
_CAUTION = 5
# How long the schedule is not read again under load, in seconds.
_BUSY_PAUSE = 0.2
# How long a refetch waits, in seconds, so that clients hear first of the change that made it due.
_BEHIND_READERS = 0.01
# What the schedule is read for can wait until what is known already has been begun.
_BEHIND_OWN = 0.01


class Fetching:
    """Fetches what falls due, for as long as it runs.

    Jobs that were taken wait here by host. A host gets some of the places at once, and few while its
    last fetch timed out: what hangs keeps neither other hosts waiting, nor all others on its own.
    """

    def __init__(self, fetcher: ManifestFetcher, store: Store, run_with_retry: RunWithRetry) -> None:
        self._fetcher = fetcher
        self._store = store
        self._run_with_retry = run_with_retry
        self._due = asyncio.Event()
        # From being taken until its outcome is written; of an instance that registers again the new job.
        self._taken: dict[tuple[str, InstanceKey], FetchJob] = {}
        self._waiting: dict[str, deque[FetchJob]] = {}
        self._running: Counter[str] = Counter()
        self._hanging: set[str] = set()
        # Whether more is due than was taken.
        self._is_behind = False
        self._outcomes: asyncio.Queue[tuple[FetchJob, Outcome]] = asyncio.Queue()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._write_outcomes(), name="write outcomes")
            self._group.create_task(self._read_schedule(), name="read the schedule")

    def begin_due(self, jobs: Sequence[FetchJob]) -> None:
        """Takes jobs that a change made due: at once those of which nothing is known yet."""
        asked_again = [job for job in jobs if job.has_manifest]
        self.begin([job for job in jobs if not job.has_manifest])
        if asked_again:
            self._group.create_task(self._begin_behind_readers(asked_again), name="begin behind readers")

    async def _begin_behind_readers(self, jobs: Sequence[FetchJob]) -> None:
        await asyncio.sleep(_BEHIND_READERS)
        self.begin(jobs)

    def begin(self, jobs: Sequence[FetchJob]) -> None:
        """Takes jobs, as many as there is room for; the schedule holds the others."""
        new = [job for job in jobs if self._is_new(job)]
        room = max(0, _AHEAD - len(self._taken))
        self._is_behind |= len(new) > room
        for job in new[:room]:
            self._taken[job.key] = job
            self._waiting.setdefault(job.instance.address, deque()).append(job)
        self._start()

    def _is_new(self, job: FetchJob) -> bool:
        taken = self._taken.get(job.key)
        return taken is None or taken.generation < job.generation

    def wake(self) -> None:
        """Something may have fallen due that was not told here."""
        self._due.set()

    async def _read_schedule(self) -> None:
        """Takes what falls due by the schedule: tries after a failure, and what other processes changed."""
        while True:
            self._due.clear()
            following = None
            room = _AHEAD - len(self._taken)
            if room > 0 and self._has_places:
                jobs, following = await self._run_with_retry(
                    "read due fetches",
                    self._store.due_fetches,
                    limit=room,
                    leave_out=frozenset(job.claim for job in self._taken.values()),
                    leave_out_hosts=self._crowded,
                )
                self._is_behind = len(jobs) == room
                self.begin(jobs)
            if self._is_busy:
                # Each commit wakes, our own as well: there is enough to do without looking that often.
                await asyncio.sleep(_BUSY_PAUSE)
            await wait_for(self._due, following)

    def _start(self) -> None:
        while self._has_places and (host := self._next_host()) is not None:
            jobs = self._waiting.pop(host)
            job = jobs.popleft()
            if jobs:
                # Behind the others: it is their turn.
                self._waiting[host] = jobs
            if self._taken.get(job.key) is not job:
                # The instance has registered again since.
                continue
            self._running[host] += 1
            self._group.create_task(self._fetch(job), name=f"fetch {job.instance.id}")

    @property
    def _has_places(self) -> bool:
        return self._running.total() < self._fetcher.config.concurrency

    def _next_host(self) -> str | None:
        return next((host for host in self._waiting if self._running[host] < self._limit(host)), None)

    @property
    def _is_busy(self) -> bool:
        """Whether more can be fetched than there are places for."""
        return any(host not in self._hanging for host in self._waiting)

    def _limit(self, host: str) -> int:
        per_host = self._fetcher.config.per_host
        return max(1, per_host // _CAUTION) if host in self._hanging else per_host

    @property
    def _crowded(self) -> frozenset[str]:
        """The hosts with so many waiting jobs that no more are taken."""
        return frozenset(host for host, jobs in self._waiting.items() if len(jobs) >= self._limit(host))

    async def _fetch(self, job: FetchJob) -> None:
        host = job.instance.address
        outcome = await self._outcome(job)
        self._note(host, outcome)
        self._running[host] -= 1
        if not self._running[host]:
            del self._running[host]
        await self._outcomes.put((job, outcome))
        self._start()
        if self._is_behind and self._has_places:
            self._due.set()

    async def _outcome(self, job: FetchJob) -> Outcome:
        try:
            return await self._fetcher.fetch(job.instance, etag=job.etag)
        except ManifestError as exc:
            instance = job.instance
            logger.warning("manifest rejected module=%s instance=%s: %s", instance.module, instance.id, exc)
            return exc
        except Exception as exc:
            # One odd module must not end the daemon: it is told that the fault is ours.
            logger.exception("fetch failed unexpectedly instance=%s", job.instance.id)
            return ManifestError("internal-error", f"Lictor failed to fetch it: {exc!r}")

    def _note(self, host: str, outcome: Outcome) -> None:
        if isinstance(outcome, ManifestError) and outcome.type == "timeout":
            self._hanging.add(host)
        else:
            self._hanging.discard(host)

    async def _write_outcomes(self) -> None:
        while True:
            outcomes = [await self._outcomes.get()]
            if self._is_busy and self._outcomes.qsize() < _BATCH:
                # A transaction costs as much as several outcomes do, and many more are on their way.
                await asyncio.sleep(_GATHERING)
            while not self._outcomes.empty() and len(outcomes) < _BATCH:
                outcomes.append(self._outcomes.get_nowait())
            await self._run_with_retry("write manifests", self._store.apply_fetches, outcomes)
            for job, _ in outcomes:
                if self._taken.get(job.key) is job:
                    del self._taken[job.key]
            asyncio.get_running_loop().call_later(0 if self._is_behind else _BEHIND_OWN, self._due.set)
