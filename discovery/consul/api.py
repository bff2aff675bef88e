"""Describes each call of Consul's HTTP API; the one file that touches python-consul2.

The API layer is that of python-consul2 (or of py-consul, its successor, which has the same import
name). What that layer lacks or does badly stands beside it: reads with all of Consul's response
headers, stale and consistent reads, registrations with several checks. No other file touches it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Unpack
from urllib.parse import quote

import httpx
from consul import base
from pydantic_core import from_json

from discovery.consul.call import Call, Consistency, ConsulReply, ConsulResult, QueryOptions
from discovery.errors import (
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.timing.durations import format_duration, parse_duration

T = TypeVar("T")

# How long Consul holds a blocking query that names no wait.
_DEFAULT_WAIT = 300.0


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
        parse=lambda reply: _parsed(callback, _library_response(reply, raw=raw)),
        params=pairs,
        headers=headers or {},
        content=data.encode() if isinstance(data, str) else data,
        hold=_hold(dict(pairs)),
        # The library makes None of a key that is not there, and NotFound where that is an error.
        absent=None,
    )


def _parsed(callback: Callable[[base.Response], Any], response: base.Response) -> Any:
    try:
        return callback(response)
    except base.ConsulException as error:
        raise _LIBRARY_ERRORS.get(type(error).__name__, RegistryUnavailable)(str(error)) from error


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


def _hold(params: Mapping[str, str]) -> float:
    """How long Consul may hold a query with these parameters: it adds up to a sixteenth to the wait."""
    if params.get("index", "0") == "0" and not params.get("hash"):
        return 0.0
    wait = parse_duration(params["wait"]) if "wait" in params else _DEFAULT_WAIT
    return wait * 17 / 16


def _library_response(reply: ConsulReply, *, raw: bool) -> base.Response:
    # python-consul2 has the bytes beside the text, py-consul instead of it where they are wanted.
    parts = {
        "code": reply.status,
        "headers": httpx.Headers(reply.headers),
        "body": reply.body if raw else reply.text,
        "content": reply.body,
    }
    return base.Response(**{name: parts[name] for name in base.Response._fields})


class Api(base.Consul):
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
_calls = Api(_returned)


# ------------------------------------------------------------------------------- the operations


def query(
    path: str,
    *,
    params: Mapping[str, str | int] | None = None,
    index: int | None = None,
    wait: float | None = None,
    consistency: Consistency = "default",
    dc: str | None = None,
) -> Call[ConsulResult]:
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


def health_state(state: str, **options: Unpack[QueryOptions]) -> Call[ConsulResult]:
    """The checks in `state`: any, passing, warning or critical."""
    return query(f"/v1/health/state/{_quoted(state)}", **options)


def health_service(name: str, **options: Unpack[QueryOptions]) -> Call[ConsulResult]:
    """The instances of a service, with their nodes and checks."""
    return query(f"/v1/health/service/{_quoted(name)}", **options)


def catalog_services(**options: Unpack[QueryOptions]) -> Call[ConsulResult]:
    """The names of all services, each with the union of its tags."""
    return query("/v1/catalog/services", **options)


def catalog_nodes(**options: Unpack[QueryOptions]) -> Call[ConsulResult]:
    """All nodes, with their addresses."""
    return query("/v1/catalog/nodes", **options)


def catalog_datacenters() -> Call[ConsulResult]:
    """The known datacenters' names; has no index."""
    return query("/v1/catalog/datacenters")


def status_leader() -> Call[ConsulResult]:
    """The leader's address, or "" without one; has no index. A dead leader is named for a while."""
    return query("/v1/status/leader")


def agent_self() -> Call[ConsulResult]:
    """The agent's own settings and membership; has no index."""
    return query("/v1/agent/self")


def acl_self() -> Call[ConsulResult]:
    """The token in use, with its policies; has no index. PermissionDenied (401) where ACLs are off."""
    return query("/v1/acl/token/self")


def agent_service(
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


def register(definition: Mapping[str, Any], *, replace_existing_checks: bool = True) -> Call[None]:
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


def deregister(id: str) -> Call[None]:
    """Deregisters a service from the agent.

    Raises UnknownInstance where Consul says that it does not know it; 1.8 answers as if it did.
    """
    return _of_instance(_calls.agent.service.deregister(id))


def pass_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to passing; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_pass(check_id, note))


def warn_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to warning; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_warn(check_id, note))


def fail_check(check_id: str, note: str = "") -> Call[None]:
    """Sets a TTL check to critical; UnknownInstance if the agent has no such TTL check."""
    return _of_instance(_calls.agent.check.ttl_fail(check_id, note))


def set_maintenance(id: str, enable: bool, reason: str = "") -> Call[None]:
    """Puts a service of the agent into maintenance, or takes it out; UnknownInstance if it has none."""
    return _of_instance(_calls.agent.service.maintenance(id, "true" if enable else "false", reason))


def _of_instance(call: Call[Any]) -> Call[None]:
    return replace(call, parse=_nothing, absent=UnknownInstance)


def _nothing(reply: ConsulReply) -> None:
    """The status says it all."""


def _answer(reply: ConsulReply) -> ConsulResult:
    headers = reply.headers
    contact = headers.get("x-consul-lastcontact", "")
    return ConsulResult(
        # Of some megabytes the standard library's parser takes twice as long.
        data=from_json(reply.body),
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


def _service_and_hash(reply: ConsulReply) -> tuple[dict[str, Any], str]:
    service = json.loads(reply.body)
    if not isinstance(service, dict):
        raise TypeError(f"an object was expected, not {type(service).__name__}")
    return service, reply.headers.get("x-consul-contenthash", "")
