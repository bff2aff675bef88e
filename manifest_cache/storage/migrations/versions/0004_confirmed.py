"""Whether the manifest of an instance is known for sure.

Revision: 0004, after 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("instances") as table:
        # For any other default SQLite's table is made again, and the leases go with the old one.
        table.add_column(sa.Column("confirmed", sa.Boolean, nullable=False, server_default="0"))
