"""The `lictor` executable in a folder of its own, and a cache that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor
from tests.web.filling import Cache


@pytest.fixture
def lictor(tmp_path: Path) -> Iterator[Lictor]:
    """Listens where nobody else does, and finds no Consul unless a test names one."""
    web, consul = free_ports(2)
    command = Lictor(tmp_path, LICTOR_BIND=f"127.0.0.1:{web}", CONSUL_HTTP_ADDR=f"127.0.0.1:{consul}")
    yield command
    command.close()
    command.show()


@pytest.fixture
def cache(lictor: Lictor) -> Iterator[Cache]:
    """The migrated database of `lictor`, and the means to fill it."""
    with Cache(f"sqlite:///{lictor.database}") as cache:
        yield cache
