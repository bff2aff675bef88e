"""Runs migrations on the connection that it is handed, inside that connection's transaction."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

from manifest_cache.storage import models  # noqa: F401 - fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    # SQLite changes a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
