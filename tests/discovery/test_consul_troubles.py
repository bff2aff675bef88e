"""Consul is slow, overloaded, behind, or unsure: what the watch makes of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from discovery.base import Change, Health, Lost
from discovery.consul.client import AsyncConsulClient, ConsulClient
from discovery.consul.watch.queries import Queries, QueryPacer
from discovery.consul.watch.watcher import ConsulWatcher
from tests.consul_proxy import Asked, ConsulProxy, Meddling
from tests.consul_server import ConsulServer, RunningConsul, eventually, put_json
from tests.watching import Watching

HANGS = Meddling(hangs=True)


@pytest.fixture
def name() -> str:
    return f"troubled-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(consul: RunningConsul) -> Iterator[ConsulProxy]:
    with ConsulProxy(consul.http_addr) as proxy:
        yield proxy


def definition(name: str, **fields: Any) -> dict[str, Any]:
    check = {"CheckID": name, "TTL": "10m", "Status": "passing"}
    return {"Name": name, "Address": "127.0.0.1", "Port": 80, "Tags": ["module"], "Check": check, **fields}


def losses(watching: Watching) -> list[Lost]:
    return [update for update in watching.updates if isinstance(update, Lost)]


def doubts(watching: Watching) -> list[str | None]:
    return [update.doubt for update in watching.updates if isinstance(update, Change)]


def first_time(condition: Callable[[Asked], bool], meddling: Meddling) -> Callable[[Asked], Meddling | None]:
    """Meddles with the first request that the condition holds for."""
    done: list[Asked] = []

    def meddle(asked: Asked) -> Meddling | None:
        if done or not condition(asked):
            return None
        done.append(asked)
        return meddling

    return meddle


@pytest.mark.parametrize("status", [429, 500, 503])
def test_one_failed_read_ends_no_watch(
    proxy: ConsulProxy, client: ConsulClient, name: str, status: int
) -> None:
    path = f"/v1/health/service/{name}"
    proxy.meddle = first_time(lambda asked: asked.path == path, Meddling(status))
    with Watching(ConsulWatcher(proxy.config())) as watching:
        eventually(lambda: watching.updates)
        client.register(definition(name))
        eventually(lambda: watching.of(name))
        assert not losses(watching)
        assert sum(isinstance(update, Change) and update.complete for update in watching.updates) == 1
    client.deregister(name)


@pytest.mark.parametrize("nodes", [1, 4], ids=["node by node", "service by service"])
def test_a_first_sight_that_is_not_whole_is_not_told(
    consul_server: Callable[..., ConsulServer], name: str, nodes: int
) -> None:
    server = consul_server()
    path = f"/v1/catalog/node/{name}-0" if nodes == 1 else f"/v1/health/service/{name}-1"
    with server.client() as client, ConsulProxy(server.http_addr) as proxy:
        for number in range(4):
            service = {"Service": f"{name}-{number % 3}", "ID": str(number), "Tags": ["module"]}
            body = {"Node": f"{name}-{number % nodes}", "Address": "127.0.0.9", "Service": service}
            client.send(put_json("/v1/catalog/register", body))
        proxy.meddle = lambda asked: Meddling(500) if asked.path == path else None
        with Watching(ConsulWatcher(proxy.config())) as watching:
            eventually(lambda: len(losses(watching)) >= 2)
            assert len(losses(watching)) == len(watching.updates)
            proxy.meddle = lambda asked: None
            eventually(lambda: len(watching.instances) == 4)


def test_the_pause_that_consul_asks_for_is_kept(proxy: ConsulProxy, client: ConsulClient, name: str) -> None:
    path = f"/v1/health/service/{name}"
    refused: list[float] = []

    def meddle(asked: Asked) -> Meddling | None:
        if asked.path != path:
            return None
        refused.append(time.monotonic())
        return Meddling(429, {"Retry-After": "1"}) if len(refused) == 1 else None

    proxy.meddle = meddle
    with Watching(ConsulWatcher(proxy.config())) as watching:
        eventually(lambda: watching.updates)
        client.register(definition(name))
        eventually(lambda: watching.of(name))
        assert refused[1] - refused[0] >= 1
        assert not losses(watching)
    client.deregister(name)


def test_a_server_far_behind_its_leader_is_not_believed(
    proxy: ConsulProxy, client: ConsulClient, name: str
) -> None:
    def meddle(asked: Asked) -> Meddling | None:
        behind = "stale" in asked.query and asked.path == "/v1/catalog/services"
        return Meddling(headers={"x-consul-lastcontact": "60000"}, body=b"{}") if behind else None

    proxy.meddle = meddle
    client.register(definition(name))
    with Watching(ConsulWatcher(proxy.config(), max_staleness=10)) as watching:
        eventually(lambda: watching.of(name))
        assert any("stale" in asked.query for asked in proxy.requests)
    client.deregister(name)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        pytest.param({"x-consul-knownleader": "false"}, "no leader", id="no leader"),
        pytest.param({"x-consul-results-filtered-by-acls": "true"}, "token", id="filtered by ACLs"),
    ],
)
def test_answers_that_consul_itself_is_unsure_of(
    proxy: ConsulProxy, client: ConsulClient, name: str, header: dict[str, str], word: str
) -> None:
    client.register(definition(name))
    with Watching(ConsulWatcher(proxy.config(), wait=0.3)) as watching:
        eventually(lambda: watching.of(name))
        assert set(doubts(watching)) == {None}
        proxy.meddle = lambda asked: Meddling(headers=header) if "service" in asked.path else None
        eventually(lambda: word in (doubts(watching)[-1] or ""))
        proxy.meddle = lambda asked: None
        eventually(lambda: doubts(watching)[-1] is None)
        assert not losses(watching)
    client.deregister(name)


def test_only_the_leaders_word_on_a_leader_counts(proxy: ConsulProxy) -> None:
    header = {"x-consul-knownleader": "false"}
    proxy.meddle = lambda asked: Meddling(headers=header) if "stale" in asked.query else None
    with Watching(ConsulWatcher(proxy.config(), wait=0.3)) as watching:
        eventually(lambda: len(watching.updates) >= 1)
        eventually(lambda: sum("stale" in asked.query for asked in proxy.requests) > 8)
        assert set(doubts(watching)) == {None}


def restarts(loop: str) -> float:
    return REGISTRY.get_sample_value("lictor_watch_restarts_total", {"loop": loop}) or 0.0


@pytest.mark.parametrize(
    ("loop", "path"),
    [
        ("critical", "/v1/health/state/critical"),
        ("warning", "/v1/health/state/warning"),
        ("services", "/v1/catalog/services"),
        ("nodes", "/v1/catalog/nodes"),
    ],
)
def test_a_stuck_watch_is_restarted(
    proxy: ConsulProxy, client: ConsulClient, name: str, loop: str, path: str
) -> None:
    proxy.meddle = first_time(lambda asked: asked.blocks and asked.path == path, HANGS)
    before = restarts(loop)
    node = f"{name}-node"
    with Watching(ConsulWatcher(proxy.config(timeout=30), wait=0.2, margin=0.5)) as watching:
        eventually(lambda: restarts(loop) > before)
        service = {"Service": name, "Tags": ["module"]}
        check = {"CheckID": name, "Name": name, "Status": "passing", "ServiceID": name}
        body = {"Node": node, "Address": "127.0.0.9", "Service": service}
        client.send(put_json("/v1/catalog/register", body))
        eventually(lambda: name in watching.of(name))
        for status in (Health.CRITICAL, Health.WARNING):
            body = {"Node": node, "Address": "127.0.0.8", "Check": {**check, "Node": node, "Status": status}}
            client.send(put_json("/v1/catalog/register", body))
            eventually(lambda status=status: watching.of(name)[name].health == status)  # type: ignore[misc]
        eventually(lambda: watching.of(name)[name].address == "127.0.0.8")
        assert not losses(watching)
    client.send(put_json("/v1/catalog/deregister", {"Node": node}))


def test_a_stuck_read_is_repeated(proxy: ConsulProxy, client: ConsulClient, name: str) -> None:
    proxy.meddle = first_time(lambda asked: asked.path == f"/v1/health/service/{name}", HANGS)
    with Watching(ConsulWatcher(proxy.config(timeout=30), wait=1, margin=0.5)) as watching:
        eventually(lambda: watching.updates)
        client.register(definition(name))
        eventually(lambda: watching.of(name))
        assert not losses(watching)
    client.deregister(name)


def test_a_consul_that_stands_still_is_lost(consul_server: Callable[..., ConsulServer], name: str) -> None:
    server = consul_server()
    with server.client() as client:
        client.register(definition(name))
    with Watching(ConsulWatcher(server.config(timeout=30), margin=0.3, contact=0.3)) as watching:
        eventually(lambda: watching.of(name))
        server.pause()
        eventually(lambda: losses(watching))
        assert watching.of(name), "what is known stays"
        server.resume()
        eventually(lambda: isinstance(watching.updates[-1], Change))


@pytest.mark.anyio
async def test_whoever_waits_for_a_connection_does_not_take_consul_for_lost(proxy: ConsulProxy) -> None:
    """Each answer comes in time; that others of the same watch ask as well is no fault of Consul's."""
    proxy.meddle = lambda asked: time.sleep(0.9)
    async with AsyncConsulClient(proxy.config(timeout=1.6), max_connections=1) as client:
        queries = Queries(client, connections=1, datacenter=None, max_staleness=10, margin=60)
        asking = (queries.read("/v1/catalog/nodes") for _ in range(5))
        answers = await asyncio.gather(*asking)
    assert all(answer.data for answer in answers)


def repairs() -> float:
    return REGISTRY.get_sample_value("lictor_anti_entropy_repairs_total") or 0.0


def test_what_the_watches_miss_is_found_and_counted(
    proxy: ConsulProxy, client: ConsulClient, name: str
) -> None:
    node = f"{name}-node"

    def register(address: str = "127.0.0.9", status: str = "passing", **fields: Any) -> None:
        service = {"Service": name, "Tags": ["module"], "Port": 80, **fields}
        check = {"CheckID": name, "Name": name, "Status": status, "ServiceID": name, "Node": node}
        body = {"Node": node, "Address": address, "Service": service, "Check": check}
        client.send(put_json("/v1/catalog/register", body))

    register()
    with Watching(ConsulWatcher(proxy.config(), anti_entropy=0.3)) as watching:
        eventually(lambda: watching.of(name))
        # From now on whoever waits for news waits in vain; those who wait already are woken once.
        proxy.meddle = lambda asked: HANGS if asked.blocks else None
        client.register(definition(f"{name}-wake"))
        register("127.0.0.10", "warning")
        register("127.0.0.11", "critical")
        eventually(lambda: watching.of(name)[name].address == "127.0.0.11")

        def is_mended(number: int) -> bool:
            """Whether a change is seen, and counted: a read that was under way may see it as well."""
            before = repairs()
            changed = {"Meta": {"k": str(number)}, "Port": 100 + number}
            register(f"127.0.1.{number}", "critical" if number % 2 else "passing", **changed)
            eventually(lambda: watching.of(name)[name].meta == {"k": str(number)})
            eventually(lambda: watching.of(name)[name].port == 100 + number)
            eventually(lambda: watching.of(name)[name].address == f"127.0.1.{number}")
            eventually(lambda: (watching.of(name)[name].health == Health.CRITICAL) == bool(number % 2))
            return repairs() >= before + 3

        assert any(is_mended(number) for number in range(1, 9))
        before = repairs()
        client.send(put_json("/v1/catalog/deregister", {"Node": node}))
        eventually(lambda: not watching.of(name))
        assert repairs() > before
    client.deregister(f"{name}-wake")


def test_nothing_is_repaired_where_nothing_was_missed(
    consul_server: Callable[..., ConsulServer], name: str
) -> None:
    server = consul_server()
    before = repairs()
    with (
        server.client() as client,
        Watching(ConsulWatcher(server.config(), anti_entropy=0.2)) as watching,
    ):
        for number in range(40):
            client.register(definition(name, Meta={"n": str(number)}))
            client.fail_check(name)
            client.pass_check(name)
        eventually(lambda: watching.of(name)[name].meta == {"n": "39"})
        eventually(lambda: watching.of(name)[name].health == Health.PASSING)
    assert repairs() == before


def test_what_is_about_to_be_looked_for_is_not_missed(
    consul_server: Callable[..., ConsulServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new module others change: that one is read at once, the others after a while."""
    monkeypatch.setattr("discovery.consul.watch.watch_session._SETTLE", 3.0)
    server, before, nodes = consul_server(), repairs(), [f"n-{number}" for number in range(6)]

    def service(name: str, port: int = 80) -> dict[str, Any]:
        return {"Service": name, "ID": name, "Tags": ["module"], "Port": port}

    with server.client() as client:
        for node in nodes:
            for name in (f"{node}-a", f"{node}-b"):
                body = {"Node": node, "Address": "127.0.0.9", "Service": service(name)}
                client.send(put_json("/v1/catalog/register", body))
        with Watching(ConsulWatcher(server.config(), anti_entropy=0.2)) as watching:
            eventually(lambda: len(watching.instances) == 12)
            together = [("n-0", service("new", 81)), *((node, service(f"{node}-a", 81)) for node in nodes)]
            orders = [{"Service": {"Verb": "set", "Node": node, "Service": said}} for node, said in together]
            client.send(put_json("/v1/txn", orders))
            eventually(lambda: [instance.port for instance in watching.instances.values()].count(81) == 7)
    assert repairs() == before


def test_queries_are_counted_by_kind(consul: RunningConsul) -> None:
    def asked(kind: str) -> float:
        labels = {"kind": kind, "outcome": "ok"}
        return REGISTRY.get_sample_value("lictor_consul_queries_total", labels) or 0.0

    kinds = ("critical", "warning", "services", "nodes")
    before = {kind: asked(kind) for kind in kinds}
    with Watching(ConsulWatcher(consul.config())):
        eventually(lambda: all(asked(kind) > before[kind] for kind in kinds))


def test_after_quiet_there_is_next_to_no_floor() -> None:
    assert QueryPacer().after(60, busy=0.6, size=21_000) < 0.005
    assert QueryPacer(spacing=0.025).after(60, busy=0.6, size=4_000_000) < 0.005


def test_the_floor_bounds_what_comes_in() -> None:
    assert QueryPacer().after(0.010, busy=0.002, size=1_000_000) == pytest.approx(0.09)
    assert 1 <= QueryPacer().after(0.001, busy=0.03, size=100_000_000) <= 2, "however large an answer is"


def test_the_floor_makes_up_for_work_without_a_break() -> None:
    floor = QueryPacer()
    pauses = [floor.after(0.020, busy=0.020, size=100) for _ in range(40)]
    assert max(pauses[:4]) < 0.005, "a few changes are taken as they come"
    worked, passed = 20 * 0.020, 20 * 0.020 + sum(pauses[20:])
    assert worked / passed == pytest.approx(0.75, rel=0.1)


def test_the_floor_forgets_what_it_was_idle_after() -> None:
    floor = QueryPacer()
    for _ in range(40):
        floor.after(0.020, busy=0.020, size=100)
    floor.after(1.0, busy=0.010, size=100)
    assert floor.after(0.020, busy=0.020, size=100) < 0.005


def test_the_floor_is_short_whatever_the_process_does() -> None:
    floor = QueryPacer()
    assert floor.after(10, busy=15, size=100) <= 0.1
    assert floor.after(1, busy=0.01, size=100) < 0.005


def test_the_floor_keeps_its_spacing() -> None:
    assert QueryPacer(spacing=0.025).after(0.005, busy=0.001, size=100) == pytest.approx(0.02)
    assert QueryPacer().after(0.001, busy=0.0001, size=100, moved=False) >= 0.02, "nothing is news"
