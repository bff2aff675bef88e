"""Agents that answer by turns, as behind a load balancer: a registration with them cannot hold."""

from __future__ import annotations

import itertools
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

import discovery
from discovery import TTLCheck
from discovery.consul.config import ConsulConfig
from discovery.consul.doctor import check_consul
from discovery.settings import DiscoverySettings
from tests.consul_server import ConsulServer, eventually


class Turns(socketserver.ThreadingTCPServer):
    """Passes each new connection on to the next agent."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.agents = itertools.cycle([urlsplit(address) for address in addresses])
        self.http_addr = f"http://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Turns)
        agent = next(self.server.agents)
        with socket.create_connection((agent.hostname, agent.port)) as server, suppress(OSError):
            other = {self.request: server, server: self.request}
            while True:
                for source in select.select([*other], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    other[source].sendall(data)


@pytest.fixture
def turns(consul_server: Callable[..., ConsulServer]) -> Iterator[Turns]:
    agents = [consul_server(hcl=[f'node_name = "agent-{number}"']) for number in (1, 2)]
    with Turns(*(agent.http_addr for agent in agents)) as turns:
        serving = threading.Thread(target=turns.serve_forever, args=(0.05,))
        serving.start()
        yield turns
        turns.shutdown()
        serving.join()


def config(turns: Turns) -> ConsulConfig:
    return ConsulConfig.from_env({"CONSUL_HTTP_ADDR": turns.http_addr})


def test_the_library_says_what_may_stand_behind_the_address(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    check = TTLCheck("300ms")
    with discovery.register(name="financial", port=8001, consul=config(turns), check=check):
        eventually(lambda: "though it was just registered: where several agents are behind" in caplog.text)
    assert "name one of them, on Kubernetes that of the node, or register by push" in caplog.text


def test_doctor_names_the_agents(turns: Turns) -> None:
    (found,) = [
        one for one in check_consul(config(turns), DiscoverySettings()) if one.check == "consul agent"
    ]
    assert found.status == "warn"
    assert "agent-1 and agent-2 answer by turns" in found.detail


def test_an_agent_of_this_machine_is_nothing_to_tell_of(consul_server: Callable[..., ConsulServer]) -> None:
    checks = check_consul(consul_server().config(), DiscoverySettings())
    assert "consul agent" not in {one.check for one in checks}
