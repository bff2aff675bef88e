"""Checks the file of webhooks and each receiver for `lictor doctor`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from discovery.errors import ConfigError
from discovery.registry.check_result import CheckResult, fail, ok, warn
from discovery.text import counted
from manifest_cache.storage.database import Database, StoreError
from manifest_cache.storage.models import EventRow
from manifest_cache.webhooks.config import Receiver, WebhookFile
from manifest_cache.webhooks.positions import Positions
from web.cli.terminal.output import age

# A receiver that is well has everything within seconds; passing over events is written down late.
_LATE = 120.0
_PAGE = 1000


def check_webhooks(path: Path, database_url: str) -> Iterator[CheckResult]:
    """Nothing is sent: a receiver would take it for an event."""
    try:
        receivers = WebhookFile(path).read()
    except ConfigError as exc:
        for fault in exc.faults:
            yield fail("webhooks", fault, "mend the file; until then the receivers stay as they were")
        return
    yield _file(path, receivers)
    database = Database(database_url)
    try:
        yield from _receivers(Positions(database), receivers)
    except StoreError:
        # The checks of the database have told of it.
        return
    finally:
        database.close()


def _file(path: Path, receivers: Sequence[Receiver]) -> CheckResult:
    told = f"{path} names {counted(len(receivers), 'receiver')}"
    if path.stat().st_mode & stat.S_IROTH and os.name == "posix":
        return warn("webhooks", f"{told}, and every user of this machine can read it", f"chmod o-r {path}")
    return ok("webhooks", told)


def _receivers(positions: Positions, receivers: Sequence[Receiver]) -> Iterator[CheckResult]:
    known = positions.known()
    for receiver in receivers:
        check = f"webhook {receiver.name}"
        if receiver.name not in known:
            told = "the synchronizer does not know it yet"
            yield warn(check, told, "see that `lictor sync` runs, and with this LICTOR_WEBHOOKS")
            continue
        waiting = _oldest(positions, receiver, known[receiver.name])
        if waiting is None or (datetime.now(UTC) - waiting.at).total_seconds() < _LATE:
            yield ok(check, f"{receiver.origin} has all events")
        else:
            told = f"{receiver.origin} waits for the event {waiting.index}, which happened {age(waiting.at)}"
            yield warn(check, told, "see the log of `lictor sync` for what it answers, and mend the receiver")


def _oldest(positions: Positions, receiver: Receiver, position: int) -> EventRow | None:
    """The first event that the receiver is still to get."""
    while events := positions.behind(position, _PAGE).events:
        for event in events:
            if receiver.wants(event.type, event.module):
                return event
        position = events[-1].index or position
    return None
