"""Elects the one synchronizer that leads, and gives it a fenced database.

What counts is the row `leadership`: whoever takes it gets a token, and writes with an older token
are refused (`FencedDatabase`), so that a leader which was paused does no harm. The leader renews the
row every few seconds, and holds what locks it can get: Consul's, and the database's own. A candidate
takes the lead if nobody has it, if it gets a lock that the leader is known to have held (so the
leader has lost it), or if the leader was silent for too long. The locks make that quick; without any
of them the silence is enough.

Source: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from discovery.registry import RegistryLock
from discovery.timing.backoff import Backoff
from manifest_cache.db_thread import WriterThread
from manifest_cache.leader import database_lock
from manifest_cache.leader.lease import Lease
from manifest_cache.metrics import LEADER, LEADERSHIP_CHANGES
from manifest_cache.storage.database import Database, Fenced, FencedDatabase, StoreError, StoreUnavailable
from manifest_cache.storage.models import LeadershipRow

logger = logging.getLogger(__name__)

Lead = Callable[[FencedDatabase], Awaitable[None]]
"""What a leader does, until it is cancelled or raises Fenced; all that it writes goes to that database."""

RENEW_EVERY = 2.0
"""Seconds between two renewals of a leader that has nothing else to write."""
PATIENCE = 10.0
"""Seconds of silence after which a leader is taken for dead, whatever locks it holds."""

_LOOK_EVERY = 0.5
_CLOSING = 0.5
_DATABASE = "database"


def own_name() -> str:
    """A name for this process that no other one has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


class Election:
    """One candidate. `registry_lock` is None where no registry has one; the database must have the schema."""

    def __init__(self, database: Database, registry_lock: RegistryLock | None, name: str) -> None:
        self._database = database
        self._registry_lock = registry_lock
        self._name = name
        self._lease = Lease(database)
        self._lock = database_lock.for_database(database)
        self._silence = _LeaseExpiry()
        self._trouble = _Trouble()
        # Which locks the leader was seen to hold while this process led, and who leads else.
        self._held: set[str] = set()
        self._seen = LeadershipRow()
        self._fenced: FencedDatabase | None = None

    async def run(self, lead: Lead) -> None:
        """Stands by and leads by turns until cancelled; raises SchemaMismatch, and what `lead` raises."""
        self._thread = WriterThread("lictor leadership")
        locking = asyncio.create_task(self._keep_registry_lock(), name="registry lock")
        try:
            while True:
                await self._lead(await self._stand_by(), lead)
        finally:
            # Before Consul's lock is let go, by which another would take it for lost. Where the database
            # does not serve, the next leader waits for the lease to run out.
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self._thread.call(self._stand_down)
            locking.cancel()
            await asyncio.gather(locking, return_exceptions=True)
            self._thread.close(0)

    async def _keep_registry_lock(self) -> None:
        if self._registry_lock is not None:
            try:
                await self._registry_lock.run()
            except Exception:
                logger.exception("Consul's lock is not used any more, because of an error")

    async def _stand_by(self) -> FencedDatabase:
        """Waits until nobody leads, and takes the lead."""
        told = ""
        while True:
            try:
                fenced = await self._thread.call(self._try_to_lead)
                self._trouble.is_over()
            except StoreUnavailable as exc:
                await asyncio.sleep(self._trouble.pause("see who leads", exc))
                continue
            if fenced is not None:
                return fenced
            leader = self._seen
            if leader.holder and leader.holder != told:
                logger.info("standing by: holder=%s leads since=%s", leader.holder, leader.since)
                told = leader.holder
            if self._registry_lock is not None:
                # A lock that the leader does not hold tells nothing of it, and is the leader's to seek.
                if self._registry_lock.registry in leader.locks:
                    self._registry_lock.request(had_it=False)
                else:
                    self._registry_lock.release()
            await self._news(_LOOK_EVERY)

    def _try_to_lead(self) -> FencedDatabase | None:
        seen = self._seen = self._look()
        silent = self._silence.lasts(seen)
        why = self._takeover_reason(seen, silent)
        if why is None:
            return None
        try:
            self._fenced = self._lease.take(self._name, seen, silent=silent)
        finally:
            if self._fenced is None and _DATABASE in seen.locks:
                self._lock.release()
        if self._fenced is not None:
            logger.info("leading holder=%s token=%d: %s", self._name, self._fenced.token, why)
        return self._fenced

    def _look(self) -> LeadershipRow:
        try:
            return self._lease.look()
        except StoreUnavailable:
            # While the database is away nobody can renew anything.
            self._silence.forget()
            # It may be that there is no such table, which waiting does not mend.
            self._database.check_schema()
            raise

    def _takeover_reason(self, seen: LeadershipRow, silent: bool) -> str | None:
        """What makes the lead free for this process; None if it is not."""
        if seen.holder is None:
            return "nobody led"
        lock = self._registry_lock
        if lock is not None and lock.held and lock.registry in seen.locks:
            return f"{seen.holder} has lost its lock in {lock.registry.capitalize()}"
        if _DATABASE in seen.locks and self._lock.acquire():
            return f"{seen.holder} has lost its lock on the database"
        return f"{seen.holder} was silent for {PATIENCE:g} s" if silent else None

    async def _lead(self, fenced: FencedDatabase, lead: Lead) -> None:
        """Leads until another does."""
        LEADER.set(1)
        LEADERSHIP_CHANGES.inc()
        self._held.clear()
        if self._registry_lock is not None:
            self._registry_lock.request(had_it=True)
        tasks = [
            asyncio.ensure_future(lead(fenced)),
            asyncio.create_task(self._renew(fenced), name="renew the lease"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            LEADER.set(0)
            LEADERSHIP_CHANGES.inc()
        for result in results:
            if isinstance(result, Exception) and not _is_fenced(result):
                raise result
        logger.warning("another synchronizer has taken the lead, so this one stands by holder=%s", self._name)
        # Where nothing can be written the lease stays as it is: another has it.
        with suppress(StoreUnavailable):
            await self._thread.call(self._stand_down)

    async def _renew(self, fenced: FencedDatabase) -> None:
        trouble = _Trouble()
        while True:
            try:
                await self._thread.call(self._renew_once, fenced)
                trouble.is_over()
                await self._news(RENEW_EVERY)
            except StoreUnavailable as exc:
                await asyncio.sleep(trouble.pause("renew the lease", exc))

    def _renew_once(self, fenced: FencedDatabase) -> None:
        # One that was held is named for ever: whoever has got it since may lead.
        if self._lock.acquire():
            self._held.add(_DATABASE)
        if self._registry_lock is not None and self._registry_lock.held:
            self._held.add(self._registry_lock.registry)
        self._lease.renew(fenced, self._held)

    def _stand_down(self) -> None:
        """Lets go of the lead, if it is still there, and of the locks."""
        fenced, self._fenced = self._fenced, None
        try:
            if fenced is not None:
                with suppress(Fenced):
                    self._lease.release(fenced)
        finally:
            self._lock.release()

    async def _news(self, seconds: float) -> None:
        """Waits until the registry's lock is got or lost, at most `seconds`."""
        if self._registry_lock is None:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._registry_lock.changed.wait()
        self._registry_lock.changed.clear()


class _LeaseExpiry:
    """How long a leader has not renewed its lease, by this process's clock: clocks of machines differ."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()
        self._since = 0.0

    def forget(self) -> None:
        """Begins again with the next look."""
        self._last = ()

    def lasts(self, seen: LeadershipRow) -> bool:
        """Whether it has lasted too long, with what was seen now."""
        now, last = time.monotonic(), (seen.token, seen.renewed_at)
        if last != self._last:
            self._last, self._since = last, now
        return now - self._since > PATIENCE


class _Trouble:
    """A trouble with the database: told once, and the pauses between tries grow."""

    def __init__(self) -> None:
        self._backoff = Backoff(0.1, 5.0)

    def pause(self, what: str, exc: StoreUnavailable) -> float:
        level = logging.DEBUG if self._backoff.tries else logging.WARNING
        pause = self._backoff.next()
        logger.log(level, "cannot %s retry_in=%.1fs: %s", what, pause, exc)
        return pause

    def is_over(self) -> None:
        self._backoff.reset()


def _is_fenced(failure: Exception) -> bool:
    if isinstance(failure, ExceptionGroup):
        return failure.split(Fenced)[1] is None
    return isinstance(failure, Fenced)
