"""Gives the views a reader and a push registry on this process's own database."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask, current_app

from manifest_cache.ingest.push_registry import PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.storage.commit_signal import CommitWatch
from manifest_cache.storage.database import Database, StoreUnavailable
from manifest_cache.storage.reader import Reader, Snapshot
from web.push_auth import PushGuard
from web.rendering.module_changes import Changes
from web.rendering.module_json import ModuleParts
from web.settings import Settings

logger = logging.getLogger(__name__)

_EXTENSION = "lictor"
# For what reads beside the threads that answer.
_MORE_CONNECTIONS = 2


class Backend:
    """The database behind one application, opened by each process when it first needs it.

    Connections must not be shared with a process that forked this one, so what a parent opened is
    left alone. Until the schema was once seen to be right it is looked at before each use, and
    again after the database was away.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.push_guard = PushGuard(settings)
        self.changes = Changes()
        self.module_parts = ModuleParts(settings.read_cache_bytes, self.changes)
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._owner = 0
        self._of_parents: list[Database] = []
        self._schema_is_right = False
        self._highest = 0
        self._when_put_back = [self.changes.forget, self.module_parts.forget]

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One consistent state of the cache. Raises SchemaMismatch or StoreUnavailable."""
        highest = self._highest
        with self._checked() as database, Reader(database).snapshot() as snapshot:
            self._compare(snapshot.index, highest)
            yield snapshot

    def index(self) -> int:
        """The newest index, at next to no cost. Raises StoreUnavailable."""
        highest = self._highest
        index = self._own_database().index()
        self._compare(index, highest)
        return index

    def current_or_none(self) -> int | None:
        """The newest index, for who must not wait: None where that takes a wait, or cannot be told."""
        highest = self._highest
        index = self._own_database().current_or_none()
        if index is not None:
            self._compare(index, highest)
        return index

    @contextmanager
    def push(self) -> Iterator[PushTables]:
        """The push registry. Raises SchemaMismatch or StoreUnavailable."""
        with self._checked() as database:
            yield PushTables(database, self.settings)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """What asks the synchronizer for something. Raises SchemaMismatch or StoreUnavailable."""
        with self._checked() as database:
            yield Store(database, self.settings)

    def watch(self) -> CommitWatch:
        """Wakes at each commit of any process. Raises StoreUnavailable."""
        return self._own_database().watch()

    def check(self) -> None:
        """Raises SchemaMismatch or StoreUnavailable where the cache cannot be read."""
        self._schema_is_right = False
        with self.snapshot():
            pass

    def close(self) -> None:
        """Closes this process's connections; the next use opens new ones."""
        with self._lock:
            if self._database is not None and self._owner == os.getpid():
                self._database.close()
            self._database = None

    def when_put_back(self, forget: Callable[[], None]) -> None:
        """Has whatever keeps what it read forget it where the database turns out to be an earlier one."""
        self._when_put_back.append(forget)

    def _compare(self, index: int, highest: int) -> None:
        """Notes the index of now, and compares it with the highest one that was known before the look."""
        if index > highest:
            self._highest = index
        elif index < highest:
            # At the same index it will say something else.
            logger.warning("the database was put back: its index was %d and is %d", highest, index)
            self._highest = index
            for forget in self._when_put_back:
                forget()

    @contextmanager
    def _checked(self) -> Iterator[Database]:
        database = self._own_database()
        try:
            if not self._schema_is_right:
                database.check_schema()
                self._schema_is_right = True
            yield database
        except StoreUnavailable:
            self._schema_is_right = False
            raise

    def _own_database(self) -> Database:
        database = self._database
        if database is not None and self._owner == os.getpid():
            return database
        with self._lock:
            if self._database is not None and self._owner != os.getpid():
                # Kept, for if it were collected it would end the parent's connections.
                self._of_parents.append(self._database)
                self._database = None
            if self._database is None:
                self._database = Database(
                    self.settings.database_url, connections=self.settings.threads + _MORE_CONNECTIONS
                )
                self._owner = os.getpid()
                self._schema_is_right = False
            return self._database


def install(app: Flask, settings: Settings) -> Backend:
    backend = app.extensions[_EXTENSION] = Backend(settings)
    return backend


def backend() -> Backend:
    """The backend of the application that answers the current request."""
    return of(current_app)


def of(app: Flask) -> Backend:
    found: Backend = app.extensions[_EXTENSION]
    return found
