"""An ASGI application as a module: registered while it runs, in the right order with its own lifespan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

import discovery
from discovery import ConfigError
from discovery.announce.keepalive import State
from discovery.asgi import lifespan
from discovery.consul.client import ConsulClient
from discovery.consul.dev_agent import free_ports
from discovery.errors import UnknownInstance
from tests.consul_server import RunningConsul, eventually

APPLICATION = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import discovery
from discovery.asgi import lifespan

async def health(request):
    return PlainTextResponse("well")

name, port = os.environ["NAME"], int(os.environ["SERVED"])
check = discovery.HTTPCheck("/health", interval="100ms")
kept = lifespan(name=name, id=name, port=port, check=check)
app = Starlette(routes=[Route("/health", health)], lifespan=kept)
"""


@pytest.fixture
def name() -> str:
    return f"asgi-{uuid.uuid4().hex[:8]}"


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn(
    consul: RunningConsul, client: ConsulClient, name: str, tmp_path: Path, workers: int
) -> None:
    port = free_ports(1)[0]
    (tmp_path / "application.py").write_text(APPLICATION)
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", f"--port={port}", f"--workers={workers}", "application:app"],
        env={**os.environ, "CONSUL_HTTP_ADDR": consul.http_addr, "NAME": name, "SERVED": str(port)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(lambda: client.health_service(name, params={"passing": 1}).data)
        server.terminate()
        server.wait(10)
        eventually(lambda: not service(client, name), limit=8)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.anyio
async def test_the_own_lifespan_encloses_the_registration(consul: RunningConsul, name: str) -> None:
    told: list[tuple[str, State]] = []
    registration = discovery.register(name=name, port=8001, consul=consul.config())

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, int]]:
        told.append(("started", registration.state))
        yield {"answer": 42}
        told.append(("ended", registration.state))

    async with lifespan(own, registration=registration)(Starlette()) as state:
        assert state == {"answer": 42}
        assert registration.state is not State.STOPPED
    assert told == [("started", State.STOPPED), ("ended", State.STOPPED)]


@pytest.mark.anyio
async def test_it_is_deregistered_when_the_application_fails(
    consul: RunningConsul, client: ConsulClient, name: str
) -> None:
    registration = discovery.register(name=name, port=8001, consul=consul.config())

    async def fail() -> None:
        async with lifespan(registration=registration)(Starlette()):
            registration.wait_registered(10)
            assert service(client, registration.id)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await fail()
    assert not service(client, registration.id)


def test_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="name: '-'"):
        lifespan(name="-", port=8001)
    with pytest.raises(TypeError, match="port would be without effect"):
        lifespan(registration=discovery.register(name="m", port=1), port=8001)
    with pytest.raises(TypeError, match=r"what discovery\.register returned"):
        lifespan(registration="m")
