"""Talks to Consul's HTTP API: method calls in, Answers or this package's errors out.

The API layer is that of python-consul2 (or of py-consul, its successor, which has the same import
name), carried by httpx; where changes are waited for, by connections of our own. What that layer
lacks or does badly stands beside it: reads with all of Consul's response headers, stale and
consistent reads, registrations with several checks. Nothing here looks at the environment: what a
ConsulConfig says, holds.

Each operation is written once, as a function that returns a Call; ConsulClient and
AsyncConsulClient offer the same operations, the one returning results, the other awaitables.
"""

from __future__ import annotations

import base64
import email.utils
import json
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
)
from urllib.parse import quote, urlencode

import h11
import httpx
from consul import base

from discovery import tracing
from discovery.consul_config import ConsulConfig
from discovery.durations import format_duration, parse_duration
from discovery.errors import (
    ConfigError,
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.kept_connections import KeptConnections, Request, Server, TookTooLong
from discovery.network_fault import network_fault

P = ParamSpec("P")
T = TypeVar("T")

Consistency = Literal["default", "stale", "consistent"]

# How long Consul holds a blocking query that names no wait.
_DEFAULT_WAIT = 300.0
# The longest time for an answer to come in once its wait is over: 5 MB over a slow line.
_TRANSFER_LIMIT = 60.0
# All instances of a big cluster are some 5 MB; whatever is far bigger is no answer of Consul's.
_MAX_ANSWER_BYTES = 256 * 2**20
# To zlib: with a header and a checksum of gzip's.
_GZIP = 16 + zlib.MAX_WBITS
# Beats that come each ten seconds or so, and quiet minutes between blocking queries, keep theirs.
_IDLE_CONNECTION_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What Consul answered to a read.

    `index` is what the next blocking query passes on; it is 0, which means "do not block", where
    Consul sent none or not a number. `known_leader`, `last_contact` (seconds since the answering
    server last heard from the leader) and `filtered_by_acls` are None where Consul did not say.
    `size` is that of the answer's body in bytes.
    """

    data: Any
    index: int = 0
    known_leader: bool | None = None
    last_contact: float | None = None
    filtered_by_acls: bool | None = None
    size: int = field(default=0, compare=False)


class Reading(TypedDict, total=False):
    """The options of every read of the catalog: see `query`."""

    params: Mapping[str, str | int] | None
    index: int | None
    wait: float | None
    consistency: Consistency
    dc: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came over the wire, complete and unpacked; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request to Consul and what to make of the reply; nothing is sent yet.

    `path` is that of the URL, so what is put into it is quoted. `hold` is how long, in seconds,
    Consul may sit on the answer. `absent` is the error that a 404 stands for, None if `parse` knows
    better.
    """

    method: str
    path: str
    parse: Callable[[Reply], T]
    params: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    hold: float = 0.0
    absent: type[RegistryRejected] | None = RegistryRejected


# ----------------------------------------------------------------- python-consul2 on our transport


class _Transport(base.HTTPClient):
    """Hands what the library wants sent to `send`, as a Call."""

    def __init__(self, send: Callable[[Call[Any]], Any]) -> None:
        # Not the library's own constructor: it builds an address, and `send` knows a better one.
        self._send = send

    def get(
        self,
        callback: Callable[[base.Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        raw: bool = False,
    ) -> Any:
        return self._send(_library_call("GET", callback, path, params, headers, raw=raw))

    def put(
        self,
        callback: Callable[[base.Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = None,
        data: str | bytes | None = "",
        headers: dict[str, str] | None = None,
    ) -> Any:
        return self._send(_library_call("PUT", callback, path, params, headers, data))

    def delete(
        self,
        callback: Callable[[base.Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = None,
        data: str | bytes | None = "",
        headers: dict[str, str] | None = None,
    ) -> Any:
        return self._send(_library_call("DELETE", callback, path, params, headers, data))

    def post(
        self,
        callback: Callable[[base.Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = None,
        data: str | bytes | None = "",
        headers: dict[str, str] | None = None,
    ) -> Any:
        return self._send(_library_call("POST", callback, path, params, headers, data))

    def close(self) -> None:
        """Nothing to close: the connections are the client's."""


def _library_call(
    method: str,
    callback: Callable[[base.Response], Any],
    path: str,
    params: Sequence[tuple[str, Any]] | None,
    headers: Mapping[str, str] | None,
    data: str | bytes | None = None,
    *,
    raw: bool = False,
) -> Call[Any]:
    pairs = [(name, str(value)) for name, value in params or ()]
    return Call(
        method=method,
        path=quote(path, safe="/:"),
        parse=lambda reply: callback(_library_response(reply, raw=raw)),
        params=pairs,
        headers=headers or {},
        content=data.encode() if isinstance(data, str) else data,
        hold=_hold(dict(pairs)),
        # The library makes None of a key that is not there, and NotFound where that is an error.
        absent=None,
    )


def _hold(params: Mapping[str, str]) -> float:
    """How long Consul may hold a query with these parameters: it adds up to a sixteenth to the wait."""
    if params.get("index", "0") == "0" and not params.get("hash"):
        return 0.0
    wait = parse_duration(params["wait"]) if "wait" in params else _DEFAULT_WAIT
    return wait * 17 / 16


def _library_response(reply: Reply, *, raw: bool) -> base.Response:
    # python-consul2 has the bytes beside the text, py-consul instead of it where they are wanted.
    parts = {
        "code": reply.status,
        "headers": httpx.Headers(reply.headers),
        "body": reply.body if raw else reply.text,
        "content": reply.body,
    }
    return base.Response(**{name: parts[name] for name in base.Response._fields})


class _Api(base.Consul):
    """The library's endpoints on a transport of ours."""

    def __init__(self, send: Callable[[Call[Any]], Any]) -> None:
        # Not super().__init__(): python-consul2's lets CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and
        # CONSUL_HTTP_SSL win over its arguments, and fails on addresses that it cannot read. What
        # the endpoints need of it are these five. The token is sent by the client itself.
        self.http = _Transport(send)
        self.token = None
        self.scheme = "http"
        self.dc = None
        self.consistency = "default"
        self.agent = _endpoint("Agent")(self)
        self.catalog = _endpoint("Catalog")(self)
        self.kv = _endpoint("KV")(self)
        self.session = _endpoint("Session")(self)
        self.txn = _endpoint("Txn")(self)


def _endpoint(name: str) -> Any:
    """python-consul2 keeps the classes of its endpoints inside of Consul, py-consul beside it."""
    return getattr(base.Consul, name, None) or getattr(base, name)


def _returned(call: Call[Any]) -> Call[Any]:
    return call


# Calls of the library that are not sent but handed back, to be sent by either client.
_calls = _Api(_returned)


# ------------------------------------------------------------------------------- the operations


def _query(
    path: str,
    *,
    params: Mapping[str, str | int] | None = None,
    index: int | None = None,
    wait: float | None = None,
    consistency: Consistency = "default",
    dc: str | None = None,
) -> Call[Answer]:
    """Reads an endpoint: `query("/v1/health/service/web", params={"passing": 1})`.

    `path` is that of the URL, `/v1` included, with what is put into it quoted; a flag among
    `params` has the value 1. With an `index` above 0 it is a blocking query: Consul answers when
    its index passes that, or after `wait` seconds (300 if None; Consul allows 600) and up to a
    sixteenth more.
    """
    asked = {name: str(value) for name, value in (params or {}).items()}
    if index is not None:
        asked["index"] = str(index)
    if wait is not None:
        asked["wait"] = _consul_wait(wait)
    if consistency != "default":
        asked[consistency] = "1"
    if dc is not None:
        asked["dc"] = dc
    return Call(method="GET", path=path, parse=_answer, params=list(asked.items()), hold=_hold(asked))


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _consul_wait(seconds: float) -> str:
    # To Consul a wait of 0 means five minutes.
    return format_duration(max(seconds, 0.001))


def _health_state(state: str, **options: Unpack[Reading]) -> Call[Answer]:
    """The checks in `state`: any, passing, warning or critical."""
    return _query(f"/v1/health/state/{_quoted(state)}", **options)


def _health_service(name: str, **options: Unpack[Reading]) -> Call[Answer]:
    """The instances of a service, with their nodes and checks."""
    return _query(f"/v1/health/service/{_quoted(name)}", **options)


def _catalog_services(**options: Unpack[Reading]) -> Call[Answer]:
    """The names of all services, each with the union of its tags."""
    return _query("/v1/catalog/services", **options)


def _catalog_nodes(**options: Unpack[Reading]) -> Call[Answer]:
    """All nodes, with their addresses."""
    return _query("/v1/catalog/nodes", **options)


def _catalog_datacenters() -> Call[Answer]:
    """The known datacenters' names; has no index."""
    return _query("/v1/catalog/datacenters")


def _status_leader() -> Call[Answer]:
    """The leader's address, or "" without one; has no index. A dead leader is named for a while."""
    return _query("/v1/status/leader")


def _agent_self() -> Call[Answer]:
    """The agent's own settings and membership; has no index."""
    return _query("/v1/agent/self")


def _acl_self() -> Call[Answer]:
    """The token in use, with its policies; has no index. PermissionDenied (401) where ACLs are off."""
    return _query("/v1/acl/token/self")


def _agent_service(
    id: str, *, hash: str | None = None, wait: float | None = None
) -> Call[tuple[dict[str, Any], str]]:
    """What the agent knows of one of its services, and the hash of that.

    With a `hash`, waits until the service differs from that, or for `wait` seconds (300 if None).
    Raises UnknownInstance when the agent does not know the service, or no longer.
    """
    asked = {} if hash is None else {"hash": hash}
    if wait is not None:
        asked["wait"] = _consul_wait(wait)
    return Call(
        method="GET",
        path=f"/v1/agent/service/{_quoted(id)}",
        parse=_service_and_hash,
        params=list(asked.items()),
        hold=_hold(asked),
        absent=UnknownInstance,
    )


def _register(definition: Mapping[str, Any], *, replace_existing_checks: bool = True) -> Call[None]:
    """Registers a service with the agent: the body of /v1/agent/service/register, as Consul has it.

    What was registered under the same ID is replaced, its checks too unless told otherwise.
    """
    return Call(
        method="PUT",
        path="/v1/agent/service/register",
        parse=_nothing,
        params=[("replace-existing-checks", "true")] if replace_existing_checks else (),
        headers={"Content-Type": "application/json"},
        content=json.dumps(dict(definition)).encode(),
    )


def _deregister(id: str) -> Call[None]:
    """Deregisters a service from the agent.

    Raises UnknownInstance where Consul says that it does not know it; 1.8 answers as if it did.
    """
    return _of_instance(_calls.agent.service.deregister(id))


def _pass_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to passing; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_pass(check_id, note))


def _warn_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to warning; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_warn(check_id, note))


def _fail_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to critical; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_fail(check_id, note))


def _set_maintenance(id: str, enable: bool, reason: str = "") -> Call[None]:
    """Puts a service of the agent into maintenance, or takes it out; UnknownInstance if it has none."""
    return _of_instance(_calls.agent.service.maintenance(id, "true" if enable else "false", reason))


def _of_instance(call: Call[Any]) -> Call[None]:
    return replace(call, parse=_nothing, absent=UnknownInstance)


def _nothing(reply: Reply) -> None:
    """The status says it all."""


def _answer(reply: Reply) -> Answer:
    headers = reply.headers
    contact = headers.get("x-consul-lastcontact", "")
    return Answer(
        data=json.loads(reply.body),
        index=_number(headers.get("x-consul-index", "")),
        known_leader=_truth(headers.get("x-consul-knownleader")),
        last_contact=_number(contact) / 1000 if contact else None,
        filtered_by_acls=_truth(headers.get("x-consul-results-filtered-by-acls")),
        size=len(reply.body),
    )


def _number(text: str) -> int:
    """A count out of a header; 0 for whatever is none."""
    return int(text) if text.isascii() and text.isdigit() else 0


def _truth(text: str | None) -> bool | None:
    return None if text is None else text.lower() == "true"


def _service_and_hash(reply: Reply) -> tuple[dict[str, Any], str]:
    service = json.loads(reply.body)
    if not isinstance(service, dict):
        raise TypeError(f"an object was expected, not {type(service).__name__}")
    return service, reply.headers.get("x-consul-contenthash", "")


# ------------------------------------------------------------------------------- the two clients


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
        except base.ConsulException as error:
            kind = _LIBRARY_ERRORS.get(type(error).__name__, RegistryUnavailable)
            raise kind(f"{self._name(call)}: {self._excerpt(str(error))}") from error
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
        self.api = _Api(self.send)

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

    query = _sync(_query)
    health_state = _sync(_health_state)
    health_service = _sync(_health_service)
    catalog_services = _sync(_catalog_services)
    catalog_nodes = _sync(_catalog_nodes)
    catalog_datacenters = _sync(_catalog_datacenters)
    status_leader = _sync(_status_leader)
    agent_self = _sync(_agent_self)
    acl_self = _sync(_acl_self)
    agent_service = _sync(_agent_service)
    register = _sync(_register)
    deregister = _sync(_deregister)
    pass_check = _sync(_pass_check)
    warn_check = _sync(_warn_check)
    fail_check = _sync(_fail_check)
    set_maintenance = _sync(_set_maintenance)

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
        self.api = _Api(self.send)

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

    query = _async(_query)
    health_state = _async(_health_state)
    health_service = _async(_health_service)
    catalog_services = _async(_catalog_services)
    catalog_nodes = _async(_catalog_nodes)
    catalog_datacenters = _async(_catalog_datacenters)
    status_leader = _async(_status_leader)
    agent_self = _async(_agent_self)
    acl_self = _async(_acl_self)
    agent_service = _async(_agent_service)
    register = _async(_register)
    deregister = _async(_deregister)
    pass_check = _async(_pass_check)
    warn_check = _async(_warn_check)
    fail_check = _async(_fail_check)
    set_maintenance = _async(_set_maintenance)

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


# ---------------------------------------------------------------------- what went wrong, in words

# By their names, since python-consul2 and py-consul keep them in different modules. Most of them
# never come to pass: a refusal is told by its status, before the library sees the reply.
_LIBRARY_ERRORS: dict[str, type[DiscoveryError]] = {
    "ACLDisabled": PermissionDenied,
    "ACLPermissionDenied": PermissionDenied,
    "BadRequest": RegistryRejected,
    "ClientError": RegistryRejected,
    "ConsulException": RegistryUnavailable,
    "NotFound": RegistryRejected,
    "Timeout": RegistryUnavailable,
}

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
