"""Tells a process of every commit, whoever made it: one watch and one thread for all who want to know."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from discovery.backoff import Backoff
from manifest_cache.commit_signal import CommitWatch
from manifest_cache.database import StoreUnavailable

logger = logging.getLogger(__name__)

# A commit whose signal is lost is told of this much later, in seconds; so long may `stop` take.
_SIGNAL_LOST = 1.0


class CommitListener:
    """Calls `on_commit` once it listens, after each commit, and at times without one.

    `watch` opens the watch. Where it cannot be opened, or is lost, it is opened again, and
    `on_commit` called meanwhile too: whoever listens then looks for itself.
    """

    def __init__(self, watch: Callable[[], CommitWatch], on_commit: Callable[[], None]) -> None:
        self._watch = watch
        self._on_commit = on_commit
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="lictor-commits", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2 * _SIGNAL_LOST) -> None:
        self._stopping.set()
        self._thread.join(timeout)

    def _listen(self) -> None:
        backoff = Backoff(0.2, 5.0)
        while not self._stopping.is_set():
            try:
                with closing(self._watch()) as watch:
                    while not self._stopping.is_set():
                        self._on_commit()
                        watch.wait(_SIGNAL_LOST)
                        backoff.reset()
            except (StoreUnavailable, OSError) as exc:
                pause = backoff.next()
                logger.warning("no word of commits; listening again in %.1f s: %s", pause, exc)
                self._on_commit()
                self._stopping.wait(pause)
