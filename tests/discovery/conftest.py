"""What the tests of discovery share: a client of the Consul that all of them use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery.consul.client import ConsulClient
from tests.consul_server import RunningConsul


@pytest.fixture
def client(consul: RunningConsul) -> Iterator[ConsulClient]:
    with consul.client() as client:
        yield client
