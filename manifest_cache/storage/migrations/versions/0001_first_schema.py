"""The first schema: modules, instances, manifests, events, sources and push leases.

Revision: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from manifest_cache.storage.models import UTCDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "modules",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("version", sa.String),
        sa.Column("digest", sa.String),
        sa.Column("title", sa.String),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("passing", sa.Integer, nullable=False),
        sa.Column("warning", sa.Integer, nullable=False),
        sa.Column("critical", sa.Integer, nullable=False),
        sa.Column("maintenance", sa.Integer, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("datacenters", sa.JSON, nullable=False),
        sa.Column("registries", sa.JSON, nullable=False),
        sa.Column("first_seen", UTCDateTime, nullable=False),
        sa.Column("last_changed", UTCDateTime, nullable=False),
    )
    op.create_table(
        "instances",
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
        sa.Column("etag", sa.String),
        sa.Column("error_type", sa.String),
        sa.Column("error_detail", sa.String),
        sa.Column("error_at", UTCDateTime),
        sa.Column("manifest_pushed", sa.Boolean, nullable=False),
        sa.Column("fetch_at", UTCDateTime),
        sa.Column("fetch_failures", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("first_seen", UTCDateTime, nullable=False),
        sa.Column("last_seen", UTCDateTime, nullable=False),
        sa.Column("last_changed", UTCDateTime, nullable=False),
        sa.UniqueConstraint("source", "module", "node", "id", name="uq_instances_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_instances_module", "instances", ["module"])
    op.create_index("ix_instances_fetch_at", "instances", ["fetch_at"])
    op.create_table(
        "manifests",
        sa.Column("module", sa.String, sa.ForeignKey("modules.name"), primary_key=True),
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("first_seen", UTCDateTime, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("at", UTCDateTime, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("module", sa.String),
        sa.Column("instance", sa.String),
        sa.Column("registry", sa.String),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_module_index", "events", ["module", "index"])
    op.create_table(
        "sources",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("registry", sa.String, nullable=False),
        sa.Column("connected", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("since", UTCDateTime, nullable=False),
        sa.Column("last_contact", UTCDateTime),
        sa.Column("instances", sa.Integer, nullable=False),
    )
    op.create_table(
        "push_leases",
        sa.Column(
            "instance", sa.Integer, sa.ForeignKey("instances.key", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("heartbeat_interval", sa.Float, nullable=False),
        sa.Column("deregister_after", sa.Float, nullable=False),
        sa.Column("last_beat", UTCDateTime, nullable=False),
        sa.Column("expires_at", UTCDateTime, nullable=False),
        sa.Column("reported", sa.Text, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("lapsed", sa.Boolean, nullable=False),
    )
    op.create_index("ix_push_leases_expires_at", "push_leases", ["expires_at"])
