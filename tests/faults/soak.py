"""Plays runs of random seeds for as many steps as asked; counts of all that was played out.

usage: python -m tests.faults.soak [--steps N] [--seed N] [--scenery NAME]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.invariants import Violation
from tests.faults.run import Report, Run
from tests.faults.world import SCENERIES

_STEPS_OF_A_RUN = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description="Plays Lictor under faults, seed after seed.")
    parser.add_argument(
        "--steps", type=int, default=2000, help="how many steps in all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="the first seed (default: a random one); then upwards")
    parser.add_argument("--scenery", choices=SCENERIES, help="this one only (default: one after the other)")
    asked = parser.parse_args()
    # Whoever ends it this way wants its processes and its disk gone too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = asked.seed if asked.seed is not None else random.randrange(1_000_000)
    sceneries = [asked.scenery] if asked.scenery else list(SCENERIES)
    reports: list[Report] = []
    while (left := asked.steps - sum(report.steps.total() for report in reports)) > 0:
        scenery = sceneries[len(reports) % len(sceneries)]
        reports.append(_play(scenery, seed + len(reports) // len(sceneries), min(left, _STEPS_OF_A_RUN)))
    print(_summary(reports))
    return 1 if any(report.violation for report in reports) else 0


def _play(scenery: str, seed: int, steps: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="lictor-soak-", ignore_cleanup_errors=True) as folder:
        run = Run(scenery, seed, steps, Path(folder))
        try:
            run.play()
        except Violation as exc:
            print(f"VIOLATION: {exc}\n", flush=True)
        print(run.report, flush=True)
        return run.report


def _summary(reports: list[Report]) -> str:
    steps, faults = (
        sum((getattr(report, name) for report in reports), Counter[str]()) for name in ("steps", "faults")
    )
    slowest = max((seconds for report in reports for seconds in report.quiet), default=0.0)
    failed = [f"{report.scenery} {report.seed}" for report in reports if report.violation]
    rows = "\n".join(f"  {count:6d}  {name}" for name, count in faults.most_common())
    return (
        f"\n{steps.total()} steps in {len(reports)} runs, {sum(report.events for report in reports)} events, "
        f"{sum(report.answered for report in reports)} reads answered, slowest recovery {slowest:.1f} s\n"
        f"{faults.total()} faults:\n{rows}\n"
        f"violations: {len(failed)}{' (' + ', '.join(failed) + ')' if failed else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
