"""Reads the settings that a command needs, and reports every fault at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from discovery.errors import ConfigError

if TYPE_CHECKING:
    from discovery.registry import Registry
    from web.settings import Settings


def load_settings(**overrides: Any) -> Settings:
    """Lictor's settings; options of the command line that are not None win over the environment."""
    from web.settings import Settings

    return Settings.load(**{name: value for name, value in overrides.items() if value is not None})


def load_all(
    environ: Mapping[str, str] = os.environ, **overrides: Any
) -> tuple[Settings, tuple[Registry, ...]]:
    """Lictor's settings, and the registries that they name, configured.

    Raises one ConfigError with the faults of both.
    """
    from discovery.registries import configured
    from discovery.settings import DiscoverySettings

    try:
        settings = load_settings(**overrides)
    except ConfigError as exc:
        # The registries' own faults are worth telling too, though it is not known which are meant.
        try:
            configured(DiscoverySettings.model_construct(), environ)
        except ConfigError as others:
            raise ConfigError([*exc.faults, *others.faults]) from exc
        raise
    return settings, configured(settings, environ)


def refuse_faulty_webhooks(settings: Settings) -> None:
    """Raises ConfigError with every fault of the file that names the receivers of webhooks."""
    if settings.webhooks is not None:
        from manifest_cache.webhooks.config import WebhookFile

        WebhookFile(settings.webhooks).read()
