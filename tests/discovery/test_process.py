"""Any program as a registered module: its life, its signals and its exit status, under a real Consul."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from discovery import ConfigError, HTTPCheck, TTLCheck
from discovery.announce.run_registered import registration_for_command
from discovery.consul.client import ConsulClient
from discovery.errors import UnknownInstance
from tests.consul_server import ConsulServer, RunningConsul, eventually

WRAPPER = """
import logging, sys
from discovery.announce.run_registered import registration_for_command, run_registered
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
name, *command = sys.argv[1:]
registration = registration_for_command(name=name, id=name, port=8001, checks=["ttl:1s"])
sys.exit(run_registered(command, registration))
"""
# A handler alone would not wake a program that is just about to wait.
TRAPS = """
import os, select, signal, sys
told, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: None)
print(os.getpid(), flush=True)
while True:
    ready, _, _ = select.select([told, 0], [], [])
    if told in ready:
        for number in os.read(told, 100):
            print(signal.Signals(number).name, flush=True)
    elif not os.read(0, 100):
        break
"""

Wrapper = subprocess.Popen[str]
Run = Callable[..., Wrapper]


@pytest.fixture
def name() -> str:
    return f"command-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run(consul: RunningConsul, name: str) -> Iterator[Run]:
    """Runs a command as a registered module; kills it and its wrapper after the test."""
    with ExitStack() as running:

        def start(*command: str, **options: Any) -> Wrapper:
            given = {
                "env": {**os.environ, "CONSUL_HTTP_ADDR": consul.http_addr},
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "start_new_session": True,
            }
            wrapper = subprocess.Popen(
                [sys.executable, "-c", WRAPPER, name, *command], **{**given, **options}
            )
            running.callback(_end, wrapper)
            return wrapper

        yield start


def _end(wrapper: Wrapper) -> None:
    with suppress(ProcessLookupError):
        os.killpg(wrapper.pid, signal.SIGKILL)
    wrapper.communicate()


def line(wrapper: Wrapper) -> str:
    assert wrapper.stdout is not None
    return wrapper.stdout.readline().strip()


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


def ended(wrapper: Wrapper) -> tuple[int, str]:
    _, log = wrapper.communicate(timeout=10)
    return wrapper.returncode, log


def lives(pid: int) -> bool:
    try:
        return b" Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------ life and end


def test_a_command_is_registered_while_it_lives(run: Run, client: ConsulClient, name: str) -> None:
    wrapper = run("cat")
    eventually(lambda: service(client, name))
    index = client.health_service(name).index
    # Heartbeats go on: the check passes beyond its TTL.
    answer = client.health_service(name, index=index, wait=1.5)
    assert {check["Status"] for check in answer.data[0]["Checks"]} == {"passing"}
    status, log = ended(wrapper)
    assert status == 0, log
    assert not service(client, name), log


def test_the_command_has_input_output_and_its_place_in_the_registry(run: Run, name: str) -> None:
    wrapper = run("sh", "-c", "env | grep ^LICTOR_SERVICE_ | sort; tr a-z A-Z; echo oops >&2")
    output, log = wrapper.communicate("spoken", timeout=10)
    assert output.splitlines() == [
        f"LICTOR_SERVICE_ID={name}",
        f"LICTOR_SERVICE_NAME={name}",
        "LICTOR_SERVICE_PORT=8001",
        "SPOKEN",
    ]
    assert "oops" in log


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param(["true"], 0, id="success"),
        pytest.param(["sh", "-c", "exit 42"], 42, id="failure"),
        pytest.param(["sh", "-c", "kill -KILL $$"], 137, id="SIGKILL"),
        pytest.param(["sh", "-c", "kill -TERM $$"], 143, id="SIGTERM"),
        pytest.param(["no-such-command"], 127, id="not found"),
        pytest.param(["/no/such/command"], 127, id="no such file"),
        pytest.param(["/etc/passwd"], 126, id="not executable"),
        pytest.param(["/"], 126, id="a folder"),
    ],
)
def test_the_exit_status_is_as_a_shell_gives_it(
    run: Run, client: ConsulClient, name: str, command: list[str], status: int
) -> None:
    told, log = ended(run(*command))
    assert told == status, log
    assert not service(client, name)
    if status in (126, 127):
        assert f"{command[0]} cannot be started" in log


def test_a_command_lives_without_any_agent(run: Run, name: str) -> None:
    wrapper = run("cat", env={**os.environ, "CONSUL_HTTP_ADDR": "127.0.0.1:9"})
    assert wrapper.stdin is not None
    assert wrapper.stderr is not None
    assert "connection refused" in wrapper.stderr.readline()
    wrapper.stdin.write("spoken\n")
    wrapper.stdin.flush()
    assert line(wrapper) == "spoken"
    assert ended(wrapper)[0] == 0


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_passed_on_once_and_the_command_decides(
    run: Run, client: ConsulClient, name: str, number: str
) -> None:
    wrapper = run(sys.executable, "-c", TRAPS)
    line(wrapper)
    eventually(lambda: service(client, name))
    wrapper.send_signal(signal.Signals[number])
    assert line(wrapper) == number
    # It does not end of that; but those that ask it to have been taken at their word.
    assert bool(service(client, name)) == (number not in ("SIGTERM", "SIGINT"))
    output, log = wrapper.communicate(timeout=10)
    assert (wrapper.returncode, output) == (0, ""), log
    assert not service(client, name)


def test_a_command_that_ends_of_the_signal(run: Run, client: ConsulClient, name: str) -> None:
    wrapper = run("sleep", "60")
    eventually(lambda: service(client, name))
    wrapper.terminate()
    status, log = ended(wrapper)
    assert status == 128 + signal.SIGTERM, log
    assert not service(client, name)


def test_what_the_terminal_sends_reaches_the_command_once(run: Run, client: ConsulClient, name: str) -> None:
    terminal, of_wrapper = pty.openpty()
    wrapper = run(
        *(sys.executable, "-c", TRAPS),
        stdin=of_wrapper,
        preexec_fn=lambda: _take_terminal(of_wrapper),
    )
    os.close(of_wrapper)
    try:
        line(wrapper)
        eventually(lambda: service(client, name))
        for key, number in ((b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT")):
            os.write(terminal, key)
            assert line(wrapper) == number
        os.write(terminal, b"\x04")
        output, log = wrapper.communicate(timeout=10)
        assert (wrapper.returncode, output) == (0, ""), log
    finally:
        os.close(terminal)


def _take_terminal(terminal: int) -> None:
    """Makes the terminal that of this session: opening one as a session's leader does."""
    os.close(os.open(os.ttyname(terminal), os.O_RDWR))


def test_signals_that_were_held_reach_the_command(run: Run) -> None:
    wrapper = run("grep", "^SigBlk", "/proc/self/status")
    assert line(wrapper).split()[1] == "0" * 16


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_command_is_told_when_its_wrapper_is_killed(run: Run, client: ConsulClient, name: str) -> None:
    wrapper = run("sh", "-c", "echo $$; exec sleep 60")
    pid = int(line(wrapper))
    eventually(lambda: service(client, name))
    wrapper.kill()
    eventually(lambda: not lives(pid))
    # Nobody keeps it any more: the check lapses, and Consul cleans up after deregister_after.
    eventually(lambda: any(c["Status"] == "critical" for c in client.health_service(name).data[0]["Checks"]))
    client.deregister(name)


def test_a_hung_agent_does_not_hold_up_the_end(
    run: Run, consul_server: Callable[..., ConsulServer], name: str
) -> None:
    server = consul_server()
    wrapper = run("cat", env={**os.environ, "CONSUL_HTTP_ADDR": server.http_addr})
    with server.client() as client:
        eventually(lambda: service(client, name))
    server.pause()
    before = time.monotonic()
    status, _ = ended(wrapper)
    assert status == 0
    assert time.monotonic() - before < 8
    server.resume()


# ------------------------------------------------------------------------------------------ options


def test_the_options_of_a_command_line(tmp_path: Path) -> None:
    manifest = {"name": "financial", "version": "1.2.0"}
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest))
    registration = registration_for_command(
        name="financial",
        port=8001,
        tags=("a",),
        meta=["team=red", "formula=a=b"],
        checks=["http:/health,interval=5s", "ttl:1m"],
        manifest_file=file,
    )
    announced = registration.announcement
    assert announced.checks == (HTTPCheck("/health", interval="5s"), TTLCheck("1m"))
    assert announced.manifest == manifest
    assert announced.meta["team"] == "red"
    assert announced.meta["formula"] == "a=b"
    assert announced.meta["version"] == "1.2.0"


def test_without_a_check_the_wrapper_says_that_the_command_lives() -> None:
    announced = registration_for_command(name="financial", port=8001).announcement
    assert announced.checks == (TTLCheck(),)


def test_every_fault_of_the_options_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        registration_for_command(
            name="-", port=0, checks=["ping:", "http:x"], meta=["a", "=b"], manifest_file=tmp_path / "none"
        )
    told = [fault.split(":")[0] for fault in caught.value.faults]
    assert told == ["--check", "--check", "--meta", "--meta", "--manifest", "name", "port"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("[1]", "holds no JSON object but list"), ("{", "holds no JSON"), ("\xff", "holds no JSON")],
)
def test_a_faulty_manifest_is_told(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=fault):
        registration_for_command(name="financial", port=8001, manifest_file=file)
