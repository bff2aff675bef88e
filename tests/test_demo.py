"""`make demo` as a user meets it: it starts, shows what happens, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.demo, pytest.mark.timeout(200)]


class RunningDemo:
    """`make demo` in a session of its own, whose foreground group gets the Ctrl-C."""

    def __init__(self, output: Path) -> None:
        self.output = output
        # Its temporary folder goes below ours, where what it leaves behind is found.
        self.temporary = output.parent / "temporary"
        self.temporary.mkdir()
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                ["make", "demo", "ARGS=--restart-after 2"],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the demo ended before {what}\n{self.text}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.text}"
            time.sleep(0.05)

    def has_shown_the_new_manifest(self) -> bool:
        return "module.manifest_changed" in self.text.partition("The demo restarts the module reporting")[2]

    def found(self, pattern: str) -> str:
        match = re.search(pattern, self.text)
        assert match, f"{pattern} is not in\n{self.text}"
        return match[1]

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def descendants(self) -> dict[int, str]:
        """The process ids of all that it started, each with the moment of its start."""
        parents = {pid: fields for pid in _all_pids() if (fields := _stat(pid))}
        found: dict[int, str] = {}
        family = {self.process.pid}
        while family:
            family = {pid for pid, fields in parents.items() if int(fields[1]) in family}
            found |= {pid: parents[pid][19] for pid in family}
        return found


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name (state, parent, ...), or none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def lives(pid: int, started: str) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[19] == started and fields[0] != "Z"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[RunningDemo]:
    running = RunningDemo(tmp_path / "output")
    started = running.descendants()
    try:
        yield running
    finally:
        started |= running.descendants()
        if running.process.poll() is None:
            running.press_ctrl_c()
            try:
                running.process.wait(60)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
        for pid, moment in started.items():
            if lives(pid, moment):
                os.kill(pid, signal.SIGKILL)


def test_demo(demo: RunningDemo) -> None:
    demo.until(lambda: "Events as they happen" in demo.text, 120, "the demo is there")
    web = demo.found(r"the modules +(http://127.0.0.1:\d+)/")
    consul = demo.found(r"Consul's UI +(http://127.0.0.1:\d+)/")

    answer = httpx.get(f"{web}/api/v1/modules", trust_env=False).json()
    assert {module["name"]: module["status"] for module in answer["items"]} == {
        "documents": "available",
        "financial": "available",
        "reporting": "available",
    }
    assert httpx.get(f"{web}/", trust_env=False).status_code == 200
    assert httpx.get(f"{consul}/ui/", trust_env=False).status_code == 200
    demo.until(demo.has_shown_the_new_manifest, 40, "the restarted module's manifest is seen")

    started = demo.descendants()
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", demo.text)]
    assert len(started) >= 6, "make, the demo, Lictor, Consul and the modules"
    demo.press_ctrl_c()
    demo.process.wait(40)

    assert "Everything it started has ended." in demo.text
    assert [pid for pid, moment in started.items() if lives(pid, moment)] == []
    assert [port for port in ports if not is_free(port)] == []
    assert list(demo.temporary.iterdir()) == []
