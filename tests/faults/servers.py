"""Three Consul servers that elect a leader, and the agent through which Lictor and modules speak to them."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from discovery.consul.dev_agent import free_ports
from tests.consul_server import consul_binary, eventually
from tests.faults.registry import Registry

HOST = "127.0.0.1"
SERVERS = 3


@dataclass
class Agent:
    """One process of Consul with data that outlives it."""

    name: str
    folder: Path
    arguments: list[str]
    http: int
    server: int
    gossip: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.arguments, f"-data-dir={self.folder}", f"-node={self.name}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def get(self, path: str) -> Any:
        answer = httpx.get(f"http://{HOST}:{self.http}{path}", trust_env=False, timeout=5)
        answer.raise_for_status()
        return answer.json()


class ThreeServers(Registry):
    """A datacenter of three servers; a fourth agent, a client, is the one to be spoken to."""

    def __init__(self, folder: Path) -> None:
        self.servers: list[Agent] = []
        ports = free_ports(3 * (SERVERS + 1))
        http, server, gossip = (ports[start::3] for start in range(3))
        self._join = [f"-retry-join={HOST}:{port}" for port in gossip[:SERVERS]]
        agents = [
            self._agent(f"agent-{number}", folder, *ports, is_server=number < SERVERS)
            for number, ports in enumerate(zip(http, server, gossip, strict=True))
        ]
        *self.servers, self.client = agents

    def _agent(
        self, name: str, folder: Path, http: int, server: int, gossip: int, *, is_server: bool
    ) -> Agent:
        arguments = [
            *(str(consul_binary()), "agent", f"-bind={HOST}", f"-client={HOST}", *self._join),
            *(f"-http-port={http}", f"-server-port={server}", f"-serf-lan-port={gossip}"),
            *("-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-log-level=warn", "-retry-interval=1s"),
            "-hcl=disable_update_check = true performance { raft_multiplier = 1 }",
            # A server that was killed comes back, and is one of the three still.
            *(["-server", "-bootstrap-expect=3"] if is_server else []),
            *(["-hcl=autopilot { cleanup_dead_servers = false }"] if is_server else []),
        ]
        return Agent(name, folder / name, arguments, http, server, gossip)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.client.http}"

    def start(self) -> None:
        for agent in (*self.servers, self.client):
            agent.start()
        eventually(self._is_whole, limit=60)

    def close(self) -> None:
        for agent in (*self.servers, self.client):
            if agent.process is not None:
                agent.signal(signal.SIGCONT)
            agent.kill()

    def leader(self) -> Agent:
        """The server that leads now."""
        found: list[Agent] = eventually(self._leaders, limit=60)
        return found[0]

    def _leaders(self) -> list[Agent]:
        for one in self.servers:
            if one.process is not None:
                with suppress(httpx.HTTPError):
                    address = one.get("/v1/status/leader")
                    return [
                        each for each in self.servers if address == f"{HOST}:{each.server}" and each.process
                    ]
        return []

    def _is_whole(self) -> bool:
        """Whether there is a leader, and it knows the agent."""
        with suppress(httpx.HTTPError):
            nodes = {node["Node"] for node in self.client.get("/v1/catalog/nodes")}
            return nodes == {agent.name for agent in (*self.servers, self.client)}
        return False

    def await_leader(self) -> None:
        """Waits until writes are taken again."""
        eventually(self._takes_writes, limit=60)

    def _takes_writes(self) -> bool:
        with suppress(httpx.HTTPError):
            address = f"http://{HOST}:{self.client.http}/v1/kv/faults/probe"
            return httpx.put(address, content=b"1", trust_env=False, timeout=5).status_code == 200
        return False
