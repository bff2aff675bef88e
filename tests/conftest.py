"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.consul_server import (
    IN_DOCKER,
    ConsulInDocker,
    ConsulServer,
    RunningConsul,
    ScriptedConsul,
    consul_binary,
    consul_source,
)

pytest_plugins = ["tests.postgres_server", "tests.small_disk"]


def pytest_configure() -> None:
    """What runs in the background, or under nohup, ignores these, and so would all that tests start."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsul]:
    """A real Consul for the whole run: each test uses service names and keys that are its own."""
    source = consul_source()
    if source.startswith(IN_DOCKER):
        container = ConsulInDocker(source.removeprefix(IN_DOCKER))
        with container:
            yield container
    else:
        with ConsulServer(Path(source), tmp_path_factory.mktemp("consul")) as server:
            yield server


@pytest.fixture
def consul_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ConsulServer]]:
    """Starts a real Consul that belongs to this test: `consul_server(acl=True)`, see ConsulServer."""
    with ExitStack() as running:

        def start(**options: object) -> ConsulServer:
            server = ConsulServer(consul_binary(), tmp_path_factory.mktemp("consul"), **options)  # type: ignore[arg-type]
            return running.enter_context(server)

        yield start


@pytest.fixture
def scripted_consul() -> Iterator[ScriptedConsul]:
    with ScriptedConsul() as server:
        yield server
