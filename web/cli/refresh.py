"""`lictor refresh`: has a module's manifests fetched now."""

from __future__ import annotations

import click

from web.cli.terminal.database import refuse_missing_file
from web.cli.terminal.errors import Failure
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import plain, show_json


@click.command(epilog=epilog("lictor refresh financial"))
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def refresh(name: str, as_json: bool) -> None:
    """Have the manifests of a module fetched now.

    Of all its healthy instances that did not push theirs. The synchronizer does it, as soon as one
    runs.
    """
    from manifest_cache.ingest.store import Store
    from manifest_cache.settings import CacheSettings
    from manifest_cache.storage.database import Database
    from web.schemas.refresh_text import told

    settings = CacheSettings.load()
    database = Database(settings.database_url)
    try:
        refuse_missing_file(database)
        database.check_schema()
        done = Store(database, settings).request_refresh(name)
    finally:
        database.close()
    if done is None:
        raise Failure(f"there is no module {plain(name)}")
    refresh, index = done
    if as_json:
        counts = {"asked": refresh.asked, "pushed": refresh.pushed, "not_well": refresh.not_well}
        show_json({"module": name, **counts, "detail": told(refresh), "index": index})
    else:
        click.echo(told(refresh))
