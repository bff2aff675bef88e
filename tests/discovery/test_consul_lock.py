"""The lock in a real Consul: one holds it, and it frees itself when its holder ends, hangs or is cut off."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.lock import SERVICE, SERVICE_RIGHT, SESSION_RIGHT, ConsulLock, key_right
from tests.consul_server import ConsulServer, RunningConsul, eventually
from tests.watching import Beside


class Holder(Beside):
    """A process's part in a lock, in a thread of its own."""

    def __init__(self, config: ConsulConfig, key: str, name: str, *, had_it: bool = False) -> None:
        super().__init__(self._hold)
        self._made = config, key, name, had_it
        self.lock: ConsulLock | None = None

    async def _hold(self) -> None:
        config, key, name, had_it = self._made
        self.lock = ConsulLock(config, key=key, holder=name)
        self.lock.request(had_it=had_it)
        await self.lock.run()

    @property
    def holds(self) -> bool:
        return self.lock is not None and self.lock.held

    def release(self) -> None:
        assert self.lock is not None
        self._loop.call_soon_threadsafe(self.lock.release)


Make = Callable[..., Holder]


@pytest.fixture
def key() -> str:
    return f"lictor/test-{uuid.uuid4()}"


@pytest.fixture
def make(consul: RunningConsul, key: str) -> Iterator[Make]:
    with ExitStack() as running:

        def make(config: ConsulConfig | None = None, **more: Any) -> Holder:
            holder = Holder(config or consul.config(), key, uuid.uuid4().hex[:8], **more)
            return running.enter_context(holder)

        yield make


def entry(client: ConsulClient, key: str) -> dict[str, Any]:
    found: dict[str, Any] | None = client.api.kv.get(key)[1]
    return found or {}


def registered(client: ConsulClient, holder: Holder) -> list[Any]:
    id = f"{SERVICE}-{holder._made[2]}"
    return [row for row in client.health_service(SERVICE).data if row["Service"]["ID"] == id]


def test_one_holds_it_and_says_who(make: Make, consul: RunningConsul, key: str) -> None:
    with consul.client() as client:
        first = make()
        eventually(lambda: first.holds)
        value = json.loads(entry(client, key)["Value"])
        assert (value["holder"], value["since"][-1]) == (first._made[2], "Z")
        second = make()
        eventually(lambda: registered(client, second))
        assert first.holds
        assert not second.holds
        (row,) = registered(client, first)
        assert row["Service"]["Tags"] == []


def test_who_ends_leaves_nothing_behind(make: Make, consul: RunningConsul, key: str) -> None:
    first, second = make(), make()
    eventually(lambda: first.holds or second.holds)
    ends, stays = (first, second) if first.holds else (second, first)
    with consul.client() as client:
        session = entry(client, key)["Session"]
        ends.stop()
        eventually(lambda: stays.holds, limit=8)
        assert client.api.session.info(session)[1] is None
        eventually(lambda: not registered(client, ends))


def test_who_wants_it_no_more_leaves_it_to_others(make: Make) -> None:
    first = make()
    eventually(lambda: first.holds)
    second = make()
    first.release()
    eventually(lambda: second.holds)
    assert not first.holds


@pytest.mark.parametrize("how", ["session", "key"])
def test_what_an_operator_destroys_is_made_anew(
    make: Make, consul: RunningConsul, key: str, how: str
) -> None:
    holder = make()
    eventually(lambda: holder.holds)
    with consul.client() as client:
        before = entry(client, key)
        if how == "session":
            client.api.session.destroy(before["Session"])
            eventually(lambda: entry(client, key).get("Session", before["Session"]) != before["Session"])
        else:
            client.api.kv.delete(key)
            eventually(lambda: entry(client, key).get("CreateIndex", 0) > before["CreateIndex"])
        eventually(lambda: holder.holds)


def test_a_consul_that_forgot_all_gives_it_back_to_who_had_it(
    make: Make, consul_server: Callable[..., ConsulServer], key: str
) -> None:
    server = consul_server()
    first = make(server.config(), had_it=True)
    eventually(lambda: first.holds)
    second = make(server.config())
    with server.client() as client:
        eventually(lambda: registered(client, second))
        server.kill()
        eventually(lambda: not first.holds)
        server.start()
        eventually(lambda: first.holds and registered(client, second))
        assert not second.holds


def test_a_consul_that_hangs_is_not_believed_to_hold_it_still(
    make: Make, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server()
    holder = make(server.config())
    eventually(lambda: holder.holds)
    server.pause()
    eventually(lambda: not holder.holds)
    server.resume()
    eventually(lambda: holder.holds)


@pytest.mark.parametrize("missing", ["service", "session", "key"])
def test_a_right_that_is_missing_is_told_once(
    make: Make,
    consul_server: Callable[..., ConsulServer],
    key: str,
    missing: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("discovery.consul.lock._REFUSED_PAUSE", 0.05)
    server = consul_server(acl=True)
    rights = {"service": SERVICE_RIGHT, "session": SESSION_RIGHT, "key": key_right(key)}
    lacking = rights.pop(missing)
    token = server.create_token("\n".join([*rights.values(), 'node_prefix "" { policy = "read" }']))
    with caplog.at_level(logging.WARNING, "discovery.consul.lock"):
        holder = make(server.config(token=token))
        eventually(lambda: lacking in caplog.text)
        assert caplog.text.count(lacking) == 1
    assert not holder.holds
