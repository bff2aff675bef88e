"""Keeps connections away from threads until a whole request is there: gunicorn's worker in, the same out.

gunicorn gives a connection to a thread, which then waits for what the client sends: as many slow
clients as there are threads would hold the service. Here its loop looks at what has come without
taking it, and a thread gets a connection once there is a request to answer. Nor does a thread, or the
loop, wait for a client to be done that was answered before it had sent all, or for the last time.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
import time
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ
from typing import Any, NamedTuple

from web import refusals
from web.bounded_worker import BoundedWorker
from web.last_moments import LastMoments

# In seconds. A request that is not whole by then is not waited for any longer.
_REQUEST_WITHIN = 10.0
# Nor is a client that takes nothing of its answer, or sends nothing of a large body.
_SILENCE = 20
# What nobody read of a body is to be there by then, or the connection is not kept.
_REST_WITHIN = 0.1
# As long as a head may be, in bytes; also as much of a body as is waited for.
_LOOKED_AT = 32 * 1024
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:", re.IGNORECASE)


class PatientWorker(BoundedWorker):
    """What waits for a request is among `pending_conns`, which gunicorn closes at their `timeout`.

    Names of gunicorn's that are no public interface and are relied on: `enqueue_req`,
    `_cap_keepalive`, `_keepalive_after` and `finish_body`, and what `finish_request` does with
    `pending_conns` and with a result that is false. Tests with a real gunicorn tell if they go.
    """

    _last_deadline = float("inf")
    _last_moments: LastMoments

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self._last_moments = LastMoments(self.poller, self._drop)

    def enqueue_req(self, conn: Any) -> None:
        """Called by gunicorn's loop for a connection that is new, or has something to read."""
        if not can_wait(conn.sock):
            super().enqueue_req(conn)
            return
        there = _look(conn)
        if there is None or not (conn.initialized or _bounded(conn.sock)):
            self._drop(conn)
        elif there.is_too_large:
            self._refuse(conn, there)
        elif there.is_whole:
            self._hand_over(conn, there.content)
        else:
            self._wait(conn, there)

    def _wait(self, conn: Any, there: _There) -> None:
        conn.timeout = time.monotonic() + _REQUEST_WITHIN
        if not self.alive:
            self._cap(conn)
        conn.sock.setblocking(False)
        _wake_beyond(conn.sock, there.unread)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self._on_more, conn, there.unread))

    def _on_more(self, conn: Any, known: int, client: Any) -> None:
        there = _look(conn)
        # Awake without more than before: the client is gone.
        if there is not None and there.unread <= known:
            there = None
        if there is not None and not there.is_whole and not there.is_too_large:
            _wake_beyond(conn.sock, there.unread)
            self.poller.modify(client, EVENT_READ, partial(self._on_more, conn, there.unread))
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        if there is None:
            self._drop(conn)
        elif there.is_too_large:
            self._refuse(conn, there)
        else:
            _wake_beyond(conn.sock, 0)
            self._hand_over(conn, there.content)

    def _hand_over(self, conn: Any, content: bytes) -> None:
        """Gives a thread the connection; `content` is what has come, and was not taken from it."""
        # Or else the thread would wait for it once more.
        conn.data_ready = True
        super().enqueue_req(conn)

    def _refuse(self, conn: Any, there: _There) -> None:
        refusals.send(refusals.problem_of_begin(there.content), conn.sock)
        self._last_moments.add(conn)

    def _drop(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Called by gunicorn's loop when a thread is done; it would have the loop wait for the client."""
        if fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
        else:
            self._last_moments.add(conn)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """In a thread: whether the connection can be kept; it would wait seconds for the rest of a body."""
        return keepalive and bool(conn.parser.finish_body(deadline=time.monotonic() + _REST_WITHIN))

    def murder_pending(self) -> None:
        """Called by gunicorn's loop, once each time round."""
        super().murder_pending()
        self._last_moments.close_overdue()

    def _cap_keepalive(self, deadline: float) -> None:
        """Called by gunicorn when the worker is to end."""
        super()._cap_keepalive(deadline)
        self._last_deadline = deadline
        for conn in self.pending_conns:
            self._cap(conn)

    def _cap(self, conn: Any) -> None:
        conn.timeout = min(conn.timeout, self._last_deadline)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Called by gunicorn for what it cannot read; it would answer in HTML."""
        problem = refusals.problem_of(exc)
        if problem is None:
            super().handle_error(req, client, addr, exc)
        else:
            refusals.send(problem, client)


class _There(NamedTuple):
    """What has come of a request, and how much of that was not read from the socket yet."""

    content: bytes
    unread: int

    @property
    def is_whole(self) -> bool:
        """Whether a thread would not have to wait for more."""
        head, end, body = self.content.partition(_END_OF_HEAD)
        length = _LENGTH.search(head + b"\r\n")
        if not end or length is None or _EXPECTS.search(head):
            return bool(end)
        return len(body) >= min(int(length[1]), _LOOKED_AT - len(head) - len(end))

    @property
    def is_too_large(self) -> bool:
        return len(self.content) >= _LOOKED_AT and _END_OF_HEAD not in self.content


def can_wait(sock: socket.socket) -> bool:
    """Where the system can wake for more than what is there already."""
    return sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)


def _look(conn: Any) -> _There | None:
    """None if the connection is at its end."""
    # Of the request before, the begin of this one may have been read as well.
    read: bytes = conn.parser.unreader.buf.getvalue() if conn.parser is not None else b""
    try:
        unread = conn.sock.recv(_LOOKED_AT, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return _There(read, 0)
    except OSError:
        return None
    return _There(read + unread, len(unread)) if unread or read else None


def _bounded(sock: socket.socket) -> bool:
    """Lets no thread wait for a silent client for ever; False if the connection is gone."""
    silence = struct.pack("ll", _SILENCE, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, silence)
    except OSError:
        return False
    return True


def _wake_beyond(sock: socket.socket, known: int) -> None:
    """Lets the loop know when there is more than this, not for what it has seen already."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, known + 1)
