"""Reads the settings that a command needs: environment in, checked values or every fault at once out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from discovery.errors import ConfigError

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig
    from web.settings import Settings


def load_settings(**overrides: Any) -> Settings:
    """Lictor's settings; options of the command line that are not None win over the environment."""
    from web.settings import Settings

    return Settings.load(**{name: value for name, value in overrides.items() if value is not None})


def load_all(
    environ: Mapping[str, str] = os.environ, **overrides: Any
) -> tuple[Settings, ConsulConfig | None]:
    """Lictor's settings, and how to reach Consul if that is one of the registries.

    Raises one ConfigError with the faults of both.
    """
    from discovery.consul.config import ConsulConfig

    faults: list[str] = []
    settings, consul = None, None
    try:
        settings = load_settings(**overrides)
    except ConfigError as exc:
        faults += exc.faults
    if settings is None or "consul" in settings.registries:
        try:
            consul = ConsulConfig.from_env(environ)
        except ConfigError as exc:
            faults += exc.faults
    if settings is None or faults:
        raise ConfigError(faults)
    return settings, consul


def refuse_faulty_webhooks(settings: Settings) -> None:
    """Raises ConfigError with every fault of the file that names the receivers of webhooks."""
    if settings.webhooks is not None:
        from manifest_cache.webhooks.config import WebhookFile

        WebhookFile(settings.webhooks).read()
