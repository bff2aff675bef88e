"""Waits where there is no file for another connection: gunicorn's worker in, one that outlives that out."""

from __future__ import annotations

import errno
import logging
import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# In seconds: how long new connections wait in the queue before the next look for room.
_PAUSE = 1.0
# It is told again after so many seconds without.
_QUIET = 60.0


class BoundedWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn ends the worker on such an error, and with it everybody who is served."""

    _full_until = float("-inf")

    def accept(self, listener: Any) -> None:
        try:
            super().accept(listener)
        except OSError as exc:
            if exc.errno not in _NO_ROOM:
                raise
            self._tell(exc)
            self._full_until = time.monotonic() + _PAUSE

    def _tell(self, exc: OSError) -> None:
        if time.monotonic() > self._full_until + _QUIET:
            logger.warning(
                "new connections wait, for there is no room beside these %d: %s. Raise the limit of open "
                "files (ulimit -n, LimitNOFILE for systemd), or see who opens so many",
                self.nr_conns,
                exc.strerror,
            )

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called by gunicorn's loop each time round while it is not as the loop wants it."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._full_until)
