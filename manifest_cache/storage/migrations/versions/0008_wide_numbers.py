"""Indexes and keys go on beyond two billion on PostgreSQL too, as they do on SQLite.

Revision: 0008, after 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_COUNTED = (("events", "index"), ("instances", "key"), ("tombstones", "key"))
_NAMED = (("push_leases", "instance"), ("webhook_positions", "position"))


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in (*_COUNTED, *_NAMED):
        op.alter_column(table, column, type_=sa.BigInteger)
    for table, column in _COUNTED:
        sequence = (
            op.get_bind().execute(sa.select(sa.func.pg_get_serial_sequence(table, column))).scalar_one()
        )
        op.execute(f"ALTER SEQUENCE {sequence} AS bigint")
