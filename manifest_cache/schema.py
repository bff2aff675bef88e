"""The schema's revisions: what the database has, what this program needs, the way between (Alembic)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_MIGRATIONS = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    # Alembic interpolates percent signs, which a path may hold.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


_SCRIPTS = ScriptDirectory.from_config(_config())

REVISIONS = tuple(script.revision for script in reversed(list(_SCRIPTS.walk_revisions())))
"""Every revision that this program knows, oldest first."""

HEAD = REVISIONS[-1]
"""The revision that this program works with."""


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Runs the missing migrations inside the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
