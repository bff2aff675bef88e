"""Each kind of change in a real Consul, and what the watcher tells of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from discovery.base import Change, Health, Lost, ServiceInstance
from discovery.consul.call import Call
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.watch.catalog_state import CatalogState
from discovery.consul.watch.watch_session import CONNECTIONS
from discovery.consul.watch.watcher import ConsulWatcher
from tests.consul_proxy import ConsulProxy
from tests.consul_server import ConsulServer, RunningConsul, eventually, put_json
from tests.manifest_server import Behaviour, ManifestServer, answer, reset, silence
from tests.watching import Watching


@pytest.fixture
def name() -> str:
    return f"watched-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def watching(consul: RunningConsul) -> Iterator[Watching]:
    with Watching(ConsulWatcher(consul.config())) as watching:
        eventually(lambda: watching.updates)
        yield watching


def definition(name: str, id_: str = "", **fields: Any) -> dict[str, Any]:
    return {"Name": name, "ID": id_ or name, "Address": "127.0.0.1", "Port": 80, "Tags": ["module"], **fields}


def ttl(check_id: str, status: str = "passing") -> dict[str, Any]:
    return {"CheckID": check_id, "TTL": "10m", "Status": status}


def catalog(name: str, node: str, id_: str = "", **fields: Any) -> Call[Any]:
    service = {"Service": name, "ID": id_ or name, "Tags": ["module"], "Port": 80, **fields}
    return put_json("/v1/catalog/register", {"Node": node, "Address": "127.0.0.9", "Service": service})


def gone_from_catalog(node: str) -> Call[Any]:
    return put_json("/v1/catalog/deregister", {"Node": node})


def health_is(watching: Watching, name: str, id_: str, health: Health) -> None:
    eventually(lambda: watching.of(name).get(id_) and watching.of(name)[id_].health == health)


def knows(watching: Watching, name: str, id_: str) -> bool:
    return id_ in watching.of(name)


def has(watching: Watching, name: str, count: int) -> bool:
    return len(watching.of(name)) == count


def first_told(watching: Watching, name: str, id_: str = "") -> ServiceInstance:
    eventually(lambda: (id_ or name) in watching.of(name))
    return watching.of(name)[id_ or name]


def test_the_first_word_is_complete(consul: RunningConsul, client: ConsulClient, name: str) -> None:
    client.register(definition(name))
    client.register(definition(f"{name}-other", Tags=["web"]))
    with Watching(ConsulWatcher(consul.config())) as watching:
        eventually(lambda: watching.updates)
        first = watching.updates[0]
        assert isinstance(first, Change)
        assert first.complete
        assert first.source == "consul"
        assert list(watching.of(name)) == [name]
        assert not watching.of(f"{name}-other"), "without the tag it is no module"


def test_the_first_word_takes_a_query_a_node(consul_server: Callable[..., ConsulServer]) -> None:
    server = consul_server()
    checks = {"m-0": "critical", "m-1": "warning", "m-2": "passing", "m-5": "critical"}
    with server.client() as client, ConsulProxy(server.http_addr) as proxy:
        for number in range(12):
            name, node = f"m-{number}", f"node-{number % 3}"
            client.send(catalog(name, node, Meta={"n": str(number)}, Port=100 + number))
            if name in checks:
                check = {
                    "Node": node,
                    "CheckID": name,
                    "Name": name,
                    "Status": checks[name],
                    "ServiceID": name,
                }
                client.send(
                    put_json("/v1/catalog/register", {"Node": node, "Address": "127.0.0.9", "Check": check})
                )
        client.send(catalog("m-0", "node-1", "m-0-b", Tags=["other"]))
        client.send(catalog("m-0", "node-2", "m-0-c", Address="127.0.0.7"))
        disk = {"Node": "node-2", "CheckID": "_node_maintenance", "Name": "disk", "Status": "critical"}
        client.send(
            put_json("/v1/catalog/register", {"Node": "node-2", "Address": "127.0.0.9", "Check": disk})
        )
        with Watching(ConsulWatcher(proxy.config())) as watching:
            eventually(lambda: watching.updates)
            first = watching.updates[0]
            assert isinstance(first, Change)
            assert first.complete
            assert not [asked for asked in proxy.requests if asked.path.startswith("/v1/health/service")]
            told = {instance.id: instance for instance in first.present}
            assert set(told) == {*(f"m-{number}" for number in range(12)), "m-0-c"}
            for number in range(12):
                instance, node = told[f"m-{number}"], f"node-{number % 3}"
                assert (instance.port, instance.meta) == (100 + number, {"n": str(number)})
                assert (instance.node, instance.address) == (node, "127.0.0.9")
                health = checks.get(instance.id, "passing") if node != "node-2" else "maintenance"
                assert instance.health == health
            assert told["m-0-c"].address == "127.0.0.7"
            for number in (3, 4, 5):
                client.send(catalog(f"m-{number}", f"node-{number % 3}", Meta={"n": "new"}))
                eventually(lambda n=number: watching.of(f"m-{n}")[f"m-{n}"].meta == {"n": "new"})  # type: ignore[misc]
            client.send(
                put_json("/v1/catalog/deregister", {"Node": "node-2", "CheckID": "_node_maintenance"})
            )
            health_is(watching, "m-2", "m-2", Health.PASSING)
            health_is(watching, "m-5", "m-5", Health.CRITICAL)


def test_an_instance_comes_and_goes(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Meta={"scheme": "https", "k": "v"}, Tags=["module", "web"]))
    told = first_told(watching, name)
    assert told == ServiceInstance(
        module=name,
        id=name,
        address="127.0.0.1",
        port=80,
        scheme="https",
        node=told.node,
        datacenter="dc1",
        tags=("module", "web"),
        meta={"scheme": "https", "k": "v"},
    )
    assert told.node
    client.deregister(name)
    eventually(lambda: not watching.of(name))


def test_a_second_instance_with_and_without_checks(
    client: ConsulClient, watching: Watching, name: str
) -> None:
    for id_, fields in {"one": {}, "two": {}, "three": {"Check": ttl(f"{name}-three")}}.items():
        client.register(definition(name, f"{name}-{id_}", **fields))
        eventually(partial(knows, watching, name, f"{name}-{id_}"))
    for left, id_ in ((2, "one"), (1, "three"), (0, "two")):
        client.deregister(f"{name}-{id_}")
        eventually(partial(has, watching, name, left))


def test_a_check_turns(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Check=ttl(name)))
    health_is(watching, name, name, Health.PASSING)
    for turn, health in (
        (client.warn_check, Health.WARNING),
        (client.fail_check, Health.CRITICAL),
        (client.pass_check, Health.PASSING),
        (client.fail_check, Health.CRITICAL),
        (client.warn_check, Health.WARNING),
        (client.pass_check, Health.PASSING),
    ):
        turn(name)
        health_is(watching, name, name, health)


def test_the_worst_of_several_checks_counts(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Checks=[ttl(f"{name}-a"), ttl(f"{name}-b", "warning")]))
    health_is(watching, name, name, Health.WARNING)
    client.fail_check(f"{name}-a")
    health_is(watching, name, name, Health.CRITICAL)
    client.pass_check(f"{name}-a")
    health_is(watching, name, name, Health.WARNING)


def test_registered_unwell(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Check=ttl(name, "critical")))
    health_is(watching, name, name, Health.CRITICAL)
    assert {told.health for told in watching.told_of(name)} == {Health.CRITICAL}, "never once told as well"


def test_maintenance_of_an_instance(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name))
    health_is(watching, name, name, Health.PASSING)
    client.set_maintenance(name, True, "upgrade")
    health_is(watching, name, name, Health.MAINTENANCE)
    client.set_maintenance(name, False)
    health_is(watching, name, name, Health.PASSING)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"Address": "127.0.0.2"}, id="address"),
        pytest.param({"Port": 81}, id="port"),
        pytest.param({"Meta": {"k": "v"}}, id="meta"),
        pytest.param({"Tags": ["module", "x"]}, id="tags"),
    ],
)
@pytest.mark.parametrize("checked", [True, False], ids=["with a check", "without checks"])
def test_an_altered_registration(
    client: ConsulClient, watching: Watching, name: str, fields: dict[str, Any], checked: bool
) -> None:
    checks: dict[str, Any] = {"Check": ttl(name)} if checked else {}
    beside: dict[str, Any] = {"Check": ttl(f"{name}-b")} if checked else {}
    client.register({**definition(name), **checks})
    client.register({**definition(name, f"{name}-beside"), **beside})
    eventually(lambda: len(watching.of(name)) == 2)
    before = watching.of(name)[name]
    client.register({**definition(name), **checks, **fields})
    eventually(lambda: watching.of(name)[name] != before)
    after = watching.of(name)[name]
    (field,) = fields
    told = {"Address": after.address, "Port": after.port, "Meta": after.meta, "Tags": list(after.tags)}
    assert told[field] == fields[field]


def test_the_tag_makes_and_unmakes_a_module(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Tags=[]))
    client.register(definition(f"{name}-marker"))
    eventually(lambda: watching.of(f"{name}-marker"))
    assert not watching.of(name)
    client.register(definition(name))
    eventually(lambda: watching.of(name))
    client.register(definition(name, Tags=["web"]))
    eventually(lambda: not watching.of(name))


def test_one_instance_of_two_loses_the_tag(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, f"{name}-1"))
    client.register(definition(name, f"{name}-2"))
    eventually(lambda: len(watching.of(name)) == 2)
    client.register(definition(name, f"{name}-2", Tags=[]))
    eventually(lambda: list(watching.of(name)) == [f"{name}-1"])


def test_a_rename_with_the_same_id(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, "same"))
    eventually(lambda: watching.of(name))
    client.register(definition(f"{name}-new", "same"))
    eventually(lambda: watching.of(f"{name}-new") and not watching.of(name))
    client.deregister("same")


def test_two_modules_whose_names_differ_by_case_only(
    client: ConsulClient, watching: Watching, name: str
) -> None:
    """Asked for one, Consul answers with the instances of both."""
    loud = name.upper()
    client.register(definition(name, f"{name}-1", Check=ttl(f"{name}-1")))
    client.register(definition(loud, f"{name}-2", Check=ttl(f"{name}-2", "warning")))
    eventually(lambda: watching.of(name) and watching.of(loud))
    assert (list(watching.of(name)), list(watching.of(loud))) == ([f"{name}-1"], [f"{name}-2"])
    client.deregister(f"{name}-1")
    eventually(lambda: not watching.of(name))
    assert list(watching.of(loud)) == [f"{name}-2"]
    assert not [update for update in watching.updates if isinstance(update, Lost)]
    client.deregister(f"{name}-2")


def test_a_node_whose_name_is_written_otherwise_keeps_its_checks(
    consul_server: Callable[..., ConsulServer],
) -> None:
    """To Consul it is the same node: its instances are told under the new name, its checks under the old."""
    server = consul_server()

    def place(node: str) -> dict[str, Any]:
        return {"Node": node, "Address": "127.0.0.9"}

    def check(node: str, number: int, status: str) -> Call[Any]:
        said = {"Node": node, "CheckID": f"c-{number}", "Name": "c", "ServiceID": f"m-{number}"}
        return put_json("/v1/catalog/register", {**place(node), "Check": {**said, "Status": status}})

    with server.client() as client:
        for number in range(4):
            client.send(catalog(f"m-{number}", "one"))
            client.send(check("one", number, "critical"))
        client.send(put_json("/v1/catalog/register", place("ONE")))
        with Watching(ConsulWatcher(server.config())) as watching:
            eventually(lambda: watching.updates)
            assert {key.node for key in watching.instances} == {"ONE"}
            assert {one.health for one in watching.instances.values()} == {Health.CRITICAL}
            client.send(check("one", 0, "warning"))
            health_is(watching, "m-0", "m-0", Health.WARNING)
            client.send(check("ONE", 0, "passing"))
            health_is(watching, "m-0", "m-0", Health.PASSING)
            assert {watching.of(name)[name].health for name in ("m-1", "m-2", "m-3")} == {Health.CRITICAL}


ODD_NAMES = ["a//b", "/a", "..", "a/../b", "nul\x00", "line\nfeed", "l" * 70_000]


@pytest.mark.parametrize("nodes", [1, 9], ids=["node by node", "service by service"])
def test_a_service_that_consul_cannot_be_asked_for_hides_no_other(
    consul_server: Callable[..., ConsulServer], caplog: pytest.LogCaptureFixture, nodes: int
) -> None:
    names = ["plain", "with/slash", "ünï ☃", "trailing/"]
    server = consul_server()
    with server.client() as client:
        for number in range(nodes):
            client.send(catalog("no module", f"node-{number}", Tags=[]))
        for name in [*names, *ODD_NAMES[:4]]:
            client.send(catalog(name, "node"))
        with Watching(ConsulWatcher(server.config())) as watching:
            eventually(lambda: watching.updates)
            assert {key.module for key in watching.instances} == set(names)
            for odd in ODD_NAMES:
                client.send(catalog(odd, "node"))
            client.send(catalog("late", "node"))
            eventually(lambda: watching.of("late"))
            assert {key.module for key in watching.instances} == {*names, "late"}
            assert not [update for update in watching.updates if isinstance(update, Lost)]
    assert caplog.text.count("'a//b' has an empty part") == 1


@pytest.mark.parametrize("odd", ["a//b", "..", "nul\x00"])
def test_a_node_that_consul_cannot_be_asked_for_hides_nothing(
    consul_server: Callable[..., ConsulServer], odd: str
) -> None:
    server = consul_server()
    with server.client() as client:
        for number in range(5):
            client.send(catalog(f"m-{number}", "node"))
        client.send(catalog("m-0", odd, "odd"))
        with Watching(ConsulWatcher(server.config())) as watching:
            eventually(lambda: watching.updates)
            assert set(watching.of("m-0")) == {"m-0", "odd"}
            client.send(catalog("m-1", odd, "late"))
            client.send(catalog("m-2", odd, "m-2", Meta={"k": "v"}))
            eventually(lambda: "late" in watching.of("m-1") and len(watching.instances) == 8)
            assert not [update for update in watching.updates if isinstance(update, Lost)]


def test_what_no_database_takes_is_left_out(client: ConsulClient, watching: Watching, name: str) -> None:
    client.send(catalog(name, f"{name}-node", "i" * 700))
    client.send(catalog(name, f"{name}-node", Port=2**62))
    told = first_told(watching, name)
    assert (told.port, list(watching.of(name))) == (0, [name])
    client.send(gone_from_catalog(f"{name}-node"))


def test_one_id_on_two_external_nodes(client: ConsulClient, watching: Watching, name: str) -> None:
    nodes = [f"{name}-a", f"{name}-b"]
    for node in nodes:
        client.send(catalog(name, node))
    eventually(lambda: {key.node for key in watching.instances if key.module == name} == set(nodes))
    client.send(gone_from_catalog(nodes[0]))
    eventually(lambda: {key.node for key in watching.instances if key.module == name} == {nodes[1]})
    client.send(gone_from_catalog(nodes[1]))
    eventually(lambda: not watching.of(name))


def test_without_an_address_the_nodes_counts(client: ConsulClient, watching: Watching, name: str) -> None:
    client.send(catalog(name, f"{name}-node"))
    told = first_told(watching, name)
    assert told.address == "127.0.0.9"
    client.send(gone_from_catalog(f"{name}-node"))


@pytest.mark.parametrize("checked", [True, False], ids=["with a check", "without checks"])
def test_a_nodes_address_changes(client: ConsulClient, watching: Watching, name: str, checked: bool) -> None:
    node, check = f"{name}-node", {"CheckID": name, "Name": name, "ServiceID": name, "Status": "passing"}
    client.send(catalog(name, node))
    if checked:
        body = {"Node": node, "Address": "127.0.0.9", "Check": {**check, "Node": node}}
        client.send(put_json("/v1/catalog/register", body))
    client.send(catalog(name, node, f"{name}-own", Address="127.0.0.7"))
    eventually(lambda: len(watching.of(name)) == 2)
    client.send(put_json("/v1/catalog/register", {"Node": node, "Address": "127.0.0.8"}))
    eventually(lambda: watching.of(name)[name].address == "127.0.0.8")
    assert watching.of(name)[f"{name}-own"].address == "127.0.0.7"
    client.send(gone_from_catalog(node))


def test_a_nodes_check_counts_for_all_its_instances(
    client: ConsulClient, watching: Watching, name: str
) -> None:
    node = f"{name}-node"
    for id_ in ("a", "b"):
        client.send(catalog(name, node, id_))
    eventually(lambda: len(watching.of(name)) == 2)
    for status in (Health.CRITICAL, Health.WARNING, Health.PASSING):
        check = {"Node": node, "CheckID": "disk", "Name": "disk", "Status": status}
        client.send(put_json("/v1/catalog/register", {"Node": node, "Address": "127.0.0.9", "Check": check}))
        for id_ in ("a", "b"):
            health_is(watching, name, id_, status)
    client.send(gone_from_catalog(node))


def test_maintenance_of_a_node(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    with server.client() as client, Watching(ConsulWatcher(server.config())) as watching:
        client.register(definition(name, Check=ttl(name)))
        client.register(definition(f"{name}-other"))
        for enable, health in (("true", Health.MAINTENANCE), ("false", Health.PASSING)):
            params = [("enable", enable), ("reason", "a new kernel")]
            path = "/v1/agent/maintenance"
            client.send(Call(method="PUT", path=path, params=params, parse=lambda reply: None))
            for module in (name, f"{name}-other"):
                health_is(watching, module, module, health)


@pytest.mark.parametrize("first", ["the new one first", "the old one first"])
def test_an_instance_moves_to_another_node(
    client: ConsulClient, watching: Watching, name: str, first: str
) -> None:
    old, new = f"{name}-old", f"{name}-new"
    client.send(catalog(name, old))
    client.send(catalog(name, old, f"{name}-stays"))
    eventually(lambda: len(watching.of(name)) == 2)
    leaves = put_json("/v1/catalog/deregister", {"Node": old, "ServiceID": name})
    steps = [catalog(name, new), leaves]
    for step in steps if first == "the new one first" else reversed(steps):
        client.send(step)
    wanted = {(new, name), (old, f"{name}-stays")}
    eventually(lambda: {(key.node, key.id) for key in watching.instances if key.module == name} == wanted)
    for node in (old, new):
        client.send(gone_from_catalog(node))


def test_a_node_that_goes_takes_its_instances_along(
    client: ConsulClient, watching: Watching, name: str
) -> None:
    node = f"{name}-node"
    for id_ in ("a", "b"):
        client.send(catalog(name, node, id_))
    client.send(catalog(name, f"{name}-other", "c"))
    eventually(lambda: len(watching.of(name)) == 3)
    client.send(gone_from_catalog(node))
    eventually(lambda: list(watching.of(name)) == ["c"])
    client.send(gone_from_catalog(f"{name}-other"))


def test_a_second_instance_on_a_node_that_is_new(client: ConsulClient, watching: Watching, name: str) -> None:
    client.send(catalog(name, f"{name}-0", "0"))
    eventually(lambda: watching.of(name))
    for number in range(1, 6):
        client.send(catalog(name, f"{name}-{number}", str(number)))
        eventually(partial(knows, watching, name, str(number)))
    for number in range(6):
        client.send(gone_from_catalog(f"{name}-{number}"))


def test_what_changed_last_is_looked_at_first(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    with server.client() as client, ConsulProxy(server.http_addr) as proxy:
        for number in range(60):
            client.send(catalog(f"{name}-{number}", f"node-{number % 30}"))
        with Watching(ConsulWatcher(proxy.config())) as watching:
            eventually(lambda: watching.updates)
            client.send(catalog(name, "node-7", f"{name}-first"))
            eventually(lambda: watching.of(name))
            asked = len(proxy.requests)
            client.send(catalog(name, "node-20", f"{name}-second"))
            eventually(lambda: f"{name}-second" in watching.of(name))
            reads = [request.path for request in proxy.requests[asked:] if not request.blocks]
            services = [path for path in reads if path.startswith("/v1/health/service/")]
            assert services[0] == f"/v1/health/service/{name}"
            assert len(set(services)) <= 3, "no others are read but those that changed"


def test_a_check_is_taken_away(client: ConsulClient, watching: Watching, name: str) -> None:
    node = f"{name}-node"
    client.send(catalog(name, node))
    check = {"Node": node, "CheckID": "c", "Name": "c", "ServiceID": name, "Status": "critical"}
    client.send(put_json("/v1/catalog/register", {"Node": node, "Address": "127.0.0.9", "Check": check}))
    health_is(watching, name, name, Health.CRITICAL)
    client.send(put_json("/v1/catalog/deregister", {"Node": node, "CheckID": "c"}))
    health_is(watching, name, name, Health.PASSING)
    client.send(gone_from_catalog(node))


@pytest.mark.parametrize("status", [Health.PASSING, Health.WARNING, Health.CRITICAL])
def test_only_the_output_of_a_check_that_consul_does_write(
    client: ConsulClient, watching: Watching, name: str, status: Health
) -> None:
    node = f"{name}-node"
    client.send(catalog(name, node))

    def say(output: str) -> None:
        check = {"Node": node, "CheckID": "c", "Name": "c", "ServiceID": name, "Status": status}
        body = {"Node": node, "Address": "127.0.0.9", "Check": {**check, "Output": output}}
        client.send(put_json("/v1/catalog/register", body))

    say("as ever")
    health_is(watching, name, name, status)
    told = len(watching.told_of(name))
    for number in range(5):
        say(f"output {number}")
    client.register(definition(f"{name}-marker"))
    eventually(lambda: watching.of(f"{name}-marker"))
    assert len(watching.told_of(name)) == told
    client.send(gone_from_catalog(node))


def test_only_the_output_of_a_check(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Check=ttl(name)))
    health_is(watching, name, name, Health.PASSING)
    told = len(watching.told_of(name))
    for number in range(5):
        client.pass_check(name, f"note {number}")
    client.register(definition(f"{name}-marker"))
    eventually(lambda: watching.of(f"{name}-marker"))
    assert len(watching.told_of(name)) == told


def test_ipv6_no_port_and_odd_names(client: ConsulClient, watching: Watching, name: str) -> None:
    odd = f"{name} ü/%2F?#"
    client.register(definition(odd, "id with / and ?", Address="::1", Port=0))
    told = first_told(watching, odd, "id with / and ?")
    assert (told.address, told.port) == ("::1", 0)
    client.deregister("id with / and ?")
    eventually(lambda: not watching.of(odd))


def test_sidecar_proxies_are_no_instances(client: ConsulClient, watching: Watching, name: str) -> None:
    client.register(definition(name, Connect={"SidecarService": {}}))
    eventually(lambda: name in watching.of(name))
    client.register(definition(f"{name}-marker"))
    eventually(lambda: watching.of(f"{name}-marker"))
    assert not watching.of(f"{name}-sidecar-proxy")
    client.deregister(name)


def test_a_consul_that_comes_later(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    server.kill()
    with Watching(ConsulWatcher(server.config())) as watching:
        eventually(lambda: watching.updates)
        first = watching.updates[0]
        assert isinstance(first, Lost)
        assert server.http_addr in first.reason
        server.start()
        eventually(lambda: isinstance(watching.updates[-1], Change))


def test_a_consul_that_forgot_is_told_as_it_is(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    with server.client() as client:
        client.register(definition(name))
        with Watching(ConsulWatcher(server.config())) as watching:
            eventually(lambda: watching.of(name))
            server.restart()
            eventually(lambda: not watching.of(name))
            client.register(definition(name))
            eventually(lambda: watching.of(name))
            told = [update for update in watching.updates if isinstance(update, Change) and update.complete]
            assert len(told) >= 2, "whatever was known was told again"


def test_rights_that_come_back_move_no_index(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server(acl=True)
    rules = 'node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }'
    policy = server.create_policy(rules)
    config = server.config(token=server.create_token_of(policy))
    writer = server.create_token('service_prefix "" { policy = "write" }')
    with (
        ConsulClient(server.config(token=writer)) as client,
        Watching(ConsulWatcher(config, contact=0.5)) as watching,
    ):
        client.register(definition(name, Check=ttl(name)))
        client.warn_check(name)
        eventually(lambda: watching.of(name) and watching.of(name)[name].health is Health.WARNING)
        server.change_policy(policy, 'agent_prefix "" { policy = "read" }')
        eventually(lambda: not watching.of(name))
        server.change_policy(policy, rules)
        eventually(lambda: watching.of(name) and watching.of(name)[name].health is Health.WARNING)


def test_a_watch_without_rights_is_refused(consul_server: Callable[..., ConsulServer]) -> None:
    server = consul_server(acl=True)
    with Watching(ConsulWatcher(server.config(token="nobody-knows-this"))) as watching:
        eventually(lambda: watching.updates)
        first = watching.updates[0]
        assert isinstance(first, Lost)
        assert "token" in first.reason


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(answer("Permission denied", status="403 Forbidden"), id="403"),
        pytest.param(answer("slow down", status="429 Too Many Requests"), id="429"),
        pytest.param(answer("No cluster leader", status="500 Internal Server Error"), id="500"),
        pytest.param(answer("{broken", headers={"X-Consul-Index": "7"}), id="broken JSON"),
        pytest.param(answer(""), id="an empty answer"),
        pytest.param(reset, id="a broken connection"),
        pytest.param(silence, id="no answer at all"),
    ],
)
def test_answers_that_cannot_be_used(behaviour: Behaviour) -> None:
    paths = (
        "/v1/catalog/services",
        "/v1/catalog/nodes",
        "/v1/health/state/critical",
        "/v1/health/state/warning",
    )
    with ManifestServer(dict.fromkeys(paths, behaviour)) as server:
        config = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": f"{server.host}:{server.port}"})
        with Watching(ConsulWatcher(replace(config, timeout=0.2), wait=0.1)) as watching:
            eventually(lambda: len(watching.updates) >= 2)
            assert all(isinstance(update, Lost) for update in watching.updates)


def test_answers_without_an_index_are_not_asked_for_in_a_hurry() -> None:
    answers = {
        "/v1/catalog/services": answer("{}"),
        "/v1/catalog/nodes": answer("[]"),
        "/v1/health/state/critical": answer("[]"),
        "/v1/health/state/warning": answer("[]"),
        "/v1/health/state/any": answer("[]"),
    }
    with ManifestServer(answers) as server:
        config = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": f"{server.host}:{server.port}"})
        with Watching(ConsulWatcher(config, wait=0.1)):
            begun = time.monotonic()
            server.wait_for_requests(60)
            assert time.monotonic() - begun > 0.3, "each time round it waits longer"


def test_a_handful_of_connections(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    with server.client() as client:
        for number in range(60):
            client.register(definition(f"{name}-{number}"))
        with Watching(ConsulWatcher(server.config())) as watching:
            eventually(lambda: len(watching.instances) == 60)
            for number in range(60):
                client.register(definition(f"{name}-{number}", Port=81))
            eventually(lambda: {told.port for told in watching.instances.values()} == {81})
            port = int(server.http_addr.rpartition(":")[2])
            assert 4 <= connections_to(port) - 1 <= CONNECTIONS, "the test's own client has one"


def connections_to(port: int) -> int:
    """How many established connections of this machine lead to a port of it."""
    suffix, established = f":{port:04X}", "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(suffix) and row[3] == established for row in rows)


CHECK = {"Node": "n", "ServiceID": "i", "CheckID": "c"}


def entry(status: str) -> dict[str, Any]:
    return {
        "Node": {"Node": "n", "Address": "127.0.0.1", "Datacenter": "dc1"},
        "Service": {"Service": "m", "ID": "i", "Tags": ["module"], "Port": 1},
        "Checks": [{**CHECK, "Status": status}],
    }


def mirror() -> CatalogState:
    mirror = CatalogState("module")
    mirror.apply_catalog({"m": ["module"], "consul": []})
    mirror.apply_checks(Health.CRITICAL, [], 5)
    mirror.apply_checks(Health.WARNING, [], 5)
    return mirror


def healths(instances: list[ServiceInstance]) -> list[Health]:
    return [instance.health for instance in instances]


def test_answers_that_cross__the_read_is_older_than_the_watch() -> None:
    crossed = mirror()
    crossed.apply_checks(Health.CRITICAL, [CHECK], 9)
    crossed.apply_checks(Health.CRITICAL, [], 11)
    altered, _ = crossed.apply_service("m", [entry("critical")], 10)
    assert healths(altered) == [Health.PASSING], "at 11 the check was well again"


def test_answers_that_cross__the_read_is_newer_than_the_watch() -> None:
    crossed = mirror()
    altered, _ = crossed.apply_service("m", [entry("critical")], 10)
    assert healths(altered) == [Health.CRITICAL]
    assert crossed.apply_checks(Health.CRITICAL, [CHECK], 10) == ([], [])
    assert crossed.apply_checks(Health.CRITICAL, [], 12) == ([], ["m"])
    assert healths(crossed.apply_service("m", [entry("passing")], 12)[0]) == [Health.PASSING]


def test_answers_that_cross__unwell_and_well_again_before_the_watch_told() -> None:
    crossed = mirror()
    crossed.apply_service("m", [entry("critical")], 10)
    assert crossed.apply_checks(Health.CRITICAL, [], 12) == ([], ["m"])
    assert healths(crossed.apply_service("m", [entry("passing")], 12)[0]) == [Health.PASSING]


def test_answers_that_cross__from_one_unwell_state_to_the_other() -> None:
    crossed = mirror()
    crossed.apply_checks(Health.WARNING, [CHECK], 10)
    crossed.apply_service("m", [entry("warning")], 10)
    assert crossed.apply_checks(Health.WARNING, [], 12) == ([], ["m"]), "it is not said to be well"
    assert healths(crossed.apply_checks(Health.CRITICAL, [CHECK], 12)[0]) == [Health.CRITICAL]


def test_answers_that_cross__an_unwell_instance_goes() -> None:
    crossed = mirror()
    crossed.apply_checks(Health.CRITICAL, [CHECK], 10)
    crossed.apply_service("m", [entry("critical")], 10)
    assert crossed.apply_checks(Health.CRITICAL, [], 12) == ([], ["m"])
    altered, gone = crossed.apply_service("m", [], 12)
    assert (altered, [key.id for key in gone]) == ([], ["i"])


def test_odd_entries_are_survived() -> None:
    odd = mirror()
    entries: list[dict[str, Any]] = [
        {"Node": None, "Service": {"Service": "m", "ID": "x\x00\ud800", "Tags": ["module"]}, "Checks": None},
        {"Node": {}, "Service": {"Service": "m", "ID": "y", "Tags": ["module"], "Meta": None, "Port": None}},
        {"Node": {}, "Service": {"Service": "m", "ID": "z", "Tags": None}},
    ]
    altered, _ = odd.apply_service("m", entries, 6)
    assert [instance.id for instance in altered] == ["x\ufffd?", "y"]
    for told in altered:
        told.id.encode()
