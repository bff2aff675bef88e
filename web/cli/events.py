"""`lictor events`: shows the event log, also as it grows."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import click

from discovery.timing.backoff import Backoff
from web.cli.terminal.database import opened_database
from web.cli.terminal.event_format import line_writer
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import plain, show_json, show_json_line

if TYPE_CHECKING:
    from manifest_cache.storage.commit_signal import CommitWatch
    from manifest_cache.storage.models import EventRow
    from manifest_cache.storage.reader import Reader, Snapshot

_NEWEST = 20
_PAGE = 500
# How long, in seconds, a closed pipe or a lost signal goes unnoticed while nothing happens.
_LOOK_UP = 1.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which events: of one module, or of all; of these types, or of any."""

    module: str | None
    types: Sequence[str]

    def behind(self, snapshot: Snapshot, index: int) -> Sequence[EventRow]:
        return snapshot.events(after=index, limit=_PAGE, module=self.module, types=self.types)

    def newest(self, snapshot: Snapshot, count: int) -> list[EventRow]:
        found = snapshot.events(limit=count, module=self.module, types=self.types, newest_first=True)
        return list(reversed(found))


@click.command(
    epilog=epilog(
        "lictor events --follow",
        "lictor events --after 1200 --type module.unavailable --json",
        status="0, also when --follow ends by Ctrl-C or because nobody reads its output any more; "
        "1 the database cannot be read; 2 wrong use or wrong settings.",
    )
)
@click.option(
    "--after",
    type=click.IntRange(min=0),
    metavar="INDEX",
    help=f"Begin behind this index. Without it, the newest {_NEWEST} are shown.",
)
@click.option("--module", metavar="NAME", help="Only events of this module.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only events of this type; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Show no more than this many, and end.")
@click.option("--follow", "-f", is_flag=True, help="Go on, and show events as they happen, until Ctrl-C.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, as /api/v1/events answers; with --follow one event on each line.",
)
def events(
    after: int | None,
    module: str | None,
    types: Sequence[str],
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what happened, the oldest first."""
    from manifest_cache.storage.reader import Reader

    _refuse_unknown_types(types)
    wanted = _Wanted(module, types)
    with opened_database() as database:
        reader = Reader(database)
        _tell_of_missing(reader, after)
        if follow:
            with suppress(KeyboardInterrupt):
                coming = _coming(reader, lambda: closing(database.watch()), wanted, after)
                _show_all(islice(coming, limit), as_json)
        elif as_json:
            _show_page_json(reader, wanted, after, limit)
        elif not _show_all(_there(reader, wanted, after, limit), as_json=False):
            click.echo("There are no such events.", err=True)


def _refuse_unknown_types(types: Sequence[str]) -> None:
    if not types:
        return
    from manifest_cache.ledger.event_types import EVENT_TYPES

    unknown = [word for word in types if word not in EVENT_TYPES]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(map(repr, unknown))} is none of {', '.join(EVENT_TYPES)}", param_hint="'--type'"
        )


def _tell_of_missing(reader: Reader, after: int | None) -> None:
    """On stderr: what is kept is shown all the same."""
    if not after:
        return
    with reader.snapshot() as snapshot:
        kept = snapshot.retained_after
    if after < kept:
        click.echo(
            f"Events up to {kept} are not kept any longer (LICTOR_EVENT_RETENTION); those after are shown.",
            err=True,
        )


def _there(reader: Reader, wanted: _Wanted, after: int | None, limit: int | None) -> Iterator[EventRow]:
    """The events that there are; whoever reads them slowly keeps no transaction open."""
    if after is None:
        with reader.snapshot() as snapshot:
            found = wanted.newest(snapshot, limit or _NEWEST)
        return iter(found)

    def behind(index: int) -> Sequence[EventRow]:
        with reader.snapshot() as snapshot:
            return wanted.behind(snapshot, index)

    return islice(_walk(behind, after), limit)


def _walk(page_behind: Callable[[int], Sequence[EventRow]], index: int) -> Iterator[EventRow]:
    while page := page_behind(index):
        yield from page
        index = _index(page[-1])


def _index(event: EventRow) -> int:
    return event.index or 0


def _coming(
    reader: Reader, watching: Callable[[], closing[CommitWatch]], wanted: _Wanted, after: int | None
) -> Iterator[EventRow]:
    """The events that there are, and then each that comes; ends when nobody reads the output any more.

    While the database is away this says so, and waits for it.
    """
    from manifest_cache.storage.database import StoreUnavailable

    backoff = Backoff(0.5, 10.0)
    while True:
        try:
            with watching() as watch:
                while not _nobody_reads():
                    with reader.snapshot() as snapshot:
                        index = snapshot.index
                        found = (
                            wanted.newest(snapshot, _NEWEST)
                            if after is None
                            else wanted.behind(snapshot, after)
                        )
                    backoff.reset()
                    yield from found
                    # A full page may have more behind it; else all up to the index was seen.
                    full = after is not None and len(found) == _PAGE
                    after = _index(found[-1]) if full else index
                    if not full:
                        watch.wait(_LOOK_UP)
                return
        except (StoreUnavailable, OSError) as exc:
            pause = backoff.next()
            click.echo(
                f"The database cannot be read: {plain(exc)}; it is tried again in {pause:.1f} s.", err=True
            )
            time.sleep(pause)


def _nobody_reads() -> bool:
    """Whether the output is a pipe that was closed, which else only the next event would tell."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        # An output that is no file at all, as in a test.
        return False
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))


def _show_page_json(reader: Reader, wanted: _Wanted, after: int | None, limit: int | None) -> None:
    from web.api import read as reading
    from web.schemas import responses

    with reader.snapshot() as snapshot:
        index = snapshot.index
        if after is None:
            found, more = wanted.newest(snapshot, limit or _NEWEST), False
        else:
            walked = _walk(lambda behind: wanted.behind(snapshot, behind), after)
            found = list(islice(walked, limit))
            more = next(walked, None) is not None
    cursor = reading.cursor_after("events", _index(found[-1])) if more else None
    answer = responses.EventList(
        items=[responses.Event.of(event) for event in found], next=cursor, index=index
    )
    show_json(answer.model_dump(mode="json", exclude_unset=True))


def _show_all(found: Iterator[EventRow], as_json: bool) -> int:
    """Shows each event as it comes; returns how many there were."""
    show = _show_json_event if as_json else line_writer()
    count = 0
    for event in found:
        show(event)
        sys.stdout.flush()
        count += 1
    return count


def _show_json_event(event: EventRow) -> None:
    from web.schemas.responses import Event as Shape

    show_json_line(Shape.of(event).model_dump(mode="json", exclude_unset=True))
