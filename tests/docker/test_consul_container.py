"""Consul in a container, as a user has it who has Docker and no consul binary."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HttpWaitStrategy

from discovery.consul.config import ConsulConfig
from discovery.consul.watch.watcher import ConsulWatcher

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = os.environ.get("LICTOR_CONSUL_IMAGE", "hashicorp/consul:1.20")

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def consul() -> Iterator[str]:
    """The address of an agent in a container, as the setting CONSUL_HTTP_ADDR takes it."""
    has_leader = HttpWaitStrategy(8500, "/v1/status/leader").for_response_predicate(lambda body: ":" in body)
    container = DockerContainer(IMAGE).with_command("agent -dev -client 0.0.0.0").waiting_for(has_leader)
    # Its own way to say so publishes the port to the whole network.
    cast(dict[str, Any], container.ports)["8500/tcp"] = ("127.0.0.1", None)
    with container:
        yield f"127.0.0.1:{container.get_exposed_port(8500)}"


@pytest.mark.anyio
async def test_a_module_is_seen_through_a_consul_in_a_container(consul: str) -> None:
    module = {
        "Name": "financial",
        "ID": "financial-1",
        "Address": "127.0.0.1",
        "Port": 8001,
        "Tags": ["module"],
    }
    async with httpx.AsyncClient(base_url=f"http://{consul}", trust_env=False) as client:
        (await client.put("/v1/agent/service/register", json=module)).raise_for_status()

    watcher = ConsulWatcher(ConsulConfig.from_env({"CONSUL_HTTP_ADDR": consul}))
    with anyio.fail_after(20):
        async with aclosing(watcher.watch()) as changes:
            async for change in changes:
                if change.present:
                    break
    (instance,) = change.present
    assert (instance.module, instance.id, instance.port) == ("financial", "financial-1", 8001)


@pytest.fixture
def machine_without_consul(tmp_path: Path) -> Path:
    """A checkout's scripts, beside a folder for PATH that holds Docker but neither Consul nor apt."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("bash", "dirname", "docker", "mkdir", "mv", "timeout"):
        found = shutil.which(tool)
        assert found, f"this machine has no {tool}"
        (programs / tool).symlink_to(found)
    return tmp_path


def get_consul(machine: Path, *arguments: str) -> str:
    done = subprocess.run(
        [machine / "scripts" / "get-consul", *arguments],
        env={"PATH": str(machine / "bin"), "HOME": str(machine), "LICTOR_CONSUL_IMAGE": IMAGE},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_get_consul_names_the_image(machine_without_consul: Path) -> None:
    assert get_consul(machine_without_consul) == f"docker:{IMAGE}"


def test_get_consul_takes_a_binary_out_of_the_image(machine_without_consul: Path) -> None:
    binary = get_consul(machine_without_consul, "--binary")
    assert binary == str(machine_without_consul / ".tools" / "consul" / "usr" / "bin" / "consul")
    assert (
        "Consul v" in subprocess.run([binary, "version"], check=True, capture_output=True, text=True).stdout
    )
