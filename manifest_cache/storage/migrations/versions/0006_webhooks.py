"""How far each receiver of webhooks has got.

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "webhook_positions",
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("series", sa.String, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
    )
