"""A real PostgreSQL server for tests: a free port in, databases that nobody else uses out."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest

from discovery.consul.dev_agent import free_ports

HOST = "127.0.0.1"
# Durability and big caches cost time and prove nothing here.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
}


class PostgresServer:
    """One server with data of its own; it can be stopped, killed and started again on the same data.

    `start` returns once the server takes connections. `url` names its database `postgres`, whose
    user `postgres` needs no password. As a context manager it starts, and removes all at the end.
    A `durable` one keeps what was committed even if it is killed.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._settings = SETTINGS | ({"synchronous_commit": "on"} if durable else {})
        self._programs = _find_programs()
        self._owner = _unprivileged_user()
        self.folder = Path(tempfile.mkdtemp(prefix="lictor-postgres-"))
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count(1)
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return self._url_of("postgres")

    def _url_of(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@{HOST}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("this PostgreSQL server is not running")
        return self._process.pid

    def create_database(self) -> str:
        """A new, empty database; returns its URL."""
        name = f"test_{next(self._names)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url_of(name)

    @contextmanager
    def database_on(self, folder: Path) -> Iterator[str]:
        """A new database whose files lie in a folder, until the block ends; its URL."""
        folder.mkdir()
        if self._owner is not None:
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)
        name = f"test_{next(self._names)}"
        with self._connect() as connection:
            connection.execute(f"CREATE TABLESPACE {name} LOCATION '{folder}'".encode())
            connection.execute(f"CREATE DATABASE {name} TABLESPACE {name}".encode())
        try:
            yield self._url_of(name)
        finally:
            with self._connect() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
                connection.execute(f"DROP TABLESPACE {name}".encode())

    def start(self, *, deadline: float = 30.0) -> None:
        if self._process is not None:
            raise RuntimeError("this PostgreSQL server is running already")
        if not (self.folder / "data" / "PG_VERSION").exists():
            self._create_data()
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = self._launch("postgres", f"--port={self.port}", *settings)
        self._wait_until_ready(time.monotonic() + deadline)

    def stop(self) -> None:
        """Ends the server at once for its clients, with its data written: a clean stop."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends the server as a crash would: nothing written, the next start recovers from its log.

        PostgreSQL's own signal for this reaches all its processes, where SIGKILL would leave some
        behind that hold the shared memory.
        """
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stops the server if it runs, and deletes its data."""
        if self._process is not None:
            self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=HOST, port=self.port, user="postgres", dbname="postgres", connect_timeout=5, autocommit=True
        )

    def _launch(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Runs one of PostgreSQL's programs on the data, as its owner: they refuse to run as root."""
        owner = self._owner
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, "-D", self.folder / "data", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=() if owner else None,
            )

    def _create_data(self) -> None:
        if self._owner is not None:
            os.chown(self.folder, self._owner.pw_uid, self._owner.pw_gid)
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        if self._launch("initdb", *options).wait(60) != 0:
            raise RuntimeError(f"initdb failed:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _wait_until_ready(self, deadline: float) -> None:
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError as error:
                reason = str(error)
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                if self._process is not None:
                    self._end(signal.SIGQUIT)
                raise RuntimeError(f"PostgreSQL did not start: {reason}\n{self._log_tail()}")
            time.sleep(0.02)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("this PostgreSQL server is not running")
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process = None


def _find_programs() -> Path:
    """The folder of initdb and postgres; Debian keeps one per version, none of them on PATH."""
    by_version = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version_of)
    on_path = shutil.which("postgres")
    for folder in (*reversed(by_version), *([Path(on_path).parent] if on_path else [])):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError(
        "PostgreSQL's server programs (initdb, postgres) are missing: "
        "run scripts/postgres-server, which installs them or says how"
    )


def _version_of(programs: Path) -> float:
    try:
        return float(programs.parent.name)
    except ValueError:
        return 0.0


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs the server: None for oneself; root needs someone else."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server for the whole run; whoever stops or kills one makes a server of their own."""
    with PostgresServer() as server:
        yield server
