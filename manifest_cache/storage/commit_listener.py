"""Notices commits of any process and calls those that want to know.

Whoever waits at a selector anyway is told there, as soon as the watch is readable: to be told by
another thread takes as long as the look at what was committed. A thread opens the watch, and again
where it is lost, for that may take seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Protocol

from discovery.timing.backoff import Backoff
from manifest_cache.storage.commit_signal import CommitWatch
from manifest_cache.storage.database import StoreUnavailable

logger = logging.getLogger(__name__)

# A commit whose signal is lost is told of this much later, in seconds; so long may `stop` take.
_SIGNAL_LOST = 1.0


class Selecting(Protocol):
    """What waits until files are readable, on a thread of its own."""

    def watching(self, file: int, on_readable: Callable[[], bool]) -> AbstractContextManager[None]:
        """Calls it on that thread whenever the file is readable, until it says no; from any other thread."""


class CommitListener:
    """Calls `on_commit` once it listens, after each commit, and at times without one.

    `watch` opens the watch. Where it cannot be opened, or is lost, it is opened again, and
    `on_commit` called meanwhile too: whoever listens then looks for itself.
    """

    def __init__(
        self, watch: Callable[[], CommitWatch], selecting: Selecting, on_commit: Callable[[], None]
    ) -> None:
        self._watch = watch
        self._selecting = selecting
        self._on_commit = on_commit
        self._stopping = False
        # Set to have the thread look at once why.
        self._called = threading.Event()
        self._fault: OSError | None = None
        self._thread = threading.Thread(target=self._listen, name="lictor-commits", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2 * _SIGNAL_LOST) -> None:
        self._stopping = True
        self._called.set()
        self._thread.join(timeout)

    def _listen(self) -> None:
        backoff = Backoff(0.2, 5.0)
        while not self._stopping:
            try:
                with closing(self._watch()) as watch:
                    self._listen_at(watch, backoff)
            except (StoreUnavailable, OSError) as exc:
                pause = backoff.next()
                logger.warning("no word of commits; listening again in %.1f s: %s", pause, exc)
                self._on_commit()
                self._called.wait(pause)

    def _listen_at(self, watch: CommitWatch, backoff: Backoff) -> None:
        """Returns when it is to stop. Raises OSError where the watch is lost."""
        if watch.fileno() < 0:
            while not self._stopping:
                self._on_commit()
                watch.wait(_SIGNAL_LOST)
                backoff.reset()
            return
        self._fault = None
        with self._selecting.watching(watch.fileno(), partial(self._take, watch)):
            while not self._stopping:
                self._on_commit()
                self._called.wait(_SIGNAL_LOST)
                if self._fault is not None:
                    self._called.clear()
                    raise self._fault
                backoff.reset()

    def _take(self, watch: CommitWatch) -> bool:
        """The watch is readable; False if it is lost."""
        try:
            watch.wait(0)
        except OSError as exc:
            self._fault = exc
            self._called.set()
            return False
        self._on_commit()
        return True
