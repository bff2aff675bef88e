"""Finds the modules that registries know, and registers modules there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from discovery.base import Health
    from discovery.consul.config import ConsulConfig
    from discovery.errors import (
        ConfigError,
        DiscoveryError,
        PermissionDenied,
        RegistryRejected,
        RegistryUnavailable,
    )
    from discovery.health.checks import Check, HTTPCheck, TCPCheck, TTLCheck
    from discovery.registration import Registration, register

__all__ = [
    "Check",
    "ConfigError",
    "ConsulConfig",
    "DiscoveryError",
    "HTTPCheck",
    "Health",
    "PermissionDenied",
    "Registration",
    "RegistryRejected",
    "RegistryUnavailable",
    "TCPCheck",
    "TTLCheck",
    "__version__",
    "register",
]

_HOMES = {
    "base": ("Health",),
    "health.checks": ("Check", "HTTPCheck", "TCPCheck", "TTLCheck"),
    "consul.config": ("ConsulConfig",),
    "errors": (
        "ConfigError",
        "DiscoveryError",
        "PermissionDenied",
        "RegistryRejected",
        "RegistryUnavailable",
    ),
    "registration": ("Registration", "register"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when first used: a program that needs a part does not pay for all of it.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
