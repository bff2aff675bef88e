"""Opens read and write sessions on the database, and translates the driver's errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from sqlalchemy import Connection, Dialect, PoolProxiedConnection, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, SQLModel

from discovery import tracing
from manifest_cache.storage import commit_signal, newest_index, schema
from manifest_cache.storage.models import utc_now
from manifest_cache.storage.newest_index import COMMIT_NOTICE, WRITER_LOCK
from manifest_cache.storage.raw_rows import ReadTransaction, WriteTransaction
from manifest_cache.storage.raw_statements import statements
from manifest_cache.storage.sqlite_pool import SqliteConnections

BUSY_TIMEOUT = 5.0
"""Seconds that a writer waits for another one before it gives up."""

IDLE_TIMEOUT = 20.0
"""Seconds after which PostgreSQL ends a transaction of a writer that does nothing in it: it may be paused."""

_KEPT_CONNECTIONS = 5


class StoreError(Exception):
    """The database cannot do what is asked of it.

    StoreError
    ├── StoreUnavailable    away, locked, forbidden, read-only or full: try again later
    ├── SchemaMismatch      its schema is older or newer than this program's
    └── Fenced              another synchronizer has taken the lead since
    """


class StoreUnavailable(StoreError):
    """Away, locked, forbidden, read-only or full; `reason` says which, as the driver put it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SchemaMismatch(StoreError):
    """The schema is not the one that this program works with; the message says what to run."""


class Fenced(StoreError):
    """The writer led once, and another leads since: nothing was written."""


class Database:
    """One database and its connections; every process opens its own.

    `url` is a SQLAlchemy URL of SQLite (a file) or PostgreSQL (psycopg 3). Writers are serialized,
    so that the indexes of events become visible in their order: by `BEGIN IMMEDIATE` on SQLite, by
    an advisory lock on PostgreSQL. Readers never wait for writers. At most `connections` are open
    at once, beside that of `index`; of those to SQLite so many for sessions, and so many without.

    Every method raises StoreUnavailable where the database cannot serve.
    """

    def __init__(self, url: str, *, connections: int = 15) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._signal = commit_signal.for_url(self.url)
        self._glance = newest_index.for_url(self.url)
        kept = min(connections, _KEPT_CONNECTIONS)
        pool = {"pool_size": kept, "max_overflow": connections - kept}
        if self.is_sqlite:
            self._engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT}, **pool)
            event.listen(self._engine, "connect", _prepare_sqlite)
            self._kept = SqliteConnections(self._connect_apart, connections, kept)
        else:
            self._engine = create_engine(
                self.url,
                pool_pre_ping=True,
                isolation_level="REPEATABLE READ",
                connect_args={"connect_timeout": int(BUSY_TIMEOUT), "application_name": "lictor"},
                **pool,
            )
        event.listen(self._engine, "begin", _begin)
        self._border = _TranslatedErrors(self._engine.dialect)

    @property
    def url_safe(self) -> str:
        """The URL with its password masked."""
        return self.url.render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The file of an SQLite database, None for any other."""
        return Path(self.url.database or "") if self.is_sqlite else None

    def close(self) -> None:
        self._glance.close()
        self._signal.close()
        if self.is_sqlite:
            self._kept.close()
        self._engine.dispose()

    def index(self) -> int:
        """The newest index, never older than at the time of the call; it costs next to nothing."""
        try:
            return self._glance.index()
        except OSError as exc:
            raise StoreUnavailable(str(exc)) from exc

    def current_or_none(self) -> int | None:
        """The same, for who must not wait: None where that takes a wait, or cannot be told."""
        return self._glance.current_or_none()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state of the database, and changes nothing."""
        with (
            self._traced("read"),
            self._border,
            self._engine.connect() as connection,
            connection.begin(),
        ):
            yield Session(bind=connection, autoflush=False, expire_on_commit=False)

    @contextmanager
    def raw_read(self) -> Iterator[ReadTransaction]:
        """The same without SQLAlchemy's sessions, for who reads often and in haste."""
        with self._traced("read"), self._border, self._borrowed() as connection:
            cursor = connection.cursor()
            if self.is_sqlite:
                # Any other driver begins by itself.
                cursor.execute("BEGIN")
            yield ReadTransaction(cursor, self._engine.dialect)

    @contextmanager
    def write(self, *, quiet: bool = False) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all.

        A `quiet` one wakes no watch: nothing in it can be seen by a reader.
        """
        with self._traced("write"), self._border:
            with (
                self._sole_connection() as connection,
                self._permitted(WriteTransaction.of(connection), quiet=quiet),
            ):
                session = Session(bind=connection, autoflush=False, expire_on_commit=False)
                yield session
                session.flush()
            if not quiet:
                self._signal.after_commit()

    @contextmanager
    def raw_write(self, *, quiet: bool = False) -> Iterator[WriteTransaction]:
        """The same without SQLAlchemy's sessions, for those for whose changes somebody waits."""
        with self._traced("write"), self._border, self._borrowed() as connection:
            writing = WriteTransaction(connection.cursor(), self._engine.dialect)
            _take_turn(writing.cursor, is_sqlite=self.is_sqlite)
            with self._permitted(writing, quiet=quiet):
                yield writing
            connection.commit()
            if not quiet:
                # Before anything else: this is what tells those who wait.
                self._signal.after_commit()

    def _borrowed(self) -> AbstractContextManager[Any]:
        """A connection as the driver has it, for a transaction that is undone if it is not committed."""
        return self._kept.one() if self.is_sqlite else self._borrowed_from_pool()

    def _connect_apart(self) -> sqlite3.Connection:
        connection = self._engine.raw_connection()
        # It is not the pool's from now on.
        connection.detach()
        return cast(sqlite3.Connection, connection.dbapi_connection)

    @contextmanager
    def _borrowed_from_pool(self) -> Iterator[PoolProxiedConnection]:
        error = self._engine.dialect.loaded_dbapi.Error
        connection = self._engine.raw_connection()
        try:
            yield connection
        finally:
            _give_back(connection, error)

    def _traced(self, what: str) -> AbstractContextManager[object]:
        return tracing.span(f"database {what}", "client", {"db.system.name": self.url.get_backend_name()})

    @contextmanager
    def _permitted(self, writing: WriteTransaction, *, quiet: bool) -> Iterator[None]:
        """What a writer has to do within its transaction before its changes, and after them."""
        noticed = time.monotonic()
        self._may_write(writing)
        yield
        if not quiet:
            self._signal.in_transaction(writing.cursor)
            self._give_notice(noticed)

    def _may_write(self, writing: WriteTransaction) -> None:
        """Any holder of the writers' lock may write; a FencedDatabase is stricter."""

    @contextmanager
    def _sole_connection(self) -> Iterator[Connection]:
        """A connection in a transaction that no other writer's runs beside."""
        with self._engine.connect() as connection:
            connection = connection.execution_options(lictor_write=True)
            with connection.begin():
                yield connection

    def _give_notice(self, noticed: float) -> None:
        """Waits until readers have had the time to notice that a commit is about to come."""
        left = noticed + COMMIT_NOTICE - time.monotonic()
        if not self.is_sqlite and left > 0:
            time.sleep(left)

    def watch(self) -> commit_signal.CommitWatch:
        """Wakes at each commit of any process; close it after use."""
        with self._border:
            return self._signal.watch()

    def migrate(self) -> tuple[str | None, str]:
        """Brings the schema to this program's revision.

        Returns the revision before (None: the database was empty) and after. Several processes may
        do it at once: one migrates, the others wait and find it done. Raises SchemaMismatch if the
        schema is newer than this program.
        """
        with self._border, self._sole_connection() as connection:
            before = schema.current_revision(connection)
            self._refuse_newer(before)
            if before != schema.HEAD:
                schema.upgrade(connection)
            return before, schema.HEAD

    def check_schema(self) -> None:
        """Raises SchemaMismatch if the schema is not this program's."""
        with self._border, self._engine.connect() as connection, connection.begin():
            revision = schema.current_revision(connection)
        self._refuse_newer(revision)
        if revision is None:
            raise SchemaMismatch(f"the database {self.url_safe} is empty: run `lictor migrate`")
        if revision != schema.HEAD:
            raise SchemaMismatch(
                f"the database {self.url_safe} has the older schema {revision}, and this Lictor needs "
                f"{schema.HEAD}: run `lictor migrate`"
            )

    def _refuse_newer(self, revision: str | None) -> None:
        if revision is not None and revision not in schema.REVISIONS:
            raise SchemaMismatch(
                f"the database {self.url_safe} has the schema {revision}, which this Lictor does not know: "
                "it was migrated by a newer one; upgrade this Lictor, or name another LICTOR_DATABASE_URL"
            )


class FencedDatabase(Database):
    """The database of one who leads: it takes writes only while `token` is the newest one.

    That is asked in the transaction of each write, so a leader that slept through its successor's
    election cannot write on waking: `write` raises Fenced. The question renews the leader's lease.
    It shares the connections of the database that it was made from, which is the one to close.
    """

    def __init__(self, database: Database, token: int) -> None:
        vars(self).update(vars(database))
        self.token = token

    def _may_write(self, writing: WriteTransaction) -> None:
        # A lease that this renews is seen by others only after the commit, and so cannot be
        # taken away in the middle of a long transaction.
        lease = statements(_LEADERSHIP, writing.dialect)
        if lease.update_where(writing.cursor, "token", self.token, {"renewed_at": utc_now()}) != 1:
            raise Fenced(f"the lead was taken over: the token {self.token} is not the newest one any more")


_LEADERSHIP = SQLModel.metadata.tables["leadership"]


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Transactions are begun by _begin alone: the driver's own way never begins one for a read.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own knows no letters but those of ASCII.
    connection.create_function("lower", 1, _lower, deterministic=True)
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        _switch_to_wal(connection)


def _lower(text: str | None) -> str | None:
    return text if text is None else text.lower()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            # A file that cannot be written is still good for reading.
            if "readonly" in str(exc):
                return
            # SQLite does not wait for others here, whatever the busy timeout.
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    is_sqlite = connection.dialect.name == "sqlite"
    if connection.get_execution_options().get("lictor_write", False):
        _take_turn(connection.connection.cursor(), is_sqlite=is_sqlite)
    elif is_sqlite:
        connection.exec_driver_sql("BEGIN")


def _take_turn(cursor: Any, *, is_sqlite: bool) -> None:
    """Begins a transaction that no other writer's runs beside."""
    if is_sqlite:
        cursor.execute("BEGIN IMMEDIATE")
        return
    # Each statement sees what is committed when it begins: a snapshot for the whole transaction would
    # be taken before the writers' lock is held, and be too old then.
    cursor.execute(
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
        f"SET LOCAL lock_timeout = {BUSY_TIMEOUT * 1000:.0f}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT * 1000:.0f}; "
        f"SELECT pg_advisory_xact_lock({WRITER_LOCK})",
        # Several statements in one call cannot be.
        prepare=False,
    )


def _give_back(connection: PoolProxiedConnection, error: type[Exception]) -> None:
    """Ends the transaction too. A connection that cannot do that is kept for nobody."""
    try:
        if connection.is_valid:
            connection.rollback()
    except error as exc:
        connection.invalidate(exc)
    connection.close()


class _TranslatedErrors(AbstractContextManager[None]):
    """The one border where the driver's faults become StoreUnavailable.

    Faults of the program (a broken constraint, a wrong statement) pass, as SQLAlchemy wraps them: they are
    not the database's. Not made by a generator, as each transaction goes through it.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._error = dialect.loaded_dbapi.Error

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            return
        if isinstance(exc, self._error):
            wrapped = DBAPIError.instance(None, None, exc, self._error, dialect=self._dialect)
            if isinstance(wrapped, DBAPIError) and _is_programs_fault(wrapped):
                raise wrapped from exc
            raise StoreUnavailable(str(exc).strip() or type(exc).__name__) from exc
        if isinstance(exc, DBAPIError) and not _is_programs_fault(exc):
            raise StoreUnavailable(str(exc.orig).strip() or type(exc.orig).__name__) from exc
        if isinstance(exc, (PoolTimeout, OSError)):
            raise StoreUnavailable(str(exc)) from exc


_PROGRAMS_FAULTS = ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
# Whatever class the driver gives them: a database that was not migrated, or not given to this user.
_ITS_OWN_FAULTS = ("UndefinedTable", "InsufficientPrivilege")


def _is_programs_fault(exc: DBAPIError) -> bool:
    is_its_own = "no such table" in str(exc.orig) or type(exc.orig).__name__ in _ITS_OWN_FAULTS
    return isinstance(exc, SQLAlchemyError) and type(exc).__name__ in _PROGRAMS_FAULTS and not is_its_own
