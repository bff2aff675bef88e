"""Runs one uninterrupted watch of a Consul datacenter."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial

from discovery.base import Change, Health, InstanceKey, ServiceInstance
from discovery.consul.call import ConsulResult
from discovery.consul.watch.anti_entropy import AntiEntropy, Watched
from discovery.consul.watch.catalog_state import CatalogState
from discovery.consul.watch.initial_scan import InitialScan
from discovery.consul.watch.metrics import WATCH_RESTARTS
from discovery.consul.watch.queries import (
    BlockingQuery,
    IndexWentBack,
    Queries,
    QueryTimedOut,
    node_path,
    service_path,
)
from discovery.consul.watch.read_queue import Node, Place, ReadQueue, Service
from discovery.errors import RegistryUnavailable

logger = logging.getLogger(__name__)

CONNECTIONS = 5
"""To Consul, at the most: one for each blocking query, and one for all that is read."""

_SIGN_OF_LIFE = 5.0
# Consul takes ten times as long to name all services or nodes as to name the checks that are unwell:
# from one query to the next, in seconds.
_SPACING = 0.025
# What is known to have changed is read, told and stored before all else is looked through.
_SETTLE = 0.05
# Longest pause between two searches, in seconds, after a long one.
_LONGEST_REST = 1.0
_LIVELIEST = 3
_REMEMBERED = 1000
# Fewer places than this are looked through sooner than anything else is asked.
_FEW = 10
# How many checks one list returns in the time that reading one node takes.
_CHECKS_A_PLACE = 64
# A loop that is restarted so often without any query being answered tells of a source that is lost.
_RESTARTS = 3


class WatchSession:
    """One watch; `run` ends by an exception: the source's, or IndexWentBack."""

    def __init__(
        self,
        queries: Queries,
        queue: asyncio.Queue[Change | None],
        *,
        source: str,
        tag: str,
        wait: float,
        contact: float,
        anti_entropy: float,
    ) -> None:
        self._queries = queries
        self._queue = queue
        self._source = source
        self._mirror = CatalogState(tag)
        self._to_read = ReadQueue()
        self._moved = asyncio.Event()
        self._searching = False
        self._untraced_change = False
        self._first_pass: set[str] | None = None
        self._incomplete: set[str] = set()
        self._recently_changed: dict[Place, None] = {}
        self._services_index = 0
        self._sought_index: int | None = None
        self._found = False
        self._told_all = False
        self._told_at = 0.0
        self._told_doubt: str | None = None
        self._watches = self._make_watches(wait)
        self._contact = contact
        self._anti_entropy = anti_entropy

    def _make_watches(self, wait: float) -> dict[str, Watched]:
        mirror = self._mirror

        def of_state(query: BlockingQuery, state: Health) -> Watched:
            return Watched(query, partial(self._take_state, state), partial(mirror.differs_in_checks, state))

        def query(path: str, *, spacing: float = 0.0) -> BlockingQuery:
            return BlockingQuery(self._queries, f"/v1/{path}", wait, spacing=spacing)

        warning, critical = query("health/state/warning"), query("health/state/critical")
        services, nodes = (query(path, spacing=_SPACING) for path in ("catalog/services", "catalog/nodes"))
        return {
            "critical": of_state(critical, Health.CRITICAL),
            "warning": of_state(warning, Health.WARNING),
            "services": Watched(services, self._take_services, mirror.differs_in_names),
            "nodes": Watched(nodes, self._take_nodes, mirror.differs_in_addresses),
        }

    async def run(self) -> None:
        comparison = AntiEntropy(
            self._queries,
            self._mirror,
            self._watches.values(),
            tell=self._emit,
            is_settled=lambda: self._is_settled,
            every=self._anti_entropy,
        )
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            name: partial(self._watch, watched) for name, watched in self._watches.items()
        }
        loops |= {
            "read": self._read_places,
            "search": self._search,
            "contact": self._probe_when_idle,
            "anti-entropy": comparison.run,
        }
        await self._scan()
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(self._guarded(name, loop), name=f"{name} of {self._source}")

    async def _guarded(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Runs a loop; one that is stuck in a query is begun again."""
        while True:
            try:
                return await loop()
            except QueryTimedOut as exc:
                WATCH_RESTARTS.labels(name).inc()
                logger.warning("stuck and restarted source=%s loop=%s: %s", self._source, name, exc)
                if self._queries.stalls >= _RESTARTS:
                    raise RegistryUnavailable(f"Consul does not answer: {exc}") from exc

    async def _scan(self) -> None:
        """Learns all that there is in few queries, where that is possible; else the first pass does."""
        watches = {name: watched.query for name, watched in self._watches.items()}
        if await InitialScan(self._queries, self._mirror, watches, CONNECTIONS).make():
            self._first_pass = self._mirror.unread
            self._services_index = watches["services"].index
            self._to_read.add_urgent(map(Service, self._first_pass))
            await self._emit(())

    # What is watched

    async def _watch(self, watched: Watched) -> None:
        async with aclosing(watched.query.answers()) as answers:
            async for answer, moved in answers:
                await watched.take(answer, moved)
                if not self._queries.is_doubtful(watched.query.path):
                    # What was read in a time of doubt may be another by now, and no index tells.
                    self._to_read.add_background(map(Service, self._incomplete))

    async def _take_state(self, state: Health, answer: ConsulResult, moved: bool) -> None:
        worse, to_read = self._mirror.apply_checks(state, answer.data, answer.index)
        self._to_read.add_urgent(map(Service, to_read))
        await self._emit(worse)

    async def _take_nodes(self, answer: ConsulResult, moved: bool) -> None:
        before = self._mirror.nodes
        altered = self._mirror.apply_nodes(answer.data, answer.index)
        if before:
            # Whoever looked through the nodes meanwhile did not know of these.
            self._to_read.add_next(map(Node, self._mirror.nodes - before))
        await self._emit(altered)

    async def _take_services(self, answer: ConsulResult, moved: bool) -> None:
        renamed, gone = self._mirror.apply_catalog(answer.data)
        if self._first_pass is None:
            self._first_pass = set(self._mirror.names)
        self._first_pass -= gone.keys()
        self._to_read.add_urgent(map(Service, renamed))
        for name in gone:
            self._incomplete.discard(name)
            self._queries.forget(service_path(name))
        if moved or renamed or gone:
            if not (renamed or gone):
                self._untraced_change = True
                # What changed most recently is read at once, whatever search is under way.
                self._to_read.add_guess(self._most_recently_changed())
            self._move(answer.index)
        await self._emit((), [key for keys in gone.values() for key in keys])

    def _move(self, index: int) -> None:
        """Has searched for what is behind an index of `catalog/services`."""
        # If the index was the next one, what was written at it is most likely all there is.
        follows = index == self._services_index + 1 and not self._moved.is_set()
        self._sought_index, self._found = (index if follows else None), False
        self._services_index = index
        self._moved.set()

    # What is read

    async def _search(self) -> None:
        """Looks for what else may be behind an index that moved, see `_rescan`."""
        while True:
            await self._moved.wait()
            await self._to_read.wait_idle()
            # Before anything is awaited: until all was looked through, nothing is settled.
            self._searching = True
            self._moved.clear()
            unnamed, self._untraced_change = self._untraced_change, False
            found = self._found
            try:
                if found or not unnamed:
                    await asyncio.sleep(_SETTLE)
                begun = time.monotonic()
                await self._rescan(unnamed=unnamed, found=found)
                await self._to_read.wait_idle()
            except QueryTimedOut:
                self._untraced_change |= unnamed
                self._moved.set()
                raise
            finally:
                self._searching = False
            # Of a cluster that churns no more than two thirds of the time go into searching.
            await asyncio.sleep(min((time.monotonic() - begun) / 2, _LONGEST_REST))

    async def _rescan(self, *, unnamed: bool, found: bool) -> None:
        """Has read again whatever may have changed.

        `unnamed` if the names and their tags tell nothing of it, `found` if it has been read already,
        so that there is nothing else but what was written together with it.

        A registration that changed need not show in the names and their tags. What is on a node
        shows by its indexes which services were written, so the nodes are looked through, those
        where most was found recently first. Where that would take longer, one query over all checks
        comes first, as mostly these are rewritten with a registration, and the rest is looked
        through in passing if it named something. Where nodes outnumber the services, these are
        read instead.
        """
        nodes = self._nodes_by_liveliness()
        places: list[Place] = [Node(name) for name in nodes]
        if not places or len(places) > len(self._mirror.names):
            places = [Service(name) for name in self._mirror.names]
        if not found and len(places) > max(_FEW, self._mirror.instance_count / _CHECKS_A_PLACE):
            answer = await self._queries.read("/v1/health/state/any")
            written, others = self._mirror.apply_all_checks(answer.data, self._services_index)
            self._to_read.add_urgent(map(Service, [*written, *others]))
            # The others may be known: a check that turns is written, too.
            unnamed = unnamed and not written
        if unnamed and not found:
            self._to_read.add_next(places)
        else:
            self._to_read.add_background(places)

    def _nodes_by_liveliness(self) -> list[str]:
        nodes = self._mirror.nodes
        lively = (place.name for place in reversed(self._recently_changed) if isinstance(place, Node))
        return list(dict.fromkeys([*(name for name in lively if name in nodes), *nodes]))

    def _most_recently_changed(self) -> list[Place]:
        """Where it is likeliest that something changed: what changed last, and where."""
        names = (place.name for place in reversed(self._recently_changed) if isinstance(place, Service))
        services = [name for name in names if name in self._mirror.names][:_LIVELIEST]
        return [*map(Service, services), *map(Node, self._nodes_by_liveliness()[:_LIVELIEST])]

    def _note_recently_changed(self, *places: Place) -> None:
        for place in places:
            self._recently_changed.pop(place, None)
            self._recently_changed[place] = None
        for place in list(self._recently_changed)[:-_REMEMBERED]:
            del self._recently_changed[place]

    @property
    def _is_settled(self) -> bool:
        """Whether all that follows from what the watches said has been read."""
        return not (self._moved.is_set() or self._searching or self._to_read)

    async def _read_places(self) -> None:
        while True:
            place = await self._to_read.take()
            try:
                await self._read_place(place)
            except QueryTimedOut:
                self._to_read.add_urgent([place])
                raise
            finally:
                self._to_read.done()

    async def _read_place(self, place: Place) -> None:
        if isinstance(place, Node):
            self._take_node(place.name, await self._queries.read(node_path(place.name)))
            return
        answer = await self._queries.read(service_path(place.name))
        await self._resolve(place.name, answer)
        await self._take_service(place.name, answer)

    async def _resolve(self, name: str, answer: ConsulResult) -> None:
        """Looks again at states that say other than a service does.

        They may be newer, or have been answered while a right to read the service was missing.
        """
        for state in self._mirror.contradicted(name, answer.data, answer.index):
            await self._look_at(self._watches[state])

    def _take_node(self, name: str, answer: ConsulResult) -> None:
        # What is doubtful about it is so about the services that are read next as well.
        self._queries.forget(node_path(name))
        services = (answer.data or {}).get("Services") or {}
        changed = self._mirror.differing_on_node(name, services.values())
        if changed:
            self._note_recently_changed(Node(name))
        self._to_read.add_urgent(map(Service, changed))

    async def _take_service(self, name: str, answer: ConsulResult) -> None:
        if self._mirror.is_behind(name, answer.index):
            raise IndexWentBack(service_path(name))
        # A service that is named has instances: where none is seen, a right to see them is missing.
        if self._queries.is_doubtful(service_path(name)) or not answer.data:
            self._incomplete.add(name)
        else:
            self._incomplete.discard(name)
        before = self._mirror.written_last(name)
        altered, gone = self._mirror.apply_service(name, answer.data, answer.index)
        if self._first_pass is not None:
            self._first_pass.discard(name)
        written, node = self._mirror.written_last(name)
        if gone or (written, node) != before:
            self._note_recently_changed(*(Node(key.node) for key in gone), Node(node), Service(name))
        if self._sought_index is not None and (gone or written == self._sought_index):
            self._found = True
            self._to_read.drop_guesses()
        await self._emit(altered, gone)

    # What is asked besides

    async def _probe_when_idle(self) -> None:
        """Asks for what the watches ask for while they hear nothing: whether Consul answers, and still so.

        A token that gets its rights back moves no index: without this, what it may read again would
        be missing until the next comparison.
        """
        while True:
            silent = time.monotonic() - self._queries.answered_at
            if silent < self._contact:
                await asyncio.sleep((self._contact - silent) * random.uniform(1.0, 1.1))
                continue
            for watched in self._watches.values():
                await self._look_at(watched)
            self._to_read.add_background(map(Service, self._incomplete))
            await self._emit(())

    async def _look_at(self, watched: Watched) -> None:
        query = watched.query
        index, answered = query.index, query.answered
        answer = await self._queries.contact(query.path)
        if answer.index < index:
            raise IndexWentBack(query.path)
        if query.answered == answered and watched.differs(answer.data):
            await watched.take(answer, True)

    # What is told

    @property
    def _doubt(self) -> str | None:
        """Why what is told is not sure: what an answer that is sure again names has still to be read."""
        return self._queries.doubt or (None if self._is_settled else self._told_doubt)

    async def _emit(self, altered: Iterable[ServiceInstance], gone: Iterable[InstanceKey] = ()) -> None:
        present, gone, doubt = tuple(altered), tuple(gone), self._doubt
        if self._told_all:
            # Without news, a sign of life now and then is enough.
            silent = time.monotonic() - self._told_at
            if not (present or gone or doubt != self._told_doubt or silent >= _SIGN_OF_LIFE):
                return
            change = Change(source=self._source, present=present, gone=gone, doubt=doubt)
        elif not self._first_pass and self._first_pass is not None and self._mirror.has_states:
            self._told_all = True
            everything = tuple(self._mirror.instances())
            change = Change(source=self._source, present=everything, complete=True, doubt=doubt)
        else:
            return
        self._told_at, self._told_doubt = time.monotonic(), doubt
        await self._queue.put(change)
