"""What becomes of a fetch: against a real server that answers, byte for byte, as good and bad modules do."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import REGISTRY

from discovery.base import ServiceInstance
from discovery.errors import ConfigError
from manifest_cache.errors import FetchFailed, ManifestError, ManifestInvalid
from manifest_cache.fetch.fetched import Fetched, ManifestUnchanged
from manifest_cache.fetch.fetcher import FetchConfig, ManifestFetcher
from manifest_cache.fetch.manifest_url import manifest_url
from tests import manifest_server
from tests.manifest_server import Behaviour, ManifestServer, answer, head, in_pieces, manifest, raw

pytestmark = pytest.mark.anyio

GOOD = {"name": "orders", "version": "1.4.2", "title": "Orders"}
BODY = json.dumps(GOOD).encode()
# Short, so that what never ends costs little; long enough for a busy machine.
IMPATIENT = FetchConfig(deadline=0.7, connect_timeout=0.5)
PATIENT = FetchConfig()


@pytest.fixture
def server() -> Iterator[ManifestServer]:
    with ManifestServer({"/manifest": manifest(GOOD)}) as server:
        yield server


@pytest.fixture
async def fetcher() -> AsyncIterator[ManifestFetcher]:
    async with ManifestFetcher(PATIENT) as fetcher:
        yield fetcher


async def fetched(instance: ServiceInstance, config: FetchConfig = PATIENT) -> Fetched:
    async with ManifestFetcher(config) as fetcher:
        result = await fetcher.fetch(instance)
    assert isinstance(result, Fetched)
    return result


async def failure(instance: ServiceInstance, config: FetchConfig = PATIENT) -> FetchFailed:
    async with ManifestFetcher(config) as fetcher:
        with pytest.raises(FetchFailed) as caught:
            await fetcher.fetch(instance)
    return caught.value


# Good modules


async def test_a_good_manifest_is_fetched_and_parsed(server: ManifestServer) -> None:
    result = await fetched(server.instance())

    assert result.parsed.version == "1.4.2"
    assert result.parsed.canonical == b'{"name":"orders","title":"Orders","version":"1.4.2"}'
    assert result.etag is not None


async def test_the_request_says_who_asks_and_for_what(server: ManifestServer) -> None:
    await fetched(server.instance())

    (request,) = server.requests
    assert (request.method, request.target) == ("GET", "/manifest")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["accept"] == "application/json"
    assert request.headers["accept-encoding"] == "identity, gzip"
    assert request.headers["connection"] == "close"
    assert request.headers["user-agent"].startswith("lictor/")
    assert not request.headers.keys() & {"cookie", "authorization", "if-none-match"}


async def test_a_known_manifest_is_not_sent_again(server: ManifestServer, fetcher: ManifestFetcher) -> None:
    first = await fetcher.fetch(server.instance())
    assert isinstance(first, Fetched)
    assert first.etag is not None

    second = await fetcher.fetch(server.instance(), etag=first.etag)
    assert second == ManifestUnchanged(first.etag)

    server.routes["/manifest"] = manifest({**GOOD, "version": "1.5.0"})
    third = await fetcher.fetch(server.instance(), etag=first.etag)
    assert isinstance(third, Fetched)
    assert third.parsed.version == "1.5.0"


@pytest.mark.parametrize("etag", ["no-quotes", '"' + "x" * 300 + '"', '"a b"', '"\xe9"', '"a", "b"'])
async def test_an_etag_that_cannot_be_sent_back_is_not_kept(server: ManifestServer, etag: str) -> None:
    server.routes["/manifest"] = answer(BODY, headers={"ETag": etag})

    assert (await fetched(server.instance())).etag is None


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY), id="HTTP/1.0 without a length"),
        pytest.param(
            raw(
                head(headers={"Transfer-Encoding": "chunked"}) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
            ),
            id="chunked",
        ),
        pytest.param(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + head() + BODY), id="100 first"),
        pytest.param(in_pieces([head(), *(bytes([byte]) for byte in BODY)]), id="byte by byte"),
        pytest.param(answer(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}), id="gzip"),
        pytest.param(answer(gzip.compress(BODY), headers={"Content-Encoding": " X-GZip "}), id="x-gzip"),
        pytest.param(answer(BODY, headers={"Content-Encoding": "identity"}), id="identity"),
        pytest.param(answer(BODY, headers={"Content-Type": "text/html"}), id="JSON that says it is HTML"),
    ],
)
async def test_every_way_to_send_a_good_manifest(server: ManifestServer, behaviour: Behaviour) -> None:
    server.routes["/manifest"] = behaviour

    assert (await fetched(server.instance())).parsed.name == "orders"


async def test_the_meta_names_another_path(server: ManifestServer) -> None:
    server.routes = {"/about/orders.json": manifest(GOOD)}

    await fetched(server.instance(meta={"manifest_path": "/about/orders.json?full=1"}))

    assert server.requests[0].target == "/about/orders.json?full=1"


async def test_a_large_manifest_within_the_limit(server: ManifestServer) -> None:
    server.routes["/manifest"] = manifest({**GOOD, "x": "a" * 500_000})

    assert len((await fetched(server.instance())).parsed.canonical) > 500_000


async def test_an_ipv6_address() -> None:
    with ManifestServer({"/manifest": manifest(GOOD)}, host="::1") as server:
        await fetched(server.instance(address="::1"))

        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


async def test_a_host_name(server: ManifestServer) -> None:
    await fetched(server.instance(address="localhost"))

    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


# Documents that are no manifests


@pytest.mark.parametrize(
    ("body", "type", "said"),
    [
        ("orders 1.4.2", "not-json", "the document is not JSON"),
        ("<!doctype html><title>Orders</title>", "not-json", "the document is HTML"),
        ("[1, 2]", "not-an-object", "must be a JSON object, not a list"),
        ('{"version": "1.4.2"}', "invalid", "/name: is missing"),
        ('{"name": "orders"}', "invalid", "/version: is missing"),
        ('{"name": "financial", "version": "1.4.2"}', "wrong-module", 'must be "orders"'),
        ('{"name": "orders", "version": "latest"}', "invalid", 'not "latest"'),
        ('{"name": "orders", "version": "1.4.2", "x": NaN}', "not-json", "/x: NaN is not JSON"),
        ('{"name": "orders", "version": "1.4.2", "name": "x"}', "duplicate-key", "stands twice"),
        ('{"x":' * 10_000 + "1" + "}" * 10_000, "too-deep", "nested deeper than 64 levels"),
        (b'{"name": "orders", "version": "1.4.2", "title": "\xff"}', "not-utf8", "byte 0xff"),
    ],
    ids=[
        "no JSON",
        "HTML",
        "no object",
        "no name",
        "no version",
        "another's name",
        "no semantic version",
        "NaN",
        "duplicate key",
        "10,000 deep",
        "invalid UTF-8",
    ],
)
async def test_a_document_that_is_no_manifest(
    server: ManifestServer, fetcher: ManifestFetcher, body: bytes | str, type: str, said: str
) -> None:
    server.routes["/manifest"] = answer(body)

    with pytest.raises(ManifestInvalid) as caught:
        await fetcher.fetch(server.instance())

    assert caught.value.type == type
    assert caught.value.detail.startswith(f"http://127.0.0.1:{server.port}/manifest: ")
    assert said in caught.value.detail


async def test_a_document_that_was_seen_is_still_that_of_its_module(
    server: ManifestServer, fetcher: ManifestFetcher
) -> None:
    await fetcher.fetch(server.instance())

    with pytest.raises(ManifestInvalid, match='must be "financial"'):
        await fetcher.fetch(server.instance(module="financial"))


# Answers without a document

LONG_LOCATION = "http://example.com/" + "a" * 5_000


@pytest.mark.parametrize(
    ("behaviour", "type", "status", "said"),
    [
        (answer("no", status="404 Not Found"), "http-status", 404, "404 Not Found: serve the manifest here"),
        (answer("no", status="500 Internal Server Error"), "http-status", 500, "answered 500 Internal"),
        (answer("no", status="403 Forbidden"), "http-status", 403, "readable without credentials"),
        (
            answer("no", status="299 Strange"),
            "http-status",
            299,
            "answered 299: a manifest comes with 200 OK",
        ),
        (answer(BODY, status="206 Partial Content"), "http-status", 206, "answered 206 Partial Content"),
        (answer(status="304 Not Modified"), "http-status", 304, "had no condition"),
        (answer(status="204 No Content"), "empty", 204, "answered 204 No Content"),
        (answer(), "empty", 200, "an empty body"),
        (answer(headers={"Content-Encoding": "gzip"}), "empty", 200, "an empty body"),
        (answer(gzip.compress(b""), headers={"Content-Encoding": "gzip"}), "empty", 200, "an empty body"),
        (
            answer(status="302 Found", headers={"Location": "http://169.254.169.254/latest/meta-data"}),
            "redirect",
            302,
            '302, a redirect to "http://169.254.169.254/latest/meta-data": redirects are not followed',
        ),
        (answer(status="308 Permanent Redirect", headers={"Location": "/x"}), "redirect", 308, '"/x"'),
        (answer(status="301 Moved", headers={"Location": "http://[::bad:99999/"}), "redirect", 301, "[::bad"),
        (answer(status="301 Moved", headers={"Location": LONG_LOCATION}), "redirect", 301, "aaa…"),
        (answer(status="302 Found"), "redirect", 302, 'to ""'),
        (answer(BODY, headers={"Content-Encoding": "br"}), "bad-encoding", 200, 'Content-Encoding "br"'),
        (answer(BODY, headers={"Content-Encoding": "gzip"}), "bad-encoding", 200, "is broken"),
        (
            answer(zlib.compress(BODY), headers={"Content-Encoding": "deflate"}),
            "bad-encoding",
            200,
            "only gzip and none",
        ),
        (
            answer(gzip.compress(BODY)[:-4], headers={"Content-Encoding": "gzip"}),
            "bad-encoding",
            200,
            "ends too early",
        ),
        (
            answer(gzip.compress(BODY) * 2, headers={"Content-Encoding": "gzip"}),
            "bad-encoding",
            200,
            "something follows",
        ),
        (answer(BODY, content_length=len(BODY) + 1), "bad-response", None, "not complete HTTP"),
        (raw(head(headers={"Content-Length": "x"}) + BODY), "bad-response", None, "not complete HTTP"),
        (raw(head(headers={"Content-Length": "-5"}) + BODY), "bad-response", None, "not complete HTTP"),
        (raw(head("101 Switching Protocols", {"Upgrade": "x"})), "http-status", 101, "comes with 200 OK"),
        (raw(b"HTTP/2 200 OK\r\n\r\n"), "bad-response", None, "not complete HTTP"),
        (raw(head(headers={"Transfer-Encoding": "chunked"}) + b"5\r\nab"), "bad-response", None, "complete"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "bad-response", None, "not complete HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000), "bad-response", None, "not complete HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "bad-response", None, "before the answer was complete"),
        (raw(b""), "bad-response", None, "disconnected"),
        (manifest_server.reset, "bad-response", None, "the connection broke"),
    ],
)
async def test_an_answer_without_a_document(
    server: ManifestServer, behaviour: Behaviour, type: str, status: int | None, said: str
) -> None:
    server.routes["/manifest"] = behaviour

    error = await failure(server.instance())

    assert (error.type, error.status) == (type, status)
    assert error.detail.startswith(f"http://127.0.0.1:{server.port}/manifest: ")
    assert said in error.detail
    assert len(error.detail) < 400
    # A read whose connection ends without a word is sent once more.
    assert 1 <= len(server.requests) <= 2


async def test_a_content_length_that_cuts_the_document_off(
    server: ManifestServer, fetcher: ManifestFetcher
) -> None:
    server.routes["/manifest"] = answer(BODY, content_length=len(BODY) - 1)

    # Either word is true: the document is cut off, and what follows it is no answer.
    with pytest.raises(ManifestError, match=r"ends too early|Bad status line"):
        await fetcher.fetch(server.instance())


# Too much, too slow, never


async def test_fifty_megabytes_are_refused_before_they_come(server: ManifestServer) -> None:
    server.routes["/manifest"] = answer(b" " * 50_000_000)

    error = await failure(server.instance())

    assert error.type == "too-large"
    assert "at most 1048576 bytes, and it has 50000000 bytes" in error.detail


async def test_a_body_without_end_is_read_up_to_the_limit_only(server: ManifestServer) -> None:
    piece = b" " * 100_000
    server.routes["/manifest"] = in_pieces([head(), *[piece] * 500])

    error = await failure(server.instance())

    assert error.type == "too-large"
    # What the sockets' buffers took is not what was read, but far from all there was.
    assert server.connections[0].sent < 25_000_000


@pytest.mark.parametrize("announced", [True, False], ids=["with length", "without length"])
async def test_a_gzip_bomb_is_not_unpacked(server: ManifestServer, announced: bool) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(500)) + packer.flush()
    assert len(bomb) < PATIENT.max_bytes
    headers = {"Content-Encoding": "gzip"}
    server.routes["/manifest"] = (
        answer(bomb, headers=headers) if announced else raw(head(headers=headers) + bomb)
    )

    tracemalloc.start()
    try:
        error = await failure(server.instance())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert error.type == "too-large"
    assert "when decompressed" in error.detail
    # 500 MB were packed into it; a few times the limit are in use at most.
    assert peak < 6 * PATIENT.max_bytes


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (manifest_server.silence, "not complete after 0.7 seconds: no answer came"),
        (in_pieces([bytes([byte]) for byte in head() + BODY], 0.1), "no answer came"),
        (in_pieces([head() + BODY[:5], *(bytes([byte]) for byte in BODY[5:])], 0.1), "bytes of the document"),
        (
            in_pieces([head(headers={"Content-Length": "900"}) + BODY], 10),
            f"{len(BODY)} bytes of the document",
        ),
        (in_pieces([b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000, 0.01), "no answer came"),
    ],
    ids=["never an answer", "head byte by byte", "body byte by byte", "length too long", "100 for ever"],
)
async def test_an_answer_has_a_deadline_in_all(
    server: ManifestServer, behaviour: Behaviour, said: str
) -> None:
    server.routes["/manifest"] = behaviour
    started = time.monotonic()

    error = await failure(server.instance(), IMPATIENT)

    assert error.type == "timeout"
    assert said in error.detail
    assert time.monotonic() - started < 5


# Nobody there


async def test_a_port_where_nobody_listens(fetcher: ManifestFetcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        error = await failure(ServiceInstance(module="orders", id="1", address="127.0.0.1", port=port))

    assert error.type == "unreachable"
    assert error.detail == f"http://127.0.0.1:{port}/manifest: no connection: Connection refused"


async def test_a_host_that_takes_no_connection() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # The kernel leaves further attempts unanswered while nobody accepts these.
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))

        error = await failure(
            ServiceInstance(module="orders", id="1", address="127.0.0.1", port=port), IMPATIENT
        )

        for client in waiting:
            client.close()

    assert error.type == "timeout"
    assert "no connection after 0.5 seconds" in error.detail


async def test_a_name_that_does_not_resolve() -> None:
    error = await failure(ServiceInstance(module="orders", id="1", address="nowhere.invalid", port=80))

    assert error.type == "unreachable"
    assert error.detail.startswith("http://nowhere.invalid/manifest: no connection: ")


# Registrations of which no address can be made


@pytest.mark.parametrize(
    ("changes", "type", "said"),
    [
        ({"port": 0}, "no-port", "registered without a port"),
        ({"port": 65536}, "bad-address", "must be 1 to 65535, not 65536"),
        ({"port": -1}, "bad-address", "not -1"),
        ({"address": ""}, "no-address", "without an address"),
        ({"address": "127.0.0.1:80"}, "bad-address", "an IP address or a host name"),
        ({"address": "user@example.com"}, "bad-address", "host name"),
        ({"address": "example.com/x?"}, "bad-address", "host name"),
        ({"address": "exam ple"}, "bad-address", "host name"),
        ({"address": "a..b"}, "bad-address", "host name"),
        ({"address": "a" * 64}, "bad-address", "host name"),
        ({"address": "bücher.example"}, "bad-address", "host name"),
        ({"address": "999.1.1.1"}, "bad-address", "999.1.1.1"),
        ({"address": "010.1.1.1"}, "bad-address", "010.1.1.1"),
        ({"address": "fe80::1%eth0"}, "bad-address", "host name"),
        ({"address": "host\n"}, "bad-address", r"host\n"),
        ({"scheme": "ftp"}, "bad-scheme", 'http or https, not "ftp"'),
        ({"scheme": "file"}, "bad-scheme", "http or https"),
        ({"scheme": ""}, "bad-scheme", 'not ""'),
        ({"meta": {"manifest_path": "manifest"}}, "bad-path", 'manifest_path "manifest" must begin with one'),
        (
            {"meta": {"manifest_path": "http://169.254.169.254/"}},
            "bad-path",
            "a path on the instance, not a URL",
        ),
        ({"meta": {"manifest_path": "//169.254.169.254/"}}, "bad-path", "must begin with one slash"),
        ({"meta": {"manifest_path": "@169.254.169.254/"}}, "bad-path", "must begin with one slash"),
        ({"meta": {"manifest_path": "/\\169.254.169.254"}}, "bad-path", "a backslash"),
        ({"meta": {"manifest_path": "/manifest#x"}}, "bad-path", "a fragment"),
        ({"meta": {"manifest_path": "/a b"}}, "bad-path", "percent-encode"),
        ({"meta": {"manifest_path": "/a\r\nHost: x"}}, "bad-path", "percent-encode"),
        ({"meta": {"manifest_path": "/manifest\n"}}, "bad-path", "percent-encode"),
        ({"meta": {"manifest_path": "/größe"}}, "bad-path", "percent-encode"),
        ({"meta": {"manifest_path": "/" + "a" * 3000}}, "bad-path", "at most 2048 characters"),
        *(
            (
                {"meta": {"manifest_port": port}},
                "bad-address",
                "the meta manifest_port must be a port from 1 to",
            )
            for port in ("0", "65536", "-1", "08", "http", "80 ", "1e3", "80@169.254.169.254")
        ),
    ],
)
async def test_a_registration_that_makes_no_address(
    server: ManifestServer, changes: dict[str, Any], type: str, said: str
) -> None:
    error = await failure(server.instance(**changes))

    assert error.type == type
    assert said in error.detail
    assert error.url is None
    assert server.requests == []


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://10.0.0.7:8001/manifest"),
        ({"address": "fd00::7"}, "http://[fd00::7]:8001/manifest"),
        (
            {"address": "orders-1.example.com", "scheme": "https"},
            "https://orders-1.example.com:8001/manifest",
        ),
        ({"address": "my_host"}, "http://my_host:8001/manifest"),
        ({"meta": {"manifest_path": "/a/%20b?c=d"}}, "http://10.0.0.7:8001/a/%20b?c=d"),
        ({"meta": {"manifest_path": ""}}, "http://10.0.0.7:8001/manifest"),
        ({"meta": {"manifest_path": "/@169.254.169.254/"}}, "http://10.0.0.7:8001/@169.254.169.254/"),
        ({"meta": {"manifest_path": "/a//b"}}, "http://10.0.0.7:8001/a//b"),
        ({"meta": {"manifest_port": "9000"}}, "http://10.0.0.7:9000/manifest"),
        ({"meta": {"manifest_port": ""}}, "http://10.0.0.7:8001/manifest"),
        ({"meta": {"manifest_port": "65535"}, "port": 0}, "http://10.0.0.7:65535/manifest"),
    ],
)
def test_the_url_is_that_of_the_registration(changes: dict[str, Any], url: str) -> None:
    known: dict[str, Any] = {"module": "orders", "id": "1", "address": "10.0.0.7", "port": 8001}

    assert str(manifest_url(ServiceInstance(**{**known, **changes}), "/manifest")) == url


# What is not trusted


async def test_no_cookie_is_kept(server: ManifestServer, fetcher: ManifestFetcher) -> None:
    server.routes["/manifest"] = answer(BODY, headers={"Set-Cookie": "spy=1; Path=/"})

    for _ in range(2):
        await fetcher.fetch(server.instance())

    assert "cookie" not in server.requests[1].headers


async def test_no_proxy_of_the_environment_is_used(
    server: ManifestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ManifestServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)

        await fetched(server.instance())

        assert proxy.requests == []


# TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(ca: trustme.CA) -> Iterator[ManifestServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with ManifestServer({"/manifest": manifest(GOOD)}, tls=context) as server:
        yield server


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
async def test_https_with_a_ca_of_our_own(tls_server: ManifestServer, ca_file: str, address: str) -> None:
    await fetched(tls_server.instance(address=address), FetchConfig(tls_ca=ca_file))

    assert tls_server.requests[0].headers["host"] == f"{address}:{tls_server.port}"


async def test_https_of_an_unknown_ca(tls_server: ManifestServer) -> None:
    error = await failure(tls_server.instance())

    assert error.type == "tls"
    assert "no TLS connection: unable to get local issuer certificate" in error.detail
    assert tls_server.requests == []


async def test_https_for_another_name(ca: trustme.CA, ca_file: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with ManifestServer({"/manifest": manifest(GOOD)}, host="127.0.0.2", tls=context) as server:
        error = await failure(server.instance(), FetchConfig(tls_ca=ca_file))

        assert server.requests == []

    assert error.type == "tls"
    assert "certificate is not valid for '127.0.0.2'" in error.detail


async def test_https_unverified(tls_server: ManifestServer) -> None:
    await fetched(tls_server.instance(), FetchConfig(tls_verify=False))


async def test_https_to_a_port_without_tls() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head("400 Bad Request"))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        instance = ServiceInstance(module="orders", id="1", address="127.0.0.1", port=port, scheme="https")

        error = await failure(instance)

    assert error.type == "tls"
    assert "wrong version number" in error.detail.lower()


async def test_http_to_a_port_with_tls(tls_server: ManifestServer) -> None:
    error = await failure(tls_server.instance(scheme="http"))

    assert error.type == "bad-response"


def test_a_ca_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"tls_ca: cannot read CA certificates from /nowhere/ca\.pem"):
        ManifestFetcher(FetchConfig(tls_ca="/nowhere/ca.pem"))


# Many at once


async def test_a_bounded_number_is_fetched_at_once(server: ManifestServer) -> None:
    server.routes["/manifest"] = in_pieces([b"", head() + BODY], 0.05)

    async with ManifestFetcher(FetchConfig(concurrency=4, per_host=100)) as fetcher:
        await asyncio.gather(*(fetcher.fetch(server.instance()) for _ in range(20)))

    assert len(server.requests) == 20
    assert server.most_open <= 5  # One may be closing while the next opens.


async def test_a_host_that_hangs_does_not_take_the_places_of_others(server: ManifestServer) -> None:
    with ManifestServer({"/manifest": manifest_server.silence}, host="127.0.0.9") as hanging:
        async with ManifestFetcher(FetchConfig(concurrency=4, per_host=2)) as fetcher:
            stuck = [asyncio.create_task(fetcher.fetch(hanging.instance())) for _ in range(20)]
            async with asyncio.timeout(5):
                await asyncio.to_thread(hanging.wait_for_requests, 2)
                await asyncio.gather(*(fetcher.fetch(server.instance()) for _ in range(10)))

            assert len(hanging.requests) == 2
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_cancelled_fetch_closes_its_connection_and_gives_its_place_back(
    server: ManifestServer,
) -> None:
    server.routes["/manifest"] = manifest_server.silence
    async with ManifestFetcher(FetchConfig(concurrency=1)) as fetcher:
        task = asyncio.create_task(fetcher.fetch(server.instance()))
        async with asyncio.timeout(5):
            await asyncio.to_thread(server.wait_for_requests, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            server.routes["/manifest"] = manifest(GOOD)
            assert isinstance(await fetcher.fetch(server.instance()), Fetched)


async def test_what_became_of_fetches_is_counted(server: ManifestServer, fetcher: ManifestFetcher) -> None:
    def counted(outcome: str) -> float:
        return REGISTRY.get_sample_value("lictor_manifest_fetches_total", {"outcome": outcome}) or 0.0

    outcomes = ("fetched", "unchanged", "http-status", "not-an-object", "no-port")
    before = {outcome: counted(outcome) for outcome in outcomes}
    first = await fetcher.fetch(server.instance())
    assert isinstance(first, Fetched)
    await fetcher.fetch(server.instance(), etag=first.etag)
    for behaviour in (answer(status="500 Internal Server Error"), answer("[]")):
        server.routes["/manifest"] = behaviour
        with pytest.raises(ManifestError):
            await fetcher.fetch(server.instance())
    with pytest.raises(ManifestError):
        await fetcher.fetch(server.instance(port=0))

    assert {outcome: counted(outcome) - before[outcome] for outcome in outcomes} == dict.fromkeys(outcomes, 1)
    assert REGISTRY.get_sample_value("lictor_manifest_fetches_in_flight") == 0


# The border
