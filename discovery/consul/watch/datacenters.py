"""Decides which datacenters of Consul are followed, and makes a watcher for each."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from discovery.base import Lost, Watcher
from discovery.consul.call import ConsulResult
from discovery.consul.client import AsyncConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import DiscoveryError, PermissionDenied, RegistryRejected, RegistryUnavailable
from discovery.settings import ALL, LOCAL
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

SOURCE = "consul"
"""The agent's own datacenter as a source, whatever its name: so that following others renames nothing."""

# How often Consul is asked for datacenters that are new, in seconds.
_LOOK_AGAIN = 30.0


class ConsulDatacenters:
    """The datacenters that `wanted` names, `local` (the agent's own) or `all` that the agent knows.

    `make` makes the watcher of a datacenter, that of the agent's own being called None.
    """

    def __init__(
        self,
        config: ConsulConfig,
        wanted: Sequence[str],
        make: Callable[[str | None], Watcher],
        *,
        look_again: float = _LOOK_AGAIN,
    ) -> None:
        self._config = config
        self._wanted = tuple(wanted)
        self._make = make
        self._look_again = look_again
        self._followed: set[str] = set()

    async def watchers(self, known: Collection[str]) -> AsyncGenerator[Watcher | Lost]:
        """A watcher for each datacenter, as soon as it is known; ends once no other can come.

        Of the sources that are `known` from before it says which are not followed any longer, and
        that all are lost as long as Consul does not say which datacenter is its own.
        """
        known = {source for source in known if source.partition("/")[0] == SOURCE}
        if self._wanted == (LOCAL,):
            yield self._make(None)
            for lost in self._unfollowed(known, {SOURCE}):
                yield lost
            return
        async with aclosing(self._lists()) as lists:
            async for names in lists:
                if isinstance(names, Lost):
                    # Whoever is followed already tells by itself how it is.
                    for source in sorted({SOURCE, *known} if not self._followed else ()):
                        yield replace(names, source=source)
                    continue
                if self._wanted != (ALL,):
                    for lost in self._unfollowed(known, names):
                        yield lost
                for source in [source for source in names if source not in self._followed]:
                    self._followed.add(source)
                    yield self._make(None if source == SOURCE else names[source])

    async def _lists(self) -> AsyncGenerator[dict[str, str] | Lost]:
        """The datacenters to follow, again and again where more may come, or why they are not known."""
        backoff = Backoff()
        while True:
            try:
                yield await self._names()
            except DiscoveryError as exc:
                pause = backoff.next()
                level = logging.WARNING if backoff.tries == 1 else logging.DEBUG
                logger.log(level, "cannot learn Consul's datacenters retry_in=%.1fs: %s", pause, exc)
                yield Lost(source=SOURCE, reason=str(exc), retry_in=pause)
                await asyncio.sleep(pause)
                continue
            if self._wanted != (ALL,):
                return
            backoff.reset()
            await asyncio.sleep(self._look_again * random.uniform(0.9, 1.0))

    async def _names(self) -> dict[str, str]:
        """The names of the datacenters to follow, by source."""
        async with AsyncConsulClient(self._config, max_connections=1) as client:
            try:
                own = await _own(client)
                names: Iterable[str] = self._wanted
                if self._wanted == (ALL,):
                    names = [own, *_all(await client.catalog_datacenters())]
            except (TypeError, LookupError) as exc:
                raise RegistryUnavailable(
                    f"this is no answer of Consul's ({exc!r}): check CONSUL_HTTP_ADDR"
                ) from exc
        return {SOURCE if name == own else f"{SOURCE}/{name}": name for name in names}

    @staticmethod
    def _unfollowed(known: Collection[str], followed: Collection[str]) -> list[Lost]:
        reason = "its datacenter is not in LICTOR_CONSUL_DATACENTERS"
        return [
            Lost(source=source, reason=reason, retry_in=0)
            for source in sorted(set(known).difference(followed))
        ]


async def _own(client: AsyncConsulClient) -> str:
    """The name of the agent's own datacenter."""
    try:
        told = (await client.agent_self()).data["Config"]["Datacenter"]
    except PermissionDenied as exc:
        # A token that may read the catalog only: the nodes there name it as well.
        nodes = (await client.catalog_nodes()).data
        if not nodes:
            raise RegistryRejected(
                f"LICTOR_CONSUL_DATACENTERS needs a token with `agent:read` or `node:read`: {exc}"
            ) from exc
        told = nodes[0]["Datacenter"]
    return _name(told)


def _all(answer: ConsulResult) -> list[str]:
    """The names that Consul lists; raises TypeError where it does not."""
    if not isinstance(answer.data, list):
        raise TypeError(f"a list was expected, not {type(answer.data).__name__}")
    return [_name(told) for told in answer.data]


def _name(told: object) -> str:
    if not isinstance(told, str) or not told:
        raise TypeError(f"{told!r} is no name of a datacenter")
    return told
