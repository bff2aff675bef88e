"""Time goes by; what is kept no longer is removed, in steps so small that nobody waits for them."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta

from discovery.timing.backoff import Backoff
from manifest_cache.db_thread import WriterThread
from manifest_cache.metrics import EVENTS_DELETED, MANIFESTS_COLLECTED, MODULES_FORGOTTEN
from manifest_cache.retention.events import drop_events
from manifest_cache.retention.modules import Forgetting
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.models import utc_now

logger = logging.getLogger(__name__)

_FIRST_ROUND = 5.0
_BETWEEN_ROUNDS = 300.0
# As long as there is more to do, the database is left to others for most of the time.
_BETWEEN_STEPS = 0.1
_ROWS = 250
_MODULES = 10
_CLOSING = 0.2


class Housekeeping:
    """The rounds in which the synchronizer removes what is old."""

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._database = database
        self._settings = settings
        self._forgetting = Forgetting(database, settings)

    async def run(self) -> None:
        """Goes a round soon, and then every few minutes, until it is cancelled."""
        # A thread of its own: what is being written down must not wait for this.
        thread = WriterThread("lictor housekeeping")
        backoff = Backoff(shortest=_FIRST_ROUND, longest=_BETWEEN_ROUNDS)
        pause = _FIRST_ROUND
        try:
            while True:
                await asyncio.sleep(pause)
                try:
                    more = await thread.call(self.step)
                except StoreUnavailable as exc:
                    pause = backoff.next()
                    logger.warning("cannot remove what is old retry_in=%.1fs: %s", pause, exc)
                else:
                    backoff.reset()
                    pause = _BETWEEN_STEPS if more else _BETWEEN_ROUNDS * random.uniform(0.8, 1.2)
        finally:
            thread.close(_CLOSING)

    def step(self) -> bool:
        """One short transaction of each kind of work; whether there may be more to do."""
        steps = [self._forget_modules(), self._drop_tombstones(), self._drop_events()]
        return any(steps)

    def _forget_modules(self) -> bool:
        names = self._forgetting.forget_old(_MODULES)
        if names:
            logger.info("forgotten, for they had no instances: %s", ", ".join(names))
            MODULES_FORGOTTEN.inc(len(names))
        return len(names) == _MODULES

    def _drop_tombstones(self) -> bool:
        return self._forgetting.drop_tombstones(_ROWS) == _ROWS

    def _drop_events(self) -> bool:
        before = utc_now() - timedelta(seconds=self._settings.event_retention)
        dropped = drop_events(self._database, before, _ROWS)
        EVENTS_DELETED.inc(dropped.events)
        MANIFESTS_COLLECTED.inc(dropped.manifests)
        return dropped.events > 0
