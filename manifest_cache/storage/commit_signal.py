"""Tells every process that one of them committed: NOTIFY on PostgreSQL, a touched file beside SQLite's."""

from __future__ import annotations

import contextlib
import math
import os
import select
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL

from manifest_cache.storage import postgres

_CHANNEL = "lictor_commit"
# Where no kernel tells of a touched file, it is looked at this often, in seconds.
_POLL = 0.1
# Larger than what the kernel queues of one file, in bytes: events that are alike are one.
_MANY_EVENTS = 4096
# inotify's watch, mask, cookie, and the length of a name, which the event of a file itself has none of.
_EVENT = struct.Struct("iIII")


class CommitWatch(Protocol):
    """Wakes at commits that come after it was opened. Not for several threads at once."""

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; True if something may have been committed meanwhile."""

    def fileno(self) -> int:
        """What is readable once something may have been committed, until the next `wait`; -1: nothing is."""

    def close(self) -> None: ...


class CommitSignal(Protocol):
    """What a writer does so that watches wake: within its transaction, and as soon as it is committed."""

    def in_transaction(self, cursor: Any) -> None: ...

    def after_commit(self) -> None: ...

    def watch(self) -> CommitWatch: ...

    def close(self) -> None: ...


def for_url(url: URL) -> CommitSignal:
    return _FileSignal(url) if url.get_backend_name() == "sqlite" else _PostgresSignal(url)


class _FileSignal:
    """SQLite tells nobody of a commit, but the kernel tells of a written file at once.

    The file is kept open, so that the first call after a commit is the one that wakes: at each call a
    thread lets others run, and may wait for its turn again.
    """

    def __init__(self, url: URL) -> None:
        self._path = Path(f"{url.database}-signal")
        # A number that was closed may be another file's: nobody may write to it then.
        self._lock = threading.Lock()
        self._file: int | None = None
        self._identity = (0, 0)

    def in_transaction(self, cursor: Any) -> None:
        pass

    def after_commit(self) -> None:
        # What is committed stays committed if the file cannot be written: watches then wake late.
        with self._lock, contextlib.suppress(OSError):
            if self._file is None or not self._touch(self._file):
                # Whoever watches by now watches the one that took its place.
                self._close()
                self._open()

    def watch(self) -> CommitWatch:
        if not self._path.exists():
            self._path.touch()
        return _InotifyWatch(self._path) if sys.platform == "linux" else _PollingWatch(self._path)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _touch(self, file: int) -> bool:
        """False if the file cannot be written, or is no longer the one that watches are opened on."""
        try:
            # Written in place: a file that is emptied first is flushed to the disk when closed.
            os.pwrite(file, b"\n", 0)
            return _identity(self._path.stat()) == self._identity
        except OSError:
            return False

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._identity = _identity(os.fstat(self._file))
        os.pwrite(self._file, b"\n", 0)

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """The same for all names of one file, and for no other as long as that is open."""
    return status.st_dev, status.st_ino


class _InotifyWatch:
    def __init__(self, path: Path) -> None:
        # Only Linux has it, so only Linux needs the package.
        from asyncinotify import Inotify, Mask

        self._path = path
        self._identity = _identity(path.stat())
        self._written = int(Mask.MODIFY)
        self._inotify = Inotify()
        # A file that is removed has one name less, which counts as an attribute.
        self._inotify.add_watch(path, Mask.MODIFY | Mask.ATTRIB | Mask.MOVE_SELF)
        os.set_blocking(self._inotify.fd, False)
        self._poll = select.poll()
        self._poll.register(self._inotify.fd, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        # Whoever was told that there is something needs one call less.
        return self._take() or (bool(self._poll.poll(math.ceil(max(timeout, 0) * 1000))) and self._take())

    def _take(self) -> bool:
        """Takes all that is there; False if there is nothing. Raises OSError if nothing more can come."""
        try:
            told = os.read(self._inotify.fd, _MANY_EVENTS)
        except BlockingIOError:
            return False
        if any(mask != self._written for _, mask, _, _ in _EVENT.iter_unpack(told)):
            self._refuse_another()
        return True

    def _refuse_another(self) -> None:
        """Writers tell by whatever file has the name."""
        if _identity(self._path.stat()) != self._identity:
            raise OSError(f"the file {self._path} is another than the one that is watched")

    def fileno(self) -> int:
        return self._inotify.fd

    def close(self) -> None:
        self._inotify.close()


class _PollingWatch:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._moment()

    def _moment(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while (moment := self._moment()) == self._seen:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL, left))
        self._seen = moment
        return True

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class _PostgresSignal:
    def __init__(self, url: URL) -> None:
        self._url = url

    def in_transaction(self, cursor: Any) -> None:
        # Delivered by the server at the commit, and not at all if there is none.
        cursor.execute(f"NOTIFY {_CHANNEL}")

    def after_commit(self) -> None:
        pass

    def watch(self) -> CommitWatch:
        return _ListeningWatch(self._url)

    def close(self) -> None:
        pass


class _ListeningWatch:
    def __init__(self, url: URL) -> None:
        import psycopg

        self._error = psycopg.Error
        try:
            self._connection = postgres.connect(url)
            try:
                self._connection.execute(f"LISTEN {_CHANNEL}")
            except BaseException:
                self._connection.close()
                raise
        except psycopg.Error as exc:
            raise OSError(str(exc).strip()) from exc

    def wait(self, timeout: float) -> bool:
        try:
            return any(True for _ in self._connection.notifies(timeout=timeout, stop_after=1))
        except self._error as exc:
            raise OSError(str(exc).strip()) from exc

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
