"""The real `lictor` executable: arguments and settings in; output, exit status or a process out."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

LICTOR = Path(sys.executable).with_name("lictor")
# Tests read the lines, and several run at once.
_DEFAULTS = {"LICTOR_LOG_FORMAT": "text", "LICTOR_METRICS_BIND": ""}
LIMIT = 60.0


class Running:
    """A command that runs; what it says on stdout and stderr goes to one file."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self.command = command
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, *, limit: float = LIMIT, times: int = 1) -> re.Match[str]:
        """Waits until the pattern was said so often; returns the last of these matches."""
        deadline = time.monotonic() + limit
        while True:
            # In this order: what it says just before it ends must be seen.
            ended = self.process.poll() is not None
            matches = list(re.finditer(pattern, self.text, re.MULTILINE))
            if len(matches) >= times:
                return matches[times - 1]
            assert not ended, f"it ended and never said {pattern!r}, but\n{self.text}"
            assert time.monotonic() < deadline, f"it did not say {pattern!r}, but\n{self.text}"
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def descendants(self) -> list[int]:
        return _children_of({self.process.pid})


def _children_of(parents: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(int(entry.name)) in parents:
            found.append(int(entry.name))
    return found + _children_of(set(found)) if found else []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids: int, limit: float = 15.0) -> None:
    deadline = time.monotonic() + limit
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, f"{[pid for pid in pids if lives(pid)]} still run"
        time.sleep(0.02)


class Lictor:
    """Runs `lictor` in a folder of its own, with nothing but its own settings."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self._running: list[Running] = []

    @property
    def database(self) -> Path:
        return self.folder / "lictor.db"

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LICTOR), *arguments],
            cwd=self.folder,
            env=self.environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def json(self, *arguments: str, **settings: str) -> Any:
        done = self.run(*arguments, "--json", **settings)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str, **settings: str) -> Running:
        log = self.folder / f"output-{len(self._running)}"
        running = Running([str(LICTOR), *arguments], self.folder, self.environment(settings), log)
        self._running.append(running)
        return running

    def serve(self, *arguments: str, **settings: str) -> Running:
        """A web server that is ready."""
        server = self.start("serve", *arguments, **settings)
        deadline = time.monotonic() + LIMIT
        while not self.is_ready():
            assert server.process.poll() is None, server.text
            assert time.monotonic() < deadline, server.text
            time.sleep(0.05)
        return server

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def url(self) -> str:
        return f"http://{self.settings['LICTOR_BIND']}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=10)

    def close(self) -> None:
        for running in reversed(self._running):
            family = running.descendants()
            if running.process.poll() is None:
                running.process.terminate()
                try:
                    running.process.wait(LIMIT)
                except subprocess.TimeoutExpired:
                    running.process.kill()
                    running.process.wait()
            for pid in filter(lives, family):
                os.kill(pid, signal.SIGKILL)

    def show(self) -> None:
        """Prints what was said: pytest shows it beside a test that failed, and throws it away otherwise."""
        for running in self._running:
            print(f"--- {running.log.name}: {shlex.join(running.command[1:])}\n{running.text}")

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("LICTOR_", "CONSUL_"))
        }
        return {**outside, **_DEFAULTS, **self.settings, **settings}
