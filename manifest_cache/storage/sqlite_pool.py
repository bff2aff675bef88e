"""Keeps connections to SQLite open for short transactions.

SQLAlchemy's pool takes as long to lend one as a short transaction takes, and somebody waits for each.
A file needs neither what it does for connections that are lost, nor for those that are forgotten.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# How long to wait for a connection when all are in use, in seconds.
_PATIENCE = 30.0
# What is no fault of the connection. On a full disk there may be no other one.
_HARMLESS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CONSTRAINT)
# The bits of an extended code that tell the kind.
_KIND = 0xFF


class SqliteConnections:
    """At most `most` are open at once, and `kept` while nobody uses them; for any number of threads."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], most: int, kept: int) -> None:
        self._connect = connect
        self._kept = kept
        self._most = most
        self._places = threading.BoundedSemaphore(most)
        self._idle: deque[sqlite3.Connection] = deque()

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """One for a transaction, which is undone if it is not committed. Raises TimeoutError."""
        if not self._places.acquire(timeout=_PATIENCE):
            raise TimeoutError(f"all {self._most} connections to the database are in use")
        try:
            try:
                # The one that was used last, as what it read is still at hand.
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
                connection.rollback()
            except sqlite3.Error as exc:
                if getattr(exc, "sqlite_errorcode", 0) & _KIND in _HARMLESS:
                    self._put_back(connection)
                else:
                    # Whoever comes next is to have one that is sound.
                    connection.close()
                raise
            except BaseException:
                self._put_back(connection)
                raise
            self._keep(connection)
        finally:
            self._places.release()

    def close(self) -> None:
        """Closes those that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _put_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.rollback()
        except sqlite3.Error:
            connection.close()
        else:
            self._keep(connection)

    def _keep(self, connection: sqlite3.Connection) -> None:
        if len(self._idle) < self._kept:
            self._idle.append(connection)
        else:
            connection.close()
