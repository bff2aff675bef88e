"""Sends events to the receivers that a file names.

Each receiver has a task of its own and gets its events one after the other, each until it takes it:
at least once, and in the order of the log.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from discovery.errors import ConfigError
from manifest_cache.db_thread import WriterThread
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, StoreError
from manifest_cache.webhooks.config import Receiver, WebhookFile
from manifest_cache.webhooks.delivery import DeliveryWorker, WebhookSender
from manifest_cache.webhooks.positions import Place, Positions, PositionWriter

logger = logging.getLogger(__name__)

_LOOK_AT_FILE = 2.0
_CLOSING = 0.5


class _Running(NamedTuple):
    courier: DeliveryWorker
    task: asyncio.Task[None]


class Webhooks:
    """All receivers. `database` is that of the leader: whatever its fence raises ends `run`."""

    def __init__(self, database: Database, settings: CacheSettings) -> None:
        self._settings = settings
        self._positions = Positions(database)
        self._couriers: dict[str, _Running] = {}

    def notice(self) -> None:
        """Something was committed."""
        for running in self._couriers.values():
            running.courier.news.set()

    async def run(self) -> None:
        """Delivers until it is cancelled; nothing is done where no file is set."""
        if self._settings.webhooks is None:
            return
        # A thread of its own: what is learnt of registries must not wait for this.
        self._thread = WriterThread("lictor webhooks")
        self._bookmarks = PositionWriter(self._positions, self._thread)
        self._tls = ssl.create_default_context()
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._bookmarks.run(), name="webhook positions")
                await self._keep_in_step(WebhookFile(self._settings.webhooks))
        finally:
            # Where the database does not serve, a little is delivered once more by the next leader.
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self._bookmarks.save()
            self._thread.close(0)

    async def _keep_in_step(self, file: WebhookFile) -> None:
        """Reads the file now and whenever it changes."""
        while True:
            try:
                receivers = await asyncio.to_thread(file.read)
            except ConfigError as exc:
                for fault in exc.faults:
                    logger.error("%s; the receivers stay as they were", fault)
            else:
                await self._employ(receivers)
            while not await asyncio.to_thread(lambda: file.changed):  # noqa: ASYNC110 - files tell nobody
                await asyncio.sleep(_LOOK_AT_FILE)

    async def _employ(self, receivers: Sequence[Receiver]) -> None:
        """Has a courier run for each of these; one whose receiver is as it was goes on."""
        wanted = {receiver.name: receiver for receiver in receivers}
        for name, running in list(self._couriers.items()):
            if running.task.done() or wanted.get(name) != running.courier.receiver:
                running.task.cancel()
                await asyncio.wait([running.task])
                del self._couriers[name]
        await self._bookmarks.save()
        places = await self._thread.run_with_retry(
            "read positions of webhooks", self._positions.begin, [*wanted]
        )
        for name in wanted.keys() - self._couriers.keys():
            self._start(wanted[name], places[name])
        logger.info("webhooks go to %s", ", ".join(f"{one.name} ({one.origin})" for one in receivers))

    def _start(self, receiver: Receiver, place: Place) -> None:
        if place.is_new:
            logger.info("new receiver=%s gets what happens after index=%d", receiver.name, place.position)
        courier = DeliveryWorker(
            receiver,
            place,
            post=WebhookSender(receiver, self._settings, self._tls),
            positions=self._positions,
            bookmarks=self._bookmarks,
            thread=self._thread,
            longest_pause=self._settings.webhook_retry_max,
        )
        task = self._group.create_task(courier.run(), name=f"webhooks to {receiver.name}")
        self._couriers[receiver.name] = _Running(courier, task)
