"""The Consul client against real agents, and against a server that says what no agent says on demand."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from consul import base

from discovery.consul import api as consul_calls
from discovery.consul import client as consul_client
from discovery.consul.call import ConsulResult
from discovery.consul.client import AsyncConsulClient, ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.dev_agent import free_ports
from discovery.errors import (
    ConfigError,
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from tests.consul_server import (
    ConsulServer,
    RunningConsul,
    ScriptedConsul,
    consul_binary,
    eventually,
)

TOKEN = "0b9f3a6e-token-of-the-test"


class Awaiting:
    """AsyncConsulClient with the manners of ConsulClient, so that one test serves both."""

    def __init__(self, config: ConsulConfig, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncConsulClient(config, **options)
        self.api = _Waiter(self._client.api, self._runner)

    def __getattr__(self, name: str) -> Any:
        return getattr(_Waiter(self._client, self._runner), name)

    def __enter__(self) -> Awaiting:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


class _Waiter:
    """Passes attributes and calls through to what it wraps, and waits for what can be awaited."""

    def __init__(self, wrapped: Any, runner: asyncio.Runner) -> None:
        self._wrapped = wrapped
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return _Waiter(getattr(self._wrapped, name), self._runner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._wrapped(*args, **kwargs)
        return self._runner.run(result) if inspect.iscoroutine(result) else result


Connect = Callable[..., Any]
Ask = Callable[[], object]


@pytest.fixture(params=[ConsulClient, Awaiting], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Opens clients, of the one kind and of the other, that are closed when the test ends."""
    opened: list[Any] = []

    def open_client(config: ConsulConfig, **options: Any) -> Any:
        opened.append(request.param(config, **options))
        return opened[-1].__enter__()

    yield open_client
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def name() -> str:
    """A service's name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


# ------------------------------------------------------------------------------ what is asked, sent


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(inspect.unwrap(member)))
            for name, member in vars(client).items()
            if callable(member) and hasattr(member, "__wrapped__")
        }

    assert methods(ConsulClient) == methods(AsyncConsulClient)
    assert len(methods(ConsulClient)) >= 16


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, {}),
        ({"params": {"passing": 1, "filter": "ServiceTags is empty"}}, None),
        ({"index": 7}, {"index": "7"}),
        ({"index": 7, "wait": 300.0}, {"index": "7", "wait": "5m"}),
        ({"wait": 0.25}, {"wait": "250ms"}),
        ({"wait": 1.5}, {"wait": "1s500ms"}),
        ({"wait": 0}, {"wait": "1ms"}),
        ({"consistency": "stale"}, {"stale": "1"}),
        ({"consistency": "consistent"}, {"consistent": "1"}),
        ({"dc": "dc 2"}, {"dc": "dc 2"}),
    ],
)
def test_options_of_a_read(
    options: dict[str, Any], query: dict[str, str] | None, connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    scripted_consul.answer("[]")
    connect(scripted_consul.config()).health_state("any", **options)
    (request,) = scripted_consul.requests
    assert request.path == "/v1/health/state/any"
    assert request.query == (
        query if query is not None else {"passing": "1", "filter": "ServiceTags is empty"}
    )


def test_token_and_namespace_go_with_every_call(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config(token=TOKEN, namespace="team", auth=("user", "word")))
    for body in ("[]", "true", "true"):
        scripted_consul.answer(body)
    client.catalog_nodes()
    client.api.kv.put("key", "value")
    client.deregister("some")
    for request in scripted_consul.requests:
        assert request.query["ns"] == "team"
        assert request.headers["X-Consul-Token"] == TOKEN
        assert request.headers["Authorization"].startswith("Basic ")


def test_a_path_prefix_is_kept(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer("[]")
    scripted_consul.answer("true")
    client = connect(scripted_consul.config(path_prefix="/consul"))
    client.catalog_nodes()
    client.api.kv.put("key", "value")
    paths = [request.path for request in scripted_consul.requests]
    assert paths == ["/consul/v1/catalog/nodes", "/consul/v1/kv/key"]


@pytest.mark.parametrize(
    ("changes", "packing"), [({}, "identity"), ({"host": "consul.example", "port": 80}, "gzip")]
)
def test_answers_are_packed_on_the_network_only(changes: dict[str, Any], packing: str) -> None:
    with ConsulClient(ConsulConfig(**changes)) as client:
        seen: list[Any] = []
        client._http.event_hooks = {"request": [lambda request: seen.append(request.headers)]}
        with pytest.raises(RegistryUnavailable):
            client.catalog_nodes()
    assert [headers["Accept-Encoding"] for headers in seen] == [packing]


def test_nothing_of_the_environment_counts(
    connect: Connect, scripted_consul: ScriptedConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = {
        "CONSUL_HTTP_ADDR": "https://[::1]:1/not:an:address",
        "CONSUL_HTTP_TOKEN": "nonsense",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "nonsense",
        "CONSUL_NAMESPACE": "nonsense",
        "CONSUL_CACERT": "/nonsense",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
        "NO_PROXY": "",
        "NETRC": "/nonsense",
    }
    for variable, value in nonsense.items():
        monkeypatch.setenv(variable, value)
    client = connect(scripted_consul.config(token=TOKEN))
    scripted_consul.answer("[]")
    scripted_consul.answer("true")
    client.catalog_nodes()
    client.api.kv.put("key", "value")
    for request in scripted_consul.requests:
        assert request.headers["X-Consul-Token"] == TOKEN
        assert "ns" not in request.query


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "http://nonsense", "unix:///nonsense", "a:b:c:d", "[::1]:1"]
)
def test_no_address_in_the_environment_counts(
    address: str, scripted_consul: ScriptedConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
    with ConsulClient(scripted_consul.config()) as client:
        scripted_consul.answer("true")
        assert client.api.kv.put("key", "value") is True


def test_a_name_that_would_lead_elsewhere_is_not_sent(
    connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    client = connect(scripted_consul.config())
    asks: list[Ask] = [
        lambda: client.deregister(".."),
        lambda: client.health_service("."),
        lambda: client.query("/v1/x/../y"),
    ]
    for ask in asks:
        with pytest.raises(RegistryRejected, match="only dots"):
            ask()
    assert scripted_consul.requests == []


# ------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        pytest.param({"X-Consul-Index": "9"}, ConsulResult([], 9), id="a number, not a string"),
        pytest.param({"X-Consul-Index": "0"}, ConsulResult([], 0), id="index 0"),
        pytest.param({}, ConsulResult([], 0), id="no index"),
        pytest.param({"X-Consul-Index": "soon"}, ConsulResult([], 0), id="no number"),
        pytest.param({"X-Consul-Index": "-3"}, ConsulResult([], 0), id="below 0"),
        pytest.param({"X-Consul-KnownLeader": "true"}, ConsulResult([], known_leader=True), id="leader"),
        pytest.param({"X-Consul-KnownLeader": "false"}, ConsulResult([], known_leader=False), id="no leader"),
        pytest.param({"X-Consul-LastContact": "1500"}, ConsulResult([], last_contact=1.5), id="last contact"),
        pytest.param(
            {"X-Consul-Results-Filtered-By-ACLs": "true"},
            ConsulResult([], filtered_by_acls=True),
            id="filtered",
        ),
    ],
)
def test_headers_of_an_answer(
    headers: dict[str, str], answer: ConsulResult, connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    scripted_consul.answer("[]", headers=headers)
    assert connect(scripted_consul.config()).catalog_nodes() == answer


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, RegistryRejected),
        (400, RegistryRejected),
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, RegistryRejected),
        (405, RegistryRejected),
        (408, RegistryUnavailable),
        (409, RegistryRejected),
        (413, RegistryRejected),
        (429, RegistryUnavailable),
        (500, RegistryUnavailable),
        (502, RegistryUnavailable),
        (503, RegistryUnavailable),
    ],
)
def test_status(
    status: int, error: type[DiscoveryError], connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    client = connect(scripted_consul.config(token=TOKEN))
    asks: list[Ask] = [client.catalog_nodes, lambda: client.register({"Name": "some"})]
    if status != 404:
        # To the library a 404 may be an answer: that no such key exists.
        asks += [client.api.session.create, lambda: client.api.kv.put("key", "value")]
    for ask in asks:
        scripted_consul.answer(f"because of {TOKEN}", status=status)
        with pytest.raises(error) as caught:
            ask()
        assert type(caught.value) is error
        assert f" {scripted_consul.http_addr}/v1/" in str(caught.value)
        assert f"Consul answered {status}: because of ***" in str(caught.value)
        assert TOKEN not in str(caught.value)
        if isinstance(caught.value, RegistryRejected):
            assert caught.value.status == status


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e8, 1e10),
        ("soon", None, None),
        ("-5", None, None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, None),
        (None, None, None),
    ],
)
def test_retry_after(
    status: int,
    text: str | None,
    least: float | None,
    most: float | None,
    connect: Connect,
    scripted_consul: ScriptedConsul,
) -> None:
    scripted_consul.answer("slow down", status=status, headers={"Retry-After": text} if text else {})
    with pytest.raises(RegistryUnavailable) as caught:
        connect(scripted_consul.config()).catalog_nodes()
    pause = caught.value.retry_after
    if least is None or most is None:
        assert pause is None
    else:
        assert pause is not None
        assert least <= pause <= most


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Bad gateway</html>", id="HTML"),
        pytest.param(b'[{"Node": ', id="cut off"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param(b"[" * 200_000, id="nested without end"),
    ],
)
def test_what_is_no_json(body: bytes, connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config())
    for ask in (client.catalog_nodes, lambda: client.api.kv.get("key"), lambda: client.agent_service("some")):
        scripted_consul.answer(body, headers={"X-Consul-Index": "5"})
        with pytest.raises(RegistryUnavailable, match=r"GET .*/v1/") as caught:
            ask()
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "7"])
def test_json_of_another_shape(body: str, connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config())
    scripted_consul.answer(body)
    with pytest.raises(RegistryUnavailable, match=r"/v1/agent/service/some: this is no answer of Consul's"):
        client.agent_service("some")
    scripted_consul.answer(body)
    with pytest.raises(RegistryUnavailable, match=r"/v1/session/create"):
        client.api.session.create()


def test_the_library_misses_its_index(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer("[]")
    with pytest.raises(RegistryUnavailable, match="/v1/kv/key"):
        connect(scripted_consul.config()).api.kv.get("key")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="closed without a word"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="closed within the headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1,", id="closed within the body"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk", id="broken gzip"
        ),
    ],
)
def test_broken_http(raw: bytes, connect: Connect, scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer_raw(raw)
    # A connection that ends without a word may have been closed for being idle: a read is sent once more.
    scripted_consul.answer_raw(raw)
    with pytest.raises(RegistryUnavailable, match=r"GET http://.*/v1/catalog/nodes: "):
        connect(scripted_consul.config()).catalog_nodes()


def test_an_answer_is_bounded(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config(), max_answer_bytes=1000)
    scripted_consul.answer("[" + " " * 998 + "]")
    assert client.catalog_nodes().data == []
    scripted_consul.answer("[" + " " * 999 + "]")
    with pytest.raises(RegistryUnavailable, match="bigger than 1000 bytes"):
        client.catalog_nodes()


def packed(body: bytes) -> bytes:
    content = gzip.compress(body)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def test_a_packed_answer(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer_raw(packed(b'[{"Node": "one"}]'))
    assert connect(scripted_consul.config()).catalog_nodes().data == [{"Node": "one"}]


def test_a_packed_answer_is_bounded_by_what_is_in_it(
    connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    scripted_consul.answer_raw(packed(b"[" + b" " * 100_000 + b"]"))
    with pytest.raises(RegistryUnavailable, match="bigger than 1000 bytes"):
        connect(scripted_consul.config(), max_answer_bytes=1000).catalog_nodes()


def test_an_answer_in_drops_is_not_awaited(
    connect: Connect, scripted_consul: ScriptedConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_client, "_TRANSFER_LIMIT", -1)
    scripted_consul.answer("[]")
    with pytest.raises(RegistryUnavailable, match="too slowly"):
        connect(scripted_consul.config()).catalog_nodes()


def test_a_redirect_is_not_followed(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer(status=301, headers={"Location": "http://169.254.169.254/"})
    with pytest.raises(
        RegistryRejected, match=r"redirects to http://169.254.169.254/, which is not followed"
    ):
        connect(scripted_consul.config()).catalog_nodes()


def exceptions_of_the_library() -> list[type[base.ConsulException]]:
    return [base.ConsulException, *base.ConsulException.__subclasses__()]


@pytest.mark.parametrize("exception", exceptions_of_the_library())
def test_every_exception_of_the_library_is_translated(
    exception: type[base.ConsulException], connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    def parse(reply: object) -> None:
        raise exception(f"as {TOKEN} sees it")

    scripted_consul.answer("[]")
    with pytest.raises(DiscoveryError) as caught:
        connect(scripted_consul.config(token=TOKEN)).api.http.get(parse, "/v1/some")
    assert isinstance(caught.value.__cause__, exception)
    assert isinstance(caught.value, RegistryUnavailable | RegistryRejected)
    assert f"GET {scripted_consul.http_addr}/v1/some: as *** sees it" == str(caught.value)


def test_each_exception_of_the_library_has_been_thought_of() -> None:
    names = {exception.__name__ for exception in exceptions_of_the_library()}
    assert names == consul_calls._LIBRARY_ERRORS.keys()


# --------------------------------------------------------------------- a Consul that does not answer


def test_nobody_listens(connect: Connect) -> None:
    port = free_ports(1)[0]
    with pytest.raises(RegistryUnavailable) as caught:
        connect(ConsulConfig(port=port)).status_leader()
    assert str(caught.value) == (
        f"GET http://127.0.0.1:{port}/v1/status/leader: connection refused: "
        "is a Consul agent running there? CONSUL_HTTP_ADDR says where to look"
    )


# httpcore's synchronous backend leaves a socket that did not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_such_socket(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailable, match="there is no such socket: is a Consul agent running"):
        connect(ConsulConfig(unix_socket=str(tmp_path / "none"))).status_leader()


def test_no_such_host(connect: Connect) -> None:
    with pytest.raises(RegistryUnavailable, match=r"name cannot be resolved .*: check CONSUL_HTTP_ADDR"):
        connect(ConsulConfig(host="no-such-host.invalid")).status_leader()


def test_a_host_that_is_none() -> None:
    with pytest.raises(ConfigError, match="CONSUL_HTTP_ADDR"):
        ConsulClient(ConsulConfig(host="kon\u200bsul"))


def test_a_server_that_hangs(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config(timeout=0.3))
    for ask in (client.catalog_nodes, lambda: client.register({}), lambda: client.api.kv.get("key")):
        scripted_consul.hang()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=r"no answer within 0.3 s"):
            ask()
        assert 0.25 < time.monotonic() - began < 20


def test_a_server_that_hangs_in_a_blocking_query(connect: Connect, scripted_consul: ScriptedConsul) -> None:
    client = connect(scripted_consul.config(timeout=0.1))
    asks: list[Ask] = [
        lambda: client.catalog_nodes(index=5, wait=0.32),
        lambda: client.agent_service("some", hash="aa", wait=0.32),
        lambda: client.api.kv.get("key", index=5, wait="320ms"),
    ]
    for ask in asks:
        scripted_consul.hang()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=r"no answer within 0.44 s"):
            ask()
        assert 0.4 < time.monotonic() - began < 20


def test_index_zero_does_not_block_so_it_is_not_awaited_either(
    connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    scripted_consul.hang()
    with pytest.raises(RegistryUnavailable, match=r"no answer within 0.2 s"):
        connect(scripted_consul.config(timeout=0.2)).catalog_nodes(index=0, wait=60)


def test_a_query_without_wait_is_given_consuls_five_minutes(scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer("[]")
    with ConsulClient(scripted_consul.config()) as client:
        seen: list[Any] = []
        client._http.event_hooks = {"request": [lambda request: seen.append(request.extensions["timeout"])]}
        client.catalog_nodes(index=1)
    assert seen == [{"connect": 5.0, "read": 323.75, "write": 5.0, "pool": 5.0}]


def test_one_connection_too_few(scripted_consul: ScriptedConsul) -> None:
    scripted_consul.hang()
    with ConsulClient(scripted_consul.config(timeout=0.5), max_connections=1) as client:
        holding = threading.Thread(target=_ignoring, args=(lambda: client.catalog_nodes(index=1, wait=1),))
        holding.start()
        eventually(lambda: scripted_consul.requests)
        with pytest.raises(RegistryUnavailable, match="all 1 connections are in use"):
            client.catalog_nodes()
        holding.join(10)


def _ignoring(call: Ask) -> None:
    with pytest.raises(RegistryUnavailable):
        call()


def test_connections_are_kept_alive(scripted_consul: ScriptedConsul) -> None:
    scripted_consul.answer("[]")
    with ConsulClient(scripted_consul.config()) as client:
        client.catalog_nodes()
        (connection,) = client._http._transport._pool.connections  # type: ignore[attr-defined]
        stream = connection._connection._network_stream.get_extra_info("socket")
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


# -------------------------------------------------------------------------------- on a real agent


def test_register_read_and_deregister(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())
    ids = (f"{name}/with slash", f"{name}?q=1#f%2F", f"{name}-ünï")
    for id in ids:
        checks = [{"CheckID": f"{id}:{n}", "TTL": "60s", "Status": "passing"} for n in (1, 2)]
        client.register({"Name": name, "ID": id, "Port": 0, "Tags": [], "Checks": checks})
        service, content_hash = client.agent_service(id)
        assert (service["ID"], service["Service"]) == (id, name)
        assert content_hash
    answer = client.health_service(name, params={"passing": 1}, consistency="consistent")
    assert {entry["Service"]["ID"] for entry in answer.data} == set(ids)
    assert all(len(entry["Checks"]) == 3 for entry in answer.data)
    assert answer.index > 0
    assert answer.known_leader is True
    assert answer.last_contact == 0.0
    assert client.catalog_services().data[name] == []
    for id in ids:
        client.deregister(id)
        with pytest.raises(UnknownInstance, match="/v1/agent/service/"):
            client.agent_service(id)
    assert client.health_service(name).data == []


def test_registering_again_replaces_the_checks(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())

    def register(check: str, **options: bool) -> set[str]:
        client.register({"Name": name, "Checks": [{"CheckID": f"{name}-{check}", "TTL": "60s"}]}, **options)
        (entry,) = client.health_service(name).data
        return {check["CheckID"] for check in entry["Checks"] if check["ServiceName"]}

    assert register("a") == {f"{name}-a"}
    assert register("b") == {f"{name}-b"}
    assert register("c", replace_existing_checks=False) == {f"{name}-b", f"{name}-c"}
    client.deregister(name)


def test_checks_and_maintenance(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())
    client.register({"Name": name, "Check": {"CheckID": f"{name}/ttl", "TTL": "60s"}})

    def checks() -> dict[str, tuple[str, str]]:
        (entry,) = client.health_service(name).data
        return {
            check["CheckID"]: (check["Status"], check["Output"] or check["Notes"])
            for check in entry["Checks"]
        }

    for change, status in (
        (client.pass_check, "passing"),
        (client.warn_check, "warning"),
        (client.fail_check, "critical"),
    ):
        note = f"now {status} & well?"
        change(f"{name}/ttl", note)
        assert checks()[f"{name}/ttl"] == (status, note)
    client.pass_check(f"{name}/ttl")
    client.set_maintenance(name, True, "a new disk")
    assert [status for id, status in checks().items() if "maintenance" in id] == [("critical", "a new disk")]
    client.set_maintenance(name, False)
    assert not [id for id in checks() if "maintenance" in id]
    client.deregister(name)


def test_what_the_agent_does_not_know(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())
    asks: list[Ask] = [
        lambda: client.agent_service(name),
        lambda: client.pass_check(name),
        lambda: client.warn_check(name, "a note"),
        lambda: client.fail_check(name),
        lambda: client.set_maintenance(name, True),
    ]
    for ask in asks:
        with pytest.raises(UnknownInstance, match=name):
            ask()


def test_deregistering_what_newer_agents_call_unknown(
    connect: Connect, scripted_consul: ScriptedConsul
) -> None:
    scripted_consul.answer('Unknown service ID "some"', status=404)
    with pytest.raises(UnknownInstance, match='Unknown service ID "some"'):
        connect(scripted_consul.config()).deregister("some")


def test_the_remaining_reads(connect: Connect, consul: RunningConsul) -> None:
    client = connect(consul.config())
    assert client.catalog_datacenters() == ConsulResult(["dc1"])
    assert ":" in client.status_leader().data
    assert client.agent_self().data["Config"]["Datacenter"] == "dc1"
    assert client.catalog_nodes().data[0]["Address"] == "127.0.0.1"
    assert any(check["CheckID"] == "serfHealth" for check in client.health_state("passing").data)
    assert client.query("/v1/status/peers").data
    with pytest.raises(PermissionDenied, match="ACL support disabled") as caught:
        client.acl_self()
    assert caught.value.status == 401


def test_requests_that_consul_refuses(connect: Connect, consul: RunningConsul) -> None:
    client = connect(consul.config())
    with pytest.raises(RegistryRejected, match="400: Missing service name"):
        client.register({"Port": 80})
    with pytest.raises(RegistryRejected, match=r"400: .*: unset CONSUL_NAMESPACE"):
        connect(consul.config(namespace="team")).health_state("any")
    with pytest.raises(RegistryRejected, match=r"Consul answered 301.*is not followed"):
        client.deregister("a//b")
    with pytest.raises(RegistryUnavailable, match="No path to datacenter"):
        client.catalog_nodes(dc="nowhere")
    with pytest.raises(RegistryRejected, match="404"):
        client.query("/v1/no/such/thing")


def test_keys_and_sessions_of_the_library(connect: Connect, consul: RunningConsul, name: str) -> None:
    api = connect(consul.config()).api
    key = f"{name}/a key?"
    index, value = api.kv.get(key)
    assert value is None
    assert int(index) > 0
    assert api.kv.put(key, "välue") is True
    assert api.kv.get(key)[1]["Value"] == "välue".encode()
    assert api.kv.put(key, b"\x00\xff", cas=1) is False
    session = api.session.create(name=name, ttl=10, lock_delay=0)
    other = api.session.create(name=name, ttl=10, lock_delay=0)
    assert api.kv.put(key, "mine", acquire=session) is True
    assert api.kv.put(key, "other", acquire=other) is False
    assert api.kv.get(key)[1]["Session"] == session
    assert api.session.renew(session)["ID"] == session
    assert api.kv.put(key, "", release=session) is True
    assert api.session.destroy(session) is True
    assert api.session.destroy(other) is True
    with pytest.raises(RegistryRejected):
        api.session.renew(session)
    assert api.kv.delete(name, recurse=True) is True


def test_a_catalog_of_other_nodes(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())
    assert client.api.catalog.register(name, "127.0.0.9", service={"Service": name, "Port": 80}) is True
    (entry,) = client.health_service(name).data
    assert (entry["Node"]["Node"], entry["Node"]["Address"]) == (name, "127.0.0.9")
    assert client.api.catalog.deregister(name) is True
    assert client.health_service(name).data == []


def test_a_blocking_query_is_woken(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config())
    with consul.client() as other:
        other.register({"Name": name})
        before = client.health_service(name)
        changing = threading.Timer(0.2, other.register, [{"Name": name, "Port": 81}])
        changing.start()
        began = time.monotonic()
        after = client.health_service(name, index=before.index, wait=30)
        assert time.monotonic() - began < 25
        changing.join()
        other.deregister(name)
    assert after.index > before.index
    assert after.data[0]["Service"]["Port"] == 81


def test_a_blocking_query_ends_by_itself(connect: Connect, consul: RunningConsul, name: str) -> None:
    # Its wait is longer than the client's limit for other calls.
    client = connect(consul.config(timeout=0.5))
    before = client.health_service(name)
    began = time.monotonic()
    after = client.health_service(name, index=before.index, wait=1)
    assert 0.9 < time.monotonic() - began < 20
    assert (after.index, after.data) == (before.index, [])


def test_an_agents_service_is_watched_by_its_hash(connect: Connect, consul: RunningConsul, name: str) -> None:
    client = connect(consul.config(timeout=0.5))
    with consul.client() as other:
        other.register({"Name": name, "Port": 80})
        _, before = client.agent_service(name)
        assert client.agent_service(name, hash=before, wait=0.8)[1] == before
        changing = threading.Timer(0.2, other.register, [{"Name": name, "Port": 81}])
        changing.start()
        service, after = client.agent_service(name, hash=before, wait=30)
        changing.join()
        assert (service["Port"], after != before) == (81, True)
        going = threading.Timer(0.2, other.deregister, [name])
        going.start()
        with pytest.raises(UnknownInstance):
            client.agent_service(name, hash=after, wait=30)
        going.join()


@pytest.mark.anyio
async def test_blocking_queries_of_one_client_wait_side_by_side(consul: RunningConsul) -> None:
    async with AsyncConsulClient(consul.config(), max_connections=30) as client:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                # An index that is far off: nothing that other tests do wakes these.
                group.create_task(client.catalog_services(index=2**60, wait=1))
        assert 0.9 < time.monotonic() - began < 10


@pytest.mark.anyio
async def test_cancelling_frees_the_connection(consul: RunningConsul, name: str) -> None:
    async with AsyncConsulClient(consul.config(), max_connections=1) as client:
        index = (await client.health_service(name)).index
        for _ in range(5):
            waiting = asyncio.create_task(client.health_service(name, index=index, wait=60), name="waits")
            await asyncio.wait({waiting}, timeout=0.1)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with asyncio.timeout(3):
                assert (await client.health_service(name)).data == []


@pytest.mark.anyio
async def test_cancelling_closes_the_connection_for_the_server_too() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", free_ports(1)[0])
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncConsulClient(ConsulConfig(port=port)) as client:
        waiting = asyncio.create_task(client.catalog_nodes(index=1, wait=60), name="waits")
        await asyncio.wait({waiting}, timeout=0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(3):
            await gone.wait()


def test_an_agent_that_is_paused_stopped_and_back(
    connect: Connect, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server()
    client = connect(server.config(timeout=0.5))
    assert client.status_leader().data
    server.pause()
    with pytest.raises(RegistryUnavailable, match=r"no answer within 0.5 s"):
        client.status_leader()
    server.resume()
    eventually(lambda: client.status_leader().data)
    client.register({"Name": "some", "Check": {"CheckID": "some", "TTL": "60s"}})
    server.kill()
    with pytest.raises(RegistryUnavailable):
        client.status_leader()
    server.start()
    eventually(lambda: client.status_leader().data)
    with pytest.raises(UnknownInstance):
        client.pass_check("some")


def test_a_unix_socket(
    connect: Connect, consul_server: Callable[..., ConsulServer], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "consul.sock"
    consul_server(unix_socket=path)
    client = connect(ConsulConfig.from_env({"CONSUL_HTTP_ADDR": f"unix://{path}"}))
    client.register({"Name": name})
    before = client.health_service(name)
    assert before.data[0]["Service"]["Service"] == name
    assert client.health_service(name, index=before.index, wait=0.2).index == before.index
    assert client.api.kv.put("key", "value") is True


# --------------------------------------------------------------------------------- TLS and tokens


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """An agent with mutual TLS that denies by default."""
    folder = tmp_path_factory.mktemp("secured")
    with ConsulServer(consul_binary(), folder, tls="mutual", acl=True) as server:
        yield server


def test_mutual_tls(connect: Connect, secured: ConsulServer) -> None:
    files = secured.certificates
    assert files is not None
    config = ConsulConfig.from_env(
        {
            "CONSUL_HTTP_ADDR": secured.http_addr,
            "CONSUL_CACERT": str(files.ca),
            "CONSUL_CLIENT_CERT": str(files.client_cert),
            "CONSUL_CLIENT_KEY": str(files.client_key),
        }
    )
    assert config.address.startswith("https://")
    assert connect(config).status_leader().data


def test_mutual_tls_without_a_client_certificate(connect: Connect, secured: ConsulServer) -> None:
    with pytest.raises(RegistryUnavailable, match=r"refuses our certificate .*: check CONSUL_CLIENT_CERT"):
        connect(secured.config()).status_leader()


def test_tls(connect: Connect, consul_server: Callable[..., ConsulServer], tmp_path: Path) -> None:
    server = consul_server(tls="server")
    assert server.certificates is not None
    authority = server.certificates.ca
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / "any-name.txt").write_bytes(authority.read_bytes())

    def leader(**changes: Any) -> Any:
        return connect(server.config(**{"ca_cert": None, **changes})).status_leader().data

    assert leader(ca_cert=authority)
    assert leader(ca_path=folder)
    assert leader(verify=False)
    assert leader(ca_cert=authority, tls_server_name="server.dc1.consul")
    with pytest.raises(RegistryUnavailable, match=r"certificate is not trusted .*: check CONSUL_CACERT"):
        leader()
    with pytest.raises(RegistryUnavailable, match=r"not valid for 'elsewhere'.*CONSUL_TLS_SERVER_NAME"):
        leader(ca_cert=authority, tls_server_name="elsewhere")
    with pytest.raises(RegistryRejected, match="set CONSUL_HTTP_SSL=true"):
        leader(scheme="http")
    plain = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": server.plain_http_addr, "CONSUL_HTTP_SSL": "true"})
    with pytest.raises(RegistryUnavailable, match="does not speak TLS: write http://"):
        connect(plain).status_leader()


def test_a_certificate_authority_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CONSUL_CACERT: cannot read"):
        ConsulClient(ConsulConfig(scheme="https", ca_cert=tmp_path / "none"))


def test_a_token_may_do_what_its_policies_say(
    connect: Connect, secured: ConsulServer, tmp_path: Path
) -> None:
    rules = 'service_prefix "web" { policy = "write" } node_prefix "" { policy = "read" }'
    (tmp_path / "token").write_text(secured.create_token(rules) + "\n")
    token = ConsulConfig.from_env({"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "token")}).token
    client = connect(secured.config(token=token, **secured.client_certificate))
    client.register({"Name": "web", "Check": {"CheckID": "web", "TTL": "60s"}})
    client.pass_check("web")
    assert client.health_service("web").data[0]["Service"]["Service"] == "web"
    assert client.acl_self().data["SecretID"] == token
    for ask in (
        lambda: client.register({"Name": "other"}),
        lambda: client.api.kv.put("key", "value"),
        lambda: client.api.session.create(),
        client.agent_self,
    ):
        with pytest.raises(
            PermissionDenied, match=r"403: .*: check the token \(CONSUL_HTTP_TOKEN or"
        ) as caught:
            ask()
        assert token not in str(caught.value)
    client.deregister("web")


def test_without_a_token_reads_are_empty_and_writes_refused(connect: Connect, secured: ConsulServer) -> None:
    client = connect(secured.config(**secured.client_certificate))
    assert client.catalog_nodes().data == []
    assert client.health_state("any").data == []
    with pytest.raises(PermissionDenied):
        client.register({"Name": "web"})


def test_a_token_that_does_not_exist(connect: Connect, secured: ConsulServer) -> None:
    client = connect(secured.config(token=TOKEN, **secured.client_certificate))
    for ask in (client.catalog_nodes, client.acl_self, lambda: client.register({"Name": "web"})):
        with pytest.raises(PermissionDenied, match=r"ACL not found.*: check the token") as caught:
            ask()
        assert TOKEN not in str(caught.value)
