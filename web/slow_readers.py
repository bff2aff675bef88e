"""Clients that take an answer bit by bit: the rest of it in, sent as they take it, without a thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from selectors import EVENT_WRITE, BaseSelector
from typing import Any

SLICE = 1024 * 1024
"""As much as is sent to one client before others have their turn."""

# In seconds: who takes nothing for so long is given up.
_SILENCE = 20.0


class SlowReaders:
    """For the loop's thread. `on_sent` gets a connection once it has all, `on_lost` one that is of no use."""

    def __init__(
        self, poller: BaseSelector, on_sent: Callable[[Any], None], on_lost: Callable[[Any], None]
    ) -> None:
        self._poller = poller
        self._on_sent = on_sent
        self._on_lost = on_lost
        # Until when something must be taken; the first is due first.
        self._deadlines: OrderedDict[Any, float] = OrderedDict()

    def add(self, conn: Any, rest: memoryview) -> None:
        self._deadlines[conn] = time.monotonic() + _SILENCE
        self._poller.register(conn.sock, EVENT_WRITE, partial(self._on_room, conn, rest))

    def give_up_silent(self) -> None:
        """Ends the connections whose clients took nothing for too long."""
        while self._deadlines:
            conn, deadline = next(iter(self._deadlines.items()))
            if time.monotonic() < deadline:
                return
            self._release(conn)
            self._on_lost(conn)

    def _on_room(self, conn: Any, rest: memoryview, client: Any) -> None:
        try:
            sent = client.send(rest[:SLICE])
        except BlockingIOError:
            return
        except OSError:
            self._release(conn)
            self._on_lost(conn)
            return
        if sent == len(rest):
            self._release(conn)
            self._on_sent(conn)
            return
        self._deadlines[conn] = time.monotonic() + _SILENCE
        self._deadlines.move_to_end(conn)
        self._poller.modify(client, EVENT_WRITE, partial(self._on_room, conn, rest[sent:]))

    def _release(self, conn: Any) -> None:
        self._poller.unregister(conn.sock)
        del self._deadlines[conn]
