"""Which addresses are fetched from: judged one by one, and, with real servers, connected to or not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme
from prometheus_client import REGISTRY

from discovery.errors import ConfigError
from discovery.http.address_policy import DEFAULT_ALLOW, FetchAllow, SystemResolver, network
from manifest_cache.errors import FetchFailed
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.fetch.fetcher import FetchConfig, ManifestFetcher
from manifest_cache.settings import CacheSettings
from tests.manifest_server import ManifestServer, manifest

GOOD = {"name": "orders", "version": "1.4.2"}


BY_DEFAULT = {
    True: "10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 127.0.0.1 127.9.9.9 ::1 fc00::1 fd12::1 "
    "::ffff:10.1.2.3",
    False: "172.32.0.1 8.8.8.8 0.0.0.0 255.255.255.255 224.0.0.1 100.64.0.1 :: 2001:db8::1 ff02::1 "
    "169.254.169.254 169.254.1.1 fe80::1 fe80::1%1 fd00:ec2::254 100.100.100.200 ::ffff:8.8.8.8 "
    "::ffff:169.254.169.254 fd00:ec2::23 fd20:ce::254 fd00:c1::a9fe:a9fe fd00:100::100:200 fd00:a9fe:a9fe::1 "
    "fd00:42::42",
}


@pytest.mark.parametrize(
    ("allowed", "address", "is_allowed"),
    [
        *((None, address, expected) for expected in BY_DEFAULT for address in BY_DEFAULT[expected].split()),
        ("0.0.0.0/0", "8.8.8.8", True),
        ("0.0.0.0/0", "169.254.169.254", False),
        ("169.254.0.0/16", "169.254.1.1", False),
        ("169.254.1.1/32", "169.254.1.1", True),
        ("169.254.1.1/32", "::ffff:169.254.1.1", True),
        ("169.254.1.1/32", "169.254.1.2", False),
        ("0.0.0.0/0", "168.63.129.16", False),
        ("0.0.0.0/0", "192.0.0.192", False),
        ("100.64.0.0/10", "100.100.100.200", False),
        ("100.100.100.200", "100.100.100.200", True),
        ("::/0", "2001:db8::1", True),
        ("::/0", "fe80::1", False),
        ("::/0", "::ffff:8.8.8.8", False),
        ("fd00:ec2::254", "fd00:ec2::254", True),
        ("fe80::1", "fe80::1%1", True),
    ],
)
def test_an_address_is_judged(allowed: str | None, address: str, is_allowed: bool) -> None:
    allow = FetchAllow(DEFAULT_ALLOW if allowed is None else [network(allowed)])
    refusal = allow.refusal(address)
    assert (refusal is None) == is_allowed
    assert refusal is None or (address in refusal and "LICTOR_FETCH_ALLOW" in refusal)


def test_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CacheSettings.load().fetch_allow == DEFAULT_ALLOW
    monkeypatch.setenv("LICTOR_FETCH_ALLOW", "10.0.0.0/8, 203.0.113.7,fd00::/8")
    settings = CacheSettings.load()
    assert [str(one) for one in settings.fetch_allow] == ["10.0.0.0/8", "203.0.113.7/32", "fd00::/8"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("10.0.0.0/8,everything", '"everything" is no network: write one like 10.0.0.0/8'),
        ("10.0.0.1/8", '"10.0.0.1/8" has bits set beyond its prefix: write 10.0.0.0/8'),
        ("10.0.0.0/33", '"10.0.0.0/33" is no network'),
        ("", "must name a network at least"),
    ],
)
def test_a_faulty_setting(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("LICTOR_FETCH_ALLOW", value)
    with pytest.raises(ConfigError, match="LICTOR_FETCH_ALLOW: ") as raised:
        CacheSettings.load()
    (fault,) = raised.value.faults
    assert said in fault


class Names:
    """Resolves every name to the same addresses, and counts how often it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        return self.addresses


def config(*allowed: str, tls_ca: str | None = None) -> FetchConfig:
    return FetchConfig(allow=tuple(network(one) for one in allowed), tls_ca=tls_ca)


NOT_ALLOWED = "127.0.0.1 is in none of the networks of LICTOR_FETCH_ALLOW: add"
# The C library and some clients read these as addresses, which then were never judged.
OTHER_SPELLINGS = ("127.1", "127.0.1", "2130706433", "2852039166", "127.0.0.1.", "0", "1.2.3.4.5")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("address", "type_", "said"),
    [
        ("127.0.0.1", "not-allowed", NOT_ALLOWED),
        ("localhost", "not-allowed", NOT_ALLOWED),
        *(
            (other, "bad-address", f'must be an IP address or a host name, not "{other}"')
            for other in OTHER_SPELLINGS
        ),
    ],
)
async def test_nothing_is_sent_where_it_is_not_allowed(address: str, type_: str, said: str) -> None:
    with ManifestServer({"/manifest": manifest(GOOD)}) as server:
        async with ManifestFetcher(config("10.0.0.0/8")) as fetcher:
            with pytest.raises(FetchFailed) as caught:
                await fetcher.fetch(server.instance(address=address))
        assert server.requests == []
    assert caught.value.type == type_
    assert said in caught.value.detail


@pytest.mark.anyio
async def test_of_several_addresses_only_the_allowed_are_tried() -> None:
    names = Names("127.0.0.1", "127.0.0.9", "169.254.169.254")
    with (
        ManifestServer({"/manifest": manifest(GOOD)}, host="127.0.0.9") as allowed,
        socket.create_server(("127.0.0.1", allowed.port)) as forbidden,
    ):
        async with ManifestFetcher(config("127.0.0.9"), names) as fetcher:
            fetched = await fetcher.fetch(allowed.instance(address="orders.example"))
        assert isinstance(fetched, Fetched)
        assert allowed.requests[0].headers["host"] == f"orders.example:{allowed.port}"
        forbidden.setblocking(False)
        with pytest.raises(BlockingIOError):
            forbidden.accept()
    assert names.asked == ["orders.example"], "asked once: what was judged is what is connected to"


@pytest.mark.anyio
async def test_the_next_address_is_tried_where_nobody_listens() -> None:
    with ManifestServer({"/manifest": manifest(GOOD)}, host="127.0.0.9") as server:
        async with ManifestFetcher(FetchConfig(), Names("127.0.0.8", "127.0.0.9")) as fetcher:
            assert isinstance(await fetcher.fetch(server.instance(address="orders.example")), Fetched)


@pytest.mark.anyio
async def test_a_name_of_which_no_address_is_allowed() -> None:
    async with ManifestFetcher(FetchConfig(), Names("169.254.169.254", "8.8.8.8")) as fetcher:
        with ManifestServer() as server, pytest.raises(FetchFailed) as caught:
            await fetcher.fetch(server.instance(address="orders.example"))
    assert caught.value.type == "not-allowed"
    assert "169.254.169.254 is a link-local address" in caught.value.detail
    assert "8.8.8.8 is in none" in caught.value.detail


@pytest.mark.anyio
async def test_a_fetch_that_fails_by_our_own_fault_is_counted_too() -> None:
    async def odd(name: str) -> Sequence[str]:
        raise LookupError(name)

    def counted() -> float:
        labels = {"outcome": "internal-error"}
        return REGISTRY.get_sample_value("lictor_manifest_fetches_total", labels) or 0.0

    before = counted()
    async with ManifestFetcher(FetchConfig(), odd) as fetcher:
        with ManifestServer() as server, pytest.raises(LookupError):
            await fetcher.fetch(server.instance(address="orders.example"))
    assert counted() == before + 1


def test_a_name_server_that_hangs_keeps_nothing_waiting() -> None:
    """A process of its own shows that it ends; the lookup is slow where the C library would ask a server."""
    program = """
import asyncio, socket, time
from discovery.http.address_policy import SystemResolver
socket.getaddrinfo = lambda *arguments, **named: time.sleep(60)
async def main():
    async with asyncio.timeout(0.1):
        await SystemResolver()("orders.example")
try:
    asyncio.run(main())
except TimeoutError:
    print("given up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "given up\n"), done.stderr


@pytest.mark.anyio
async def test_names_are_looked_up_once_there_are_threads_again() -> None:
    resolver = SystemResolver()
    before = threading.stack_size(2**46)
    try:
        for _ in range(20):
            with pytest.raises(OSError, match="can't start new thread"):
                await resolver("localhost")
    finally:
        threading.stack_size(before)
    async with asyncio.timeout(20):
        assert await resolver("localhost")


@pytest.mark.anyio
async def test_the_certificate_is_for_the_name_not_the_address(tmp_path: Path) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("orders.example").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    asked: list[str | None] = []
    context.sni_callback = lambda sock, name, context: asked.append(name)
    with ManifestServer({"/manifest": manifest(GOOD)}, tls=context) as server:
        trusting = config("127.0.0.1", tls_ca=str(tmp_path / "ca.pem"))
        async with ManifestFetcher(trusting, Names("127.0.0.1")) as fetcher:
            assert isinstance(await fetcher.fetch(server.instance(address="orders.example")), Fetched)
    assert asked == ["orders.example"]
