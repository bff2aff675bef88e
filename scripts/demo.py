"""The demo: Lictor on a real Consul with three sample modules, until Ctrl-C; then nothing of it is left.

usage: make demo            or, with options: make demo ARGS="--restart-after 5"
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx

from discovery.consul.dev_agent import free_ports
from web.cli.up import exec_with_parent

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
LICTOR = Path(sys.executable).with_name("lictor")
HOST = "127.0.0.1"
MODULES = ("documents", "financial", "reporting")

START_DEADLINE = 60.0
# Longer than `lictor up` itself gives its children.
STOP_DEADLINE = 15.0


class Stopped(Exception):
    """Ctrl-C was pressed, or a signal asked for the end."""


class Failed(Exception):
    """The demo cannot go on, with the reason."""


@dataclass(frozen=True)
class Ports:
    web: int
    consul: int
    dns: int
    financial: int
    reporting: int
    documents: int

    @property
    def web_url(self) -> str:
        return f"http://{HOST}:{self.web}"

    @property
    def consul_url(self) -> str:
        return f"http://{HOST}:{self.consul}"


class Program:
    """A child in a session of its own: Ctrl-C reaches the demo alone, which ends its children in order.

    Should the demo itself be killed, each child gets a SIGTERM.
    """

    def __init__(self, name: str, command: list[str | Path], environment: dict[str, str], log: Path | None):
        self.name = name
        self.log = log
        output = log.open("ab") if log else None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", exec_with_parent.__file__, str(os.getpid()), *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    def ask_to_end(self) -> None:
        self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Until it ended, and by force once the deadline has passed."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        # What it left behind in its session goes with it.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        if self.log is None:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return "\n".join(f"  {self.name} | {line}" for line in lines)


class Demo:
    """Starts programs one after another, watches over them, and ends them in reverse."""

    def __init__(self, folder: Path, ports: Ports, stop: threading.Event) -> None:
        self.folder = folder
        self.ports = ports
        self.stop = stop
        self.programs: list[Program] = []
        self.environment = _environment(folder, ports)

    def start(self, name: str, *command: str | Path, quiet: bool = True) -> Program:
        log = self.folder / f"{name}.log" if quiet else None
        program = Program(name, list(command), self.environment, log)
        self.programs.append(program)
        return program

    def start_lictor(self) -> None:
        self.start("lictor", LICTOR, "up", "--consul", "dev", "--dns-port", str(self.ports.dns))
        self.until(self._consul_has_leader, "Consul has no leader")
        self.until(lambda: self._get(f"{self.ports.web_url}/readyz") is not None, "Lictor is not ready")

    def start_financial(self) -> None:
        self.start(
            "financial",
            sys.executable,
            EXAMPLES / "financial" / "app.py",
            "--port",
            str(self.ports.financial),
        )

    def start_reporting(self) -> Program:
        return self.start(
            "reporting",
            *(sys.executable, EXAMPLES / "reporting" / "app.py", "--port", str(self.ports.reporting)),
            *("--state", self.folder / "reporting-starts"),
        )

    def start_documents(self) -> None:
        port = str(self.ports.documents)
        folder = EXAMPLES / "documents" / "public"
        self.start(
            "documents",
            *(LICTOR, "register", "--name", "documents", "--port", port, "--tag", "files"),
            *("--check", "http:/health,interval=2s", "--deregister-after", "1m"),
            *("--manifest", folder / "manifest.json", "--manifest-path", "/manifest.json", "--"),
            *(sys.executable, "-m", "http.server", port, "--bind", HOST, "--directory", folder),
        )

    def start_all(self) -> None:
        self.start_lictor()
        self.start_financial()
        self.start_documents()
        self.reporting = self.start_reporting()
        self.until(self._modules_are_available, "the three modules are not all available")

    def restart_reporting(self) -> None:
        self.programs.remove(self.reporting)
        self.reporting.ask_to_end()
        self.reporting.wait(time.monotonic() + STOP_DEADLINE)
        self.reporting = self.start_reporting()

    def until(self, condition: Callable[[], bool], what_is_wrong: str) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not condition():
            self.pause(0.05)
            if time.monotonic() > deadline:
                words = "\n".join(program.last_words() for program in self.programs)
                raise Failed(f"{what_is_wrong} after {START_DEADLINE:.0f} s\n{words}")

    def watch(self, seconds: float) -> None:
        """Watches over the programs for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.pause(0.2)

    def pause(self, seconds: float) -> None:
        """Waits, while nobody asks for the end and every program lives."""
        if self.stop.wait(seconds):
            raise Stopped
        for program in self.programs:
            status = program.process.poll()
            if status is not None:
                raise Failed(f"{program.name} ended with status {status}\n{program.last_words()}")

    def end(self) -> None:
        """The modules first, so that they deregister, then what they registered with."""
        modules = [program for program in self.programs if program.name in MODULES]
        others = [program for program in self.programs if program.name not in MODULES]
        for group in (modules, others):
            for program in group:
                program.ask_to_end()
            deadline = time.monotonic() + STOP_DEADLINE
            for program in group:
                program.wait(deadline)

    def _consul_has_leader(self) -> bool:
        answer = self._get(f"{self.ports.consul_url}/v1/status/leader")
        return answer is not None and answer.json() != ""

    def _modules_are_available(self) -> bool:
        answer = self._get(f"{self.ports.web_url}/api/v1/modules")
        modules = answer.json()["items"] if answer else []
        return {module["name"] for module in modules if _is_served(module)} >= set(MODULES)

    def _get(self, url: str) -> httpx.Response | None:
        """The answer if there is one and it is good."""
        try:
            answer = httpx.get(url, timeout=5, trust_env=False)
        except httpx.TransportError:
            return None
        return answer if answer.status_code == 200 else None


def _is_served(module: dict[str, object]) -> bool:
    return module["status"] == "available" and module["digest"] is not None


def _environment(folder: Path, ports: Ports) -> dict[str, str]:
    """The demo's settings in place of the user's own, which may name a Consul where people work."""
    others = {
        name: value for name, value in os.environ.items() if not name.startswith(("LICTOR_", "CONSUL_"))
    }
    if "CONSUL_BIN" in os.environ:
        others["CONSUL_BIN"] = os.environ["CONSUL_BIN"]
    return others | {
        "LICTOR_BIND": f"{HOST}:{ports.web}",
        "LICTOR_DATABASE_URL": f"sqlite:///{folder}/lictor.db",
        "CONSUL_HTTP_ADDR": f"{HOST}:{ports.consul}",
        "TMPDIR": str(folder),
        "PYTHONUNBUFFERED": "1",
    }


def choose_ports() -> Ports:
    """The usual port where nobody listens, else any free one."""
    usual = (8080, 8500, 8600, 8001, 8002, 8003)
    free = iter(free_ports(len(usual), besides=usual))
    return Ports(*(next(free) if _is_listening(port) else port for port in usual))


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def tell(ports: Ports, seconds: float, folder: Path) -> None:
    usual = {"Lictor": (8080, ports.web), "Consul": (8500, ports.consul), "Consul's DNS": (8600, ports.dns)}
    for who, (port, chosen) in usual.items():
        if port != chosen:
            print(f"Port {port} is in use here, so {who} has {chosen}.")
    print(
        f"""
All is there after {seconds:.1f} s. Open

  the modules    {ports.web_url}/
  the API        {ports.web_url}/api/v1/modules?include=manifest,instances
  Consul's UI    {ports.consul_url}/ui/
  Consul's DNS   dig @{HOST} -p {ports.dns} financial.service.consul SRV
  the logs       {folder}/*.log

Ctrl-C ends all of it. Events as they happen:
""",
        flush=True,
    )


@contextmanager
def signals_set(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, or a closed terminal) sets the event, which every wait heeds."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(demo: Demo, restart_after: float) -> None:
    began = time.monotonic()
    print("Starting Consul, Lictor and three modules ...", flush=True)
    demo.start_all()
    tell(demo.ports, time.monotonic() - began, demo.folder)
    demo.start("events", LICTOR, "events", "--follow", quiet=False)
    demo.watch(restart_after)
    print(
        "\nThe demo restarts the module reporting, whose next version brings another manifest:\n", flush=True
    )
    demo.restart_reporting()
    demo.watch(float("inf"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Lictor on a real Consul with three sample modules.")
    parser.add_argument(
        "--restart-after", type=float, default=20.0, metavar="SECONDS", help="when reporting is restarted"
    )
    options = parser.parse_args()
    stop = threading.Event()
    with signals_set(stop), tempfile.TemporaryDirectory(prefix="lictor-demo-") as folder:
        demo = Demo(Path(folder), choose_ports(), stop)
        try:
            run(demo, options.restart_after)
        except Stopped:
            print("\nEnding the demo ...", flush=True)
        except Failed as failure:
            print(f"\nThe demo failed: {failure}", file=sys.stderr, flush=True)
            return 1
        finally:
            demo.end()
    print("Everything it started has ended.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
