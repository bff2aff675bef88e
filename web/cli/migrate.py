"""`lictor migrate`: brings the database to the current schema."""

from __future__ import annotations

import click

from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import show_json


@click.command(epilog=epilog("LICTOR_DATABASE_URL=sqlite:////var/lib/lictor/lictor.db lictor migrate"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(as_json: bool) -> None:
    """Bring the database to the current schema.

    May be run at any time and by several at once; where nothing is to be done nothing is done.
    """
    from manifest_cache.settings import CacheSettings
    from manifest_cache.storage.database import Database

    database = Database(CacheSettings.load().database_url)
    try:
        before, after = database.migrate()
    finally:
        database.close()
    if as_json:
        show_json({"database": database.url_safe, "before": before, "after": after})
    elif before == after:
        click.echo(f"{database.url_safe} is at schema {after} already: nothing to do.")
    elif before is None:
        click.echo(f"{database.url_safe} was empty and is now at schema {after}.")
    else:
        click.echo(f"{database.url_safe} went from schema {before} to {after}.")
