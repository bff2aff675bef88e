"""Checks the database for `lictor doctor`: schema, space, clock and age."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text

from discovery.registry.check_result import CheckResult, clock, fail, ok, warn
from discovery.text import counted
from manifest_cache.leader.lease import Lease
from manifest_cache.storage.database import Database, SchemaMismatch, StoreUnavailable
from manifest_cache.storage.models import SourceRow
from manifest_cache.storage.reader import Reader
from web.cli.terminal.output import age

_MEGABYTE = 1024 * 1024
_SPACE_FAILURE = 50 * _MEGABYTE
_SPACE_WARNING = 500 * _MEGABYTE
# A quiet Consul is heard from every five minutes or so.
_SILENCE = 660.0
# A leader is heard from every two seconds.
_LEADERS_SILENCE = 30.0


def check_database(url: str) -> Iterator[CheckResult]:
    database = Database(url)
    try:
        if database.path is not None:
            yield from _folder(database.path)
            if not database.path.exists():
                yield fail("database", f"{database.path.absolute()} is not there yet", "run `lictor migrate`")
                return
        state = _state(database)
        yield state
        if state.status == "ok":
            yield _writing(database)
            yield _leader(database)
            yield from _contacts(database)
        if database.path is None and state.status == "ok":
            yield _clock(database)
    finally:
        database.close()


def _folder(file: Path) -> Iterator[CheckResult]:
    """SQLite keeps its journal beside the file, so the folder must be writable too."""
    folder = file.absolute().parent
    if not folder.is_dir():
        yield fail("database folder", f"{folder} is not there", f"make it: mkdir -p {folder}")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        mend = "let Lictor's user write there, or name another place in LICTOR_DATABASE_URL"
        yield fail("database folder", f"this user may not write to {folder}", mend)
    else:
        yield ok("database folder", f"{folder} can be written to")
    free = shutil.disk_usage(folder).free
    told, mend = f"{free // _MEGABYTE} MB are free in {folder}", "free some space, or move the database"
    if free < _SPACE_FAILURE:
        yield fail("disk", told, mend)
    elif free < _SPACE_WARNING:
        yield warn("disk", told, mend)
    else:
        yield ok("disk", told)


def _state(database: Database) -> CheckResult:
    try:
        database.check_schema()
    except SchemaMismatch as exc:
        return fail("database", str(exc), "do as it says: no data is lost by it")
    except StoreUnavailable as exc:
        mend = "start it, see that it is reachable and that LICTOR_DATABASE_URL is right"
        if database.path is not None:
            mend = "see that this user may read and write the file, and that it is an SQLite database"
        return fail("database", f"{database.url_safe} cannot be used: {exc}", mend)
    return ok("database", f"{database.url_safe} can be read and has this program's schema")


def _writing(database: Database) -> CheckResult:
    try:
        with database.write():
            pass
    except StoreUnavailable as exc:
        mend = "see who holds it locked, that it is not read-only and its disk not full"
        return fail("database writing", str(exc), mend)
    return ok("database writing", "a transaction can be written")


def _contacts(database: Database) -> Iterator[CheckResult]:
    """When the registries were last heard from, as the synchronizer wrote it down."""
    with Reader(database).snapshot() as snapshot:
        sources = list(snapshot.sources)
    for source in sources:
        yield _contact(source)


def _leader(database: Database) -> CheckResult:
    """Which synchronizer leads. Clocks of machines differ a little, so only a long silence counts."""
    row = Lease(database).look()
    mend = "run `lictor sync`, or all of it by `lictor up`"
    if row.holder is None or row.since is None or row.renewed_at is None:
        return warn("synchronizer", "none leads: nothing is followed, and nothing expires", mend)
    if (datetime.now(UTC) - row.renewed_at).total_seconds() > _LEADERS_SILENCE:
        return warn("synchronizer", f"{row.holder} led, and was last heard from {age(row.renewed_at)}", mend)
    return ok("synchronizer", f"{row.holder} leads since {age(row.since)}")


def _contact(source: SourceRow) -> CheckResult:
    check = f"source {source.name}"
    if not source.connected:
        told = f"out of reach since {age(source.since)}: {source.reason or 'no reason is known'}"
        return warn(check, told, "see the checks of this registry, and that `lictor sync` runs")
    if source.doubt is not None:
        told = f"doubted since {age(source.since)}: {source.doubt}"
        return warn(check, told, "if that is right, run `lictor accept`; else mend the registry")
    silent = (datetime.now(UTC) - source.last_contact).total_seconds() if source.last_contact else 0.0
    if source.name != "push" and silent > _SILENCE:
        told = f"last heard from {age(source.last_contact or source.since)}"
        return warn(check, told, "see that `lictor sync` runs: it has not written for long")
    return ok(check, counted(source.instances, "instance"))


def _clock(database: Database) -> CheckResult:
    before = time.time()
    with database.read() as session:
        theirs = float(session.connection().scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    return clock("database clock", "the database's", theirs - (before + time.time()) / 2)
