"""Watches one datacenter of Consul with a handful of blocking queries.

Four queries stay open whatever the number of services: `catalog/services` wakes on every change
of a registration, `health/state/critical` and `health/state/warning` on every change of health,
`catalog/nodes` on a node's address, and none of these is large even where the catalog is. What a
registration is made of is read over one connection more.

Source: https://developer.hashicorp.com/consul/api-docs/features/blocking
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from discovery.base import Change
from discovery.consul.client import AsyncConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.watch.queries import IndexWentBack, Queries
from discovery.consul.watch.watch_session import CONNECTIONS, WatchSession
from discovery.errors import RegistryUnavailable
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

# A watch that held this long was not part of the trouble that ended it.
_STEADY = 60.0
# Changes that nobody takes are held up to this number; then the watch waits.
_QUEUE = 1000


class ConsulWatcher:
    """Follows the modules of one Consul datacenter: the services that carry `tag`.

    `datacenter` is asked through the agent that `config` names; None is the agent's own. Times are
    in seconds: `wait` is how long Consul holds a query without news, `margin` how much later than
    that a loop counts as stuck and is restarted, `contact` how long it may be silent until it is
    asked whether it answers, `anti_entropy` the pause between two full comparisons, `max_staleness`
    how far a server may be behind its leader. Every instance's health
    is that of its checks and its node's, as Consul's own DNS sees it.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        tag: str = "module",
        datacenter: str | None = None,
        wait: float = 300.0,
        margin: float = 90.0,
        contact: float = 10.0,
        anti_entropy: float = 300.0,
        max_staleness: float = 10.0,
    ) -> None:
        self._config = config
        self._tag = tag
        self._datacenter = datacenter
        self._wait = wait
        self._margin = margin
        self._contact = contact
        self._anti_entropy = anti_entropy
        self._max_staleness = max_staleness

    @property
    def source(self) -> str:
        return f"consul/{self._datacenter}" if self._datacenter else "consul"

    async def watch(self) -> AsyncGenerator[Change]:
        """See `discovery.base.Watcher`. Raises RegistryUnavailable or RegistryRejected."""
        backoff = Backoff()
        while True:
            begun = time.monotonic()
            try:
                async with aclosing(self._watch_once()) as changes:
                    async for change in changes:
                        yield change
            except IndexWentBack as exc:
                logger.info("index went back source=%s path=%s: starting over", self.source, exc)
            # A proxy that drops the index would else be asked without end.
            if time.monotonic() - begun >= _STEADY:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    async def _watch_once(self) -> AsyncGenerator[Change]:
        queue: asyncio.Queue[Change | None] = asyncio.Queue(_QUEUE)
        async with AsyncConsulClient(self._config, max_connections=CONNECTIONS) as client:
            running = asyncio.create_task(self._session(client, queue).run(), name=f"watch {self.source}")
            running.add_done_callback(lambda _: _tell_of_the_end(queue))
            try:
                while not (running.done() and queue.empty()):
                    change = await queue.get()
                    if change is not None:
                        yield change
            finally:
                running.cancel()
                await asyncio.wait({running})
            _raise_first(running.exception())

    def _session(self, client: AsyncConsulClient, queue: asyncio.Queue[Change | None]) -> WatchSession:
        queries = Queries(
            client,
            connections=CONNECTIONS,
            datacenter=self._datacenter,
            max_staleness=self._max_staleness,
            margin=self._margin,
        )
        return WatchSession(
            queries,
            queue,
            source=self.source,
            tag=self._tag,
            wait=self._wait,
            contact=self._contact,
            anti_entropy=self._anti_entropy,
        )


def _tell_of_the_end(queue: asyncio.Queue[Change | None]) -> None:
    """Wakes whoever waits for a change where none comes any longer."""
    # Nobody waits at one that is full.
    with suppress(asyncio.QueueFull):
        queue.put_nowait(None)


def _raise_first(exc: BaseException | None) -> None:
    """Raises what ended a watch, free of the group that it came in."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if exc is None:
        raise RegistryUnavailable("the watch ended by itself")
    raise exc
