"""Fetches manifests: an instance in, its checked manifest out, or one error that says why not.

A module is not trusted. It is asked at the address under which it is registered and nowhere else;
its answer is bounded in bytes, as sent and as decompressed, and in time, from connecting to the
last byte; nothing that it says about cookies, redirects or proxies is followed.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import os
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

import httpcore
import httpx

from discovery import __version__
from discovery.base import ServiceInstance
from discovery.errors import ConfigError
from manifest_cache.errors import FetchFailed, FetchFailure, quoted
from manifest_cache.manifest import ParsedManifest, parse_manifest

# Larger documents are parsed in a thread, so that no other fetch waits for them.
_PARSED_IN_PLACE = 32 * 1024
_LONGEST_PATH = 2048
_LONGEST_PORT = 65535

_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?\Z")
_VISIBLE_ASCII = re.compile(r"[!-~]+\Z")
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"\Z')
_LONGEST_ETAG = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """How manifests are fetched; times in seconds.

    `per_host` bounds the fetches from one address, so that a host that hangs cannot take every
    place. `tls_ca` is a file of CA certificates to trust in place of the system's.
    """

    manifest_path: str = "/manifest"
    concurrency: int = 50
    per_host: int = 10
    deadline: float = 10.0
    connect_timeout: float = 3.0
    max_bytes: int = 1024 * 1024
    tls_ca: str | None = None
    tls_verify: bool = True


@dataclass(frozen=True, slots=True)
class Fetched:
    """A good manifest, and the ETag under which its server knows it, if it said one."""

    parsed: ParsedManifest
    etag: str | None


@dataclass(frozen=True, slots=True)
class NotModified:
    """The instance still has the manifest that was known under `etag`."""

    etag: str


class ManifestFetcher:
    """Fetches manifests, a bounded number at a time; an async context manager."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._places = asyncio.Semaphore(config.concurrency)
        # An entry lives as long as a fetch holds or awaits it.
        self._places_by_host: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._client = httpx.AsyncClient(
            transport=_OneConnectionPerRequest(_tls(config)),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity, gzip",
                "Connection": "close",
                "User-Agent": f"lictor/{__version__}",
            },
            timeout=httpx.Timeout(None, connect=config.connect_timeout),
            trust_env=False,
            follow_redirects=False,
            # Cookies know no ports: one module's would be sent to its neighbours on the same host.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            # A hook sees the answer before httpx tries to make sense of its Location.
            event_hooks={"response": [_refuse_all_but_documents]},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def fetch(self, instance: ServiceInstance, *, etag: str | None = None) -> Fetched | NotModified:
        """The instance's manifest, or word that it is still the one known under `etag`.

        Raises `FetchFailed` if no document can be had, and `ManifestInvalid` if it is no manifest
        of this module.
        """
        url = manifest_url(instance, self.config.manifest_path)
        async with self._place(instance.address):
            document = await self._document(url, instance.address, etag)
            if isinstance(document, NotModified):
                return document
            if len(document.body) <= _PARSED_IN_PLACE:
                parsed = parse_manifest(document.body, module=instance.module, source=str(url))
            else:
                parsed = await asyncio.to_thread(
                    parse_manifest, document.body, module=instance.module, source=str(url)
                )
            return Fetched(parsed, document.etag)

    @asynccontextmanager
    async def _place(self, host: str) -> AsyncIterator[None]:
        """Waits for a turn: first among those of the host, so as not to hold a place of the others."""
        places_of_host = self._places_by_host.setdefault(host, asyncio.Semaphore(self.config.per_host))
        async with places_of_host, self._places:
            yield

    async def _document(self, url: httpx.URL, address: str, etag: str | None) -> _Document | NotModified:
        progress = _Progress()
        try:
            async with asyncio.timeout(self.config.deadline):
                with translated_errors(str(url), self.config):
                    return await self._exchange(url, address, etag, progress)
        except TimeoutError:
            reason = f"not complete after {self.config.deadline:g} seconds: {progress}"
            raise FetchFailed("timeout", reason, url=str(url)) from None

    async def _exchange(
        self, url: httpx.URL, address: str, etag: str | None, progress: _Progress
    ) -> _Document | NotModified:
        headers = {"If-None-Match": etag} if etag is not None else {}
        # What is connected to is said apart from the URL, which names the host for the request and
        # for TLS: a name can be resolved and judged here, and the judged address be pinned.
        extensions = {"connect_to": address, "sni_hostname": url.host}
        async with self._client.stream("GET", url, headers=headers, extensions=extensions) as response:
            if etag is not None and response.status_code == HTTPStatus.NOT_MODIFIED:
                return NotModified(etag)
            body = _Body(str(url), response.headers, self.config.max_bytes)
            async for chunk in response.aiter_raw():
                progress.received = body.feed(chunk)
            return _Document(body.complete(), _etag(response.headers))


def manifest_url(instance: ServiceInstance, default_path: str) -> httpx.URL:
    """Where an instance's manifest lies: its registered address and port, and a path, no more.

    Raises `FetchFailed` where the registration does not add up to such a URL.
    """
    path = _path(instance.meta.get("manifest_path") or default_path)
    if instance.scheme not in ("http", "https"):
        raise FetchFailed("bad-scheme", f"the scheme must be http or https, not {quoted(instance.scheme)}")
    host = _host(instance.address)
    if instance.port == 0:
        raise FetchFailed("no-port", "the instance is registered without a port: register it with one")
    if not 0 < instance.port <= _LONGEST_PORT:
        raise FetchFailed("bad-address", f"the port must be 1 to {_LONGEST_PORT}, not {instance.port}")
    try:
        return httpx.URL(f"{instance.scheme}://{host}:{instance.port}{path}")
    except httpx.InvalidURL as error:
        raise FetchFailed("bad-address", f"the address {quoted(instance.address)}: {error}") from error


def _host(address: str) -> str:
    if not address:
        raise FetchFailed("no-address", "the instance is registered without an address")
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        if _HOST_NAME.match(address):
            return address
    else:
        if isinstance(ip, ipaddress.IPv4Address):
            return address
        # A zone means something on one machine only.
        if ip.scope_id is None:
            return f"[{address}]"
    raise FetchFailed(
        "bad-address", f"the address must be an IP address or a host name, not {quoted(address)}"
    )


def _path(path: str) -> str:
    """The path, if it can lead nowhere but to the instance itself."""
    if not path.startswith("/") or path.startswith("//"):
        problem = "must begin with one slash, for it is a path on the instance, not a URL"
    elif len(path) > _LONGEST_PATH:
        problem = f"must have at most {_LONGEST_PATH} characters"
    elif not _VISIBLE_ASCII.match(path):
        problem = "must not contain spaces, control characters or anything beyond ASCII: percent-encode them"
    elif "\\" in path or "#" in path:
        problem = "must not contain a backslash or a fragment (#)"
    else:
        return path
    raise FetchFailed("bad-path", f"the manifest_path {quoted(path)} {problem}")


@dataclass(frozen=True, slots=True)
class _Document:
    body: bytes
    etag: str | None


@dataclass(slots=True)
class _Progress:
    """How far a fetch came; its text ends a sentence about a fetch that came no further."""

    received: int | None = None

    def __str__(self) -> str:
        if self.received is None:
            return "no answer came"
        return f"{self.received} bytes of the document had come"


class _Body:
    """Gathers a body chunk by chunk, never more of it than allowed, and decompresses gzip on the way."""

    def __init__(self, url: str, headers: httpx.Headers, limit: int) -> None:
        self._url = url
        self._limit = limit
        self._received = 0
        self._content = bytearray()
        self._gzip = self._decompressor(headers.get("content-encoding", "identity").strip().lower())
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise self._too_large(f"it has {announced} bytes")

    def feed(self, chunk: bytes) -> int:
        """Takes a chunk; returns how many bytes have come so far."""
        self._received += len(chunk)
        if self._received > self._limit:
            raise self._too_large("it goes on after that")
        self._content += chunk if self._gzip is None else self._decompressed(self._gzip, chunk)
        if len(self._content) > self._limit:
            raise self._too_large("it goes on after that when decompressed")
        return self._received

    def complete(self) -> bytes:
        if self._gzip is not None and self._received and not self._gzip.eof:
            raise self._failure("bad-encoding", "the gzip stream ends too early")
        if not self._content:
            raise self._failure("empty", "answered 200 with an empty body: it must send a manifest")
        return bytes(self._content)

    def _decompressor(self, encoding: str) -> zlib._Decompress | None:
        if encoding in ("identity", ""):
            return None
        if encoding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        reason = f"answered with Content-Encoding {quoted(encoding)}: only gzip and none are taken"
        raise self._failure("bad-encoding", reason)

    def _decompressed(self, gzip: zlib._Decompress, chunk: bytes) -> bytes:
        # One byte more than allowed tells that there is more, without making room for all of it.
        room = self._limit + 1 - len(self._content)
        try:
            content = gzip.decompress(chunk, room)
        except zlib.error as error:
            raise self._failure("bad-encoding", f"the gzip stream is broken ({error})") from error
        if gzip.unused_data:
            raise self._failure("bad-encoding", "something follows the end of the gzip stream")
        return content

    def _too_large(self, what: str) -> FetchFailed:
        return self._failure("too-large", f"a manifest may have at most {self._limit} bytes, and {what}")

    def _failure(self, type: FetchFailure, reason: str) -> FetchFailed:
        return FetchFailed(type, reason, url=self._url, status=HTTPStatus.OK)


def _etag(headers: httpx.Headers) -> str | None:
    """The answer's ETag, if it is one that can be sent back."""
    etag = headers.get("etag")
    return etag if etag is not None and len(etag) <= _LONGEST_ETAG and _ETAG.match(etag) else None


_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "a manifest must be readable without credentials",
    HTTPStatus.FORBIDDEN: "a manifest must be readable without credentials",
    HTTPStatus.NOT_FOUND: "serve the manifest here, or name its path in the service meta manifest_path",
    HTTPStatus.NOT_MODIFIED: "the request had no condition that allows this",
}


async def _refuse_all_but_documents(response: httpx.Response) -> None:
    """Lets pass a 200, and a 304 to a request that had a condition."""
    status = response.status_code
    conditional = "if-none-match" in response.request.headers
    if status == HTTPStatus.OK or (status == HTTPStatus.NOT_MODIFIED and conditional):
        return
    url = str(response.request.url)
    if status == HTTPStatus.NO_CONTENT:
        raise FetchFailed("empty", "answered 204 No Content: it must send a manifest", url=url, status=status)
    if 300 <= status < 400 and status != HTTPStatus.NOT_MODIFIED:
        to = quoted(response.headers.get("location", ""))
        reason = f"answered {status}, a redirect to {to}: redirects are not followed, serve the manifest here"
        raise FetchFailed("redirect", reason, url=url, status=status)
    said = f"{status} {http.client.responses.get(status, '')}".strip()
    advice = _ADVICE.get(status, "a manifest comes with 200 OK")
    raise FetchFailed("http-status", f"answered {said}: {advice}", url=url, status=status)


@contextmanager
def translated_errors(url: str, config: FetchConfig) -> Iterator[None]:
    """The one border at which the client's exceptions become ours.

    httpcore's have no common ancestor; `OSError` covers sockets and `ssl`; httpx itself raises
    only where it cannot make sense of an answer.
    """
    try:
        yield
    except (httpcore.TimeoutException, httpx.TimeoutException) as error:
        reason = f"no connection after {config.connect_timeout:g} seconds"
        raise FetchFailed("timeout", reason, url=url) from error
    except (httpcore.ConnectError, httpx.ConnectError) as error:
        raise _not_connected(url, error) from error
    except (httpcore.NetworkError, httpx.NetworkError, OSError) as error:
        # The deadline's own TimeoutError is raised around this and does not come by here.
        reason = f"the connection broke before the answer was complete ({_said_by(_root(error))})"
        raise FetchFailed("bad-response", reason, url=url) from error
    except _NO_HTTP as error:
        reason = f"the answer is not complete HTTP: {quoted(str(error), 200)}"
        raise FetchFailed("bad-response", reason, url=url) from error


_NO_HTTP = (
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ProxyError,
    httpcore.ConnectionNotAvailable,
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.CookieConflict,
    httpx.StreamError,
)


def _not_connected(url: str, error: Exception) -> FetchFailed:
    root = _root(error)
    if isinstance(root, ssl.SSLError):
        return FetchFailed("tls", f"no TLS connection: {_said_by(root)}", url=url)
    return FetchFailed("unreachable", f"no connection: {_said_by(root)}", url=url)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    # Several addresses of one name were tried: the first failure stands for all.
    return _root(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _said_by(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        # asyncio words these itself, with the address in Python's own notation.
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


class _OneConnectionPerRequest(httpx.AsyncBaseTransport):
    """Opens a connection, sends one request over it, closes it.

    Each manifest comes from another origin, so a pool never finds a connection to use again, and
    its bookkeeping grows with the square of what it holds: without it httpx is 20 times as fast
    (45 against 1,000 fetches a second). What to connect to comes with the request, as the extension
    `connect_to`.
    """

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        self._ssl_context = ssl_context
        self._network = httpcore.AnyIOBackend()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.extensions["connect_to"].encode("ascii"),
            port=request.url.port,
            target=request.url.raw_path,
        )
        connection = httpcore.AsyncHTTPConnection(
            target.origin, ssl_context=self._ssl_context, network_backend=self._network
        )
        response = await connection.handle_async_request(
            httpcore.Request("GET", target, headers=request.headers.raw, extensions=request.extensions)
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_OneAnswer(connection, response)
        )


class _OneAnswer(httpx.AsyncByteStream):
    """The body of the only answer on a connection, which ends with it."""

    def __init__(self, connection: httpcore.AsyncHTTPConnection, response: httpcore.Response) -> None:
        self._connection = connection
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()
        await self._connection.aclose()


def _tls(config: FetchConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
    except OSError as error:
        raise ConfigError([f"tls_ca: cannot read CA certificates from {config.tls_ca}: {error}"]) from error
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
