"""`lictor up` as an operator meets it: what it says, what it survives, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor, Running, lives, wait_until_gone
from tests.consul_server import consul_binary, eventually

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def url(lictor: Lictor) -> str:
    return lictor.url


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=10)


def children(running: Running, command: str) -> list[int]:
    """The processes below it whose command line holds these words."""
    return [pid for pid in running.descendants() if command in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def start_with_agent(lictor: Lictor) -> Running:
    (dns,) = free_ports(1)
    return lictor.start("up", "--consul", "dev", "--dns-port", str(dns), CONSUL_BIN=str(consul_binary()))


def push(url: str, name: str) -> None:
    manifest = {"name": name, "version": "1.0.0"}
    body = {"name": name, "port": 80, "address": "127.0.0.1", "manifest": manifest}
    answer = httpx.post(f"{url}/api/v1/modules/register", json=body, trust_env=False)
    assert answer.status_code == 201


def test_everything_with_an_agent_of_its_own(lictor: Lictor, url: str) -> None:
    consul = lictor.settings["CONSUL_HTTP_ADDR"]
    running = start_with_agent(lictor)
    running.wait_for("^lictor: ready after")
    first = running.text
    for part in (
        f"  page        {url}/\n",
        f"  API         {url}/api/v1/modules\n",
        "  database    sqlite:///lictor.db (schema ",
        "  registries  consul, push\n",
        f"  Consul      http://{consul}/ui/ (a development agent, which forgets all when it ends)\n",
        "  DNS         dig @127.0.0.1 -p ",
    ):
        assert part in first
    assert get(f"{url}/").status_code == 200
    assert get(f"http://{consul}/ui/").status_code == 200
    service = {"Name": "financial", "Port": 80, "Address": "127.0.0.1", "Tags": ["module"]}
    httpx.put(f"http://{consul}/v1/agent/service/register", json=service, trust_env=False)
    eventually(lambda: get(f"{url}/api/v1/modules/financial").status_code == 200)
    family = running.descendants()
    assert running.end(signal.SIGINT) == 0
    assert running.text.endswith("lictor: all has ended\n")
    assert "Traceback" not in running.text
    assert "watch failed" not in running.text
    wait_until_gone(*family)


def test_without_any_consul_it_runs_with_push_alone_and_goes_on_trying(lictor: Lictor, url: str) -> None:
    running = lictor.start("up")
    running.wait_for("Consul +is not there. Lictor runs with the push registry alone, and goes on trying.")
    running.wait_for("^lictor: ready after")
    push(url, "pushed")
    assert get(f"{url}/api/v1/modules/pushed").json()["status"] == "available"
    port = lictor.settings["CONSUL_HTTP_ADDR"].rpartition(":")[2]
    # Another `up` brings the Consul for which this one waits.
    (dns, web) = free_ports(2)
    agent = lictor.start(
        *(
            "up",
            "--consul",
            "dev",
            "--consul-port",
            port,
            "--dns-port",
            str(dns),
            "--bind",
            f"127.0.0.1:{web}",
        ),
        CONSUL_BIN=str(consul_binary()),
        LICTOR_DATABASE_URL="sqlite:///other.db",
    )
    agent.wait_for("^lictor: ready after")
    assert "find this Consul by" not in agent.text
    running.wait_for("^lictor: Consul is there now, and its modules are followed", limit=60)
    assert agent.end() == 0
    assert running.end() == 0


def test_without_consul_on_purpose(lictor: Lictor, url: str) -> None:
    running = lictor.start("up", "--consul", "none")
    running.wait_for("Consul +none: modules register by push")
    running.wait_for("^lictor: ready after")
    assert "X-Lictor-Stale" not in get(f"{url}/api/v1/modules").headers
    assert running.end() == 0
    assert "watch failed" not in running.text


@pytest.fixture
def up(lictor: Lictor) -> Running:
    running = lictor.start("up", "--consul", "none")
    running.wait_for("^lictor: ready after")
    return running


@pytest.mark.parametrize("part", ["web.cli serve", "web.cli sync"])
def test_a_part_that_is_killed_is_started_again(lictor: Lictor, up: Running, url: str, part: str) -> None:
    (before, *_) = children(up, part)
    os.kill(before, signal.SIGKILL)
    up.wait_for("^lictor: the .* was ended by SIGKILL after .*; it starts again in")
    eventually(lambda: [pid for pid in children(up, part) if pid != before])
    eventually(lictor.is_ready)
    push(url, "pushed")
    assert up.end() == 0


def test_an_agent_that_is_killed_is_started_again(lictor: Lictor) -> None:
    running = start_with_agent(lictor)
    running.wait_for("^lictor: ready after")
    (agent,) = children(running, "agent -dev")
    os.kill(agent, signal.SIGKILL)
    running.wait_for("^lictor: the Consul agent has ended and starts again")
    (agent,) = eventually(lambda: [pid for pid in children(running, "agent -dev") if pid != agent])
    assert running.end() == 0
    wait_until_gone(agent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_all_within_seconds(up: Running, number: signal.Signals) -> None:
    family = up.descendants()
    began = time.monotonic()
    assert up.end(number) == 0
    assert time.monotonic() - began < 15
    wait_until_gone(*family)


def test_nothing_is_left_when_it_is_killed_itself(lictor: Lictor, url: str) -> None:
    running = start_with_agent(lictor)
    running.wait_for("^lictor: ready after")
    family = running.descendants()
    assert len(family) >= 5
    running.process.kill()
    running.wait()
    wait_until_gone(*family)


def test_a_second_ctrl_c_hurries(up: Running) -> None:
    family = up.descendants()
    (synchronizer, *_) = children(up, "web.cli sync")
    # It cannot end in the good way.
    os.kill(synchronizer, signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    up.wait_for("a second Ctrl-C hurries")
    assert lives(synchronizer)
    began = time.monotonic()
    assert up.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 15
    wait_until_gone(*family)


def test_where_modules_find_an_agent_on_another_port(lictor: Lictor) -> None:
    http, dns = free_ports(2)
    running = lictor.start(
        *("up", "--consul", "dev", "--consul-port", str(http), "--dns-port", str(dns)),
        CONSUL_BIN=str(consul_binary()),
        CONSUL_HTTP_ADDR="consul.example:8500",
        CONSUL_HTTP_TOKEN="for-another-consul",
    )
    running.wait_for(f"modules +find this Consul by CONSUL_HTTP_ADDR=http://127.0.0.1:{http}$")
    running.wait_for("^lictor: ready after")
    eventually(lambda: lictor.get("/api/v1/events").json()["items"])
    assert "watch failed" not in running.text
    assert running.end() == 0


def test_an_address_in_use_ends_it(lictor: Lictor) -> None:
    host, _, port = lictor.settings["LICTOR_BIND"].partition(":")
    with closing(socket.create_server((host, int(port)))):
        running = lictor.start("up", "--consul", "none")
        assert running.wait() == 1
    assert f"cannot listen on {host}:{port}: Address already in use" in running.text
    assert "lictor: the web server cannot run (status 1), so all has ended" in running.text
    assert "Traceback" not in running.text


def test_an_agents_port_in_use_ends_it(lictor: Lictor) -> None:
    host, _, port = lictor.settings["CONSUL_HTTP_ADDR"].partition(":")
    with closing(socket.create_server((host, int(port)))):
        running = start_with_agent(lictor)
        assert running.wait() == 2
    assert f"{host}:{port} is in use" in running.text


def test_an_agent_without_a_binary(lictor: Lictor) -> None:
    done = lictor.run("up", "--consul", "dev", PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "CONSUL_BIN: no consul binary" in done.stderr


def test_registries_that_leave_nothing(lictor: Lictor) -> None:
    done = lictor.run("up", "--consul", "none", LICTOR_REGISTRIES="consul")
    assert done.returncode == 2
    assert "LICTOR_REGISTRIES: names consul alone" in done.stderr
