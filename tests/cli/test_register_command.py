"""`lictor register` with real registries: a command runs, registered while it does, and its end is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor
from tests.consul_server import RunningConsul, eventually
from tests.web.filling import Cache

SERVER = (sys.executable, "-u", "-m", "http.server")


@pytest.fixture
def registered(lictor: Lictor, consul: RunningConsul) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """What Consul has of a service."""
    lictor.settings["CONSUL_HTTP_ADDR"] = consul.http_addr
    with consul.client() as client:
        yield lambda name: client.health_service(name).data


def test_a_command_is_registered_while_it_runs(
    lictor: Lictor, registered: Callable[[str], list[dict[str, Any]]]
) -> None:
    (port,) = free_ports(1)
    (lictor.folder / "health").write_text("well")
    running = lictor.start(
        *("register", "--name", "cli-http", "--port", str(port), "--check", "http:/health,interval=1s"),
        *(
            "--tag",
            "files",
            "--meta",
            "owner=me",
            "--manifest-path",
            "/manifest.json",
            "--manifest-port",
            str(port),
            "--address",
            "127.0.0.1",
        ),
        *("--", *SERVER, str(port), "--bind", "127.0.0.1"),
    )
    running.wait_for("registered cli-http")
    (entry,) = eventually(lambda: [e for e in registered("cli-http") if is_passing(e)])
    service = entry["Service"]
    assert sorted(service["Tags"]) == ["files", "module"]
    assert service["Meta"] == {
        "owner": "me",
        "manifest_path": "/manifest.json",
        "manifest_port": str(port),
    }
    assert (service["Address"], service["Port"]) == ("127.0.0.1", port)
    assert running.end() == 128 + signal.SIGTERM
    assert registered("cli-http") == []
    running.wait_for("deregistered cli-http")


def is_passing(entry: dict[str, Any]) -> bool:
    return all(check["Status"] == "passing" for check in entry["Checks"])


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/nonexistent/command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_passed_on(lictor: Lictor, command: list[str], status: int) -> None:
    done = lictor.run("register", "--name", "cli-status", "--port", "80", "--", *command)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_the_command_keeps_its_own_options_and_learns_who_it_is(lictor: Lictor) -> None:
    done = lictor.run(
        *("register", "--name", "cli-options", "--port", "81", "--id", "one"),
        *(
            "sh",
            "-c",
            'echo "$LICTOR_SERVICE_ID $LICTOR_SERVICE_NAME $LICTOR_SERVICE_PORT $*"',
            "sh",
            "--port",
            "9",
        ),
    )
    assert done.stdout == "one cli-options 81 --port 9\n"


def test_without_a_command_it_stays_until_a_signal(
    lictor: Lictor, registered: Callable[[str], list[dict[str, Any]]]
) -> None:
    running = lictor.start("register", "--name", "cli-alone", "--port", "9", "--id", "cli-alone-1")
    running.wait_for("registered cli-alone")
    (entry,) = registered("cli-alone")
    # Nobody listens on port 9, and nothing else was said of its health.
    assert [check["Type"] for check in entry["Checks"] if check["ServiceID"]] == ["tcp"]
    assert running.end(signal.SIGINT) == 0
    assert registered("cli-alone") == []


def test_under_nohup_a_hangup_does_not_end_it(
    lictor: Lictor, registered: Callable[[str], list[dict[str, Any]]]
) -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = lictor.start("register", "--name", "cli-nohup", "--port", "9")
    finally:
        signal.signal(signal.SIGHUP, usual)
    running.wait_for("registered cli-nohup")
    running.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(1)
    assert registered("cli-nohup")
    assert running.end() == 0
    assert registered("cli-nohup") == []


def test_by_push(lictor: Lictor, cache: Cache, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"name": "pushed", "version": "2.1.0"}')
    lictor.serve()
    running = lictor.start(
        *("register", "--name", "pushed", "--port", "82", "--via", "push", "--url", lictor.url),
        *("--manifest", str(manifest), "--", "sleep", "60"),
    )
    running.wait_for("registered pushed")
    module = lictor.get("/api/v1/modules/pushed").json()
    assert (module["status"], module["version"]) == ("available", "2.1.0")
    assert running.end() == 128 + signal.SIGTERM
    assert lictor.json("show", "pushed")["instances"] == []


def test_a_registry_that_is_away_does_not_keep_the_command(lictor: Lictor) -> None:
    done = lictor.run(
        "register", "--name", "cli-away", "--port", "83", "--", "sh", "-c", "sleep 0.3; echo done"
    )
    assert done.returncode == 0
    assert done.stdout == "done\n"
    assert "connection refused" in done.stderr


def test_every_fault_is_named_by_its_option(lictor: Lictor) -> None:
    done = lictor.run(
        *("register", "--name", "no_dns", "--port", "99999", "--check", "http", "--meta", "broken"),
        *("--deregister-after", "soon", "--manifest", "nowhere.json", "--", "touch", "started"),
        CONSUL_HTTP_SSL="maybe",
    )
    assert done.returncode == 2
    for name in (
        "--name",
        "--port",
        "--check",
        "--meta",
        "--deregister-after",
        "--manifest",
        "CONSUL_HTTP_SSL",
    ):
        assert f"\n  {name}: " in done.stderr, done.stderr
    assert not (lictor.folder / "started").exists()


def test_consuls_shortest_time_is_told(lictor: Lictor) -> None:
    short = ("register", "--name", "cli-short", "--port", "84", "--deregister-after")
    done = lictor.run(*short, "10s", "--", "true")
    assert done.returncode == 2
    assert "--deregister-after: Consul waits for 1m at least" in done.stderr
    assert lictor.run(*short, "never", "--", "true").returncode == 0
