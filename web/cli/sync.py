"""`lictor sync`: runs the synchronizer."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from typing import TYPE_CHECKING

import click

from web.cli.terminal.database import refuse_missing_file
from web.cli.terminal.help_text import epilog
from web.cli.terminal.settings import load_all, refuse_faulty_webhooks

if TYPE_CHECKING:
    from manifest_cache.sync import Synchronizer

logger = logging.getLogger(__name__)


@click.command(
    epilog=epilog(
        "CONSUL_HTTP_ADDR=consul.example:8500 lictor sync",
        status="0 it was ended by a signal, 1 the database has another schema, 2 wrong use or wrong "
        "settings.",
    )
)
def sync() -> None:
    """Run the synchronizer alone.

    It follows the registries, fetches manifests and keeps the cache. SIGTERM and SIGINT end it
    within two seconds. Consul and modules may be away, now or later: it says so, and goes on
    trying. Several may run: one leads, the others stand by.
    """
    from logging.config import dictConfig

    from discovery import event_loop, tracing
    from manifest_cache.storage.database import Database
    from manifest_cache.sync import Synchronizer
    from web.telemetry.logging_config import logging_config
    from web.telemetry.sync_metrics_server import serving_metrics

    settings, registries = load_all()
    refuse_faulty_webhooks(settings)
    tracing.check()
    dictConfig(logging_config(settings))
    database = Database(settings.database_url)
    refuse_missing_file(database)
    database.close()
    # The program itself is never garbage: looking through it takes a full collection some 50 ms, in
    # which no change comes through.
    gc.collect()
    gc.freeze()
    # Rows come and go by the thousand, and are no garbage before their transaction ends: looking for it
    # each 700 objects takes a fourteenth of a start.
    gc.set_threshold(20_000, 20, 20)
    with serving_metrics(settings), tracing.started("synchronizer"):
        event_loop.run(_run_until_signal(Synchronizer(settings, registries)))


async def _run_until_signal(synchronizer: Synchronizer) -> None:
    running = asyncio.ensure_future(synchronizer.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup a hangup is ignored on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, _end, running, number)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("ended")


def _end(running: asyncio.Future[None], number: signal.Signals) -> None:
    logger.info("ending for %s", number.name)
    running.cancel()
