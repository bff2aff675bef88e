"""Tombstones of instances that are gone; events are found by their index alone.

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from manifest_cache.storage.models import UTCDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("module", sa.String, sa.ForeignKey("modules.name"), nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("registry", sa.String, nullable=False),
        sa.Column("datacenter", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("scheme", sa.String, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("version", sa.String),
        sa.Column("digest", sa.String),
        sa.Column("first_seen", UTCDateTime, nullable=False),
        sa.Column("gone_at", UTCDateTime, nullable=False),
        sa.UniqueConstraint("id", "module", "node", "source", name="uq_tombstones_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tombstones_module_key", "tombstones", ["module", "key"])
    op.create_index("ix_tombstones_gone_at", "tombstones", ["gone_at"])
    # It would cost each event, and nothing is found by it.
    op.drop_index("ix_events_at", "events")
