"""`lictor accept`: believes a registry that is doubted."""

from __future__ import annotations

import click

from web.cli.terminal.database import refuse_missing_file
from web.cli.terminal.errors import Failure
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import plain, show_json


@click.command(epilog=epilog("lictor accept consul"))
@click.argument("source", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def accept(source: str | None, as_json: bool) -> None:
    """Believe a registry that is doubted, now.

    A registry that suddenly tells of far fewer instances is doubted until it has confirmed that for
    LICTOR_DOUBT. This ends the doubt of SOURCE, or of all that are doubted. The synchronizer does it,
    as soon as one runs.
    """
    from manifest_cache.ingest.store import Store
    from manifest_cache.settings import CacheSettings
    from manifest_cache.storage.database import Database

    settings = CacheSettings.load()
    database = Database(settings.database_url)
    try:
        refuse_missing_file(database)
        database.check_schema()
        accepted = Store(database, settings).request_acceptance(source)
    finally:
        database.close()
    if not accepted:
        whom = f"{plain(source)} is not doubted" if source else "no registry is doubted"
        raise Failure(f"{whom}: there is nothing to accept")
    if as_json:
        show_json({"accepted": accepted})
    else:
        click.echo(f"What {', '.join(accepted)} says is believed from now on.")
