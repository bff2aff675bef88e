"""Doubt of sources, and version skew and drift of modules.

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("sources") as table:
        table.add_column(sa.Column("doubt", sa.String))
        table.add_column(sa.Column("accept_requested", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("modules") as table:
        table.add_column(sa.Column("versions", sa.JSON, nullable=False, server_default="[]"))
        table.add_column(sa.Column("drifting", sa.JSON, nullable=False, server_default="[]"))
