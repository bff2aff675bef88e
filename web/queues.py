"""A queue of new connections for each worker, which outlives it: an address in, listening sockets out.

The kernel spreads connections evenly over sockets that share a port, where one for all may give
them all to one worker. If each worker opened its own, as with gunicorn's `reuse_port`, those that
wait in it would be reset when the worker is replaced. So gunicorn's parent holds them, and a
worker takes the queue that has the fewest.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from gunicorn import sock  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)


def open_queues(server: Any) -> None:
    """Gives gunicorn's parent a listening socket for each worker, before it opens one for all."""
    settings = _OfSharedPort(server.cfg)
    server.LISTENERS = [
        queue for _ in range(server.cfg.workers) for queue in sock.create_sockets(settings, server.log)
    ]


def choose(server: Any, worker: Any) -> None:
    """In the parent: the queue that a worker is to serve."""
    served = Counter(other.queue for other in server.WORKERS.values())
    worker.queue = min(range(len(server.LISTENERS)), key=lambda queue: served[queue])


def take(worker: Any) -> None:
    """In the worker: leaves the other queues to the others."""
    mine = worker.sockets[worker.queue]
    for queue in worker.sockets:
        if queue is not mine:
            queue.close()
    worker.sockets = [mine]


def keep_all_served(server: Any, wanted: int) -> None:
    """A queue without a worker would keep its connections waiting for ever."""
    if wanted < len(server.LISTENERS):
        logger.warning("there stay %d workers: LICTOR_WORKERS says how many", len(server.LISTENERS))
        server.num_workers = len(server.LISTENERS)


class _OfSharedPort:
    """gunicorn's settings, for sockets that share a port."""

    reuse_port = True

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)
