"""Sends calls to Consul's HTTP API and raises this package's errors.

Calls are carried by httpx, or by aiohttp where they are awaited. Nothing here
looks at the environment: what a ConsulConfig says, holds.

Each operation is written once, as a function that returns a Call; ConsulClient and
AsyncConsulClient offer the same operations, the one returning results, the other awaitables.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
)
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import httpx
from yarl import URL

from discovery import tracing
from discovery.consul import api as consul_calls
from discovery.consul.call import Call, ConsulReply
from discovery.consul.config import ConsulConfig
from discovery.consul.network_errors import cannot_be_sent, network_fault, retry_after, what_is_late
from discovery.errors import (
    ConfigError,
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.http.bounded_body import BoundedBody
from discovery.http.connection_slots import ConnectionSlots, NoneFree
from discovery.http.session import KEEPALIVE, close_session, open_session

P = ParamSpec("P")
T = TypeVar("T")

# The longest time for an answer to come in once its wait is over: 5 MB over a slow line.
_TRANSFER_LIMIT = 60.0
# All instances of a big cluster are some 5 MB; whatever is far bigger is no answer of Consul's.
_MAX_ANSWER_BYTES = 256 * 2**20
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


class _TranslatedErrors:
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
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            aiohttp.ClientError,
            NoneFree,
            OSError,
            ValueError,
        ) as error:
            what, kind = self._diagnosis(call, error)
            raise kind(f"{self._name(call)}: {what}") from error

    def _diagnosis(self, call: Call[Any], error: Exception) -> tuple[str, type[DiscoveryError]]:
        limit = self.config.timeout
        late = what_is_late(error)
        if late == "free":
            return f"all {self._max_connections} connections are in use", RegistryUnavailable
        if late == "connect":
            return f"no connection within {limit:g} s: check CONSUL_HTTP_ADDR", RegistryUnavailable
        if late is not None:
            return f"no answer within {limit + call.hold:g} s", RegistryUnavailable
        if isinstance(error, httpx.InvalidURL | httpx.LocalProtocolError) or cannot_be_sent(error):
            return f"cannot be sent: {error}", RegistryRejected
        return network_fault(error), RegistryUnavailable

    def _result(self, call: Call[T], reply: ConsulReply) -> T:
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

    def _refuse(self, call: Call[Any], reply: ConsulReply) -> NoReturn:
        status, text = reply.status, self._excerpt(reply.text)
        told = f"{self._name(call)}: Consul answered {status}{': ' if text else ''}{text}"
        if call.absent is not None and (status == 404 or _tells_of_unknown_check(call, status, text)):
            raise call.absent(told, status=status)
        if status in (401, 403):
            raise PermissionDenied(told + _PERMISSION_ADVICE.get(status, ""), status=status)
        if status in (408, 429) or status >= 500:
            raise RegistryUnavailable(told, retry_after=retry_after(reply.headers), status=status)
        raise RegistryRejected(told + self._advice(reply), status=status)

    def _advice(self, reply: ConsulReply) -> str:
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


class ConsulClient(_TranslatedErrors):
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
            socket_options=None if config.unix_socket else list(KEEPALIVE),
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
            body = BoundedBody(self._name(call), self._max_answer_bytes, _TRANSFER_LIMIT)
            for part in response.iter_bytes():
                body.add(part)
        return self._result(call, ConsulReply(response.status_code, response.headers, body.read()))

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


class AsyncConsulClient(_TranslatedErrors):
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
        self._base_url = str(_base_url(config)).rstrip("/")
        self._sent_always = self._headers()
        if config.auth is not None:
            self._sent_always["Authorization"] = aiohttp.encode_basic_auth(*config.auth)
        # Read now: a certificate that cannot be used is a fault of the settings.
        self._ssl_context = self._tls
        self._slots = ConnectionSlots(max_connections)
        self._session: aiohttp.ClientSession | None = None
        self.api = consul_calls.Api(self.send)

    async def send(self, call: Call[T]) -> T:
        self._refuse_dots(call)
        name = self._name(call)
        body = BoundedBody(name, self._max_answer_bytes, _TRANSFER_LIMIT)
        with self._traced(call), self._translated(call):
            async with self._slots.free(self.config.timeout), self._request(call) as response:
                async for part in response.content.iter_any():
                    body.add(part)
        content = body.unpacked(response.headers.get("content-encoding", "").lower())
        return self._result(call, ConsulReply(response.status, response.headers, content))

    def _request(self, call: Call[Any]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            # Made here, for it belongs to the loop that runs now.
            self._session = open_session(
                tls=self._ssl_context,
                unix_socket=self.config.unix_socket,
                max_idle_seconds=_IDLE_CONNECTION_LIMIT,
                headers=self._sent_always,
            )
        query = urlencode(self._params(call))
        limit = self.config.timeout
        return self._session.request(
            call.method,
            # As it stands: a slash within a name stays quoted.
            URL(f"{self._base_url}{call.path}{'?' if query else ''}{query}", encoded=True),
            headers=call.headers,
            data=call.content,
            allow_redirects=False,
            server_hostname=self.config.tls_server_name or None,
            timeout=aiohttp.ClientTimeout(sock_connect=limit, sock_read=limit + call.hold),
        )

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
        session, self._session = self._session, None
        if session is not None:
            await close_session(session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


# ---------------------------------------------------------------------- what went wrong, in words

_PERMISSION_ADVICE = {403: ": check the token (CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE) and its policies"}

_DOTS = re.compile(r"/\.{1,2}(/|$)")


def _base_url(config: ConsulConfig) -> httpx.URL:
    host = "localhost" if config.unix_socket else config.host
    port = None if config.unix_socket else config.port
    try:
        return httpx.URL(scheme=config.scheme, host=host, port=port, path=config.path_prefix or "/")
    except httpx.InvalidURL as error:
        raise ConfigError([f"CONSUL_HTTP_ADDR: {config.address!r} is no address: {error}"]) from error


def _tells_of_unknown_check(call: Call[Any], status: int, text: str) -> bool:
    # Older Consuls, 1.8 among them, have no status of its own for a check that they do not know.
    return call.absent is UnknownInstance and status == 500 and "does not have associated TTL" in text
