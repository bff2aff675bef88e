"""Plays a run: scenery, seed and number of steps in, what was done out, or the Violation that it met."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, Lasting
from tests.faults.invariants import Violation
from tests.faults.quiet import await_follower, settle
from tests.faults.steps import OPENING, STEPS, Step
from tests.faults.world import SCENERIES, World

# After so many steps all trouble is ended, and the cache must come to equal what there is.
_QUIET_AFTER = 25
_FAULTS_AT_ONCE = 2
_LONGEST_FAULT = 5
_FAULT_SHARE = 0.3
# Between two steps, in seconds, at the most: what a step sets off may be over before the next or not.
_PAUSE = 0.2


@dataclass
class Report:
    """What a run did."""

    scenery: str
    seed: int
    steps: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    events: int = 0
    quiet: list[float] = field(default_factory=list)
    seconds: float = 0.0
    violation: str = ""

    def __str__(self) -> str:
        slowest = max(self.quiet, default=0.0)
        return (
            f"{self.scenery} seed {self.seed}: {self.steps.total()} steps, {self.faults.total()} faults, "
            f"{self.events} events, {self.answered} reads, slowest recovery {slowest:.1f} s, "
            f"{self.seconds:.0f} s in all"
        )


class Run:
    """One run of `steps` steps; `play` raises Violation, with all that is needed to play it again."""

    def __init__(self, scenery: str, seed: int, steps: int, folder: Path) -> None:
        self.report = Report(scenery, seed)
        self._steps = steps
        self._folder = folder
        self._lines: list[str] = []
        # Each lasting fault with the number of the step before which it ends.
        self._lasting: dict[Lasting, int] = {}

    def play(self) -> Report:
        began = time.monotonic()
        report = self.report
        try:
            with World(SCENERIES[report.scenery], report.seed, self._folder) as world:
                try:
                    self._play(world)
                except (Exception, pytest.fail.Exception) as exc:
                    raise Violation(self._told(world, exc)) from exc
                finally:
                    report.answered = world.asking.answered
                    report.events = world.invariants.replay.index
        except Violation as exc:
            report.violation = str(exc)
            raise
        finally:
            report.seconds = time.monotonic() - began
        return report

    def _play(self, world: World) -> None:
        for number in range(1, self._steps + 1):
            self._end_faults(world, number)
            self._step(world, self._choose(world, number), number)
            world.pass_time(world.chance.uniform(0, _PAUSE))
            world.check()
            if number % _QUIET_AFTER == 0 or number == self._steps:
                self._quiet(world, number)
        world.invariants.replay_anew()
        world.invariants.histories_are_whole()

    def _choose(self, world: World, number: int) -> Step:
        among: tuple[Step, ...] = FAULTS if world.chance.random() < _FAULT_SHARE else STEPS
        if number <= len(OPENING):
            among = (OPENING[number - 1],)
        possible = [step for step in among if step.possible(world) and self._has_room(step)]
        weights = [step.weight for step in possible]
        return world.chance.choices(possible, weights)[0]

    def _has_room(self, step: Step) -> bool:
        if not isinstance(step, Lasting):
            # A process that is down or stopped already can suffer no more.
            return not (step.name.startswith("Synchronizer") and self._is_taken("synchronizer"))
        return len(self._lasting) < _FAULTS_AT_ONCE and not self._is_taken(step.place)

    def _is_taken(self, place: str) -> bool:
        return any(fault.place == place for fault in self._lasting)

    def _step(self, world: World, step: Step, number: int) -> None:
        self._lines.append(f"{number:4d}  {step.name}")
        if isinstance(step, Lasting):
            self._lasting[step] = number + world.chance.randint(1, _LONGEST_FAULT)
        done = step.do(world)
        self._lines[-1] += f" {done}"
        self.report.steps[step.name] += 1
        if step in FAULTS:
            self.report.faults[step.name] += 1

    def _end_faults(self, world: World, number: int) -> None:
        for fault in [fault for fault, until in self._lasting.items() if until <= number]:
            self._lines.append(f"      end of {fault.name}")
            del self._lasting[fault]
            fault.end(world)

    def _quiet(self, world: World, number: int) -> None:
        self._end_faults(world, number + _LONGEST_FAULT)
        self.report.quiet.append(settle(world))
        self._lines.append(f"      quiet after {self.report.quiet[-1]:.1f} s")
        world.check()
        await_follower(world)
        # All that went is gone now: what is removed from here on must have left again.
        world.told.withdrawn.clear()

    def _told(self, world: World, exc: BaseException) -> str:
        report = self.report
        logs = "\n".join(f"--- {name}\n{said[-3000:]}" for name, said in world.processes.logs().items())
        return (
            f"{exc}\n\nscenery {report.scenery}, seed {report.seed}; the steps:\n"
            + "\n".join(self._lines)
            + f"\n\nplay it again: pytest tests/faults/test_runs.py --scenery {report.scenery} "
            f"--seed {report.seed} --steps {self._steps}\n\n{logs}"
        )
