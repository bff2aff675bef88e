"""Opens the cache for the commands that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from web.cli.terminal.errors import Failure
from web.cli.terminal.output import age, plain
from web.cli.terminal.settings import load_settings

if TYPE_CHECKING:
    from manifest_cache.storage.database import Database
    from manifest_cache.storage.reader import Snapshot


@contextmanager
def opened_database() -> Iterator[Database]:
    """The database that the settings name, if it is there and has the right schema."""
    from manifest_cache.storage.database import Database

    database = Database(load_settings().database_url)
    try:
        refuse_missing_file(database)
        database.check_schema()
        yield database
    finally:
        database.close()


@contextmanager
def opened_snapshot() -> Iterator[Snapshot]:
    """One consistent state of the cache."""
    from manifest_cache.storage.reader import Reader

    with opened_database() as database, Reader(database).snapshot() as snapshot:
        yield snapshot


def unknown_module(name: str, near: Sequence[str]) -> Failure:
    """What to tell of a module that is not there, with names like it."""
    hint = f"Did you mean {' or '.join(map(plain, near))}?" if near else "`lictor modules` lists all."
    return Failure(f"there is no module {plain(name)}. {hint}")


def refuse_missing_file(database: Database) -> None:
    """SQLite would make the file, and a command in a wrong folder would then show an empty cache."""
    if database.path is not None and not database.path.exists():
        raise Failure(
            f"there is no database {database.path.absolute()}: `lictor up` makes one, "
            "and LICTOR_DATABASE_URL says where it is"
        )


def tell_of_lost_sources(snapshot: Snapshot) -> None:
    """On stderr, so that the answer itself stays as it is: what of it may be old."""
    for source in snapshot.sources:
        if not source.connected:
            reason = f" ({plain(source.reason)})" if source.reason else ""
            click.echo(
                f"{source.name} has been out of reach since {age(source.since)}{reason}: "
                "what it said last is shown.",
                err=True,
            )
        elif source.doubt is not None:
            click.echo(
                f"{source.name} has been doubted since {age(source.since)} ({plain(source.doubt)}): what it "
                "said before is shown. If it is right, `lictor accept` says so.",
                err=True,
            )
