"""`lictor serve`: runs gunicorn with Lictor's web application."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from web.cli.terminal.database import refuse_missing_file
from web.cli.terminal.help_text import epilog
from web.cli.terminal.settings import load_settings


@click.command(
    epilog=epilog(
        "lictor serve --bind 127.0.0.1:8080",
        status="0 it was ended by a signal, 1 the database has another schema or cannot be read, or the "
        "address is in use, 2 wrong use or wrong settings.",
    )
)
@click.option("--bind", metavar="HOST:PORT", help="Where to listen; wins over LICTOR_BIND.")
def serve(bind: str | None) -> None:
    """Run the web server alone.

    It serves what the cache holds: page, API and health. SIGTERM and SIGINT end it, SIGHUP replaces
    its workers one by one.
    """
    from web.telemetry import multiprocess_metrics

    settings = load_settings(bind=bind)
    multiprocess_metrics.share()
    from manifest_cache.storage.database import Database

    database = Database(settings.database_url)
    try:
        refuse_missing_file(database)
        database.check_schema()
    finally:
        # The workers are forked later, and must not share a connection.
        database.close()
    # gunicorn's settings and the application read it there, in this process and in its workers.
    os.environ["LICTOR_BIND"] = settings.bind
    _run()


def _run() -> None:
    from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

    class Server(BaseApplication):  # type: ignore[misc]
        """gunicorn without its command line.

        Its own command would put the working directory before all installed packages: a file
        `web.py` there would then be served in Lictor's place.
        """

        def load_config(self) -> None:
            for name, value in vars(importlib.import_module("web.gunicorn_config")).items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)

        def load(self) -> Any:
            from web.asgi import app

            return app

    Server().run()
