"""Sends one watch's queries to Consul and accepts only answers that are fresh enough.

A server that is overloaded or fails is asked again after growing pauses before it counts as lost;
the answer of one that has fallen behind its leader is replaced by the leader's own.

Source: https://developer.hashicorp.com/consul/api-docs/features/consistency
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from urllib.parse import quote

from discovery.consul.call import Consistency, ConsulResult
from discovery.consul.client import AsyncConsulClient
from discovery.consul.watch.metrics import CONSUL_QUERIES, CONSUL_QUERIES_IN_FLIGHT
from discovery.errors import DiscoveryError, RegistryUnavailable
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

_TRIES = 5
# A server may ask for a pause of any length: it is asked again no later than this, in seconds.
_LONGEST_PAUSE = 30.0
# Between two queries of one watch, in seconds: what changes together is answered together, and what
# was told is on its way before the next is asked for.
_SHORTEST_FLOOR = 0.004
_LONGEST_FLOOR = 2.0
# Whatever else the process is busy with delays no watch by more than this, in seconds.
_LONGEST_FOR_WORK = 0.1
# The share of a core that work which goes on and on may take, and how many seconds of it may be more.
_SHARE = 0.75
_BURST = 0.05
# From one query to the next, in seconds, where its answer told no news.
_NO_NEWS = 0.025
# What one watch may bring in while its answers come without a pause, in bytes per second.
_INFLOW = 10_000_000


class IndexWentBack(Exception):
    """Consul forgot: what is known of it is worth nothing any longer."""


class QueryTimedOut(Exception):
    """A query took longer than it may, though nothing broke."""


class Queries:
    """What one watch asks, over the `connections` that `client` has for it.

    `datacenter` None is the agent's own. A server may be `max_staleness` seconds behind its leader.
    A query that takes `margin` seconds longer than Consul may hold it raises QueryTimedOut. `doubt` says
    why answers are not to be believed where they tell of absence, None if nothing is wrong.
    """

    def __init__(
        self,
        client: AsyncConsulClient,
        *,
        connections: int,
        datacenter: str | None,
        max_staleness: float,
        margin: float,
    ) -> None:
        self.stalls = 0
        self.answered_at = time.monotonic()
        self._client = client
        # The client waits for a free connection no longer than for an answer, as if Consul were at fault.
        self._places = asyncio.Semaphore(connections)
        self._datacenter = datacenter
        self._max_staleness = max_staleness
        self._margin = margin
        self._doubts: dict[str, str] = {}
        self._resume_at = 0.0

    @property
    def doubt(self) -> str | None:
        return next(iter(self._doubts.values()), None)

    def is_doubtful(self, path: str) -> bool:
        return path in self._doubts

    def forget(self, path: str) -> None:
        """Drops what was doubtful about a path that is not asked for any longer."""
        self._doubts.pop(path, None)

    async def read(self, path: str) -> ConsulResult:
        """The leader's word of now."""
        return self._note_completeness(path, await self._query_with_retry(path, kind=_kind(path)))

    async def contact(self, path: str) -> ConsulResult:
        """As `read`, counted apart: asked to see whether Consul answers."""
        return self._note_completeness(path, await self._query_with_retry(path, kind="contact"))

    async def block(self, path: str, index: int, wait: float) -> ConsulResult:
        """What any server says once its index passes `index`, or after `wait` seconds.

        An index of 0 does not wait. If that server has lost touch with its leader, this is what the
        leader says instead.
        """
        kind = _kind(path)
        answer = await self._query_with_retry(path, kind=kind, index=index, wait=wait, consistency="stale")
        if answer.known_leader is False or (answer.last_contact or 0.0) > self._max_staleness:
            answer = await self._query_with_retry(path, kind=kind)
        return self._note_completeness(path, answer)

    def _note_completeness(self, path: str, answer: ConsulResult) -> ConsulResult:
        if answer.known_leader is False:
            self._doubts[path] = "Consul has no leader"
        elif answer.filtered_by_acls:
            self._doubts[path] = "Consul left out of its answer what the token has no right to read"
        else:
            self._doubts.pop(path, None)
        return answer

    async def _query_with_retry(
        self,
        path: str,
        *,
        kind: str,
        index: int = 0,
        wait: float = 0.0,
        consistency: Consistency = "default",
    ) -> ConsulResult:
        """Asks until there is an answer, but neither often nor long."""
        backoff = Backoff()
        spent = 0.0
        while True:
            await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
            begun = time.monotonic()
            try:
                return await self._ask(path, kind, index, wait, consistency)
            except RegistryUnavailable as exc:
                # The first try may have been held for minutes before it failed.
                spent += time.monotonic() - begun if backoff.tries else 0.0
                if backoff.tries == _TRIES - 1 or spent >= self._client.config.timeout:
                    raise
                pause = self._pause(exc, backoff)
                logger.debug("query failed path=%s retry_in=%.1fs: %s", path, pause, exc)
            # To ask without waiting tells sooner whether it answers again.
            index = 0
            await asyncio.sleep(pause)

    def _pause(self, exc: RegistryUnavailable, backoff: Backoff) -> float:
        pause = backoff.next()
        if exc.status in (429, 503):
            # It has too much to do: whatever else this watch would ask waits as well.
            asked = min(exc.retry_after or 0.0, _LONGEST_PAUSE) * random.uniform(1.0, 1.1)
            self._resume_at = max(self._resume_at, time.monotonic() + max(pause, asked))
        return pause

    async def _ask(
        self, path: str, kind: str, index: int, wait: float, consistency: Consistency
    ) -> ConsulResult:
        limit = (wait * 17 / 16 if index else 0.0) + self._margin
        outcome = "cancelled"
        try:
            async with self._places, asyncio.timeout(limit):
                with CONSUL_QUERIES_IN_FLIGHT.track_inprogress():
                    answer = await self._client.query(
                        path,
                        index=index or None,
                        wait=wait if index else None,
                        consistency=consistency,
                        dc=self._datacenter,
                    )
        except TimeoutError as exc:
            outcome = "stalled"
            self.stalls += 1
            raise QueryTimedOut(f"no answer to {path} within {limit:g} s") from exc
        except DiscoveryError as exc:
            outcome = "failed" if isinstance(exc, RegistryUnavailable) else "refused"
            raise
        else:
            outcome = "ok"
        finally:
            if outcome != "cancelled":
                CONSUL_QUERIES.labels(kind, outcome).inc()
        self.stalls = 0
        self.answered_at = time.monotonic()
        return answer


class BlockingQuery:
    """One path that is watched; what is known of its index outlasts a single loop.

    `spacing` is the least time from one query to the next, in seconds.
    """

    def __init__(self, queries: Queries, path: str, wait: float, *, spacing: float = 0.0) -> None:
        self.path = path
        self.index = 0
        self.answered = 0
        self._queries = queries
        self._wait = wait
        self._floor = QueryPacer(spacing)
        self._waits = False

    def start_from(self, index: int) -> None:
        """Takes it that the answer at this index is known: the first one told is news."""
        self.index, self._waits = index, index > 0

    async def answers(self) -> AsyncGenerator[tuple[ConsulResult, bool]]:
        """Its answers, the first at once unless it is known, and whether the index moved; without end.

        An answer at the same index can be another all the same: a token's rights move no index.
        Raises IndexWentBack.
        """
        waits, self._waits = self._waits, False
        used = time.process_time()
        while True:
            asked = time.monotonic()
            # Jitter: watches that began together do not all come back together.
            wait = self._wait * random.uniform(0.9, 1.0)
            answer = await self._queries.block(self.path, self.index if waits else 0, wait)
            if answer.index < self.index:
                answer = await self._confirmed()
            moved = answer.index != self.index or self.index == 0
            # An index of 0 would turn the next query into one that does not block.
            self.index, waits = max(answer.index, 1), True
            self.answered += 1
            yield answer, moved
            used_before, used = used, time.process_time()
            took, busy = time.monotonic() - asked, used - used_before
            await asyncio.sleep(self._floor.after(took, busy=busy, size=answer.size, moved=moved))

    async def _confirmed(self) -> ConsulResult:
        """The leader's answer to what a server that may only be behind answered."""
        answer = await self._queries.read(self.path)
        if answer.index < self.index:
            raise IndexWentBack(self.path)
        return answer


class QueryPacer:
    """The pause between two queries of one watch.

    After quiet there is next to none, and a few changes that come at once are each taken as they
    come. While answers come without a break it makes up for what they cost: so that the work takes no
    more than three quarters of a core, and no more than a few megabytes a second come in. Changes are
    then taken together rather than fallen behind of. `spacing` is the least time from one query to the
    next, in seconds.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self._spacing = spacing
        self._pause = 0.0
        # By how much the work of the last rounds was more than its share of their time.
        self._excess = 0.0

    def after(self, took: float, *, busy: float, size: int, moved: bool = True) -> float:
        """The pause after an answer of `size` bytes that was asked for and taken in `took` seconds.

        `busy` is how long a processor has worked for the process since the answer before it, `moved`
        whether the index is another than that one's.
        """
        spacing = self._spacing if moved else max(self._spacing, _NO_NEWS)
        excess = self._excess + busy - _SHARE * (self._pause + took)
        self._excess = min(max(0.0, excess), _BURST + _SHARE * _LONGEST_FOR_WORK)
        at_work = (self._excess - _BURST) / _SHARE
        pause = max(_SHORTEST_FLOOR, at_work, spacing - took, size / _INFLOW - took)
        self._pause = min(pause, _LONGEST_FLOOR)
        return self._pause


def service_path(name: str) -> str:
    """Where the instances of a service are, with their nodes and checks."""
    return f"/v1/health/service/{quote(name, safe='')}"


def node_path(name: str) -> str:
    """Where the services of a node are, without their checks."""
    return f"/v1/catalog/node/{quote(name, safe='')}"


def _kind(path: str) -> str:
    """What a path asks for, of a handful of words."""
    _, _, area, what, *_ = path.split("/")
    return path.rpartition("/")[2] if (area, what) == ("health", "state") else what
