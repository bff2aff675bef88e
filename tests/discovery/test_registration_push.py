"""A module registers with Lictor itself: heartbeats, its own checks, renewal and refusals."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import discovery
from discovery import ConfigError, HTTPCheck, Registration, TCPCheck, TTLCheck
from discovery.announce.keepalive import State
from tests.consul_server import eventually
from tests.discovery.health_server import HealthServer
from tests.discovery.push_server import PushServer, problem
from tests.manifest_server import ManifestServer, reset


@pytest.fixture(autouse=True)
def _information(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="discovery")


@pytest.fixture
def server() -> Iterator[PushServer]:
    with PushServer() as server:
        yield server


@pytest.fixture
def push(server: PushServer) -> Iterator[Callable[..., Registration]]:
    """Starts registrations, and stops them after the test."""
    with ExitStack() as running:

        def start(**arguments: Any) -> Registration:
            given = {"name": "financial", "id": "f1", "port": 8001, "via": "push", "lictor_url": server.url}
            return running.enter_context(discovery.register(**{**given, **arguments}))

        yield start


def test_what_is_sent(server: PushServer, push: Callable[..., Registration]) -> None:
    registration = push(tags=["a"], meta={"team": "red"}, version="1.2.0", deregister_after="5m")
    assert registration.wait_registered(10)
    assert server.bodies == [
        {
            "name": "financial",
            "id": "f1",
            "address": "127.0.0.1",
            "port": 8001,
            "scheme": "http",
            "tags": ["module", "a"],
            "meta": {"team": "red", "version": "1.2.0"},
            "manifest_path": "/manifest",
            "heartbeat_interval": 10.0,
            "deregister_after": 300.0,
        }
    ]
    registration.stop()
    assert not server.instances


def test_a_manifest_is_sent_along(server: PushServer, push: Callable[..., Registration]) -> None:
    manifest = {"name": "financial", "version": "1.2.0"}
    assert push(manifest=manifest, deregister_after=None).wait_registered(10)
    (body,) = server.bodies
    assert body["manifest"] == manifest
    assert set(body["meta"]) == {"version", "manifest_path", "manifest_digest"}
    assert "manifest_path" not in body
    assert "deregister_after" not in body


def test_an_id_is_quoted_in_the_path(server: PushServer, push: Callable[..., Registration]) -> None:
    registration = push(id="a b?ü#%")
    assert registration.wait_registered(10)
    registration.stop()
    assert not server.instances


def test_heartbeats_come_as_often_as_the_server_expects_them(
    push: Callable[..., Registration], server: PushServer
) -> None:
    server.heartbeat_interval = 0.1
    before = time.monotonic()
    push()
    eventually(lambda: len(server.beats) >= 10)
    assert time.monotonic() - before > 0.6
    assert server.beats[-1] == {"id": "f1", "health": "passing", "note": ""}


def test_the_ttl_says_how_often(push: Callable[..., Registration], server: PushServer) -> None:
    push(check=TTLCheck("300ms"))
    eventually(lambda: len(server.beats) >= 5)
    assert server.bodies[0]["heartbeat_interval"] == pytest.approx(0.1)


def test_a_report_is_passed_on_at_once(push: Callable[..., Registration], server: PushServer) -> None:
    registration = push()
    assert registration.wait_registered(10)
    for health in ("warning", "critical", "passing"):
        registration.report(health, f"it is {health}")
        eventually(lambda: server.beats and server.beats[-1]["note"] == f"it is {health}", limit=8)  # noqa: B023
        assert server.health("financial") == [health]


def test_a_check_follows_the_address_under_which_the_module_registers(
    push: Callable[..., Registration], server: PushServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "127.0.0.2"

    async def own_address_towards(host: str, port: int) -> str:
        return address

    monkeypatch.setattr("discovery.push.registrar.own_address_towards", own_address_towards)
    server.heartbeat_interval = 0.1
    with HealthServer() as module:
        push(port=module.port, check=HTTPCheck("/health", interval="50ms"))
        eventually(lambda: server.beats and server.beats[-1]["health"] == "critical")
        address = "127.0.0.1"
        server.instances.clear()
        eventually(lambda: server.beats[-1]["health"] == "passing")
        assert server.bodies[-1]["address"] == address


def test_a_checks_headers_are_sent_as_they_are(push: Callable[..., Registration], server: PushServer) -> None:
    with HealthServer() as module:
        push(port=module.port, check=HTTPCheck("/health", interval="50ms", headers={"X-Team": "Zoë ☃"}))
        eventually(lambda: server.health("financial") == ["passing"])
        assert module.headers["X-Team"].encode("latin-1").decode() == "Zoë ☃"


def test_the_library_runs_the_modules_own_http_check(
    push: Callable[..., Registration], server: PushServer
) -> None:
    with HealthServer() as module:
        push(port=module.port, check=HTTPCheck("/health", interval="50ms"))
        eventually(lambda: server.health("financial") == ["passing"])
        for status, health in ((429, "warning"), (503, "critical"), (200, "passing"), (404, "critical")):
            module.status = status
            eventually(lambda: server.health("financial") == [health])  # noqa: B023
        assert f"/health: {module.status}" in server.beats[-1]["note"]


def test_a_module_that_starts_slowly_is_seen_as_soon_as_it_is_there(
    push: Callable[..., Registration], server: PushServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    push(port=port, checks=[HTTPCheck("/health", interval="1m"), TCPCheck(interval="1m")])
    eventually(lambda: server.health("financial") == ["critical"])
    with HealthServer(port):
        eventually(lambda: server.health("financial") == ["passing"], limit=8)


def test_an_odd_note_is_passed_on_as_far_as_it_goes(
    server: PushServer, push: Callable[..., Registration]
) -> None:
    registration = push()
    assert registration.wait_registered(10)
    registration.report("warning", "caf\udce9\x00" + 2000 * "x")
    eventually(lambda: server.beats and server.beats[-1]["note"] == "caf?" + 996 * "x")
    assert registration.state is State.REGISTERED


def test_the_worst_of_checks_and_report_counts(push: Callable[..., Registration], server: PushServer) -> None:
    with HealthServer() as module:
        registration = push(
            port=module.port, checks=[HTTPCheck(interval="50ms"), TCPCheck(interval="50ms"), TTLCheck()]
        )
        eventually(lambda: server.health("financial") == ["passing"])
        registration.report("warning", "slow")
        eventually(lambda: server.health("financial") == ["warning"])
        module.status = 500
        eventually(lambda: server.health("financial") == ["critical"])


def test_a_check_that_hangs_is_critical(push: Callable[..., Registration], server: PushServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check = HTTPCheck(interval="50ms", timeout="100ms")
        push(port=silent.getsockname()[1], check=check)
        eventually(lambda: server.health("financial") == ["critical"])
        assert server.beats[-1]["note"] == "no answer within 0.1 s"


def test_the_counts_of_a_check_are_respected(push: Callable[..., Registration], server: PushServer) -> None:
    with HealthServer() as module:
        check = HTTPCheck(interval="20ms", success_before_passing=3, failures_before_critical=3)
        push(port=module.port, check=check)
        eventually(lambda: server.health("financial") == ["critical"])
        eventually(lambda: server.health("financial") == ["passing"])
        passed = module.requests
        assert passed >= 3
        module.status = 500
        eventually(lambda: server.health("financial") == ["critical"])
        assert module.requests - passed >= 3


# ------------------------------------------------------------------------------------------ renewal


def test_a_server_that_forgot_is_told_again(push: Callable[..., Registration], server: PushServer) -> None:
    server.heartbeat_interval = 0.1
    registration = push()
    assert registration.wait_registered(10)
    server.instances.clear()
    eventually(lambda: server.instances, limit=8)


def test_a_server_that_is_absent_is_awaited(
    push: Callable[..., Registration], server: PushServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    before = time.monotonic()
    registration = push()
    assert time.monotonic() - before < 8
    eventually(lambda: registration.state is State.UNAVAILABLE)
    server.start()
    assert registration.wait_registered(5)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_server_that_comes_back_is_not_told_again_what_it_knows(
    push: Callable[..., Registration], server: PushServer
) -> None:
    server.heartbeat_interval = 0.1
    registration = push()
    assert registration.wait_registered(10)
    server.stop()
    eventually(lambda: registration.state is State.UNAVAILABLE)
    assert not registration.registered
    server.start()
    assert registration.wait_registered(5)
    assert len(server.bodies) == 1


# ----------------------------------------------------------------------------------------- refusals


def test_every_faulty_field_is_told_once(
    push: Callable[..., Registration], server: PushServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refusal = problem(
        422, errors=[{"field": "port", "message": "is odd"}, {"field": "tags[0]", "message": "is dull"}]
    )
    registration = push()
    eventually(lambda: registration.state is State.REJECTED)
    assert "422: port: is odd; tags[0]: is dull" in registration.reason
    server.refusal = None
    assert registration.wait_registered(10)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_the_token_is_borne(server: PushServer, push: Callable[..., Registration]) -> None:
    server.token = "secret"
    assert push(token="secret").wait_registered(10)


def test_a_wrong_token_is_told_and_may_be_replaced(
    server: PushServer,
    push: Callable[..., Registration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "token"
    file.write_text("wrong-token\n")
    monkeypatch.setenv("LICTOR_PUSH_TOKEN_FILE", str(file))
    server.token = "right"
    registration = push()
    eventually(lambda: registration.state is State.REJECTED)
    assert "401: the token is wrong; check the token (LICTOR_PUSH_TOKEN_FILE)" in registration.reason
    assert "wrong-token" not in caplog.text
    file.write_text("right\n")
    assert registration.wait_registered(10)


@pytest.mark.parametrize("token", ["geheim-ü", "geheim\nx"], ids=["no ASCII", "two lines"])
def test_a_token_that_cannot_be_sent_is_told_and_not_shown(
    server: PushServer,
    push: Callable[..., Registration],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    with pytest.raises(ConfigError, match=r"token_file .*: the token in .* holds a character"):
        push(token_file=file)
    server.token = "right"
    file.write_text("right")
    server.heartbeat_interval = 0.1
    registration = push(token_file=file)
    assert registration.wait_registered(10)
    # At once: one that is written bit by bit may be read, and sent, before it is whole.
    (tmp_path / "new").write_text(token)
    (tmp_path / "new").replace(file)
    eventually(lambda: registration.state is State.REJECTED)
    assert "token_file" in registration.reason
    assert "geheim" not in registration.reason + caplog.text


def test_a_connection_that_broke_is_told_in_words() -> None:
    with ManifestServer({"/api/v1/modules/register": reset}) as server:
        url = f"http://{server.host}:{server.port}"
        with discovery.register(name="m", port=80, via="push", lictor_url=url) as registration:
            eventually(lambda: registration.state is State.UNAVAILABLE)
            assert registration.reason == f"POST {url}/api/v1/modules/register: ReadError"


@pytest.mark.parametrize(
    ("refusal", "state", "told"),
    [
        pytest.param(problem(500, title="broken"), State.UNAVAILABLE, "500: broken", id="500"),
        pytest.param(problem(429), State.UNAVAILABLE, "429", id="429"),
        pytest.param(problem(404, detail="no push here"), State.REJECTED, "404: no push here", id="404"),
        pytest.param(problem(403, detail="push is off"), State.REJECTED, "403: push is off", id="403"),
    ],
)
def test_what_the_server_says_is_told(
    server: PushServer, push: Callable[..., Registration], refusal: Any, state: State, told: str
) -> None:
    server.refusal = refusal
    registration = push()
    eventually(lambda: registration.state is state)
    assert told in registration.reason


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        pytest.param({"id": "a/b"}, ["id: via push it has at most 255"], id="slash"),
        pytest.param({"id": "a" * 256}, ["id: via push it has at most 255"], id="long id"),
        pytest.param({"deregister_after": "32d"}, ["deregister_after: via push"], id="long time"),
        pytest.param({"check": TTLCheck("100ms")}, ["check: via push a TTL"], id="short TTL"),
        pytest.param({"lictor_url": "lictor:8080"}, ["lictor_url (LICTOR_URL): must be"], id="url"),
        pytest.param(
            {"lictor_url": "http://u:p@x"},
            ["lictor_url (LICTOR_URL): must be an address without"],
            id="user in url",
        ),
        pytest.param(
            {"lictor_url": "http://:p@x"},
            ["lictor_url (LICTOR_URL): must be an address without"],
            id="password in url",
        ),
        pytest.param({"lictor_url": "http://a..b"}, ["lictor_url (LICTOR_URL): must be"], id="empty label"),
        pytest.param(
            {"lictor_url": "http://x\x01"}, ["lictor_url (LICTOR_URL): must be"], id="control in url"
        ),
        pytest.param(
            {"lictor_url": "http://x:99999"}, ["lictor_url (LICTOR_URL): must be"], id="port in url"
        ),
        pytest.param({"token": "a\nb"}, ["token: holds a character"], id="token"),
        pytest.param({"token_file": "/nowhere"}, ["token_file (LICTOR_PUSH_TOKEN_FILE): /now"], id="no file"),
        pytest.param(
            {"name": "", "lictor_url": "x", "token_file": "/nowhere"},
            ["name: is empty", "lictor_url", "token_file"],
            id="all at once",
        ),
    ],
)
def test_faults_are_told_at_once(arguments: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        discovery.register(**{"name": "m", "port": 80, "via": "push", **arguments})
    assert len(caught.value.faults) == len(faults)
    for told, fault in zip(caught.value.faults, faults, strict=True):
        assert told.startswith(fault)
        assert ":p@" not in told, "a password is not shown"
