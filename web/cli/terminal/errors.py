"""Turns expected failures into messages and exit statuses."""

from __future__ import annotations

import click

from discovery.errors import ConfigError, DiscoveryError, PermissionDenied


class Failure(click.ClickException):
    """Ends a command with a message on stderr and status 1."""


class WrongSettings(click.ClickException):
    """Ends a command with every fault of the settings at once, and status 2."""

    exit_code = 2

    def __init__(self, error: ConfigError) -> None:
        lines = ["wrong settings:", *(f"  {fault}" for fault in error.faults)]
        super().__init__("\n".join(lines))


def as_failure(exc: Exception) -> click.ClickException | None:
    """What to tell the user of an exception, or None if it is a fault of this program."""
    from manifest_cache.storage.database import SchemaMismatch, StoreError

    if isinstance(exc, ConfigError):
        return WrongSettings(exc)
    if isinstance(exc, SchemaMismatch):
        return Failure(str(exc))
    if isinstance(exc, StoreError):
        return Failure(f"{_database()} cannot be used: {exc}; `lictor doctor` shows what is wrong")
    if isinstance(exc, PermissionDenied):
        return Failure(f"{exc}; `lictor doctor` shows which rights are missing")
    if isinstance(exc, DiscoveryError):
        return Failure(str(exc))
    return None


def _database() -> str:
    """The database of the settings, by the address that an operator gave it."""
    from manifest_cache.settings import CacheSettings
    from manifest_cache.storage.database import Database

    try:
        return f"the database {Database(CacheSettings.load().database_url).url_safe}"
    except ConfigError:
        return "the database"
