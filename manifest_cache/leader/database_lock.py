"""Holds a lock on the database that ends with its process: a file lock or an advisory lock.

The kernel frees the one when its process ends, however it ends, and PostgreSQL the other, as the
connection that holds it is closed then. A process that is merely paused keeps both.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import URL

from manifest_cache.storage import postgres
from manifest_cache.storage.database import Database

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

# Any number does, as long as nothing else on the server uses it: it spells "leader".
_LEADER_LOCK = 0x6C6561646572

# A client whose machine lost its power is noticed within twelve seconds, and frees its lock.
_NOTICE_DEAD_CLIENTS = (
    "SET tcp_keepalives_idle = 4",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 4",
)


class DatabaseLock(Protocol):
    """One lock for each database, held by one process at the most; for one thread at a time."""

    def acquire(self) -> bool:
        """Whether it is held after this; does not wait for another process to free it."""

    def release(self) -> None: ...


def for_database(database: Database) -> DatabaseLock:
    return _AdvisoryLock(database.url) if database.path is None else _FileLock(database.path)


class _FileLock:
    def __init__(self, database: Path) -> None:
        self._path = Path(f"{database}-leader")
        self._file: int | None = None

    def acquire(self) -> bool:
        if self._file is not None:
            return True
        try:
            # The file is never removed: two processes could then each hold a lock on one of its name.
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            logger.debug("cannot lock %s: %s", self._path, exc)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _AdvisoryLock:
    def __init__(self, url: URL) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None
        self._held = False

    def acquire(self) -> bool:
        """Asks the server even if the lock is held: with the connection it would be lost unnoticed."""
        import psycopg

        try:
            self._held = self._ask(self._connected())
        except psycopg.Error as exc:
            logger.debug("cannot lock the database: %s", exc)
            self.release()
        return self._held

    def release(self) -> None:
        import psycopg

        self._held = False
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = postgres.connect(
                self._url, application_name="lictor leader", keepalives_idle=4, tcp_user_timeout=10_000
            )
            for setting in _NOTICE_DEAD_CLIENTS:
                self._connection.execute(setting)
        return self._connection

    def _ask(self, connection: psycopg.Connection) -> bool:
        # A session may take a lock several times over, and would have to free it as often.
        question = "SELECT true" if self._held else "SELECT pg_try_advisory_lock(%s)"
        row = connection.execute(question, None if self._held else (_LEADER_LOCK,)).fetchone()
        return bool(row and row[0])
