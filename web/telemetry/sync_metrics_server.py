"""Serves the synchronizer's metrics on a port of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, start_http_server

from web.settings import Settings

logger = logging.getLogger(__name__)


@contextmanager
def serving_metrics(settings: Settings) -> Iterator[None]:
    """Serves them while the body runs, where the settings say; a port in use is said, and nothing else.

    Two synchronizers on one machine need a port each, and the second is no worse for having none.
    """
    place = settings.metrics_host_port
    if place is None:
        yield
        return
    try:
        server, thread = start_http_server(place.port, addr=place.host)
    except OSError as exc:
        logger.warning(
            "LICTOR_METRICS_BIND: no metrics are served, for nothing can listen on %s: %s. Choose another "
            "address, or leave it empty",
            settings.metrics_bind,
            exc.strerror or exc,
        )
        yield
        return
    logger.info("metrics on http://%s/metrics", settings.metrics_bind)
    try:
        with _telling_of_consul(settings):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _telling_of_consul(settings: Settings) -> Iterator[None]:
    """Has it told until when certificates and the token are valid, where Consul is followed."""
    if "consul" not in settings.registries:
        yield
        return
    # Imported here: who does not follow Consul does not pay for its client.
    from web.telemetry.consul_credentials import ConsulCredentials

    credentials = ConsulCredentials(os.environ)
    REGISTRY.register(credentials)
    try:
        with credentials.asking():
            yield
    finally:
        REGISTRY.unregister(credentials)
