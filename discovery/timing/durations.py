"""Reads and writes durations as Go and Consul do: "1m30s" is 90 seconds."""

from __future__ import annotations

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LONGEST = 100 * 366 * 86400.0
"""A hundred years: a time that long before or after now is still a date."""


def parse_duration(text: str | float) -> float:
    """Seconds of a duration in Go's syntax, to which days (`d`) are added; a bare number is seconds.

    Raises ValueError for anything else, negative durations and those of centuries among them.

    >>> parse_duration("1m30s"), parse_duration("250ms"), parse_duration("7d"), parse_duration(5)
    (90.0, 0.25, 604800.0, 5.0)
    """
    seconds = _seconds(text)
    if seconds is None:
        raise ValueError(f'{text!r} is not a duration: write it as "30s", "5m" or "1h30m"')
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return float(seconds)


def _seconds(text: str | float) -> float | None:
    if isinstance(text, int | float) and not isinstance(text, bool):
        return text if text >= 0 else None
    stripped = str(text).strip()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    if not stripped or _PART.sub("", stripped):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(stripped))


def format_duration(seconds: float) -> str:
    """A duration as Consul takes it and people read it, to the millisecond.

    >>> format_duration(90), format_duration(0.25), format_duration(3600), format_duration(0)
    ('1m30s', '250ms', '1h', '0s')
    """
    milliseconds = round(seconds * 1000)
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1000)
    parts = ((hours, "h"), (minutes, "m"), (whole, "s"), (milliseconds, "ms"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
