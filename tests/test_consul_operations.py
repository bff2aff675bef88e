"""What operators take from consul/: policies, DNS, prepared queries and HAProxy, with a real Consul."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rdatatype
import httpx
import pytest

from discovery.consul.call import Call
from discovery.consul.client import ConsulClient
from discovery.consul.dev_agent import free_ports
from discovery.errors import PermissionDenied
from tests.consul_server import ConsulServer, consul_binary, eventually, put_json

ROOT = Path(__file__).resolve().parent.parent
CONSUL = ROOT / "consul"

Ask = Callable[[ConsulClient], Any]


# ------------------------------------------------------------------------------------------- policies


@pytest.fixture(scope="module")
def secured() -> Iterator[ConsulServer]:
    with ConsulServer(consul_binary(), Path("/nonexistent"), acl=True) as server:
        yield server


def registers(name: str) -> Ask:
    def ask(client: ConsulClient) -> None:
        client.register({"Name": name, "Port": 80, "Check": {"CheckID": f"{name}-ttl", "TTL": "60s"}})
        client.pass_check(f"{name}-ttl", "")
        client.agent_service(name)
        client.deregister(name)

    return ask


def makes_a_token(client: ConsulClient) -> None:
    client.send(put_json("/v1/acl/token", {"Policies": []}))


def writes(key: str) -> Ask:
    return lambda client: client.api.kv.put(key, "value")


def opens_a_session(client: ConsulClient) -> None:
    client.api.session.destroy(client.api.session.create(ttl=10))


def makes_a_query(client: ConsulClient) -> None:
    made = client.send(_post("/v1/query", {"Name": "any", "Service": {"Service": "financial"}}))
    client.send(Call(method="DELETE", path=f"/v1/query/{made['ID']}", parse=lambda reply: None))


def maintains(name: str) -> Ask:
    def ask(client: ConsulClient) -> None:
        client.set_maintenance(name, True, "by hand")
        client.set_maintenance(name, False, "")

    return ask


def _post(path: str, body: Any) -> Call[Any]:
    content = json.dumps(body).encode()
    return Call(method="POST", path=path, content=content, parse=lambda reply: json.loads(reply.body))


MAY: list[tuple[str, str, Ask]] = [
    ("lictor-read", "register itself", registers("lictor")),
    ("lictor-read", "hold the lead's key", writes("lictor/leader")),
    ("lictor-read", "open a session", opens_a_session),
    ("module-register", "register itself", registers("financial")),
    ("team-register", "register one of its modules", registers("financial")),
    ("team-register", "register another of them", registers("finch")),
    ("operator", "take an instance away", registers("anything")),
    ("operator", "maintain an instance", maintains("kept")),
    ("operator", "open a session", opens_a_session),
    ("operator", "make a prepared query", makes_a_query),
]
MAY_NOT: list[tuple[str, str, Ask]] = [
    ("lictor-read", "make a token", makes_a_token),
    ("module-register", "make a token", makes_a_token),
    ("operator", "make a token", makes_a_token),
    ("dns", "make a token", makes_a_token),
    ("lictor-read", "register a module", registers("financial")),
    ("lictor-read", "write other keys", writes("config/a")),
    ("module-register", "register another module", registers("billing")),
    ("module-register", "register a longer name", registers("financial-2")),
    ("module-register", "write keys", writes("lictor/leader")),
    ("module-register", "open a session", opens_a_session),
    ("team-register", "register another team's module", registers("hr")),
    ("team-register", "maintain another's instance", maintains("kept")),
    ("operator", "take the lead's key", writes("lictor/leader")),
    ("dns", "register", registers("financial")),
    ("dns", "open a session", opens_a_session),
]


@pytest.fixture(scope="module")
def token_of(secured: ConsulServer) -> Callable[[str], str]:
    made: dict[str, str] = {}
    with secured.client(token=secured.management_token) as client:
        client.register({"Name": "kept", "Port": 80})

    def token(policy: str) -> str:
        if policy not in made:
            made[policy] = secured.create_token((CONSUL / "policies" / f"{policy}.hcl").read_text())
        return made[policy]

    return token


def test_each_policy_is_tried_both_ways() -> None:
    policies = {file.stem for file in (CONSUL / "policies").glob("*.hcl")} - {"dns"}
    assert {policy for policy, _, _ in MAY} == policies
    assert {policy for policy, _, _ in MAY_NOT} == policies | {"dns"}


@pytest.mark.parametrize(("policy", "what", "ask"), MAY, ids=lambda one: one if isinstance(one, str) else "")
def test_a_policy_gives_what_it_must(
    secured: ConsulServer, token_of: Callable[[str], str], policy: str, what: str, ask: Ask
) -> None:
    with secured.client(token=token_of(policy)) as client:
        ask(client)


@pytest.mark.parametrize(
    ("policy", "what", "ask"), MAY_NOT, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_policy_gives_no_more(
    secured: ConsulServer, token_of: Callable[[str], str], policy: str, what: str, ask: Ask
) -> None:
    with secured.client(token=token_of(policy)) as client, pytest.raises(PermissionDenied):
        ask(client)


def test_the_agents_settings_are_valid(tmp_path: Path) -> None:
    for file in ("agent-client.hcl", "agent-server.hcl"):
        done = subprocess.run(
            [consul_binary(), "validate", CONSUL / file], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ DNS


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulServer]:
    with ConsulServer(consul_binary(), Path("/nonexistent")) as server:
        yield server


@pytest.fixture
def instances(agent: ConsulServer) -> Iterator[tuple[ConsulClient, str]]:
    """Three instances of a module, of which one is critical; and its name."""
    name = f"financial-{uuid.uuid4().hex[:6]}"
    with agent.client() as client:
        for number, status in enumerate(("passing", "critical", "passing"), start=1):
            client.register(
                {
                    "Name": name,
                    "ID": f"{name}-{number}",
                    "Address": f"127.0.0.{number}",
                    "Port": 8000 + number,
                    "Tags": ["module", f"v{number}"],
                    "Check": {"CheckID": f"{name}-{number}", "TTL": "10m", "Status": status},
                }
            )
        yield client, name
        for number in (1, 2, 3):
            client.deregister(f"{name}-{number}")


def resolved(agent: ConsulServer, name: str, kind: dns.rdatatype.RdataType) -> list[Any]:
    question = dns.message.make_query(name, kind)
    answer = dns.query.udp(question, "127.0.0.1", port=agent.dns_port, timeout=5)
    return [record for section in answer.answer for record in section if record.rdtype == kind]


def addresses(agent: ConsulServer, name: str) -> set[str]:
    return {record.address for record in resolved(agent, name, dns.rdatatype.A)}


def test_dns_tells_of_healthy_instances_only(
    agent: ConsulServer, instances: tuple[ConsulClient, str]
) -> None:
    client, name = instances
    eventually(lambda: addresses(agent, f"{name}.service.consul") == {"127.0.0.1", "127.0.0.3"})
    ports = {record.port for record in resolved(agent, f"_{name}._tcp.service.consul", dns.rdatatype.SRV)}
    assert ports == {8001, 8003}
    assert addresses(agent, f"v3.{name}.service.consul") == {"127.0.0.3"}
    assert not addresses(agent, f"v2.{name}.service.consul")
    client.pass_check(f"{name}-2", "")
    eventually(lambda: addresses(agent, f"v2.{name}.service.consul") == {"127.0.0.2"})


def test_a_prepared_query_takes_any_module_by_its_name(
    agent: ConsulServer, instances: tuple[ConsulClient, str]
) -> None:
    client, name = instances
    body = json.loads((CONSUL / "prepared-queries" / "passing.json").read_text())
    made = client.send(_post("/v1/query", body))
    try:
        eventually(lambda: addresses(agent, f"{name}.query.consul") == {"127.0.0.1", "127.0.0.3"})
        client.warn_check(f"{name}-3", "slow")
        eventually(lambda: addresses(agent, f"{name}.query.consul") == {"127.0.0.1"})
        # By the service's own name an instance with a warning is told of.
        assert addresses(agent, f"{name}.service.consul") == {"127.0.0.1", "127.0.0.3"}
    finally:
        client.send(Call(method="DELETE", path=f"/v1/query/{made['ID']}", parse=lambda reply: None))


# -------------------------------------------------------------------------------------------- HAProxy


class Named(ThreadingHTTPServer):
    """Answers with its port."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Port)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Port(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(self.server.server_port).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def haproxy(agent: ConsulServer, tmp_path: Path) -> Iterator[str]:
    """HAProxy by the example's settings, and where it listens."""
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    assert Path(program).exists(), "there is no haproxy: `make setup` installs Debian's package"
    (port,) = free_ports(1)
    settings = (CONSUL / "haproxy.cfg").read_text()
    settings = settings.replace("127.0.0.1:8600", f"127.0.0.1:{agent.dns_port}")
    (tmp_path / "haproxy.cfg").write_text(settings.replace("127.0.0.1:8088", f"127.0.0.1:{port}"))
    running = subprocess.Popen([program, "-f", tmp_path / "haproxy.cfg"], stderr=sys.stderr)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.terminate()
        running.wait()


def test_haproxy_balances_over_healthy_instances(agent: ConsulServer, haproxy: str) -> None:
    servers = [Named() for _ in range(3)]
    ports = [server.server_port for server in servers]
    with agent.client() as client:
        for port in ports:
            client.register(
                {
                    "Name": "financial",
                    "ID": f"financial-{port}",
                    "Address": "127.0.0.1",
                    "Port": port,
                    "Tags": ["module"],
                    "Check": {"CheckID": f"financial-{port}", "TTL": "10m", "Status": "passing"},
                }
            )
        try:
            eventually(lambda: answering(haproxy) == set(ports), limit=30)
            client.fail_check(f"financial-{ports[0]}", "ill")
            eventually(lambda: answering(haproxy) == set(ports[1:]), limit=30)
            client.pass_check(f"financial-{ports[0]}", "well")
            eventually(lambda: answering(haproxy) == set(ports), limit=30)
        finally:
            for port in ports:
                client.deregister(f"financial-{port}")
    for server in servers:
        server.shutdown()
        server.server_close()


def answering(url: str) -> set[int]:
    """Who answers twelve requests; 0 stands for a failure."""
    found = set()
    with httpx.Client(trust_env=False) as client:
        for _ in range(12):
            try:
                answer = client.get(url, timeout=5)
            except httpx.HTTPError:
                found.add(0)
                continue
            found.add(int(answer.text) if answer.status_code == 200 else 0)
    return found
