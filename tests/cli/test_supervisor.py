"""The supervisor with real processes: restarts, ends, signals, and its own death."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SUPERVISE = Path(__file__).parent / "supervise.py"
ROOT = Path(__file__).parents[2]
# One write a line: several processes print into one pipe, and CI may run Python unbuffered.
SLEEP = [sys.executable, "-c", "import os, time; os.write(1, b'runs %d\\n' % os.getpid()); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "os.write(1, b'runs %d\\n' % os.getpid()); time.sleep(60)",
]
# A server and its worker, as gunicorn has them: the worker outlives a master that is killed.
WITH_WORKER = [
    sys.executable,
    "-c",
    "import os, time; worker = os.fork(); "
    "os.write(1, b'%s %d\\n' % (b'runs' if worker else b'worker', os.getpid())); "
    "time.sleep(60)",
]


class Supervised:
    """A supervisor in a process of its own, and what it has said so far."""

    def __init__(self, *programs: list[str], **options: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SUPERVISE), json.dumps(options), json.dumps(programs)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        )
        assert self.process.stdout is not None
        self._lines = self.process.stdout
        self.said: list[str] = []

    def pid(self, word: str = "runs") -> int:
        return int(self.wait_for(rf"^{word} (\d+)$").group(1))

    def wait_for(self, pattern: str) -> re.Match[str]:
        for line in self._lines:
            self.said.append(line.rstrip("\n"))
            if match := re.search(pattern, self.said[-1]):
                return match
        raise AssertionError(f"{pattern!r} was never said, but {self.said}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        self.said += self._lines.read().splitlines()
        return self.process.wait(10)


@pytest.fixture
def supervise() -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*programs: list[str], **options: Any) -> Supervised:
        started.append(Supervised(*programs, **options))
        return started[-1]

    yield start
    for supervised in started:
        if supervised.process.poll() is None:
            supervised.send(signal.SIGTERM)
            supervised.send(signal.SIGTERM)
        supervised.process.wait(10)
        supervised._lines.close()


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} still run"
        time.sleep(0.02)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_programs(supervise: Callable[..., Supervised], number: signal.Signals) -> None:
    supervised = supervise(["one", *SLEEP], ["two", *SLEEP])
    pids = supervised.pid(), supervised.pid()
    supervised.send(number)
    assert supervised.end() == 0
    assert supervised.said[-1] == "nobody"
    wait_until_gone(*pids)


def test_a_program_that_dies_is_started_again_after_growing_pauses(
    supervise: Callable[..., Supervised],
) -> None:
    supervised = supervise(["one", *SLEEP], ["two", *SLEEP])
    first, other = supervised.pid(), supervised.pid()
    pauses = []
    for _ in range(3):
        os.kill(first, signal.SIGKILL)
        said = supervised.wait_for(
            r"(one|two) was ended by SIGKILL after .* s; it starts again in ([\d.]+) s"
        )
        pauses.append(float(said.group(2)))
        first = supervised.pid()
    assert 0.0 <= pauses[0] <= 0.1
    assert 0.2 <= pauses[2] <= 0.4
    assert Path(f"/proc/{other}").exists()


def test_a_program_that_ends_with_status_0_is_started_again(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", "true"])
    supervised.wait_for("one ended with status 0 after")
    supervised.wait_for("one ended with status 0 after")


def test_a_program_that_fails_at_its_first_start_ends_all(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", *SLEEP], ["two", "sh", "-c", "sleep 0.3; exit 7"])
    pid = supervised.pid()
    assert supervised.end() == 7
    assert supervised.said[-1] == "two with 7"
    wait_until_gone(pid)


def test_a_program_that_fails_later_is_started_again(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", "sh", "-c", "sleep 0.3; exit 7"], settling=0.1)
    supervised.wait_for("one ended with status 7 after")
    supervised.wait_for("one ended with status 7 after")


def test_wrong_settings_end_all_at_any_time(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", "sh", "-c", "sleep 0.3; exit 2"], settling=0.1)
    assert supervised.end() == 2
    assert supervised.said == ["one with 2"]


def test_a_command_that_is_not_there_ends_all(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", "/nonexistent/command"])
    assert supervised.end() == 127


def test_who_does_not_end_is_killed(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", *STUBBORN], grace=0.3)
    pid = supervised.pid()
    supervised.send(signal.SIGTERM)
    assert supervised.end() == 0
    assert "one has not ended yet: it is killed" in supervised.said
    wait_until_gone(pid)


def test_a_second_signal_hurries(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", *STUBBORN], grace=60)
    pid = supervised.pid()
    supervised.send(signal.SIGINT)
    supervised.wait_for("a second Ctrl-C hurries")
    supervised.send(signal.SIGINT)
    assert supervised.end() == 0
    wait_until_gone(pid)


def test_a_signal_during_a_pause_ends_at_once(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", "true"])
    supervised.wait_for("starts again")
    supervised.send(signal.SIGTERM)
    assert supervised.end() == 0


def test_the_workers_of_a_killed_program_go_with_it(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", *WITH_WORKER])
    found: dict[str, int] = {}
    while len(found) < 2:
        match = supervised.wait_for(r"^(runs|worker) (\d+)$")
        found[match.group(1)] = int(match.group(2))
    os.kill(found["runs"], signal.SIGKILL)
    wait_until_gone(found["worker"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of whoever is killed")
def test_all_programs_end_when_the_supervisor_is_killed(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(["one", *SLEEP], ["two", *SLEEP])
    pids = supervised.pid(), supervised.pid()
    supervised.send(signal.SIGKILL)
    wait_until_gone(*pids)
