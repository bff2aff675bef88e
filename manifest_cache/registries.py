"""What is followed: settings in; a watcher for each source out, and word of the sources that are not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from discovery.base import Lost, Watcher
from discovery.consul.config import ConsulConfig
from discovery.consul.watch.datacenters import ConsulDatacenters
from discovery.consul.watch.watcher import ConsulWatcher
from discovery.settings import DiscoverySettings


class Registries:
    """The registries that `settings` name and that are watched; the push registry is not.

    `consul` may be None where `consul` is not among them.
    """

    def __init__(self, settings: DiscoverySettings, consul: ConsulConfig | None) -> None:
        self._consul = None
        if "consul" in settings.registries:
            if consul is None:
                raise ValueError("the consul registry is followed, so a ConsulConfig is needed")

            def watcher(datacenter: str | None) -> ConsulWatcher:
                return ConsulWatcher(
                    consul,
                    tag=settings.module_tag,
                    datacenter=datacenter,
                    anti_entropy=settings.anti_entropy,
                    max_staleness=settings.consul_max_staleness,
                )

            self._consul = ConsulDatacenters(consul, settings.consul_datacenters, watcher)

    async def watchers(self, known: Collection[str]) -> AsyncGenerator[Watcher | Lost]:
        """A watcher for each source, as it becomes known; `known` are those of earlier runs."""
        if self._consul is not None:
            async with aclosing(self._consul.watchers(known)) as watchers:
                async for one in watchers:
                    yield one
