"""The settings in consul/, for agents that run beside Lictor: a real Consul judges them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.consul.client import ConsulClient
from discovery.consul.lock import ConsulLock
from discovery.errors import PermissionDenied
from tests.consul_server import ConsulServer, consul_binary, eventually
from tests.watching import Beside

SETTINGS = Path(__file__).resolve().parent.parent / "consul"


def validate(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([consul_binary(), "validate", *files], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("agent", ["agent-client.hcl", "agent-server.hcl"])
def test_agents_with_the_example_services_are_valid(agent: str, tmp_path: Path) -> None:
    # The machine that tests may have no private address; on a host of a cluster there is one.
    address = tmp_path / "address.json"
    address.write_text(json.dumps({"bind_addr": "127.0.0.1"}))
    done = validate(SETTINGS / agent, SETTINGS / "services", address)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_no_package_that_hides_the_library() -> None:
    assert list(SETTINGS.rglob("*.py")) == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """An agent that denies whatever no policy allows."""
    with ConsulServer(consul_binary(), tmp_path_factory.mktemp("guarded"), acl=True) as server:
        yield server


@pytest.fixture
def lictor(guarded: ConsulServer) -> Iterator[ConsulClient]:
    token = guarded.create_token((SETTINGS / "policies" / "lictor-read.hcl").read_text())
    with guarded.client(token=token) as client:
        yield client


@pytest.fixture
def module(guarded: ConsulServer) -> Iterator[ConsulClient]:
    token = guarded.create_token((SETTINGS / "policies" / "module-register.hcl").read_text())
    with guarded.client(token=token) as client:
        yield client


def test_a_module_may_register_itself_and_nobody_else(module: ConsulClient, lictor: ConsulClient) -> None:
    module.register({"Name": "financial", "ID": "financial-1", "Tags": ["module"], "Check": {"TTL": "30s"}})
    module.pass_check("service:financial-1")
    assert module.agent_service("financial-1")[0]["Service"] == "financial"
    (seen,) = lictor.health_service("financial").data
    assert [check["Status"] for check in seen["Checks"]] == ["passing", "passing"], "the node's and its own"
    with pytest.raises(PermissionDenied):
        module.register({"Name": "documents"})
    with pytest.raises(PermissionDenied):
        module.api.kv.put("lictor/leader", "me")
    module.deregister("financial-1")
    assert lictor.health_service("financial").data == []


def test_lictor_may_read_all_and_register_nothing_but_itself(lictor: ConsulClient) -> None:
    assert "consul" in lictor.catalog_services().data
    assert lictor.catalog_nodes().data
    assert lictor.health_state("passing").data
    assert lictor.agent_self().data["Config"]["Datacenter"] == "dc1"
    for name in ("financial", "lictor-2"):
        with pytest.raises(PermissionDenied):
            lictor.register({"Name": name})
    with pytest.raises(PermissionDenied):
        lictor.api.kv.put("elsewhere", "me")


def test_lictor_may_lead(lictor: ConsulClient) -> None:
    made: list[ConsulLock] = []

    async def hold() -> None:
        made.append(ConsulLock(lictor.config, key="lictor/leader", holder="me"))
        made[0].request(had_it=True)
        await made[0].run()

    with Beside(hold):
        eventually(lambda: made and made[0].held)
