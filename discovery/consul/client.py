"""Sends calls to Consul's HTTP API and raises this package's errors.

Calls are carried by httpx, or by connections of our own where changes are waited for. Nothing here
looks at the environment: what a ConsulConfig says, holds.

Each operation is written once, as a function that returns a Call; ConsulClient and
AsyncConsulClient offer the same operations, the one returning results, the other awaitables.
"""

from __future__ import annotations

import base64
import email.utils
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar
from urllib.parse import urlencode

import h11
import httpx

from discovery import tracing
from discovery.consul import api as consul_calls
from discovery.consul.api import Call, Reply
from discovery.consul.config import ConsulConfig
from discovery.consul.network_errors import network_fault
from discovery.errors import (
    ConfigError,
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.http.kept_connections import KeptConnections, Request, Server, TookTooLong

P = ParamSpec("P")
T = TypeVar("T")

# The longest time for an answer to come in once its wait is over: 5 MB over a slow line.
_TRANSFER_LIMIT = 60.0
# All instances of a big cluster are some 5 MB; whatever is far bigger is no answer of Consul's.
_MAX_ANSWER_BYTES = 256 * 2**20
# To zlib: with a header and a checksum of gzip's.
_GZIP = 16 + zlib.MAX_WBITS
# Beats that come each ten seconds or so, and quiet minutes between blocking queries, keep theirs.
_IDLE_CONNECTION_LIMIT = 60.0


def _sync(operation: Callable[P, Call[T]]) -> Callable[Concatenate[ConsulClient, P], T]:
    @wraps(operation)
    def method(self: ConsulClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(operation(*args, **kwargs))

    return method


def _async(
    operation: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncConsulClient, P], Coroutine[Any, Any, T]]:
    @wraps(operation)
    async def method(self: AsyncConsulClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(operation(*args, **kwargs))

    return method


class _Border:
    """What both clients share: how a Call becomes a request, and a reply a result or an error."""

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> None:
        self.config = config
        self._max_connections = max_connections
        self._max_answer_bytes = max_answer_bytes
        self._namespace = [("ns", config.namespace)] if config.namespace else []

    @property
    def _tls(self) -> ssl.SSLContext | None:
        return self.config.ssl_context() if self.config.scheme == "https" else None

    def _headers(self) -> dict[str, str]:
        """What is sent with every call."""
        # Packing costs more than it saves as long as the bytes do not leave the machine.
        headers = {"Accept-Encoding": "identity" if self.config.is_local else "gzip"}
        if self.config.token:
            headers["X-Consul-Token"] = self.config.token
        return headers

    def _params(self, call: Call[Any]) -> list[tuple[str, str]]:
        return [*call.params, *self._namespace]

    def _refuse_dots(self, call: Call[Any]) -> None:
        if _DOTS.search(call.path):
            # Every client and server on the way would take "/../" out of the path, and so hit
            # another address than the one that is meant.
            raise RegistryRejected(f"{self._name(call)}: Consul cannot be asked for a name of only dots")

    def _name(self, call: Call[Any]) -> str:
        return f"{call.method} {self.config.address}{call.path}"

    def _traced(self, call: Call[Any]) -> AbstractContextManager[object]:
        # What follows is a name, of which there are many.
        kind = "/".join(call.path.split("/")[:4])
        attributes = {"http.request.method": call.method, "url.path": call.path, "peer.service": "consul"}
        return tracing.span(f"consul {call.method} {kind}", "client", attributes)

    @contextmanager
    def _translated(self, call: Call[Any]) -> Iterator[None]:
        """Turns what the network and those who use it raise into this package's errors."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, h11.ProtocolError, TookTooLong, OSError) as error:
            what, kind = self._diagnosis(call, error)
            raise kind(f"{self._name(call)}: {what}") from error

    def _diagnosis(self, call: Call[Any], error: Exception) -> tuple[str, type[DiscoveryError]]:
        limit = self.config.timeout
        late = _late(error)
        if late == "free":
            return f"all {self._max_connections} connections are in use", RegistryUnavailable
        if late == "connect":
            return f"no connection within {limit:g} s: check CONSUL_HTTP_ADDR", RegistryUnavailable
        if late is not None:
            return f"no answer within {limit + call.hold:g} s", RegistryUnavailable
        if isinstance(error, httpx.InvalidURL | httpx.LocalProtocolError | h11.LocalProtocolError):
            return f"cannot be sent: {error}", RegistryRejected
        return network_fault(error), RegistryUnavailable

    def _result(self, call: Call[T], reply: Reply) -> T:
        """What `call` makes of the reply; raises what it means if it is no good one."""
        if not (200 <= reply.status < 300 or (reply.status == 404 and call.absent is None)):
            self._refuse(call, reply)
        try:
            return call.parse(reply)
        except DiscoveryError as error:
            raise type(error)(f"{self._name(call)}: {self._excerpt(str(error))}") from error.__cause__
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryUnavailable(
                f"{self._name(call)}: this is no answer of Consul's ({self._excerpt(str(error))}): "
                f"{self._excerpt(reply.text)!r}"
            ) from error

    def _refuse(self, call: Call[Any], reply: Reply) -> NoReturn:
        status, text = reply.status, self._excerpt(reply.text)
        told = f"{self._name(call)}: Consul answered {status}{': ' if text else ''}{text}"
        if call.absent is not None and (status == 404 or _tells_of_unknown_check(call, status, text)):
            raise call.absent(told, status=status)
        if status in (401, 403):
            raise PermissionDenied(told + _PERMISSION_ADVICE.get(status, ""), status=status)
        if status in (408, 429) or status >= 500:
            raise RegistryUnavailable(told, retry_after=_retry_after(reply.headers), status=status)
        raise RegistryRejected(told + self._advice(reply), status=status)

    def _advice(self, reply: Reply) -> str:
        """What to do about a refusal, if the refusal tells."""
        if 300 <= reply.status < 400:
            target = self._excerpt(reply.headers.get("location", "another address"))
            return f": it redirects to {target}, which is not followed: check CONSUL_HTTP_ADDR"
        if "HTTP request to an HTTPS server" in reply.text:
            return ": set CONSUL_HTTP_SSL=true, or write https:// into CONSUL_HTTP_ADDR"
        if self._namespace and "Namespaces are a Consul Enterprise feature" in reply.text:
            return ": unset CONSUL_NAMESPACE"
        return ""

    def _excerpt(self, text: str) -> str:
        """The beginning of a text from outside, fit for a log line, and without the token."""
        # Far more than is shown is searched, so that no cut can leave half a token.
        text = text[:4000]
        if self.config.token:
            text = text.replace(self.config.token, "***")
        line = " ".join(text[:1000].split())
        return line if len(line) <= 200 else line[:200] + "…"


class _Body:
    """Gathers an answer's parts, up to a size, and up to a time after the first."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self._name = name
        self._limit = limit
        self._seconds = seconds
        self._deadline: float | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._seconds
        self._size += len(part)
        if self._size > self._limit:
            raise self._is_too_big()
        if now > self._deadline:
            raise RegistryUnavailable(f"{self._name}: the answer came too slowly and was not awaited")
        self._parts.append(part)

    def read(self) -> bytes:
        return b"".join(self._parts)

    def unpacked(self, coding: str) -> bytes:
        """All of it, unpacked; it is bounded too."""
        if coding in ("", "identity"):
            return self.read()
        if coding not in ("gzip", "x-gzip"):
            raise RegistryUnavailable(f"{self._name}: the answer is packed by {coding!r}, not by gzip")
        try:
            content = zlib.decompressobj(_GZIP).decompress(self.read(), self._limit + 1)
        except zlib.error as error:
            raise RegistryUnavailable(f"{self._name}: the answer cannot be unpacked: {error}") from error
        if len(content) > self._limit:
            raise self._is_too_big()
        return content

    def _is_too_big(self) -> RegistryUnavailable:
        return RegistryUnavailable(f"{self._name}: the answer is bigger than {self._limit} bytes")


class ConsulClient(_Border):
    """A client for threads: safe to share between them, each call blocks its own.

    Every call raises RegistryUnavailable, RegistryRejected or a child of that, and nothing else.
    `api` is python-consul2's own interface (agent, catalog, kv, session, txn) over the same
    connections, with the same errors.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> None:
        super().__init__(config, max_connections=max_connections, max_answer_bytes=max_answer_bytes)
        transport = httpx.HTTPTransport(
            verify=self._tls or False,
            uds=config.unix_socket or None,
            socket_options=None if config.unix_socket else _KEEPALIVE,
            limits=httpx.Limits(
                max_connections=max_connections,
                max_keepalive_connections=max_connections,
                keepalive_expiry=_IDLE_CONNECTION_LIMIT,
            ),
        )
        self._http = httpx.Client(
            transport=transport,
            base_url=_base_url(config),
            headers=self._headers(),
            auth=config.auth,
            trust_env=False,
        )
        self._extensions = {"sni_hostname": config.tls_server_name} if config.tls_server_name else {}
        self.api = consul_calls.Api(self.send)

    def send(self, call: Call[T]) -> T:
        self._refuse_dots(call)
        limit = self.config.timeout
        request: dict[str, Any] = {
            "method": call.method,
            "url": call.path,
            "params": self._params(call) or None,
            "headers": dict(call.headers),
            "content": call.content,
            "timeout": httpx.Timeout(limit, read=limit + call.hold),
            "extensions": self._extensions,
        }
        with self._traced(call), self._translated(call), self._http.stream(**request) as response:
            body = _Body(self._name(call), self._max_answer_bytes, _TRANSFER_LIMIT)
            for part in response.iter_bytes():
                body.add(part)
        return self._result(call, Reply(response.status_code, response.headers, body.read()))

    query = _sync(consul_calls.query)
    health_state = _sync(consul_calls.health_state)
    health_service = _sync(consul_calls.health_service)
    catalog_services = _sync(consul_calls.catalog_services)
    catalog_nodes = _sync(consul_calls.catalog_nodes)
    catalog_datacenters = _sync(consul_calls.catalog_datacenters)
    status_leader = _sync(consul_calls.status_leader)
    agent_self = _sync(consul_calls.agent_self)
    acl_self = _sync(consul_calls.acl_self)
    agent_service = _sync(consul_calls.agent_service)
    register = _sync(consul_calls.register)
    deregister = _sync(consul_calls.deregister)
    pass_check = _sync(consul_calls.pass_check)
    warn_check = _sync(consul_calls.warn_check)
    fail_check = _sync(consul_calls.fail_check)
    set_maintenance = _sync(consul_calls.set_maintenance)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncConsulClient(_Border):
    """A client for one event loop: the methods of ConsulClient, to be awaited; those of `api` as well.

    Never more than `max_connections` connections are open. A call that is cancelled frees its own.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> None:
        super().__init__(config, max_connections=max_connections, max_answer_bytes=max_answer_bytes)
        url = _base_url(config)
        server = Server(
            host=url.raw_host.decode(),
            port=config.port,
            unix_socket=config.unix_socket or None,
            tls=self._tls,
            name=config.tls_server_name or url.raw_host.decode(),
            socket_options=() if config.unix_socket else _KEEPALIVE,
        )
        self._connections = KeptConnections(
            server, max_connections=max_connections, expiry=_IDLE_CONNECTION_LIMIT
        )
        self._prefix = url.raw_path.decode().rstrip("/")
        self._sent_always = [("Host", url.netloc.decode()), *self._headers().items()]
        if config.auth is not None:
            self._sent_always.append(("Authorization", _basic(*config.auth)))
        self.api = consul_calls.Api(self.send)

    async def send(self, call: Call[T]) -> T:
        self._refuse_dots(call)
        name = self._name(call)
        body = _Body(name, self._max_answer_bytes, _TRANSFER_LIMIT)
        with self._traced(call), self._translated(call):
            answer = await self._connections.exchange(
                self._request(call), body.add, limit=self.config.timeout, hold=call.hold
            )
        content = body.unpacked(answer.headers.get("content-encoding", "").lower())
        return self._result(call, Reply(answer.status, answer.headers, content))

    def _request(self, call: Call[Any]) -> Request:
        query = urlencode(self._params(call))
        target = f"{self._prefix}{call.path}{'?' if query else ''}{query}"
        headers = [*self._sent_always, *call.headers.items()]
        if call.content is not None:
            headers.append(("Content-Length", str(len(call.content))))
        return Request(call.method, target, headers, call.content or b"")

    query = _async(consul_calls.query)
    health_state = _async(consul_calls.health_state)
    health_service = _async(consul_calls.health_service)
    catalog_services = _async(consul_calls.catalog_services)
    catalog_nodes = _async(consul_calls.catalog_nodes)
    catalog_datacenters = _async(consul_calls.catalog_datacenters)
    status_leader = _async(consul_calls.status_leader)
    agent_self = _async(consul_calls.agent_self)
    acl_self = _async(consul_calls.acl_self)
    agent_service = _async(consul_calls.agent_service)
    register = _async(consul_calls.register)
    deregister = _async(consul_calls.deregister)
    pass_check = _async(consul_calls.pass_check)
    warn_check = _async(consul_calls.warn_check)
    fail_check = _async(consul_calls.fail_check)
    set_maintenance = _async(consul_calls.set_maintenance)

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


# ---------------------------------------------------------------------- what went wrong, in words

_PERMISSION_ADVICE = {403: ": check the token (CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE) and its policies"}

_DOTS = re.compile(r"/\.{1,2}(/|$)")

# A connection that died silently (a firewall that forgot it, a machine that lost its power) is
# noticed within a minute, though a blocking query is silent for longer than that by nature.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        # macOS has the first under another name and can do with its default.
        if hasattr(socket, name)
    ),
]


def _base_url(config: ConsulConfig) -> httpx.URL:
    host = "localhost" if config.unix_socket else config.host
    port = None if config.unix_socket else config.port
    try:
        return httpx.URL(scheme=config.scheme, host=host, port=port, path=config.path_prefix or "/")
    except httpx.InvalidURL as error:
        raise ConfigError([f"CONSUL_HTTP_ADDR: {config.address!r} is no address: {error}"]) from error


def _basic(user: str, password: str) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _late(error: Exception) -> str | None:
    """What took too long, in the words of TookTooLong; None if nothing did."""
    if isinstance(error, TookTooLong):
        return error.what
    kinds = {httpx.PoolTimeout: "free", httpx.ConnectTimeout: "connect", httpx.TimeoutException: "answer"}
    return next((what for kind, what in kinds.items() if isinstance(error, kind)), None)


def _tells_of_unknown_check(call: Call[Any], status: int, text: str) -> bool:
    # Older Consuls, 1.8 among them, have no status of its own for a check that they do not know.
    return call.absent is UnknownInstance and status == 500 and "does not have associated TTL" in text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that a server asks for, which it may write as a number or as a date."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
