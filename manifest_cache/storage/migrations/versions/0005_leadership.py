"""Which synchronizer leads, and the token that fences off those that led before.

Revision: 0005, after 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from manifest_cache.storage.models import UTCDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "leadership",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("holder", sa.String),
        sa.Column("since", UTCDateTime),
        sa.Column("renewed_at", UTCDateTime),
        sa.Column("locks", sa.JSON, nullable=False),
    )
