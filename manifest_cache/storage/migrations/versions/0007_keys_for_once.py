"""A key of an instance is never given to another, on SQLite files too whose table was made again.

Revision: 0007, after 0006
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite" and not _remembers_keys():
        _make_anew()


def _remembers_keys() -> bool:
    made = op.get_bind().execute(text("SELECT sql FROM sqlite_master WHERE name = 'instances'")).scalar_one()
    return "AUTOINCREMENT" in made


def _make_anew() -> None:
    # They go with the instances that they belong to.
    op.execute("CREATE TEMPORARY TABLE kept_leases AS SELECT * FROM push_leases")
    as_it_was_meant = {"sqlite_autoincrement": True}
    with op.batch_alter_table("instances", recreate="always", table_kwargs=as_it_was_meant):
        pass
    op.execute("INSERT INTO push_leases SELECT * FROM kept_leases")
    op.execute("DROP TABLE kept_leases")
