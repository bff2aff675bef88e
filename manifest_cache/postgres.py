"""Connects to PostgreSQL without SQLAlchemy: a URL in, a connection that commits each statement out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg


def connect(url: URL, **options: Any) -> psycopg.Connection:
    """Raises psycopg.Error. Options are psycopg's and libpq's; those of the URL's query win."""
    # Only who uses PostgreSQL needs its driver.
    import psycopg

    arguments: dict[str, Any] = {"connect_timeout": 5, **options, **url.query}
    return psycopg.connect(
        host=url.host,
        port=url.port,
        user=url.username,
        password=url.password,
        dbname=url.database,
        autocommit=True,
        **arguments,
    )
