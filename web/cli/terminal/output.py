"""Writes results as tables for people or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

# Wide enough for any line: where nobody looks at a terminal, nothing is wrapped or cut.
_UNBOUNDED = 1_000_000

COLOURS = {
    "available": "green",
    "passing": "green",
    "ok": "green",
    "degraded": "yellow",
    "warning": "yellow",
    "warn": "yellow",
    "maintenance": "blue",
    "unavailable": "red",
    "critical": "red",
    "fail": "red",
}
"""The colour of each word that tells how something is."""


def console() -> Console:
    """A console with colours and wrapping on a terminal, and with neither in a pipe or a file."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the program with status 1; ours decides that in one place for all output.
            raise BrokenPipeError

    made = Plain(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNBOUNDED
    return made


def plain(text: object) -> str:
    """Text that was made elsewhere, safe to show: control characters become visible escapes.

    A module chooses its own title; it must not choose what the operator's terminal does.

    >>> plain("two\\nlines \\x1b[2J")
    'two\\\\nlines \\\\x1b[2J'
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in str(text))


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def show_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_json_line(value: Any) -> None:
    """One JSON document on a line of its own."""
    click.echo(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table without lines, so that other programs can cut it by columns too."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell), style=COLOURS.get(str(cell), "")) for cell in row))
    console().print(table)


def moment(at: datetime) -> str:
    """A moment in UTC, to the second.

    >>> moment(datetime(2026, 5, 1, 12, 0, 30, 999, tzinfo=UTC))
    '2026-05-01T12:00:30Z'
    """
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(at: datetime, now: datetime | None = None) -> str:
    """How long ago a moment is, in its largest unit.

    >>> age(datetime(2026, 5, 1, 12, 0, tzinfo=UTC), datetime(2026, 5, 1, 15, 10, tzinfo=UTC))
    '3h ago'
    """
    passed = max(timedelta(0), (now or datetime.now(UTC)) - at)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if passed.total_seconds() >= length:
            return f"{int(passed.total_seconds() // length)}{unit} ago"
    return f"{int(passed.total_seconds())}s ago"
