"""Holds all who wait in this process: waits and streams in; woken by commits, answers and events out."""

from __future__ import annotations

import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from manifest_cache.storage.commit_listener import CommitListener
from manifest_cache.storage.database import StoreError
from web.backend import Backend
from web.waiting.answer import Protocol
from web.waiting.blocking_queries import Waiter, Waiters
from web.waiting.connections import Connections
from web.waiting.event_streams import Streams
from web.waiting.event_tail import EventFilter, Line
from web.waiting.held_request import Question

logger = logging.getLogger(__name__)

# Files and connections that the process needs besides those that wait.
_OTHER_FILES = 512


class Hub:
    """One for each process; its threads are started when the first client has to wait."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._work: _Work | None = None
        self.is_ending = False

    @property
    def is_full(self) -> bool:
        return self._work is not None and len(self._work.connections) >= self._work.most

    def wait(
        self,
        sock: socket.socket,
        question: Question,
        *,
        index: int,
        seconds: float,
        protocol: Protocol,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """Answers on this socket when there is news for a client that knows all up to `index`, or time is up.

        Then `give_back` is called on the hub's thread, and the connection is the caller's again;
        where that is None, or the client keeps no connections, the socket is closed.
        """
        waiter = Waiter(
            sock,
            index=index,
            deadline=time.monotonic() + seconds,
            protocol=protocol,
            give_back=give_back,
        )
        self._do(sock, lambda work: work.wait(waiter, question))

    def stream(self, sock: socket.socket, wanted: EventFilter, position: int, preamble: bytes) -> None:
        """Sends the preamble, then each event behind `position` that is wanted, until the client leaves."""
        self._do(sock, lambda work: work.stream(sock, wanted, position, preamble))

    def begin_end(self) -> None:
        """Nobody waits any longer: they are answered, streams end. May be called from a signal's handler."""
        self.is_ending = True
        work = self._work
        if work is not None:
            work.connections.call(work.end)

    def end(self, timeout: float = 5.0) -> None:
        """Ends, gives the answers up to `timeout` seconds to leave, and stops the threads."""
        self.begin_end()
        with self._lock:
            work, self._work = self._work, None
        if work is not None:
            work.stop(timeout)

    def _do(self, sock: socket.socket, function: Callable[[_Work], None]) -> None:
        with self._lock:
            if self._work is None and self.is_ending:
                sock.close()
                return
            if self._work is None:
                self._work = _Work(self._backend)
                self._work.start()
            work = self._work
        work.connections.call(partial(function, work))


def _most(wanted: int) -> int:
    """As many as wanted, if this process may have so many files open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - _OTHER_FILES))


class _Work:
    """What the hub does; but for `start`, `stop` and `on_commit`, on the thread of its connections."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.most = _most(backend.settings.max_watchers)
        self.connections = Connections("lictor-hub")
        self._waiters = Waiters(self.connections, self._on_end)
        self._streams = Streams(self.connections, backend.snapshot, self._on_end)
        self._listener = CommitListener(backend.watch, self.connections, self.on_commit)
        self._look_is_due = False
        self._database_is_away = False
        self._is_ending = False
        self._all_left = threading.Event()

    def start(self) -> None:
        self.connections.start()
        self._listener.start()

    def stop(self, timeout: float) -> None:
        self._all_left.wait(timeout)
        self.connections.stop(timeout)
        self._listener.stop()

    def on_commit(self) -> None:
        # One look sees all commits before it.
        if not self._look_is_due:
            self._look_is_due = True
            self.connections.call(self._look)

    def wait(self, waiter: Waiter, question: Question) -> None:
        self._waiters.admit(waiter, question)
        self._look_if_new(follows=question.events is not None)

    def stream(self, sock: socket.socket, wanted: EventFilter, position: int, preamble: bytes) -> None:
        self._streams.admit(sock, wanted, position, preamble)
        self._look_if_new(follows=True)

    def end(self) -> None:
        self._is_ending = True
        self._streams.end()
        self._waiters.end()
        self._on_end()

    def _look_if_new(self, *, follows: bool) -> None:
        """Whoever comes first, or first wants to follow the log, comes while nobody looks at it."""
        if self._is_ending:
            self.end()
        elif len(self.connections) == 1 or (follows and not self._streams.follows):
            self.on_commit()

    def _on_end(self) -> None:
        if self._is_ending and not len(self.connections):
            self._all_left.set()

    def _look(self) -> None:
        self._look_is_due = False
        if not len(self.connections):
            self._streams.rest()
            return
        try:
            index, lines = self._news()
        except StoreError as exc:
            # The listener calls again within a second or so.
            self._tell_database_is_away(exc)
            return
        self._database_is_away = False
        self._waiters.look(index, lines, self._backend.changes)

    def _news(self) -> tuple[int, Sequence[Line] | None]:
        """The index, and what came to the log where somebody wants to know. Raises StoreError."""
        if not self._streams and not self._waiters.follow_the_log:
            self._streams.rest()
            return self._index(), None
        with self._backend.snapshot() as snapshot:
            self._backend.changes.follow(snapshot)
            return snapshot.index, self._streams.follow(snapshot)

    def _index(self) -> int:
        index = self._backend.index()
        if self._waiters.are_many and not self._backend.changes.reach(index):
            with self._backend.snapshot() as snapshot:
                self._backend.changes.follow(snapshot)
        return index

    def _tell_database_is_away(self, exc: StoreError) -> None:
        if not self._database_is_away:
            logger.warning("those who wait go on waiting, for the database cannot be read: %s", exc)
        self._database_is_away = True
