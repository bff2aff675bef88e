"""Connects to PostgreSQL without SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg


def connect(url: URL, **options: Any) -> psycopg.Connection:
    """Raises psycopg.Error. Options are psycopg's and libpq's; those of the URL's query win."""
    # Only who uses PostgreSQL needs its driver.
    import psycopg

    # As SQLAlchemy reads it: the query may name the server too, or several.
    _, said = url.get_dialect()().create_connect_args(url)
    return psycopg.connect(**{"connect_timeout": 5, **options, **said, "autocommit": True})
