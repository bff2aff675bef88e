"""The main road: a module registers in a real Consul, its manifest is in the tables; and what goes wrong."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from discovery.base import Health, ServiceInstance
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.registries import configured
from manifest_cache import sync as sync_module
from manifest_cache import wakeup as wake_module
from manifest_cache.ingest import push_registry as push_module
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.ledger import ledger as ledger_module
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import InstanceRow, ModuleRow, PushLeaseRow
from manifest_cache.storage.reader import Reader
from manifest_cache.sync import Synchronizer
from tests.consul_server import ConsulServer, RunningConsul, eventually, put_json
from tests.manifest_server import Behaviour, ManifestServer, answer, in_pieces, manifest, reset, silence
from tests.watching import Beside


class Sync:
    """A synchronizer over a database of its own, and what is read there."""

    def __init__(self, settings: CacheSettings, consul: ConsulConfig | None) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.database.migrate()
        self.reader = Reader(self.database)
        self.push = PushTables(self.database, settings)
        self.store = Store(self.database, settings)
        self._consul = consul

    def running(self) -> Beside:
        return Beside(
            lambda: Synchronizer(self.settings, configured(self.settings, {}, {"consul": self._consul})).run()
        )

    def module(self, name: str) -> ModuleRow | None:
        with self.reader.snapshot() as snapshot:
            return snapshot.module(name)

    def instances(self, name: str) -> list[InstanceRow]:
        with self.reader.snapshot() as snapshot:
            return snapshot.instances([name])[name]

    def version(self, name: str) -> str | None:
        found = self.module(name)
        return found.version if found else None

    def error(self, name: str) -> str | None:
        rows = self.instances(name)
        return rows[0].error_type if rows else None


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Sync]]:
    made: list[Sync] = []

    def make(consul: ConsulConfig | None = None, **settings: Any) -> Sync:
        url = f"sqlite:///{tmp_path}/lictor-{len(made)}.db"
        defaults: dict[str, Any] = {"database_url": url, "fetch_deadline": 1.0}
        made.append(Sync(CacheSettings(**(defaults | settings)), consul))
        return made[-1]

    yield make
    for sync in made:
        sync.database.close()


@pytest.fixture
def sync(make: Callable[..., Sync], consul: RunningConsul) -> Iterator[Sync]:
    sync = make(consul.config())
    with sync.running():
        yield sync


@pytest.fixture
def client(consul: RunningConsul) -> Iterator[ConsulClient]:
    with consul.client() as client:
        yield client


@pytest.fixture
def name() -> str:
    return f"synced-{uuid.uuid4().hex[:8]}"


def definition(server: ManifestServer, name: str, **fields: Any) -> dict[str, Any]:
    check = {"CheckID": fields.get("ID", name), "TTL": "10m", "Status": "passing"}
    place = {"Address": server.host, "Port": server.port}
    return {"Name": name, "Tags": ["module"], "Check": check, **place, **fields}


def serving(name: str, version: str = "1.0.0", path: str = "/manifest") -> ManifestServer:
    return ManifestServer({path: manifest({"name": name, "version": version})})


def test_from_registration_to_the_tables(sync: Sync, client: ConsulClient, name: str) -> None:
    with serving(name) as server:
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        found = sync.module(name)
        assert found is not None
        assert (found.status, found.registries, found.datacenters) == ("available", ["consul"], ["dc1"])
        server.routes["/manifest"] = manifest({"name": name, "version": "1.1.0"})
        client.fail_check(name)
        eventually(lambda: (module := sync.module(name)) and module.status == "unavailable")
        client.pass_check(name)
        eventually(lambda: sync.version(name) == "1.1.0")
        client.deregister(name)
        eventually(lambda: (module := sync.module(name)) and module.total == 0)
        assert sync.version(name) == "1.1.0"


def test_the_path_comes_from_the_meta(sync: Sync, client: ConsulClient, name: str) -> None:
    with serving(name, path="/a/b.json") as server:
        client.register(definition(server, name, Meta={"manifest_path": "/a/b.json"}))
        eventually(lambda: sync.version(name) == "1.0.0")


def doubted(sync: Sync) -> bool:
    """Whether what Consul tells is."""
    with sync.reader.snapshot() as snapshot:
        return any(source.doubt is not None for source in snapshot.sources if source.name == "consul")


HTML = answer("<!doctype html><title>Welcome</title>", headers={"Content-Type": "text/html"})
DEEP = answer("[" * 10_000 + "]" * 10_000)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        pytest.param(HTML, "not-json", id="HTML with 200"),
        pytest.param(answer("[]"), "not-an-object", id="not an object"),
        pytest.param(answer('{"version": "1.0.0"}'), "invalid", id="no name"),
        pytest.param(
            answer('{"name": "somebody-else", "version": "1.0.0"}'), "wrong-module", id="other name"
        ),
        pytest.param(DEEP, "too-deep", id="10,000 deep"),
        pytest.param(answer("{" + " " * 50_000_000 + "}"), "too-large", id="50 MB"),
        pytest.param(in_pieces([b"HTTP/1.1 200 OK\r\n\r\n", *[b" "] * 100], 0.1), "timeout", id="trickle"),
        pytest.param(silence, "timeout", id="never comes"),
        pytest.param(reset, "bad-response", id="reset"),
        pytest.param(
            answer(status="302 Found", headers={"Location": "http://169.254.169.254/"}),
            "redirect",
            id="redirect",
        ),
        pytest.param(answer(status="500 Internal Server Error"), "http-status", id="500"),
        pytest.param(answer(""), "empty", id="empty"),
    ],
)
def test_a_bad_manifest_is_told_and_the_good_one_stays(
    sync: Sync, client: ConsulClient, name: str, behaviour: Behaviour, error: str
) -> None:
    with serving(name) as server, serving(f"{name}-good") as good:
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        server.routes["/manifest"] = behaviour
        client.register(definition(server, name, Meta={"restarted": "yes"}))
        eventually(lambda: sync.error(name) == error)
        (row,) = sync.instances(name)
        assert row.error_detail
        assert row.fetch_at is not None, "it is tried again"
        assert sync.version(name) == row.version == "1.0.0"
        client.register(definition(good, f"{name}-good"))
        eventually(lambda: sync.version(f"{name}-good") == "1.0.0")
        server.routes["/manifest"] = manifest({"name": name, "version": "2.0.0"})
        eventually(lambda: sync.version(name) == "2.0.0" and sync.error(name) is None)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"Port": 1}, "unreachable", id="nobody listens"),
        pytest.param({"Port": 0}, "no-port", id="no port"),
        pytest.param({"Meta": {"manifest_path": "//evil.example/x"}}, "bad-path", id="bad path"),
        pytest.param({"Meta": {"scheme": "file"}}, "bad-scheme", id="bad scheme"),
    ],
)
def test_a_registration_from_which_nothing_can_be_fetched(
    sync: Sync, client: ConsulClient, name: str, fields: dict[str, Any], error: str
) -> None:
    with serving(name) as server:
        client.register(definition(server, name, **fields))
        eventually(lambda: sync.error(name) == error)
        found = sync.module(name)
        assert found is not None
        assert found.status == "available", "its health is its own matter"
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")


def test_ipv6(sync: Sync, client: ConsulClient, name: str) -> None:
    with ManifestServer({"/manifest": manifest({"name": name, "version": "1.0.0"})}, host="::1") as server:
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")


def test_a_known_manifest_is_asked_for_again(
    make: Callable[..., Sync], consul: RunningConsul, client: ConsulClient, name: str
) -> None:
    sync = make(consul.config(), revalidate=0.2)
    with sync.running(), serving(name) as server:
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        index = sync.reader.index()
        server.wait_for_requests(3)
        assert "if-none-match" in server.requests[-1].headers
        with sync.reader.snapshot() as snapshot:
            assert not [event for event in snapshot.events(after=index) if event.module == name]
        server.routes["/manifest"] = manifest({"name": name, "version": "1.0.1"})
        eventually(lambda: sync.version(name) == "1.0.1")


def test_consul_absent_then_there_then_wiped(
    make: Callable[..., Sync], consul_server: Callable[..., ConsulServer], name: str
) -> None:
    server = consul_server()
    server.kill()
    sync = make(server.config())

    def connected() -> bool:
        with sync.reader.snapshot() as snapshot:
            return any(source.connected for source in snapshot.sources if source.name == "consul")

    with sync.running(), serving(name) as module, server.client() as client:
        eventually(lambda: sync.reader.index() > 0)
        assert not connected()
        server.start()
        eventually(connected)
        client.register(definition(module, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        server.kill()
        eventually(lambda: not connected())
        found = sync.module(name)
        assert found is not None
        assert (found.status, found.version) == ("available", "1.0.0"), "the last known good is kept"
        server.start()
        eventually(lambda: doubted(sync))
        found = sync.module(name)
        assert found is not None
        assert found.status == "available", "that Consul is empty is not believed at once"
        assert sync.store.request_acceptance() == ["consul"]
        eventually(lambda: not doubted(sync) and (module := sync.module(name)) and module.total == 0)
        client.register(definition(module, name))
        eventually(lambda: (module := sync.module(name)) and module.status == "available")


def test_a_doubt_ends_by_itself(
    make: Callable[..., Sync], consul_server: Callable[..., ConsulServer], name: str
) -> None:
    server = consul_server()
    sync = make(server.config(), doubt=1.0)
    with sync.running(), serving(name) as module, server.client() as client:
        client.register(definition(module, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        index = sync.reader.index()
        server.restart()
        eventually(lambda: (found := sync.module(name)) and found.total == 0)
        with sync.reader.snapshot() as snapshot:
            types = [event.type for event in snapshot.events(after=index)]
    assert types.index("registry.doubted") < types.index("instance.removed")
    assert types.index("registry.doubted") < types.index("registry.accepted")


def test_a_rolling_update_of_many_pods_is_not_doubted(
    make: Callable[..., Sync], consul_server: Callable[..., ConsulServer], name: str
) -> None:
    """As Kubernetes does it by default: a quarter of the pods goes at once, as many come, and so on."""
    server = consul_server()
    sync = make(server.config())
    with sync.running(), serving(name) as module, server.client() as client:

        def come(pods: list[str]) -> None:
            for pod in pods:
                service = {"Service": name, "ID": pod, "Tags": ["module"], "Meta": {"pod-name": pod}}
                place = {"Address": module.host, "Port": module.port}
                node = {"Node": "cluster-virtual", "Address": "127.0.0.1"}
                client.send(put_json("/v1/catalog/register", {**node, "Service": {**service, **place}}))

        old, new = ([f"{version}-{number}" for number in range(200)] for version in ("old", "new"))
        come(old)
        eventually(lambda: len(sync.instances(name)) == len(old))
        index = sync.reader.index()
        for begin in range(0, len(old), 50):
            for pod in old[begin : begin + 50]:
                gone = {"Node": "cluster-virtual", "ServiceID": pod}
                client.send(put_json("/v1/catalog/deregister", gone))
            come(new[begin : begin + 50])
        eventually(lambda: {row.id for row in sync.instances(name)} == set(new))
        with sync.reader.snapshot() as snapshot:
            types = {event.type for event in snapshot.events(after=index, limit=5000)}
    assert {"instance.added", "instance.removed"} <= types
    assert "registry.doubted" not in types


def test_what_was_accepted_while_none_ran_is_believed_by_the_next(
    make: Callable[..., Sync], consul_server: Callable[..., ConsulServer], name: str
) -> None:
    server = consul_server()
    sync = make(server.config())
    with serving(name) as module, server.client() as client:
        with sync.running():
            client.register(definition(module, name))
            eventually(lambda: sync.version(name) == "1.0.0")
        client.deregister(name)
        with sync.running():
            eventually(lambda: doubted(sync))
        assert sync.store.request_acceptance() == ["consul"]
        with sync.running():
            eventually(lambda: (module := sync.module(name)) and module.total == 0)
        assert sync.store.accept_requests() == []


def test_what_was_known_outlives_a_restart(
    make: Callable[..., Sync], consul: RunningConsul, client: ConsulClient, name: str
) -> None:
    sync = make(consul.config())
    with serving(name) as server, serving(f"{name}-later") as later:
        with sync.running():
            client.register(definition(server, name))
            eventually(lambda: sync.version(name) == "1.0.0")
        client.register(definition(later, f"{name}-later"))
        client.deregister(name)
        with sync.running():
            eventually(lambda: sync.version(f"{name}-later") == "1.0.0")
            eventually(lambda: (module := sync.module(name)) and module.total == 0)


def test_it_ends_soon(make: Callable[..., Sync], consul: RunningConsul) -> None:
    sync = make(consul.config())
    with sync.running() as running:
        eventually(lambda: sync.reader.index() > 0)
        begun = time.monotonic()
        running.stop()
        assert time.monotonic() - begun < 8


def test_a_pushed_registration_is_fetched_at_once(make: Callable[..., Sync], name: str) -> None:
    sync = make(registries=("push",))
    with sync.running(), serving(name) as server:
        instance = ServiceInstance(module=name, id="1", address=server.host, port=server.port)
        sync.push.register(PushRegistration(instance=instance))
        eventually(lambda: sync.version(name) == "1.0.0")


def test_a_machine_that_slept_takes_nobody_for_silent(
    make: Callable[..., Sync], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = timedelta(0)
    for module in (sync_module, wake_module, push_module, ledger_module):
        monkeypatch.setattr(module, "utc_now", lambda: datetime.now(UTC) + slept, raising=False)
    sync = make(registries=("push",))

    def has_time() -> bool:
        with sync.database.read() as session:
            return session.exec(select(PushLeaseRow)).one().expires_at > datetime.now(UTC) + slept

    with sync.running(), serving(name) as server:
        instance = ServiceInstance(module=name, id="1", address=server.host, port=server.port)
        sync.push.register(PushRegistration(instance=instance))
        eventually(lambda: sync.version(name) == "1.0.0")
        index = sync.reader.index()
        slept = timedelta(hours=1)
        eventually(has_time)
    assert sync.reader.index() == index


def test_a_refresh_that_another_process_asks_for(make: Callable[..., Sync], name: str) -> None:
    sync = make(registries=("push",))
    with sync.running(), serving(name) as server:
        instance = ServiceInstance(module=name, id="1", address=server.host, port=server.port)
        sync.push.register(PushRegistration(instance=instance))
        eventually(lambda: sync.version(name) == "1.0.0")
        server.routes["/manifest"] = manifest({"name": name, "version": "1.1.0"})
        assert sync.store.request_refresh(name) is not None
        eventually(lambda: sync.version(name) == "1.1.0")


def test_a_host_that_hangs_does_not_keep_others_waiting(make: Callable[..., Sync], name: str) -> None:
    sync = make(registries=("push",), fetch_concurrency=4, fetch_deadline=60.0)
    with ManifestServer({"/manifest": silence}, host="127.0.0.9") as hanging, serving(name) as server:
        places = [(f"{name}-hangs", number, hanging) for number in range(20)] + [(name, 0, server)]
        for module, number, at in places:
            instance = ServiceInstance(module=module, id=str(number), address=at.host, port=at.port)
            sync.push.register(PushRegistration(instance=instance))
        with sync.running():
            hanging.wait_for_requests(2)
            eventually(lambda: sync.version(name) == "1.0.0")
            assert len(hanging.requests) == 2


def test_an_instance_that_moves_is_not_waited_for_where_it_was(make: Callable[..., Sync], name: str) -> None:
    sync = make(registries=("push",), fetch_deadline=60.0)
    with ManifestServer({"/manifest": silence}) as hanging, serving(name) as server, sync.running():
        for at in (hanging, server):
            instance = ServiceInstance(module=name, id="1", address=at.host, port=at.port)
            sync.push.register(PushRegistration(instance=instance))
            at.wait_for_requests(1)
        eventually(lambda: sync.version(name) == "1.0.0")


def test_silence_of_a_pushed_instance_is_noticed(make: Callable[..., Sync], name: str) -> None:
    sync = make(registries=("push",), heartbeat_interval=0.1, deregister_after=1.0)
    with sync.running(), serving(name) as server:
        instance = ServiceInstance(module=name, id="1", address=server.host, port=server.port)
        sync.push.register(PushRegistration(instance=instance))
        eventually(lambda: [row.health for row in sync.instances(name)] == [Health.CRITICAL])
        eventually(lambda: sync.instances(name) == [])


def test_a_database_that_is_locked_for_a_while_loses_nothing(
    sync: Sync, client: ConsulClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(name) as server:
        client.register(definition(server, name))
        eventually(lambda: sync.version(name) == "1.0.0")
        with sync.database.write():
            client.fail_check(name)
            found = sync.module(name)
            assert found is not None
            assert found.status == "available"
        eventually(lambda: (module := sync.module(name)) and module.status == "unavailable")


def test_two_registries_tell_of_one_module(sync: Sync, client: ConsulClient, name: str) -> None:
    with serving(name) as server:
        client.register(definition(server, name))
        instance = ServiceInstance(module=name, id="pushed", address=server.host, port=server.port)
        sync.push.register(PushRegistration(instance=instance))
        eventually(lambda: len(sync.instances(name)) == 2)
        found = sync.module(name)
        assert found is not None
        assert found.registries == ["consul", "push"]


def test_a_check_that_says_the_same_in_other_words_writes_nothing(
    sync: Sync, client: ConsulClient, name: str
) -> None:
    node = f"{name}-node"

    def say(output: str, module: str = name) -> None:
        check = {"CheckID": module, "Name": module, "ServiceID": module, "Status": "critical"}
        service = {"Service": module, "Tags": ["module"], "Port": 1}
        body = {"Node": node, "Address": "127.0.0.1", "Service": service}
        client.send(put_json("/v1/catalog/register", {**body, "Check": {**check, "Output": output}}))

    def log(*modules: str) -> list[tuple[int | None, str]]:
        with sync.reader.snapshot() as snapshot:
            events = [event for module in modules for event in snapshot.events(module=module, limit=100)]
        return [(event.index, event.type) for event in events]

    say("as ever")
    eventually(lambda: sync.instances(name))
    (before,) = sync.instances(name)
    told = log(name)
    for number in range(20):
        say(f"output {number}")
    say("the marker", f"{name}-marker")
    eventually(lambda: sync.instances(f"{name}-marker"))
    assert log(name) == told
    assert sync.instances(name) == [before]
    client.send(put_json("/v1/catalog/deregister", {"Node": node}))
