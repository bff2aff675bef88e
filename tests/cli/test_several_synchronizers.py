"""Several `lictor sync` on one cache: one leads, and another takes over when it ends, dies or is paused."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator

import pytest

from manifest_cache.leader.lease import Lease
from manifest_cache.storage.database import Database
from manifest_cache.storage.models import LeadershipRow, ModuleRow
from manifest_cache.storage.reader import Reader
from tests.cli.command import Lictor, Running
from tests.consul_server import ConsulServer, RunningConsul, eventually
from tests.postgres_server import PostgresServer
from tests.web.filling import Cache

LEADS = r"leading holder=\S+ token=\d+: (?P<why>.+)"
STANDS_BY = r"standing by: holder="


class Pair:
    """Two synchronizers of one cache: the one that leads, and the one that stands by."""

    def __init__(self, lictor: Lictor) -> None:
        self._lictor = lictor
        self.database = Database(lictor.settings["LICTOR_DATABASE_URL"])
        self.database.migrate()
        self.leader = self.start(LEADS)
        locks = ["consul", "database"] if "consul" in lictor.settings["LICTOR_REGISTRIES"] else ["database"]
        eventually(lambda: self.lease.locks == locks)
        self.standby = self.start(STANDS_BY)

    def start(self, until: str) -> Running:
        started = self._lictor.start("sync")
        started.wait_for(until)
        return started

    @property
    def lease(self) -> LeadershipRow:
        return Lease(self.database).look()

    def module(self, name: str) -> ModuleRow | None:
        with Reader(self.database).snapshot() as snapshot:
            return snapshot.module(name)

    def events(self, name: str, type: str) -> list[int | None]:
        """At which indexes such a thing happened to a module."""
        with Reader(self.database).snapshot() as snapshot:
            return [event.index for event in snapshot.events(module=name, types=[type])]


@pytest.fixture
def pair(lictor: Lictor) -> Iterator[Callable[..., Pair]]:
    """Makes a pair of what the settings say."""
    made: list[Pair] = []

    def make(kind: str, registries: str, consul: RunningConsul) -> Pair:
        url = f"sqlite:///{lictor.database}" if kind == "sqlite" else kind
        lictor.settings |= {
            "LICTOR_DATABASE_URL": url,
            "LICTOR_REGISTRIES": registries,
            "LICTOR_LEADER_KEY": f"lictor/test-{uuid.uuid4()}",
            "CONSUL_HTTP_ADDR": consul.http_addr,
        }
        made.append(Pair(lictor))
        return made[0]

    yield make
    for one in made:
        one.leader.process.send_signal(signal.SIGCONT)
        one.database.close()


MakePair = Callable[[str, str, RunningConsul], Pair]


def takeover(pair: Pair, number: signal.Signals) -> str:
    """Sends the leader a signal, and waits until the other one leads; why it does."""
    pair.leader.process.send_signal(number)
    return pair.standby.wait_for(LEADS)["why"]


@pytest.mark.parametrize(("kind", "registries"), [("sqlite", "push"), ("postgresql", "consul,push")])
@pytest.mark.parametrize(
    ("number", "why"),
    [(signal.SIGTERM, "nobody led"), (signal.SIGKILL, "lost its lock on the database")],
    ids=["ends", "is killed"],
)
def test_another_takes_over_when_the_leader(
    pair: MakePair,
    postgres: PostgresServer,
    consul: RunningConsul,
    kind: str,
    registries: str,
    number: signal.Signals,
    why: str,
) -> None:
    two = pair(kind if kind == "sqlite" else postgres.create_database(), registries, consul)
    assert why in takeover(two, number)
    assert two.lease.token == 2
    two.leader.wait()
    # The one that comes back waits for the one that leads now.
    two.start(STANDS_BY)


def test_a_paused_leader_writes_nothing_when_it_wakes(
    pair: MakePair, postgres: PostgresServer, consul: RunningConsul
) -> None:
    two = pair(postgres.create_database(), "consul", consul)
    name = f"paused-{uuid.uuid4().hex[:8]}"
    with consul.client() as client:
        check = {"CheckID": name, "TTL": "10m", "Status": "passing"}
        client.register({"Name": name, "Tags": ["module"], "Address": "127.0.0.1", "Port": 1, "Check": check})
        # Nobody serves its manifest; that is the last thing for some time that the leader writes.
        eventually(lambda: two.events(name, "module.manifest_rejected"), limit=60)
        assert "lost its lock in Consul" in takeover(two, signal.SIGSTOP)
        client.fail_check(name)
        eventually(lambda: (module := two.module(name)) and module.status == "unavailable")
        client.pass_check(name)
        eventually(lambda: (module := two.module(name)) and module.status == "available")
        told = two.events(name, "instance.health_changed")
        assert len(told) == 2
        two.leader.process.send_signal(signal.SIGCONT)
        two.leader.wait_for("so this one stands by")
        two.leader.wait_for(STANDS_BY)
    assert two.events(name, "instance.health_changed") == told
    assert two.lease.token == 2
    assert "Traceback" not in two.leader.text


def test_a_paused_leader_is_replaced_without_consul_too(pair: MakePair, consul: RunningConsul) -> None:
    two = pair("sqlite", "push", consul)
    assert "was silent for 10 s" in takeover(two, signal.SIGSTOP)
    two.leader.process.send_signal(signal.SIGCONT)
    two.leader.wait_for(STANDS_BY)


def test_a_leader_that_was_killed_comes_back_at_once(pair: MakePair, consul: RunningConsul) -> None:
    two = pair("sqlite", "consul,push", consul)
    two.standby.end()
    two.leader.process.kill()
    two.leader.wait()
    again = two.start(LEADS)
    # Neither the lease nor the lock in Consul was waited for.
    assert "lost its lock on the database" in again.text


def test_the_leader_leads_on_while_consul_is_away(
    pair: MakePair, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server()
    two = pair("sqlite", "consul,push", server)
    server.kill()
    two.leader.wait_for("watch failed source=consul")
    server.start()
    two.leader.wait_for("watch holds again source=consul")
    with server.client() as client:
        key = two._lictor.settings["LICTOR_LEADER_KEY"]
        eventually(lambda: (client.api.kv.get(key)[1] or {}).get("Session"))
        assert two.lease.token == 1
        assert takeover(two, signal.SIGTERM) == "nobody led"


def test_a_start_without_consul_does_not_wait_for_it(
    lictor: Lictor, cache: Cache, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server()
    server.kill()
    only = lictor.start("sync", CONSUL_HTTP_ADDR=server.http_addr)
    only.wait_for(LEADS)
    lease = Lease(cache.database)
    eventually(lambda: lease.look().locks == ["database"])
    server.start()
    eventually(lambda: lease.look().locks == ["consul", "database"])
    assert lease.look().token == 1
