"""What a check of `lictor doctor` found: one line for people, one object for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Word = Literal["ok", "warn", "fail"]

CLOCK_WARNING = 5.0
CLOCK_FAILURE = 60.0
"""Seconds that two clocks may differ before it is told, and before it is a fault."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one thing is, and what mends it where it is not well."""

    check: str
    status: Word
    detail: str
    mend: str = ""


def ok(check: str, detail: str) -> CheckResult:
    return CheckResult(check, "ok", detail)


def warn(check: str, detail: str, mend: str) -> CheckResult:
    return CheckResult(check, "warn", detail, mend)


def fail(check: str, detail: str, mend: str) -> CheckResult:
    return CheckResult(check, "fail", detail, mend)


def clock(check: str, whose: str, seconds: float, resolution: float = 0.0) -> CheckResult:
    """How far another clock is ahead of this machine's; what lies within its resolution is no difference."""
    apart = max(0.0, abs(seconds) - resolution)
    mend = "let NTP set the clocks of both machines (chrony, systemd-timesyncd)"
    if apart < CLOCK_WARNING:
        return ok(check, f"as {whose}, to {max(apart, resolution, 0.1):.1f} s")
    told = f"{apart:.0f} s {'behind' if seconds > 0 else 'ahead of'} {whose}"
    return fail(check, told, mend) if apart >= CLOCK_FAILURE else warn(check, told, mend)
