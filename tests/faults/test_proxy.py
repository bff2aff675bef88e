"""The proxy itself: every trouble meets those who connect through it, and is over when it is over."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.consul_server import eventually
from tests.faults.proxy import Proxy, Trouble
from tests.manifest_server import ManifestServer, answer

BODY = "word " * 1000


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with ManifestServer({"/": answer(BODY)}) as server, Proxy((server.host, server.port)) as proxy:
        yield proxy


def ask(proxy: Proxy, timeout: float = 10.0) -> str:
    return httpx.get(f"http://{proxy.address}/", trust_env=False, timeout=timeout).text


def test_without_trouble_everything_passes(proxy: Proxy) -> None:
    assert ask(proxy) == BODY
    assert proxy.suffered == 0


def test_a_delay_only_delays(proxy: Proxy) -> None:
    proxy.make(Trouble.DELAY)
    assert ask(proxy) == BODY
    assert proxy.suffered


@pytest.mark.parametrize("trouble", [Trouble.CUT, Trouble.TRUNCATE])
def test_a_broken_connection_is_an_error(proxy: Proxy, trouble: Trouble) -> None:
    proxy.make(trouble)
    with pytest.raises(httpx.TransportError):
        ask(proxy)
    proxy.make(Trouble.NONE)
    assert ask(proxy) == BODY


def test_a_half_open_connection_says_nothing(proxy: Proxy) -> None:
    proxy.make(Trouble.HALF_OPEN)
    with pytest.raises(httpx.ReadTimeout):
        ask(proxy, timeout=0.3)
    proxy.make(Trouble.NONE)
    assert ask(proxy) == BODY


def test_corruption_alters_answers(proxy: Proxy) -> None:
    proxy.make(Trouble.CORRUPT)

    def differs() -> bool:
        try:
            return ask(proxy) != BODY
        except httpx.TransportError:
            return True

    eventually(differs)
