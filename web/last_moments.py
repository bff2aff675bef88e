"""Connections that have their last answer in; closed once their clients have, and nobody waits for that, out.

To close one at once could cost the client the end of its answer: where bytes of its own are unread, the
kernel resets the connection.

Source: https://www.rfc-editor.org/rfc/rfc9112#section-9.6
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ, BaseSelector
from typing import Any

# In seconds, and in bytes that it goes on sending: so long a client may take to end it.
_PATIENCE = 2.0
_MOST = 1024 * 1024
_AT_ONCE = 64 * 1024


class LastMoments:
    """For the loop's thread. `close` gets each connection whose time has come."""

    def __init__(self, poller: BaseSelector, close: Callable[[Any], None]) -> None:
        self._poller = poller
        self._close = close
        # Until when each may take; the first is due first.
        self._deadlines: OrderedDict[Any, float] = OrderedDict()

    def add(self, conn: Any) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        except OSError:
            self._close(conn)
            return
        self._deadlines[conn] = time.monotonic() + _PATIENCE
        self._poller.register(conn.sock, EVENT_READ, partial(self._on_more, conn, 0))

    def close_overdue(self) -> None:
        while self._deadlines:
            conn, deadline = next(iter(self._deadlines.items()))
            if time.monotonic() < deadline:
                return
            self._end(conn)

    def _on_more(self, conn: Any, taken: int, client: Any) -> None:
        try:
            more = len(client.recv(_AT_ONCE))
        except BlockingIOError:
            return
        except OSError:
            more = 0
        taken += more
        if more and taken < _MOST:
            self._poller.modify(client, EVENT_READ, partial(self._on_more, conn, taken))
        else:
            self._end(conn)

    def _end(self, conn: Any) -> None:
        del self._deadlines[conn]
        self._poller.unregister(conn.sock)
        self._close(conn)
