"""uvicorn's protocol with deadlines: for a request to come, for an answer to be taken, for the worker to end.

uvicorn itself waits for ever for the rest of a request, and for a client that does not read.

Source: https://docs.python.org/3/library/asyncio-protocol.html
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from web.problems import HeadersTooLarge, PathTooLong, document
from web.server.ending import ENDING
from web.server.joined_writes import JoinedWrites
from web.server.limits import (
    IDLE_WHILE_ENDING,
    LONGEST_HEAD,
    REQUEST_WITHIN,
    STALLED_AFTER,
)

logger = logging.getLogger(__name__)

# How long, in seconds, a client that was refused may take to read that.
_LAST_WORDS = 2.0
# How much of an answer the kernel takes for a client before the client has taken what came before.
_UNSENT = 512 * 1024


class DeadlineProtocol(HttpToolsProtocol):
    """One connection."""

    # Until when the next request must be whole; None while none is awaited but by uvicorn's own timeout.
    _request_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _unsent = 0
    _is_whole = False
    _has_head = False
    _head_size = 0
    _is_ending = False
    _is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        joined = JoinedWrites(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", joined))
        # An answer counts as sent when the kernel has it: `pause_writing` tells of each that has to wait.
        # Not 0, which uvloop's TLS takes as reached by an empty buffer.
        self.transport.set_write_buffer_limits(high=1, low=0)
        _limit_unsent(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_whole and self._is_idle:
            # A byte that begins no request yet, such as an empty line, ends uvicorn's own timeout.
            self._is_whole = False
        self._feed(data[:LONGEST_HEAD])
        if len(data) > LONGEST_HEAD and not (self._is_refused or self.transport.is_closing()):
            self._feed(data[LONGEST_HEAD:])
        if self._is_whole:
            self._forget_request()
        else:
            self._await_request()

    def _feed(self, data: bytes) -> None:
        if not self._has_head:
            self._head_size += len(data)
        super().data_received(data)
        if not (self._has_head or self._is_whole) and self._head_size >= LONGEST_HEAD:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_whole = self._has_head = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._has_head = True
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_whole = True
        self._head_size = 0
        self._has_head = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_request()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._unsent = self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(STALLED_AFTER, self._look_for_progress)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def shutdown(self) -> None:
        """Called by uvicorn when the worker begins to end, once for each connection."""
        self._is_ending = True
        self.app_state[ENDING].set()
        if self._is_idle:
            # A request may be on its way: it is answered, and then the connection is closed.
            self.loop.call_later(IDLE_WHILE_ENDING, self._close_if_idle)
        else:
            super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()

    def _await_request(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(REQUEST_WITHIN, self._request_is_late)

    def _forget_request(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _request_is_late(self) -> None:
        self._request_timer = None
        if self.flow.read_paused:
            # Not the client is late: what it sent waits for the answer to an earlier request.
            self._await_request()
        elif self._is_idle or self._is_whole:
            self.transport.close()
        else:
            # The application answers that its body is late, or did so to a client that does not read.
            self.transport.abort()

    def _look_for_progress(self) -> None:
        self._stall_timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent:
            logger.info("a connection was closed: its client took nothing for %d s", STALLED_AFTER)
            self.transport.abort()
        elif unsent:
            self.pause_writing()

    def _refuse_head(self) -> None:
        """Answers a head that is too long before its end has come."""
        self._is_refused = True
        if not self._is_idle:
            # An earlier request of this connection is to be answered yet, as the last.
            self.cycle.keep_alive = False
            return
        kind = HeadersTooLarge if self.headers else PathTooLong
        self.transport.write(_wire(kind))
        # A connection that is closed while bytes are unread is reset, and the answer may be lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LAST_WORDS, self.transport.abort)


def _limit_unsent(transport: asyncio.BaseTransport) -> None:
    sock: Any = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, _UNSENT)


def _wire(kind: type[HeadersTooLarge | PathTooLong]) -> bytes:
    answer = document(kind(f"{kind.meaning} {kind.advice}"))
    lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in answer.headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + answer.get_data()
