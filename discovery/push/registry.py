"""Describes the registry push: modules register by HTTP with Lictor itself and send heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from discovery.registry import Policy, Registry

if TYPE_CHECKING:
    from discovery.announce.road import Road, RoadOptions
    from discovery.settings import DiscoverySettings


class PushRegistry(Registry):
    """Push: nothing is watched; each instance is there for as long as it sends heartbeats."""

    name = "push"
    confirmed_by = "lease"

    def __init__(self, settings: DiscoverySettings) -> None:
        self._settings = settings

    @classmethod
    def configured(
        cls, settings: DiscoverySettings, environ: Mapping[str, str], given: Any | None = None
    ) -> Self:
        return cls(settings)

    @classmethod
    def road(cls, options: RoadOptions) -> Road:
        from discovery.push.registrar import push_road

        return push_road(options)

    @property
    def policy(self) -> Policy:
        return Policy(self._settings.max_drop, self._settings.doubt)
