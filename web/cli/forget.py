"""`lictor forget`: removes a module without instances from the cache."""

from __future__ import annotations

from dataclasses import asdict

import click

from discovery.text import counted
from web.cli.terminal.database import opened_database, unknown_module
from web.cli.terminal.errors import Failure
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import plain, show_json


@click.command(epilog=epilog("lictor forget financial"))
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget(name: str, as_json: bool) -> None:
    """Remove a module that has no instances, now.

    Its manifests go with it, and what is remembered of its instances. Without this it is kept as
    unavailable for LICTOR_FORGET_AFTER. If it registers again it is new.
    """
    from manifest_cache.retention.modules import Forgetting, ModuleInUse, NoSuchModule
    from manifest_cache.settings import CacheSettings

    with opened_database() as database:
        try:
            forgotten = Forgetting(database, CacheSettings.load()).forget(name)
        except NoSuchModule as exc:
            raise unknown_module(name, exc.near) from exc
        except ModuleInUse as exc:
            raise Failure(plain(str(exc))) from exc
    if as_json:
        show_json({"name": name, **asdict(forgotten)})
    else:
        click.echo(
            f"{plain(name)} is forgotten, with {counted(forgotten.manifests, 'manifest')} and "
            f"{counted(forgotten.tombstones, 'tombstone')}."
        )
