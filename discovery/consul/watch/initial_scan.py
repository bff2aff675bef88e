"""Reads a datacenter for the first time, node by node.

Most datacenters have far fewer nodes than services, so this takes far fewer queries than reading
service by service, and what it does not tell, the checks, two small queries do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from discovery.base import Health
from discovery.consul.call import ConsulResult
from discovery.consul.watch.catalog_state import CatalogState
from discovery.consul.watch.queries import BlockingQuery, Queries, QueryTimedOut, node_path
from discovery.errors import RegistryUnavailable

_STATES = (Health.CRITICAL, Health.WARNING)


class InitialScan:
    """Fills a mirror that is empty, over `connections` at once; `watches` go on from where it ends."""

    def __init__(
        self, queries: Queries, mirror: CatalogState, watches: Mapping[str, BlockingQuery], connections: int
    ) -> None:
        self._queries = queries
        self._mirror = mirror
        self._watches = watches
        self._connections = connections

    async def make(self) -> bool:
        """Whether it was made: not where services are fewer than nodes, or an answer is not whole.

        Raises RegistryUnavailable; what the mirror holds then is worth nothing.
        """
        services, nodes = await self._ask("services"), await self._ask("nodes")
        if self._queries.doubt or not self._mirror.is_smaller_by_node(services.data, nodes.data):
            return False
        self._mirror.apply_catalog(services.data)
        self._mirror.apply_nodes(nodes.data, nodes.index)
        waiting = iter(sorted(self._mirror.nodes))
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._read(waiting), name=f"survey {number}")
        # Only now: so they are at least as new as all that was read before.
        states = {state: await self._ask(state) for state in _STATES}
        for state, answer in states.items():
            self._mirror.apply_checks(state, answer.data, answer.index)
            self._watches[state].start_from(answer.index)
        self._watches["services"].start_from(services.index)
        self._watches["nodes"].start_from(nodes.index)
        return True

    async def _ask(self, watch: str) -> ConsulResult:
        return await self._answer(self._watches[watch].path)

    async def _read(self, waiting: Iterator[str]) -> None:
        for node in waiting:
            answer = await self._answer(node_path(node))
            if self._queries.doubt:
                raise RegistryUnavailable(self._queries.doubt)
            self._mirror.apply_node(answer.data or {}, answer.index)

    async def _answer(self, path: str) -> ConsulResult:
        try:
            return await self._queries.read(path)
        except QueryTimedOut as exc:
            # What was taken so far would be old by the time that all is.
            raise RegistryUnavailable(f"Consul does not answer: {exc}") from exc
