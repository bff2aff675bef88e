"""Looks up the newest index at next to no cost.

Readers keep answers and look before each use whether they still hold. That look has to be cheap,
and it has to be true: never older than what was committed when it was asked for.

On SQLite it is `PRAGMA data_version`, which costs a few microseconds and tells whether any other
connection has committed. On PostgreSQL a round trip costs more than the whole rest of a read, and
NOTIFY comes a little after the commit. There the writers give notice instead: each holds the
writers' lock for at least `COMMIT_NOTICE` seconds before it commits. Who finds the lock free, and
reads the index then, knows that nothing can be committed for that long, and needs no other look
until then. Only lengths of time are compared, each on one machine's clock.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlalchemy import URL

from manifest_cache.storage import postgres

if TYPE_CHECKING:
    import psycopg

WRITER_LOCK = 0x6C6963746F72
"""The advisory lock of writers on PostgreSQL: any number does that nothing else uses; it spells "lictor"."""

COMMIT_NOTICE = 0.005
"""How many seconds a writer on PostgreSQL has held the writers' lock at least when it commits."""

# In seconds.
_PATIENCE = 5.0
_CLOSING = 0.1
# Clocks do not run equally fast.
_TRUSTED = 0.9 * COMMIT_NOTICE
_NEWEST = 'SELECT coalesce(max("index"), 0) FROM events'
# Each statement has a snapshot of its own, and the lock is held until the end of both.
_LOOK = f"SELECT pg_try_advisory_xact_lock_shared({WRITER_LOCK}); {_NEWEST}"


class NewestIndex(Protocol):
    """For any number of threads; of one process only."""

    def index(self) -> int:
        """The newest index, never older than that at the time of the call. Raises OSError."""

    def current_or_none(self) -> int | None:
        """The same, for who must not wait: None where that takes a wait, or cannot be told."""

    def close(self) -> None: ...


def for_url(url: URL) -> NewestIndex:
    return _SqliteNewestIndex(url) if url.get_backend_name() == "sqlite" else _PostgresNewestIndex(url)


class _SqliteNewestIndex:
    """Connections that are kept, as many as threads look at the same time."""

    def __init__(self, url: URL) -> None:
        # Without this mode a file that is missing would be made.
        uri = f"{Path(url.database or '').absolute().as_uri()}?mode=rw"
        self._patient = _SqliteLookups(uri, _PATIENCE)
        # Seldom, as while a log is recovered, a lock keeps readers out.
        self._impatient = _SqliteLookups(uri, 0.0)

    def index(self) -> int:
        return self._patient.index()

    def current_or_none(self) -> int | None:
        try:
            return self._impatient.index()
        except OSError:
            return None

    def close(self) -> None:
        self._patient.close()
        self._impatient.close()


class _SqliteLookups:
    """Those that nobody uses at the moment; one that waits for a lock does so for `patience` seconds."""

    def __init__(self, uri: str, patience: float) -> None:
        self._uri = uri
        self._patience = patience
        self._idle: deque[_SqliteLookup] = deque()

    def index(self) -> int:
        try:
            look = self._idle.pop()
        except IndexError:
            look = _SqliteLookup(self._uri, self._patience)
        try:
            index = look.index()
        except BaseException:
            look.close()
            raise
        self._idle.append(look)
        return index

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()


class _SqliteLookup:
    def __init__(self, uri: str, patience: float) -> None:
        try:
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=patience, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as exc:
            raise OSError(str(exc)) from exc
        self._version = -1
        self._index = 0

    def index(self) -> int:
        try:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                # What is committed between the two makes for one look more, never for an old index.
                (self._index,) = self._connection.execute(_NEWEST).fetchone()
                self._version = version
        except sqlite3.Error as exc:
            raise OSError(str(exc)) from exc
        return self._index

    def close(self) -> None:
        self._connection.close()


class _Seen(NamedTuple):
    """What a look found that began at one moment, and until when nothing else can be found."""

    newest: int
    began: float
    until: float


class _Fault(NamedTuple):
    """Why a look failed, and when."""

    reason: str
    ended: float


class _PostgresNewestIndex:
    """One connection; who comes while one looks waits for what it finds, be it a fault."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._seen = _Seen(0, -1.0, -1.0)
        self._fault = _Fault("", -1.0)
        self._connection: psycopg.Connection | None = None

    def index(self) -> int:
        seen, asked = self._seen, time.monotonic()
        if asked < seen.until:
            return seen.newest
        with self._lock:
            # Each look at a server that hangs takes seconds: all who waited for this one have waited enough.
            if asked < self._fault.ended:
                raise OSError(self._fault.reason)
            seen = self._seen
            if seen.began < asked and seen.until <= time.monotonic():
                seen = self._seen = self._look()
            return seen.newest

    def current_or_none(self) -> int | None:
        seen = self._seen
        return seen.newest if time.monotonic() < seen.until else None

    def close(self) -> None:
        # Who looks at a server that hangs holds this for seconds, and nobody is to wait for that.
        if self._lock.acquire(timeout=_CLOSING):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def _look(self) -> _Seen:
        import psycopg

        try:
            if self._connection is None:
                self._connection = _connected(self._url)
            began = time.monotonic()
            found = self._connection.execute(_LOOK)
            (no_writer,) = found.fetchone() or (False,)
            found.nextset()
            (index,) = found.fetchone() or (0,)
        except psycopg.Error as exc:
            self._disconnect()
            self._fault = _Fault(str(exc).strip(), time.monotonic())
            raise OSError(self._fault.reason) from exc
        return _Seen(index, began, began + _TRUSTED if no_writer else began)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _connected(url: URL) -> psycopg.Connection:
    # Two statements at once cannot be prepared; a server that is gone is noticed in seconds.
    connection = postgres.connect(
        url, prepare_threshold=None, application_name="lictor", tcp_user_timeout=5000
    )
    try:
        connection.execute("SET default_transaction_isolation = 'read committed'")
    except BaseException:
        connection.close()
        raise
    return connection
