"""The address under which a peer sees this machine."""

from __future__ import annotations

import asyncio

import pytest

from discovery.announce.background_loop import BackgroundLoop
from discovery.announce.own_address import own_address_towards
from discovery.errors import RegistryUnavailable


def towards(host: str) -> str:
    with asyncio.Runner(loop_factory=BackgroundLoop) as runner:
        return runner.run(own_address_towards(host, 8500))


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", {"127.0.0.1"}), ("127.0.0.9", {"127.0.0.1"}), ("localhost", {"127.0.0.1", "::1"})],
)
def test_it_is_that_of_the_way_to_the_peer(host: str, own: set[str]) -> None:
    assert towards(host) in own


@pytest.mark.parametrize("host", ["no such host", "a..b"])
def test_a_peer_whose_name_cannot_be_resolved_is_told(host: str) -> None:
    with pytest.raises(RegistryUnavailable, match=r"the address of .* is not known"):
        towards(host)
