"""Fetches an instance's manifest within bounds, and checks it.

A module is not trusted. It is asked at the address under which it is registered and nowhere else;
its answer is bounded in bytes, as sent and as decompressed, and in time, from connecting to the
last byte; nothing that it says about cookies, redirects or proxies is followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import re
import ssl
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakValueDictionary

from aiohttp import ClientResponse

from discovery import __version__, tracing
from discovery.base import ServiceInstance
from discovery.errors import ConfigError
from discovery.http.address_policy import DEFAULT_ALLOW, FetchAllow, Network, Resolve
from discovery.http.guarded_client import ExchangeFailed, GuardedClient
from discovery.http.url import HttpURL
from discovery.text import quoted
from manifest_cache import metrics
from manifest_cache.errors import FetchFailed, FetchFailure, ManifestError
from manifest_cache.fetch.fetched import Fetched, ManifestUnchanged
from manifest_cache.fetch.manifest_url import manifest_url
from manifest_cache.manifest import ParsedManifest, parse_manifest

# Larger documents are parsed in a thread, so that no other fetch waits for them.
_PARSED_IN_PLACE = 32 * 1024
# How many of the newest documents are recognized: the instances of a module serve the same one.
_KNOWN_BY_SIGHT = 256

_HEADERS = (
    ("Accept", "application/json"),
    ("Accept-Encoding", "identity, gzip"),
    ("Connection", "close"),
    ("User-Agent", f"lictor/{__version__}"),
)

_ETAG = re.compile(r'(?:W/)?"[!#-~]*"\Z')
_LONGEST_ETAG = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """How manifests are fetched; times in seconds.

    `per_host` bounds the fetches from one address, so that a host that hangs cannot take every
    place. `tls_ca` is a file of CA certificates to trust in place of the system's.
    """

    manifest_path: str = "/manifest"
    allow: tuple[Network, ...] = DEFAULT_ALLOW
    concurrency: int = 50
    per_host: int = 10
    deadline: float = 10.0
    connect_timeout: float = 3.0
    max_bytes: int = 1024 * 1024
    tls_ca: str | None = None
    tls_verify: bool = True


class ManifestFetcher:
    """Fetches manifests, a bounded number at a time; an async context manager.

    `resolve` finds the addresses of host names; the system is asked where it is not given.
    """

    def __init__(self, config: FetchConfig, resolve: Resolve | None = None) -> None:
        self.config = config
        self._client = GuardedClient(
            FetchAllow(config.allow),
            tls=_tls(config),
            connect_timeout=config.connect_timeout,
            resolve=resolve,
        )
        self._parser = _Parser()
        self._places = asyncio.Semaphore(config.concurrency)
        # An entry lives as long as a fetch holds or awaits it.
        self._places_by_host: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def fetch(
        self, instance: ServiceInstance, *, etag: str | None = None
    ) -> Fetched | ManifestUnchanged:
        """The instance's manifest, or word that it is still the one known under `etag`.

        Raises `FetchFailed` if no document can be had, and `ManifestInvalid` if it is no manifest
        of this module.
        """
        try:
            result = await self._fetch(instance, etag)
        except Exception as error:
            # The word by which the instance tells of it, too.
            type_ = error.type if isinstance(error, ManifestError) else "internal-error"
            metrics.FETCHES.labels(type_).inc()
            raise
        metrics.FETCHES.labels("fetched" if isinstance(result, Fetched) else "unchanged").inc()
        return result

    async def _fetch(self, instance: ServiceInstance, etag: str | None) -> Fetched | ManifestUnchanged:
        url = manifest_url(instance, self.config.manifest_path)
        where = str(url)
        # First a place among those of the host, so as not to hold one of the others while waiting.
        async with self._places_of(url.host), self._places:
            with metrics.FETCH_SECONDS.time(), metrics.FETCHES_IN_FLIGHT.track_inprogress():
                attributes = {"lictor.module": instance.module, "url.full": where}
                with tracing.span("fetch manifest", "client", attributes):
                    document = await self._document(url, where, etag)
            if isinstance(document, ManifestUnchanged):
                return document
            parsed = await self._parser.parse(document.body, instance.module, where)
            return Fetched(parsed, document.etag)

    def _places_of(self, host: str) -> asyncio.Semaphore:
        places = self._places_by_host.get(host)
        if places is None:
            places = self._places_by_host[host] = asyncio.Semaphore(self.config.per_host)
        return places

    async def _document(self, url: HttpURL, where: str, etag: str | None) -> _Document | ManifestUnchanged:
        progress = _Progress()
        try:
            async with asyncio.timeout(self.config.deadline):
                return await self._exchange(url, where, etag, progress)
        except ExchangeFailed as error:
            raise FetchFailed(error.type, error.reason, url=where) from error
        except TimeoutError:
            reason = f"not complete after {self.config.deadline:g} seconds: {progress}"
            raise FetchFailed("timeout", reason, url=where) from None

    async def _exchange(
        self, url: HttpURL, where: str, etag: str | None, progress: _Progress
    ) -> _Document | ManifestUnchanged:
        headers = [*_HEADERS, *tracing.headers()]
        if etag is not None:
            headers.append(("If-None-Match", etag))
        async with self._client.request("GET", url, headers) as response:
            if etag is not None and response.status == HTTPStatus.NOT_MODIFIED:
                return ManifestUnchanged(etag)
            _refuse_all_but_documents(response, where)
            body = _Body(where, response.headers, self.config.max_bytes)
            async for piece in response.content.iter_any():
                progress.received = body.feed(piece)
            return _Document(body.complete(), _etag(response.headers))


class _Parser:
    """Parses documents; one that was just seen is not parsed again.

    The instances of a module serve the same document, and many of them arrive together.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[str, bytes], ParsedManifest] = OrderedDict()

    async def parse(self, document: bytes, module: str, source: str) -> ParsedManifest:
        if len(document) > _PARSED_IN_PLACE:
            return await asyncio.to_thread(parse_manifest, document, module=module, source=source)
        sight = (module, hashlib.sha256(document).digest())
        parsed = self._last.get(sight)
        if parsed is None:
            parsed = self._last[sight] = parse_manifest(document, module=module, source=source)
            if len(self._last) > _KNOWN_BY_SIGHT:
                self._last.popitem(last=False)
        return parsed


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


class _Decompressor(Protocol):
    """What `zlib.decompressobj` makes: its own type has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Body:
    """Gathers a body chunk by chunk, never more of it than allowed, and decompresses gzip on the way."""

    def __init__(self, url: str, headers: Mapping[str, str], limit: int) -> None:
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

    def _decompressor(self, encoding: str) -> _Decompressor | None:
        if encoding in ("identity", ""):
            return None
        if encoding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        reason = f"answered with Content-Encoding {quoted(encoding)}: only gzip and none are taken"
        raise self._failure("bad-encoding", reason)

    def _decompressed(self, gzip: _Decompressor, chunk: bytes) -> bytes:
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


def _etag(headers: Mapping[str, str]) -> str | None:
    """The answer's ETag, if it is one that can be sent back."""
    etag = headers.get("etag")
    return etag if etag is not None and len(etag) <= _LONGEST_ETAG and _ETAG.match(etag) else None


_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "a manifest must be readable without credentials",
    HTTPStatus.FORBIDDEN: "a manifest must be readable without credentials",
    HTTPStatus.NOT_FOUND: "serve the manifest here, or name its path in the service meta manifest_path",
    HTTPStatus.NOT_MODIFIED: "the request had no condition that allows this",
}


def _refuse_all_but_documents(answer: ClientResponse, url: str) -> None:
    status = answer.status
    if status == HTTPStatus.OK:
        return
    if status == HTTPStatus.NO_CONTENT:
        raise FetchFailed("empty", "answered 204 No Content: it must send a manifest", url=url, status=status)
    if 300 <= status < 400 and status != HTTPStatus.NOT_MODIFIED:
        to = quoted(answer.headers.get("location", ""))
        reason = f"answered {status}, a redirect to {to}: redirects are not followed, serve the manifest here"
        raise FetchFailed("redirect", reason, url=url, status=status)
    said = f"{status} {http.client.responses.get(status, '')}".strip()
    advice = _ADVICE.get(status, "a manifest comes with 200 OK")
    raise FetchFailed("http-status", f"answered {said}: {advice}", url=url, status=status)


def _tls(config: FetchConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
    except OSError as error:
        raise ConfigError([f"tls_ca: cannot read CA certificates from {config.tls_ca}: {error}"]) from error
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
