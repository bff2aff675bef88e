"""Compares all that is known with Consul now and then: what the watches missed is mended and counted."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from typing import Any, NamedTuple

from discovery.base import InstanceKey, ServiceInstance
from discovery.consul.call import ConsulResult
from discovery.consul.watch.catalog_state import CatalogState
from discovery.consul.watch.metrics import ANTI_ENTROPY_REPAIRS
from discovery.consul.watch.queries import BlockingQuery, Queries, node_path, service_path

logger = logging.getLogger(__name__)

# Between two services, in seconds: the comparison may take its time.
_PACE = 0.02
# How long the watches have for telling by themselves what differs.
_GRACE = 5.0
# A cluster that churns without a pause for so long is read again and again by the watches anyway.
_PATIENCE = 60.0


class Watched(NamedTuple):
    """A blocking query, what takes its answers, and what sees whether an answer's data is news."""

    query: BlockingQuery
    take: Callable[[ConsulResult, bool], Awaitable[None]]
    differs: Callable[[Any], bool]


class AntiEntropy:
    """Compares `mirror` with Consul each `every` seconds, and mends it.

    A difference is no fault by itself: it may have come about just now. It is one if the watches
    still have not told it after a while, with all done that followed from what they told
    (`is_settled`).
    """

    def __init__(
        self,
        queries: Queries,
        mirror: CatalogState,
        watches: Collection[Watched],
        *,
        tell: Callable[[Iterable[ServiceInstance], Iterable[InstanceKey]], Awaitable[None]],
        is_settled: Callable[[], bool],
        every: float,
    ) -> None:
        self._queries = queries
        self._mirror = mirror
        self._watches = watches
        self._tell = tell
        self._is_settled = is_settled
        self._every = every
        self._grace = min(_GRACE, every)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every * random.uniform(0.9, 1.0))
            for watched in self._watches:
                await self._compare_watch(watched)
            await self._compare_services()

    async def _compare_watch(self, watched: Watched) -> None:
        query = watched.query
        before = query.answered
        answer = await self._queries.read(query.path)
        if not watched.differs(answer.data):
            return
        await asyncio.sleep(self._grace)
        answer = await self._queries.read(query.path)
        if query.answered == before and watched.differs(answer.data):
            self._count(1, query.path)
            await watched.take(answer, True)

    async def _compare_services(self) -> None:
        suspects: dict[str, object] = {}
        nodes = list(self._mirror.nodes)
        by_node = 0 < len(nodes) <= len(self._mirror.names)
        async for names in self._by_node(nodes) if by_node else self._by_service():
            suspects |= {name: self._mirror.reading(name) for name in names}
            await asyncio.sleep(_PACE)
        if suspects and await self._settled():
            for name, before in suspects.items():
                await self._mend(name, before)

    async def _by_node(self, nodes: Iterable[str]) -> AsyncGenerator[Collection[str]]:
        """The names of services that differ, node by node."""
        for node in nodes:
            data = (await self._queries.read(node_path(node))).data or {}
            yield self._mirror.differing_on_node(node, (data.get("Services") or {}).values())

    async def _by_service(self) -> AsyncGenerator[Collection[str]]:
        """The same, service by service."""
        for name in sorted(self._mirror.names):
            answer = await self._queries.read(service_path(name))
            yield [name] if self._mirror.differing(name, answer.data) else []

    async def _settled(self) -> bool:
        """Waits until the watches had their chance; whether they came to rest."""
        deadline = time.monotonic() + _PATIENCE
        await asyncio.sleep(self._grace)
        while not self._is_settled():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(self._grace / 10)
        return True

    async def _mend(self, name: str, before: object) -> None:
        answer = await self._queries.read(service_path(name))
        if self._mirror.reading(name) is not before or self._mirror.is_behind(name, answer.index):
            return
        missed = self._mirror.differing(name, answer.data)
        altered, gone = self._mirror.apply_service(name, answer.data, answer.index)
        if missed:
            self._count(len(missed), ", ".join(sorted("/".join(key) for key in missed)))
        await self._tell(altered, gone)

    def _count(self, number: int, what: str) -> None:
        ANTI_ENTROPY_REPAIRS.inc(number)
        logger.warning("the watches missed %d differences from Consul, mended now: %s", number, what)
