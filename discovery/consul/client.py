"""Sends calls to Consul's HTTP API and raises this package's errors.

Calls are carried by httpx, or by aiohttp where they are awaited. Nothing here looks at the
environment: what a ConsulConfig says, holds.

Each operation is written once, as a function that returns a Call; ConsulClient and
AsyncConsulClient offer the same operations, the one returning results, the other awaitables.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import httpx
from yarl import URL

from discovery.consul import api as consul_calls
from discovery.consul.call import Call, ConsulReply
from discovery.consul.config import ConsulConfig
from discovery.consul.translated_errors import MAX_ANSWER_BYTES, TranslatedErrors
from discovery.errors import ConfigError
from discovery.http.bounded_body import BoundedBody
from discovery.http.connection_slots import ConnectionSlots
from discovery.http.reloaded_files import ReloadedFiles
from discovery.http.session import KEEPALIVE, close_session, open_session

P = ParamSpec("P")
T = TypeVar("T")

# The longest time for an answer to come in once its wait is over: 5 MB over a slow line.
_TRANSFER_LIMIT = 60.0
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


class ConsulClient(TranslatedErrors):
    """A client for threads: safe to share between them, each call blocks its own.

    The token's file is read again when it changes, those of TLS are read once: it is for short work.
    Every call raises RegistryUnavailable, RegistryRejected or a child of that, and nothing else.
    `api` is python-consul2's own interface (agent, catalog, kv, session, txn) over the same
    connections, with the same errors.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        super().__init__(config, max_connections=max_connections, max_answer_bytes=max_answer_bytes)
        transport = httpx.HTTPTransport(
            verify=config.ssl_context() if config.scheme == "https" else False,
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
            "headers": self._headers(call),
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


class AsyncConsulClient(TranslatedErrors):
    """A client for one event loop: the methods of ConsulClient, to be awaited; those of `api` as well.

    Never more than `max_connections` connections are open. A call that is cancelled frees its own.
    Files of the token and of TLS are read again when they change.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        super().__init__(config, max_connections=max_connections, max_answer_bytes=max_answer_bytes)
        self._base_url = str(_base_url(config)).rstrip("/")
        self._auth = (
            {"Authorization": aiohttp.encode_basic_auth(*config.auth)} if config.auth is not None else {}
        )
        # Read now: a certificate that cannot be used is a fault of the settings.
        self._tls = ReloadedFiles(config.ssl_context, config.tls_files) if config.scheme == "https" else None
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
                unix_socket=self.config.unix_socket,
                max_idle_seconds=_IDLE_CONNECTION_LIMIT,
            )
        query = urlencode(self._params(call))
        limit = self.config.timeout
        return self._session.request(
            call.method,
            # As it stands: a slash within a name stays quoted.
            URL(f"{self._base_url}{call.path}{'?' if query else ''}{query}", encoded=True),
            headers=self._headers(call) | self._auth,
            data=call.content,
            allow_redirects=False,
            # Connections are kept by it: a new one makes new connections, and old ones end by themselves.
            ssl=self._tls.get() if self._tls is not None else True,
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


def _base_url(config: ConsulConfig) -> httpx.URL:
    host = "localhost" if config.unix_socket else config.host
    port = None if config.unix_socket else config.port
    try:
        return httpx.URL(scheme=config.scheme, host=host, port=port, path=config.path_prefix or "/")
    except httpx.InvalidURL as error:
        raise ConfigError([f"CONSUL_HTTP_ADDR: {config.address!r} is no address: {error}"]) from error
