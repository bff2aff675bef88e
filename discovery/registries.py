"""The registries that there are: all that depends on which ones takes its names from here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from discovery.consul.registry import ConsulRegistry
from discovery.errors import ConfigError
from discovery.push.registry import PushRegistry
from discovery.registry import ConfirmedBy, Registry

if TYPE_CHECKING:
    from discovery.settings import DiscoverySettings

REGISTRIES: Mapping[str, type[Registry]] = {
    registry.name: registry for registry in (ConsulRegistry, PushRegistry)
}

ROADS = tuple(name for name, registry in REGISTRIES.items() if "road" in vars(registry))
"""The registries through which a module can register itself."""


def registry_of(source: str) -> str:
    """The name of the registry that a source belongs to.

    >>> registry_of("consul/dc2")
    'consul'
    """
    return source.partition("/")[0]


def confirmed_by(source: str) -> ConfirmedBy:
    """What says that an instance of this source is still there."""
    registry = REGISTRIES.get(registry_of(source))
    # A source of an earlier version, or of a later one, has no heartbeats here.
    return registry.confirmed_by if registry else "watch"


def configured(
    settings: DiscoverySettings,
    environ: Mapping[str, str] = os.environ,
    given: Mapping[str, Any] | None = None,
) -> tuple[Registry, ...]:
    """The registries that the settings name; `given` replaces what the environment says of one of them.

    Raises one ConfigError with the faults of all.
    """
    faults: list[str] = []
    registries: list[Registry] = []
    for name in settings.registries:
        try:
            registries.append(REGISTRIES[name].configured(settings, environ, (given or {}).get(name)))
        except ConfigError as exc:
            faults += exc.faults
    if faults:
        raise ConfigError(faults)
    return tuple(registries)
