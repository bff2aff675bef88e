"""Describes the registry Consul."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from discovery.base import Lost, Watcher
from discovery.registry import Policy, Registry

if TYPE_CHECKING:
    from discovery.announce.road import Road, RoadOptions
    from discovery.consul.config import ConsulConfig
    from discovery.consul.lock import ConsulLock
    from discovery.registry.check_result import CheckResult
    from discovery.settings import DiscoverySettings

# Imported where they are used: a caller that needs only the name does not pay for all of Consul.


class ConsulRegistry(Registry):
    """Consul: watched by blocking queries, a source for each datacenter."""

    name = "consul"

    def __init__(self, settings: DiscoverySettings, config: ConsulConfig) -> None:
        self.config = config
        self._settings = settings

    @classmethod
    def configured(
        cls, settings: DiscoverySettings, environ: Mapping[str, str], given: Any | None = None
    ) -> Self:
        from discovery.consul.config import ConsulConfig

        return cls(settings, given or ConsulConfig.from_env(environ))

    @classmethod
    def road(cls, options: RoadOptions) -> Road:
        from discovery.consul.registrar import consul_road

        return consul_road(options)

    @property
    def policy(self) -> Policy:
        return Policy(self._settings.max_drop, self._settings.doubt)

    async def watchers(self, known: Collection[str]) -> AsyncGenerator[Watcher | Lost]:
        from discovery.consul.watch.datacenters import ConsulDatacenters
        from discovery.consul.watch.watcher import ConsulWatcher

        def watcher(datacenter: str | None) -> ConsulWatcher:
            return ConsulWatcher(
                self.config,
                tag=self._settings.module_tag,
                datacenter=datacenter,
                anti_entropy=self._settings.anti_entropy,
                max_staleness=self._settings.consul_max_staleness,
            )

        datacenters = ConsulDatacenters(self.config, self._settings.consul_datacenters, watcher)
        async with aclosing(datacenters.watchers(known)) as watchers:
            async for one in watchers:
                yield one

    def lock(self, holder: str) -> ConsulLock:
        from discovery.consul.lock import ConsulLock

        return ConsulLock(self.config, key=self._settings.leader_key, holder=holder)

    def check(self) -> Iterator[CheckResult]:
        from discovery.consul.doctor import check_consul

        yield from check_consul(self.config, self._settings)
