"""Finding a consul binary, and the agent that `lictor up --consul dev` runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import httpx
import pytest

from discovery.consul.client import ConsulClient
from discovery.consul.dev_agent import DevAgent, find_consul, free_ports
from discovery.errors import ConfigError, RegistryUnavailable
from tests.consul_server import ROOT, consul_binary, eventually

Program = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a shell script that says it is Consul 1.8.7, and otherwise does what it is told."""

    def write(script: str, version: str = "Consul v1.8.7") -> Path:
        path = tmp_path / "consul"
        path.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo "{version}"; exit; fi\n{script}\n')
        path.chmod(0o755)
        return path

    return write


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which somebody else has yet to collect, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------------------------------- finding it


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_binary_that_is_named_comes_first(tmp_path: Path) -> None:
    named, on_path = make_program(tmp_path / "named"), make_program(tmp_path / "bin" / "consul")
    in_tools = make_program(tmp_path / ".tools" / "consul" / "usr" / "bin" / "consul")
    environ = {"CONSUL_BIN": str(named), "PATH": str(on_path.parent)}
    assert find_consul(environ, tmp_path) == named
    assert find_consul({**environ, "CONSUL_BIN": ""}, tmp_path) == on_path
    assert find_consul({"PATH": str(tmp_path / "nothing")}, tmp_path) == in_tools


@pytest.mark.parametrize("place", [".tools/consul/usr/bin/consul", ".tools/consul/consul", ".tools/consul"])
def test_places_in_tools(place: str, tmp_path: Path) -> None:
    path = make_program(tmp_path / place)
    assert find_consul({"PATH": ""}, tmp_path) == path


def test_the_folder_of_settings_is_no_binary(tmp_path: Path) -> None:
    (tmp_path / "consul").mkdir()
    (tmp_path / ".tools" / "consul").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        find_consul({"PATH": str(tmp_path)}, tmp_path)
    (fault,) = caught.value.faults
    for way in ("CONSUL_BIN", "PATH", str(tmp_path / ".tools"), "scripts/get-consul", "install Consul"):
        assert way in fault


@pytest.mark.parametrize("name", ["missing", "folder", "not-executable"])
def test_a_named_binary_that_is_none_is_not_passed_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "not-executable").write_text("")
    make_program(tmp_path / ".tools" / "consul")
    with pytest.raises(ConfigError, match=rf"CONSUL_BIN: .*{name} is not a program"):
        find_consul({"CONSUL_BIN": str(tmp_path / name)}, tmp_path)


# ------------------------------------------------------------------------------------- running it


def test_an_agent_on_free_ports() -> None:
    with DevAgent(consul_binary(), http_port=0, dns_port=0) as agent:
        pid = agent.pid
        assert agent.running
        assert agent.http_port
        assert agent.dns_port
        with ConsulClient(agent.config) as client:
            assert client.status_leader().data
        assert httpx.get(f"{agent.http_addr}/ui/", trust_env=False).status_code == 200
        # Ctrl-C in our terminal is not to reach it.
        assert os.getsid(pid) == pid
    assert not agent.running
    assert not is_alive(pid)


def test_stopped_and_started_it_is_where_it_was_and_has_forgotten() -> None:
    agent = DevAgent(consul_binary(), http_port=0, dns_port=0)
    agent.stop()
    with agent:
        address = agent.http_addr
        with pytest.raises(RuntimeError, match="running already"):
            agent.start()
        with ConsulClient(agent.config) as client:
            client.api.kv.put("key", "value")
            agent.stop()
            agent.stop()
            agent.start()
            assert agent.http_addr == address
            assert client.api.kv.get("key")[1] is None
    with pytest.raises(RuntimeError, match="not running"):
        _ = agent.pid


@pytest.mark.parametrize("wanted", ["http", "dns"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_in_use_is_named(wanted: str, kind: socket.SocketKind) -> None:
    [port] = free_ports(1)
    http, dns = (port, 0) if wanted == "http" else (0, port)
    with socket.socket(type=kind) as taken:
        if kind is socket.SOCK_STREAM:
            # Another test may have left connections behind at this port.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        agent = DevAgent(consul_binary(), http_port=http, dns_port=dns)
        if wanted == "http" and kind is socket.SOCK_DGRAM:
            # HTTP does not care for UDP.
            with agent:
                return
        with pytest.raises(ConfigError, match=f"{wanted} port: 127.0.0.1:{port} is in use: end the program"):
            agent.start()
    assert not agent.running


def test_a_port_that_is_taken_at_the_last_moment_is_another_the_next_time(program: Program) -> None:
    fails_once = program(
        f"if mkdir $0.seen 2>/dev/null; then echo 'bind: address already in use'; exit 1; fi\n"
        f'exec {quote(str(consul_binary()))} "$@"'
    )
    with DevAgent(fails_once, http_port=0, dns_port=0) as agent:
        assert agent.running
    always_fails = program("echo 'listen tcp: bind: address already in use'; exit 1")
    with pytest.raises(RegistryUnavailable, match=r"in use again and again:\nlisten tcp"):
        DevAgent(always_fails, http_port=0, dns_port=0).start()


def test_an_agent_that_ends_as_it_starts_shows_its_last_words(program: Program) -> None:
    agent = DevAgent(program("seq 100; echo boom >&2; exit 3"), http_port=0, dns_port=0)
    with pytest.raises(RegistryUnavailable, match="Consul ended as it started; its last lines:") as caught:
        agent.start()
    lines = str(caught.value).splitlines()[1:]
    assert lines == [*map(str, range(87, 101)), "boom"]
    assert not agent.running


def test_settings_that_consul_refuses() -> None:
    agent = DevAgent(consul_binary(), http_port=0, dns_port=0, hcl=["nonsense = 1"])
    with pytest.raises(RegistryUnavailable, match="invalid config key nonsense"):
        agent.start()


def test_an_agent_that_never_gets_ready_is_given_up(program: Program) -> None:
    script = program('echo "my id is $$"; exec sleep 60')
    agent = DevAgent(script, http_port=0, dns_port=0, start_limit=0.5)
    with pytest.raises(RegistryUnavailable, match=r"not ready after 0.5 s: .*connection refused") as caught:
        agent.start()
    pid = int(str(caught.value).split("my id is ")[1])
    assert not is_alive(pid)


def test_an_agent_that_does_not_end_is_ended(tmp_path: Path, program: Program) -> None:
    script = program(f'trap "" TERM; {consul_binary()} "$@" & echo $! >$0.pid; while :; do sleep 0.05; done')
    agent = DevAgent(script, http_port=0, dns_port=0, stop_limit=0.3)
    agent.start()
    pid, child = agent.pid, int((tmp_path / "consul.pid").read_text())
    try:
        agent.stop()
        assert not is_alive(pid)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("binary", ["/bin/true", "/dev/null", "/no/such/file"])
def test_a_binary_that_is_not_consul(binary: str) -> None:
    with pytest.raises(ConfigError, match=f"CONSUL_BIN: {binary} "):
        DevAgent(Path(binary), http_port=0, dns_port=0).start()


@pytest.mark.parametrize(
    ("version", "closed"),
    [
        ("Consul v1.8.7", False),
        ("Consul v1.13.9", False),
        ("Consul v1.14.0", True),
        ("Consul v1.20.1", True),
        ("Consul v2.0.0-dev", True),
    ],
)
def test_the_second_grpc_port_of_newer_versions_is_closed(
    version: str, closed: bool, tmp_path: Path, program: Callable[..., Path]
) -> None:
    recording = program('echo "$@" >$0.arguments; exit 1', version)
    with pytest.raises(RegistryUnavailable):
        DevAgent(recording, http_port=0, dns_port=0).start()
    arguments = (tmp_path / "consul.arguments").read_text()
    assert ("grpc_tls = -1" in arguments) is closed


def test_a_log_that_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "consul.log"
    with DevAgent(consul_binary(), http_port=0, dns_port=0, log_file=log) as agent:
        assert "Consul agent running!" in agent.log_tail() + log.read_text()
    assert "Consul agent running!" in log.read_text()


def test_a_log_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_file: cannot write"):
        DevAgent(consul_binary(), http_port=0, dns_port=0, log_file=tmp_path / "none" / "log").start()


def test_the_agent_ends_with_its_parent_even_if_that_is_killed() -> None:
    script = (
        "import sys, pathlib, discovery.consul.dev_agent as it\n"
        "agent = it.DevAgent(pathlib.Path(sys.argv[1]), http_port=0, dns_port=0)\n"
        "agent.start()\n"
        "print(agent.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(consul_binary())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.communicate()
    eventually(lambda: not is_alive(pid))


def test_free_ports_are_free_and_out_of_the_way() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32768
