"""A module registers with a real Consul agent, and stays registered whatever becomes of the agent."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import discovery
from discovery import ConfigError, HTTPCheck, Registration, TCPCheck, TTLCheck
from discovery.announce import process_exit
from discovery.announce.keepalive import State
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.registrar import definition
from discovery.errors import UnknownInstance
from tests.consul_server import ConsulServer, RunningConsul, eventually, put_json
from tests.discovery.health_server import HealthServer

StartConsul = Callable[..., ConsulServer]


@pytest.fixture
def name() -> str:
    return f"module-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def register(consul: RunningConsul, name: str) -> Iterator[Callable[..., Registration]]:
    """Makes registrations in the shared Consul, and stops them after the test."""
    made: list[Registration] = []

    def make(**arguments: Any) -> Registration:
        made.append(
            discovery.register(**{"name": name, "port": 8001, "consul": consul.config(), **arguments})
        )
        return made[-1]

    yield make
    for registration in made:
        registration.stop()


@pytest.fixture(autouse=True)
def _information(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="discovery")


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    """What the agent knows of a service; empty if it does not know it."""
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


def checks(client: ConsulClient, name: str) -> dict[str, dict[str, Any]]:
    return {
        check["CheckID"]: check
        for entry in client.health_service(name).data
        for check in entry["Checks"]
        if check["ServiceID"]
    }


def status(client: ConsulClient, name: str) -> list[str]:
    return [check["Status"] for check in checks(client, name).values()]


# ------------------------------------------------------------------------------- what is registered


def test_what_consul_knows_of_a_module(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    registration = register(
        id=f"{name}/1 a",
        address="127.0.0.1",
        scheme="https",
        tags=["finance"],
        meta={"team": "red"},
        manifest={"name": name, "version": "1.2.0"},
        manifest_path="/about",
        manifest_port=8002,
        checks=[HTTPCheck("/health", interval="1m"), TCPCheck(interval="1m"), TTLCheck("1m")],
    )
    with registration:
        assert registration.wait_registered(10)
        known = service(client, registration.id)
        assert (known["Service"], known["Address"], known["Port"]) == (name, "127.0.0.1", 8001)
        assert known["Tags"] == ["module", "finance"]
        digest = known["Meta"].pop("manifest_digest")
        assert len(digest) == 64
        assert known["Meta"] == {
            "team": "red",
            "manifest_path": "/about",
            "manifest_port": "8002",
            "version": "1.2.0",
            "scheme": "https",
        }
        ids = {f"service:{registration.id}:{number}" for number in (1, 2, 3)}
        assert eventually(lambda: set(checks(client, name)) == ids)
        told = {one["CheckID"].rpartition(":")[2]: one["Notes"] for one in checks(client, name).values()}
        assert told["1"].startswith("Consul asks GET https://127.0.0.1:8001/health every 1m.")
        assert told["2"].startswith("Consul connects to 127.0.0.1:8001 every 1m.")
        assert told["3"].startswith("The module says itself how it is, at least every 1m.")
    assert not service(client, registration.id)


def test_the_definition_has_the_time_after_which_consul_cleans_up(
    register: Callable[..., Registration],
) -> None:
    registration = register(check=HTTPCheck("/health"), address="::1", deregister_after="90s")
    (check,) = definition(registration.announcement, registration.announcement.address)["Checks"]
    assert check["DeregisterCriticalServiceAfter"] == "1m30s"
    assert check["HTTP"] == "http://[::1]:8001/health"


def test_the_agents_node_gives_the_address_and_the_agent_asks_on_its_own_machine(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with (
        HealthServer() as module,
        register(port=module.port, check=HTTPCheck(interval="100ms")) as registration,
    ):
        eventually(lambda: status(client, name) == ["passing"])
        assert service(client, registration.id)["Address"] == ""


def test_an_agent_on_this_machine_gives_its_nodes_address_whatever_it_is_called(
    register: Callable[..., Registration], consul: RunningConsul, client: ConsulClient
) -> None:
    """Towards oneself the own address is a loopback one, which no other machine could use."""
    with register(consul=consul.config(host="0.0.0.0")) as registration:
        assert registration.wait_registered(10)
        assert service(client, registration.id)["Address"] == ""


def test_the_health_path_decides(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with HealthServer() as module, register(port=module.port, check=HTTPCheck(interval="50ms")):
        eventually(lambda: status(client, name) == ["passing"])
        module.status = 429
        eventually(lambda: status(client, name) == ["warning"])
        module.status = 500
        eventually(lambda: status(client, name) == ["critical"])


def test_the_id_is_the_same_after_a_restart_and_another_on_another_port(
    register: Callable[..., Registration],
) -> None:
    assert register().id == register().id
    assert register().id != register(port=8002).id


def test_two_threads_that_start_it_at_once_start_it_once(
    register: Callable[..., Registration], client: ConsulClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, both = process_exit.track, threading.Barrier(2)

    def enter(key: str, running: process_exit.Running) -> process_exit.Running | None:
        with suppress(threading.BrokenBarrierError):
            both.wait(1)
        return entered(key, running)

    monkeypatch.setattr(process_exit, "track", enter)
    registration = register()
    starting = [threading.Thread(target=registration.start) for _ in range(2)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    assert registration.wait_registered(10)
    registration.stop()
    keepers = [thread.name for thread in threading.enumerate() if registration.id in thread.name]
    assert not keepers
    assert not service(client, registration.id)


@pytest.mark.parametrize("line", range(1, 20))
def test_a_signals_handler_may_end_it_at_any_moment_of_its_end(line: int) -> None:
    """It runs wherever the thread is that it interrupts, with all locks that this one holds."""
    registration = discovery.register(name="m", port=80, consul=ConsulConfig(port=1)).start()
    passed = itertools.count(1)

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and next(passed) == line:
            registration.ask_to_stop()
        return interrupt

    def stop() -> None:
        sys.settrace(interrupt)
        registration.ask_to_stop()

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()
    registration.stop()


def test_nothing_is_sent_before_the_start(
    register: Callable[..., Registration], client: ConsulClient
) -> None:
    registration = register()
    assert (registration.state, registration.registered) == (State.STOPPED, False)
    assert not registration.wait_registered(0.2)
    assert not service(client, registration.id)
    registration.stop()


def test_it_can_be_started_again(register: Callable[..., Registration], client: ConsulClient) -> None:
    registration = register()
    for _ in range(2):
        registration.start().start()
        assert registration.wait_registered(10)
        assert service(client, registration.id)
        registration.stop()
        assert registration.state is State.STOPPED
        assert not service(client, registration.id)


def test_fewer_checks_replace_more(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    id = f'{name}/ü "a" \\ b'
    with register(id=id, checks=[TTLCheck(), TCPCheck()]) as first:
        assert first.wait_registered(10)
        eventually(lambda: len(checks(client, name)) == 2)
        with register(id=id, check=TTLCheck()) as second:
            assert second.wait_registered(10)
            eventually(lambda: list(checks(client, name)) == [f"service:{second.id}"])


def test_no_checks_at_all(register: Callable[..., Registration], client: ConsulClient, name: str) -> None:
    with register(checks=[]) as registration:
        assert registration.wait_registered(10)
        eventually(lambda: client.health_service(name).data)
        assert checks(client, name) == {}


# -------------------------------------------------------------------------------------- heartbeats


def test_without_a_check_the_library_says_that_the_process_lives(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with register():
        eventually(lambda: status(client, name) == ["passing"])
        (check,) = checks(client, name).values()
        assert check["Type"] == "ttl"


def test_heartbeats_keep_a_ttl_check_passing(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with register(check=TTLCheck("300ms")):
        eventually(lambda: status(client, name) == ["passing"])
        seen = set()
        until = time.monotonic() + 1.5
        index = 0
        while time.monotonic() < until:
            answer = client.health_service(name, index=index, wait=0.2)
            index = answer.index
            seen |= {check["Status"] for check in answer.data[0]["Checks"] if check["ServiceID"]}
        assert seen == {"passing"}


def test_the_module_reports_its_health(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    def told() -> list[tuple[str, str]]:
        return [(check["Status"], check["Output"]) for check in checks(client, name).values()]

    registration = register(check=TTLCheck("1m"))
    registration.report("warning", "warming up")
    with registration:
        eventually(lambda: status(client, name) == ["warning"])
        registration.report("critical", "no database")
        eventually(lambda: told() == [("critical", "no database")])
        registration.report("passing")
        eventually(lambda: told() == [("passing", "")])


def test_a_ttl_check_that_was_removed_by_hand_comes_back(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with register(check=TTLCheck("300ms")) as registration:
        eventually(lambda: status(client, name) == ["passing"])
        check_id = f"service:{registration.id}"
        first = checks(client, name)[check_id]["CreateIndex"]
        client.api.agent.check.deregister(check_id)

        def has_come_back() -> bool:
            check = checks(client, name).get(check_id)
            return check is not None and check["CreateIndex"] > first and check["Status"] == "passing"

        eventually(has_come_back)


def test_an_odd_note_is_passed_on_as_far_as_it_goes(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    """No request carries half a character, as names of files may hold it, or a note of megabytes."""
    with register() as registration:
        assert registration.wait_registered(10)
        registration.report("warning", "caf\udce9\x00\n" + 2_000_000 * "x")
        eventually(lambda: status(client, name) == ["warning"])
        (check,) = checks(client, name).values()
        assert check["Output"].startswith("caf?")
        assert registration.state is State.REGISTERED


def test_a_report_without_a_ttl_check_is_refused(register: Callable[..., Registration]) -> None:
    registration = register(check=HTTPCheck())
    with pytest.raises(ConfigError) as caught:
        registration.report("fine")
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["report", "report"]
    assert "TTLCheck" in str(caught.value)


# ------------------------------------------------------------------------------------------ renewal


def test_it_comes_back_when_it_was_deregistered_by_hand(
    register: Callable[..., Registration], client: ConsulClient, caplog: pytest.LogCaptureFixture
) -> None:
    with register() as registration:
        assert registration.wait_registered(10)
        for _ in range(3):
            client.deregister(registration.id)
            eventually(lambda: service(client, registration.id), limit=8)
            assert registration.wait_registered(10)
    assert "the agent does not know it any more" in caplog.text


def test_it_is_set_right_when_somebody_altered_it(
    register: Callable[..., Registration],
    client: ConsulClient,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with register(tags=["a"]) as registration:
        assert registration.wait_registered(10)
        # With its check gone as well, a heartbeat could be the first to notice.
        altered = {"Name": name, "ID": registration.id, "Port": 1, "Tags": ["b"]}
        client.register(altered, replace_existing_checks=False)
        eventually(lambda: service(client, registration.id)["Tags"] == ["module", "a"], limit=8)
        assert "somebody altered its tags, meta, port" in caplog.text


def test_maintenance_that_an_operator_set_survives_a_renewal(
    register: Callable[..., Registration], client: ConsulClient, name: str
) -> None:
    with register() as registration:
        assert registration.wait_registered(10)
        client.set_maintenance(registration.id, True, "by hand")
        client.register({"Name": name, "ID": registration.id, "Port": 1}, replace_existing_checks=False)
        eventually(lambda: service(client, registration.id)["Port"] == 8001, limit=8)
        assert f"_service_maintenance:{registration.id}" in checks(client, name)


def test_an_agent_that_is_absent_is_awaited_without_blocking(
    consul_server: StartConsul, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = consul_server()
    server.kill()
    before = time.monotonic()
    registration = discovery.register(name=name, port=8001, consul=server.config()).start()
    assert time.monotonic() - before < 8
    eventually(lambda: registration.state is State.UNAVAILABLE)
    assert not registration.registered
    assert "connection refused" in registration.reason
    server.start()
    with server.client() as client:
        assert registration.wait_registered(5)
        assert service(client, registration.id)
        registration.stop()
        assert not service(client, registration.id)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1, told


def test_an_agent_that_forgot_everything_is_told_again(
    consul_server: StartConsul, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = consul_server()
    with (
        discovery.register(name=name, port=8001, consul=server.config()) as registration,
        server.client() as client,
    ):
        assert registration.wait_registered(10)
        for _ in range(2):
            server.restart()
            eventually(lambda: service(client, registration.id), limit=8)
            eventually(lambda: status(client, name) == ["passing"])
            assert registration.wait_registered(5)


def test_it_is_not_registered_while_the_agent_is_away(consul_server: StartConsul, name: str) -> None:
    server = consul_server()
    with discovery.register(name=name, port=8001, consul=server.config()) as registration:
        assert registration.wait_registered(10)
        server.kill()
        eventually(lambda: registration.state is State.UNAVAILABLE)
        assert not registration.registered
        before = time.monotonic()
    assert time.monotonic() - before < 8


def test_a_hung_agent_does_not_hold_up_the_end(
    consul_server: StartConsul, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = consul_server()
    registration = discovery.register(name=name, port=8001, consul=server.config()).start()
    assert registration.wait_registered(10)
    server.pause()
    before = time.monotonic()
    registration.stop()
    assert time.monotonic() - before < 8
    assert "could not be deregistered: no answer within 2 s" in caplog.text
    server.resume()


def test_a_refusal_is_told_once_and_tried_until_it_is_mended(
    consul_server: StartConsul, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = consul_server(acl=True)
    policy, token = str(uuid.uuid4()), str(uuid.uuid4())
    with server.client(token=server.management_token) as manager:
        manager.send(put_json("/v1/acl/token", {"SecretID": token, "AccessorID": policy}))
        with discovery.register(name=name, port=8001, consul=server.config(token=token)) as registration:
            eventually(lambda: registration.state is State.REJECTED)
            assert "403" in registration.reason
            assert token not in registration.reason
            rules = f'service "{name}" {{ policy = "write" }}'
            manager.send(put_json("/v1/acl/policy", {"Name": "mend", "Rules": rules}))
            manager.send(
                put_json(f"/v1/acl/token/{policy}", {"SecretID": token, "Policies": [{"Name": "mend"}]})
            )
            assert registration.wait_registered(30)
            assert service(manager, registration.id)
        assert not service(manager, registration.id)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1, told
    assert token not in caplog.text


# -------------------------------------------------------------------------------- one id, two times


def test_the_later_of_two_registrations_with_one_id_counts(
    register: Callable[..., Registration], client: ConsulClient
) -> None:
    first = register(meta={"which": "first"}).start()
    assert first.wait_registered(10)
    second = register(meta={"which": "second"}).start()
    eventually(lambda: service(client, first.id)["Meta"].get("which") == "second")
    eventually(lambda: first.state is State.STOPPED)
    first.stop()
    assert second.wait_registered(10)
    assert service(client, second.id)["Meta"]["which"] == "second"
    second.stop()
    assert not service(client, second.id)


def test_where_no_file_can_tell_of_other_processes_it_stands_alone(
    register: Callable[..., Registration],
    client: ConsulClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"lictor-{os.getuid()}").symlink_to(tmp_path)
    with register() as registration:
        assert registration.wait_registered(10)
        assert service(client, registration.id)
    assert not service(client, registration.id)
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------- faults


def test_every_fault_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "ftp://consul")
    with pytest.raises(ConfigError) as caught:
        discovery.register(
            name="my_module",
            port=0,
            id="",
            address="0.0.0.0",
            scheme="ftp",
            tags="module",
            meta={"a.b": "c", "version": "1", "scheme": "https"},
            checks=[HTTPCheck("health", interval="x"), "tcp"],  # type: ignore[list-item]
            deregister_after="soon",
            manifest={"name": "other", "version": "2", "x": float("nan")},
            manifest_path="manifest",
            manifest_port=0,
            version="3",
        )
    told = Counter(fault.split(":")[0] for fault in caught.value.faults)
    once = [
        "name",
        "port",
        "id",
        "address",
        "scheme",
        "tags",
        "deregister_after",
        "version",
        "CONSUL_HTTP_ADDR",
    ]
    assert told == Counter(
        [*once, "manifest_path", "manifest_port", *["manifest"] * 2, *["check"] * 3, *["meta"] * 3]
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        pytest.param(
            {"deregister_after": "30s"}, "deregister_after: Consul waits for 1m at least", id="short"
        ),
        pytest.param({"id": "http://h:1"}, "id: 'http://h:1' has an empty part", id="id as an address"),
        pytest.param({"id": "..", "via": "push"}, "id: '..' has an empty part", id="id of dots"),
        pytest.param({"deregister_after": 0}, "deregister_after: must be longer", id="no time"),
        pytest.param({"via": "pigeon"}, "via (LICTOR_VIA): must be consul or push", id="via"),
        pytest.param(
            {"meta": {str(n): "" for n in range(64)}}, "meta: has 65 pairs, those of the", id="meta"
        ),
        pytest.param({"meta": ["a"]}, "meta: give a mapping", id="meta list"),
        pytest.param({"manifest": ["a"]}, "manifest: give a mapping (got list)", id="manifest list"),
        pytest.param({"manifest": {"name": "m"}}, "manifest: its version must be a text", id="no version"),
        pytest.param({"checks": TTLCheck()}, "checks: give a list", id="checks no list"),
        pytest.param({"module_tag": " "}, "module_tag: is empty", id="module tag"),
        pytest.param({"version": 2}, "version: give a text", id="version number"),
    ],
)
def test_a_fault_is_told(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        discovery.register(**{"name": "m", "port": 80, **arguments})
    (told,) = caught.value.faults
    assert told.startswith(fault)


def test_the_environment_says_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, consul: RunningConsul, client: ConsulClient, name: str
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", consul.http_addr)
    monkeypatch.setenv("LICTOR_MODULE_TAG", "part")
    with discovery.register(name=name, port=8001) as registration:
        assert registration.wait_registered(10)
        assert service(client, registration.id)["Tags"] == ["part"]


def test_the_module_tag_is_not_added_twice() -> None:
    registration = discovery.register(name="m", port=80, tags=("x", "module"))
    assert registration.announcement.tags == ("x", "module")
