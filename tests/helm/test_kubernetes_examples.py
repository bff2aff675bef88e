"""The examples of modules on Kubernetes: that they are valid, and that what they run registers a module."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor
from tests.consul_server import ConsulServer, eventually
from tests.helm.chart import ROOT, Document, yaml
from tests.web.filling import Cache

kubernetes_validate: Any = importlib.import_module("kubernetes_validate")
VERSIONS = ("1.25", kubernetes_validate.latest_version())
EXAMPLES = ROOT / "examples" / "kubernetes"
FILES = sorted(EXAMPLES.glob("*.yaml"))
RULES = 'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }'
SERVER = (sys.executable, "-m", "http.server", "--bind=127.0.0.1")


def documents(name: str) -> list[Document]:
    return [one for one in yaml.safe_load_all((EXAMPLES / name).read_text()) if one]


def container(name: str) -> Document:
    (deployment,) = [one for one in documents(name) if one["kind"] == "Deployment"]
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def arguments(name: str, port: int) -> list[str]:
    """What the container runs on this machine: its own program gives way to one that is here."""
    found = [str(one) for one in (*container(name)["command"], *container(name)["args"])]
    assert found.pop(0) == "lictor"
    options = found[: found.index("--") + 1]
    told = [one.replace("$(POD_IP)", "127.0.0.1").replace("8001", str(port)) for one in options]
    return [*told, *SERVER, str(port)]


@pytest.fixture
def lictor(tmp_path: Path) -> Iterator[Lictor]:
    (port,) = free_ports(1)
    command = Lictor(tmp_path, LICTOR_BIND=f"127.0.0.1:{port}")
    (tmp_path / "health").write_text("well")
    yield command
    command.close()
    command.show()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_example_is_valid(file: Path, version: str) -> None:
    found = documents(file.name)
    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_each_example_is_told_of() -> None:
    told = set(
        re.findall(r"examples/kubernetes/([\w-]+\.yaml)", (ROOT / "docs" / "kubernetes.md").read_text())
    )
    assert told == {file.name for file in FILES}


def test_a_module_registers_with_the_agent_of_its_node(
    lictor: Lictor, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server(acl=True)
    (port,) = free_ports(1)
    token = lictor.folder / "token"
    token.write_text(server.create_token(RULES))
    given = {one["name"] for one in container("agent-per-node.yaml")["env"]}
    assert given == {"HOST_IP", "POD_IP", "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN_FILE"}
    running = lictor.start(
        *arguments("agent-per-node.yaml", port),
        CONSUL_HTTP_ADDR=server.http_addr,
        CONSUL_HTTP_TOKEN_FILE=str(token),
    )
    with server.client(token=server.management_token) as client:
        (entry,) = eventually(lambda: client.health_service("financial", params={"passing": 1}).data)
        assert entry["Service"]["Address"] == "127.0.0.1"
        assert entry["Service"]["Meta"] == {"manifest_path": "/manifest", "version": "1.2.0"}
        running.process.terminate()
        eventually(lambda: not client.health_service("financial").data)


def test_a_module_registers_by_push(lictor: Lictor) -> None:
    (port,) = free_ports(1)
    token = lictor.folder / "token"
    token.write_text("a-secret")
    given = {one["name"] for one in container("push.yaml")["env"]}
    assert given == {"POD_IP", "LICTOR_URL", "LICTOR_PUSH_TOKEN_FILE"}
    with Cache(f"sqlite:///{lictor.database}"):
        pass
    lictor.serve(LICTOR_PUSH_TOKEN_FILE=str(token), LICTOR_REGISTRIES="push")
    running = lictor.start(
        *arguments("push.yaml", port), LICTOR_URL=lictor.url, LICTOR_PUSH_TOKEN_FILE=str(token)
    )
    path = "/api/v1/modules/financial"
    eventually(
        lambda: lictor.get(path).status_code == 200 and lictor.get(path).json()["status"] == "available"
    )
    running.process.terminate()
    eventually(lambda: lictor.get(path).json()["status"] == "unavailable")


@pytest.mark.parametrize("name", ["connect-inject.yaml", "sync-catalog.yaml"])
def test_consul_k8s_is_told_to_give_it_the_module_tag(name: str) -> None:
    told = [
        {**one["metadata"].get("annotations", {}), **_pod(one)["metadata"].get("annotations", {})}
        for one in documents(name)
    ]
    assert any(one.get("consul.hashicorp.com/service-tags") == "module" for one in told)


def _pod(document: Document) -> Document:
    found: Document = document["spec"]["template"] if document["kind"] == "Deployment" else {"metadata": {}}
    return found
