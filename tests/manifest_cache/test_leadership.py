"""Who leads, and that nobody else writes: the fence, the lease, the database's lock, and elections."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Literal

import pytest
from sqlmodel import select

from discovery.base import Change, Health, ServiceInstance
from discovery.consul.client import ConsulClient
from discovery.consul.lock import ConsulLock
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.ingest.store import Store
from manifest_cache.leader import database_lock, election
from manifest_cache.leader.election import Election
from manifest_cache.leader.lease import Lease
from manifest_cache.metrics import LEADER, LEADERSHIP_CHANGES
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, Fenced, FencedDatabase, SchemaMismatch
from manifest_cache.storage.models import EventRow, LeadershipRow, PushLeaseRow, utc_now
from tests.consul_server import RunningConsul, eventually
from tests.postgres_server import PostgresServer
from tests.watching import Beside

INSTANCE = ServiceInstance(module="financial", id="1", address="127.0.0.1", port=80)


def taken(database: Database, holder: str = "one") -> FencedDatabase:
    lease = Lease(database)
    fenced = lease.take(holder, lease.look())
    assert fenced is not None
    return fenced


# ------------------------------------------------------------------------------------- the fence


def test_a_leader_writes_until_another_leads(database: Database, settings: CacheSettings) -> None:
    first = taken(database)
    store = Store(first, settings)
    store.apply([Change(source="consul", present=(INSTANCE,))])
    second = taken(database, "two")
    assert second.token == first.token + 1
    with pytest.raises(Fenced):
        store.apply([Change(source="consul", gone=(INSTANCE.key,))])
    with database.read() as session:
        assert [event.type for event in session.exec(select(EventRow))][-1] != "instance.removed"
    assert Store(second, settings).apply([Change(source="consul", gone=(INSTANCE.key,))]).index > 0


def test_what_expires_is_for_the_leader_to_say(
    database: Database, settings: CacheSettings, push: PushTables
) -> None:
    before = PushTables(taken(database), settings)
    taken(database, "two")
    push.register(PushRegistration(instance=INSTANCE))
    push.heartbeat("financial", "1", Health.WARNING)
    with database.write() as session:
        lease = session.exec(select(PushLeaseRow)).one()
        lease.expires_at = utc_now() - timedelta(seconds=1)
    for write in (before.expire, before.extend):
        with pytest.raises(Fenced):
            write()
    push.heartbeat("financial", "1", Health.PASSING)


def test_every_write_renews_the_lease(database: Database, settings: CacheSettings) -> None:
    fenced = taken(database)
    before = Lease(database).look()
    Store(fenced, settings).apply([Change(source="consul", present=(INSTANCE,))])
    after = Lease(database).look()
    assert (after.token, after.holder) == (before.token, "one")
    assert after.renewed_at != before.renewed_at


# ------------------------------------------------------------------------------------- the lease


def test_nobody_leads_at_first(database: Database) -> None:
    assert Lease(database).look() == LeadershipRow()


def test_of_two_who_saw_the_same_one_leads(database: Database) -> None:
    lease = Lease(database)
    seen = lease.look()
    assert lease.take("one", seen) is not None
    assert lease.take("two", seen) is None
    assert lease.look().holder == "one"


def test_who_was_taken_for_dead_and_is_not_leads_on(database: Database) -> None:
    lease, fenced = Lease(database), taken(database)
    seen = lease.look()
    lease.renew(fenced, ["database"])
    assert lease.take("two", seen, silent=True) is None
    assert lease.take("two", lease.look(), silent=True) is not None
    with pytest.raises(Fenced):
        lease.renew(fenced, [])


def test_a_released_lease_is_free(database: Database) -> None:
    lease, fenced = Lease(database), taken(database)
    lease.renew(fenced, ["consul", "database"])
    assert lease.look().locks == ["consul", "database"]
    lease.release(fenced)
    assert (lease.look().holder, lease.look().locks) == (None, [])
    again = taken(database, "two")
    with pytest.raises(Fenced):
        lease.release(fenced)
    assert again.token == fenced.token + 1


# ------------------------------------------------------------------------------ the database's lock


def test_one_holds_the_databases_lock(database: Database) -> None:
    first, second = database_lock.for_database(database), database_lock.for_database(database)
    try:
        assert first.acquire()
        assert first.acquire(), "it is held still"
        assert not second.acquire()
        first.release()
        # PostgreSQL frees it a little after the connection was closed.
        eventually(second.acquire)
        assert not first.acquire()
    finally:
        first.release()
        second.release()


def test_the_lock_is_lost_with_the_server_and_got_anew() -> None:
    with PostgresServer() as server:
        database = Database(server.url)
        lock = database_lock.for_database(database)
        assert lock.acquire()
        server.stop()
        assert not lock.acquire()
        server.start()
        eventually(lock.acquire)
        lock.release()
        database.close()


# ------------------------------------------------------------------------------------- elections


class Candidate(Beside):
    """Leads when it can, and then writes down what it is told to."""

    def __init__(self, url: str, consul: Callable[[str], ConsulLock] | None = None) -> None:
        super().__init__(self._stand)
        self.name = uuid.uuid4().hex[:6]
        self.url = url
        self.terms = 0
        self.database: FencedDatabase | None = None
        self._consul = consul

    async def _stand(self) -> None:
        database = Database(self.url)
        lock = self._consul(self.name) if self._consul else None
        try:
            await Election(database, lock, self.name).run(self._lead)
        finally:
            database.close()

    async def _lead(self, database: FencedDatabase) -> None:
        self.terms += 1
        self.database = database
        try:
            await asyncio.Event().wait()
        finally:
            self.database = None

    @property
    def leads(self) -> bool:
        return self.database is not None


@pytest.fixture
def stand(database: Database, database_url: str) -> Iterator[Callable[..., Candidate]]:
    with ExitStack() as running:
        yield lambda *more: running.enter_context(Candidate(database_url, *more))


Stand = Callable[..., Candidate]


def row_of(database: Database, **awaited: Any) -> LeadershipRow:
    """The lease, once it is as awaited."""
    lease = Lease(database)
    eventually(lambda: all(getattr(lease.look(), name) == value for name, value in awaited.items()))
    return lease.look()


def test_a_single_one_leads_at_once_and_shows_it(stand: Stand, database: Database) -> None:
    changes = LEADERSHIP_CHANGES._value.get()
    only = stand()
    eventually(lambda: only.leads, limit=8)
    row_of(database, holder=only.name, token=1, locks=["database"])
    assert (LEADER._value.get(), LEADERSHIP_CHANGES._value.get() - changes) == (1, 1)
    only.stop()
    assert row_of(database).holder is None
    assert LEADER._value.get() == 0


def test_one_leads_and_the_other_takes_over(stand: Stand, database: Database) -> None:
    first = stand()
    eventually(lambda: first.leads)
    second = stand()
    row_of(database, holder=first.name, locks=["database"])
    assert not second.leads
    first.stop()
    eventually(lambda: second.leads, limit=8)
    row_of(database, holder=second.name, token=2)


def test_a_leader_without_any_lock_leads_as_long_as_it_shows_it(
    stand: Stand, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "PATIENCE", 2.5)
    monkeypatch.setattr(election, "RENEW_EVERY", 0.2)
    other = database_lock.for_database(database)
    assert other.acquire(), "somebody else has it, so the leader gets none"
    first = stand()
    eventually(lambda: first.leads)
    second = stand()
    seen = row_of(database, holder=first.name, locks=[])
    assert seen.renewed_at is not None
    shown = seen.renewed_at + timedelta(seconds=1)
    eventually(lambda: (renewed := Lease(database).look().renewed_at) and renewed > shown)
    assert not second.leads
    other.release()
    row_of(database, holder=first.name, locks=["database"])


def test_who_is_fenced_off_stands_by_and_may_lead_again(stand: Stand, database: Database) -> None:
    only = stand()
    eventually(lambda: only.leads)
    other = taken(database, "other")
    eventually(lambda: not only.leads)
    Lease(database).release(other)
    eventually(lambda: only.leads)
    assert only.terms == 2
    row_of(database, token=3)


def test_who_is_fenced_off_while_nothing_can_be_written_stands_by(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manifest_cache.storage.database.BUSY_TIMEOUT", 0.1)
    terms: list[int] = []
    replaced = threading.Event()

    async def lead(fenced: FencedDatabase) -> None:
        terms.append(fenced.token)
        if len(terms) == 1:
            await asyncio.to_thread(replaced.wait)
            raise Fenced("another leads")
        await asyncio.Event().wait()

    own = Database(database_url)
    lock = database_lock.for_database(database)
    with ExitStack() as ending, Beside(lambda: Election(own, None, "one").run(lead)) as candidate:
        ending.callback(own.close)
        ending.callback(replaced.set)
        row_of(database, locks=["database"])
        other = taken(database, "other")
        with database.write():
            replaced.set()
            eventually(lambda: lock.acquire() or candidate.ended)
        lock.release()
        assert not candidate.ended
        Lease(database).release(other)
        eventually(lambda: terms == [1, 3])


def test_a_silent_leader_is_replaced_though_it_holds_its_locks(
    stand: Stand, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "PATIENCE", 0.5)
    lock = database_lock.for_database(database)
    assert lock.acquire()
    paused = taken(database, "paused")
    Lease(database).renew(paused, ["database"])
    candidate = stand()
    eventually(lambda: candidate.leads)
    with pytest.raises(Fenced), paused.write():
        pass
    lock.release()


def test_a_dead_leader_is_replaced_without_waiting(stand: Stand, database: Database) -> None:
    Lease(database).renew(taken(database, "dead"), ["database"])
    candidate = stand()
    eventually(lambda: candidate.leads, limit=8)


def test_a_database_that_was_never_migrated(tmp_path: Any) -> None:
    candidate = Candidate(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(SchemaMismatch, match="run `lictor migrate`"), candidate:
        eventually(lambda: not candidate._thread.is_alive())


def test_who_gets_the_leaders_lock_in_consul_leads(
    stand: Stand, database: Database, consul: RunningConsul
) -> None:
    key = f"lictor/test-{uuid.uuid4()}"
    lock = database_lock.for_database(database)
    assert lock.acquire()
    leader = taken(database, "leader")
    with consul.client() as client:
        session = client.api.session.create(lock_delay=0)
        assert client.api.kv.put(key, "leader", acquire=session)
        Lease(database).renew(leader, ["consul", "database"])
        candidate = stand(lambda name: ConsulLock(consul.config(), key=key, holder=name))
        eventually(lambda: f"lictor-{candidate.name}" in _registered(client))
        assert not candidate.leads
        client.api.session.destroy(session)
        eventually(lambda: candidate.leads)
        row_of(database, holder=candidate.name, locks=["consul"])
        lock.release()
        row_of(database, holder=candidate.name, locks=["consul", "database"])
        candidate.stop()
        assert "Session" not in client.api.kv.get(key)[1]


def test_a_lock_in_consul_that_the_leader_has_not_is_left_to_it(
    stand: Stand, database: Database, consul: RunningConsul
) -> None:
    key = f"lictor/test-{uuid.uuid4()}"
    first = stand()
    eventually(lambda: first.leads)
    row_of(database, locks=["database"])
    second = stand(lambda name: ConsulLock(consul.config(), key=key, holder=name))
    with consul.client() as client:
        eventually(lambda: f"lictor-{second.name}" in _registered(client))
        assert client.api.kv.get(key)[1] is None
        first.stop()
        row_of(database, holder=second.name, locks=["consul", "database"])


class Awaited(asyncio.Event):
    """An event that knows whether somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.awaited.set()
        return await super().wait()


@pytest.mark.parametrize("leads", [True, False], ids=["leads", "stands by"])
def test_one_ends_though_its_lock_changes_at_that_very_moment(
    database: Database, consul: RunningConsul, leads: bool
) -> None:
    if not leads:
        Lease(database).renew(taken(database, "another"), [])

    async def lead(fenced: FencedDatabase) -> None:
        await asyncio.Event().wait()

    async def end() -> None:
        lock = ConsulLock(consul.config(), key=f"lictor/test-{uuid.uuid4()}", holder="one")
        lock.changed = changed = Awaited()
        running = asyncio.create_task(Election(database, lock, "one").run(lead))
        await changed.awaited.wait()
        changed.set()
        running.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait({running})
        assert running.cancelled()

    asyncio.run(end())


def _registered(client: ConsulClient) -> list[str]:
    return [row["Service"]["ID"] for row in client.health_service("lictor").data]
