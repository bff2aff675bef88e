"""Two real Consul datacenters joined over their wide-area gossip: which are followed, and as what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from discovery.base import Change, Lost, Watcher
from discovery.consul.config import ConsulConfig
from discovery.consul.watch.datacenters import ConsulDatacenters
from discovery.consul.watch.watcher import ConsulWatcher
from discovery.errors import ConfigError
from discovery.settings import DiscoverySettings
from tests.consul_server import ConsulServer, ScriptedConsul, eventually, federate
from tests.watching import Beside, Watching

Start = Callable[..., ConsulServer]


class Following(Beside):
    """Keeps what is to be followed, in order."""

    def __init__(
        self,
        config: ConsulConfig,
        wanted: tuple[str, ...],
        known: tuple[str, ...] = (),
        look_again: float = 0.1,
    ) -> None:
        super().__init__(self._follow)
        make = lambda name: ConsulWatcher(config, datacenter=name)  # noqa: E731
        self._datacenters = ConsulDatacenters(config, wanted, make, look_again=look_again)
        self._known = known
        self.watchers: list[Watcher] = []
        self.lost: dict[str, str] = {}

    async def _follow(self) -> None:
        async for one in self._datacenters.watchers(self._known):
            if isinstance(one, Lost):
                self.lost[one.source] = one.reason
            else:
                self.watchers.append(one)
        await asyncio.Event().wait()

    @property
    def sources(self) -> list[str]:
        return [watcher.source for watcher in self.watchers]


def definition(name: str) -> dict[str, Any]:
    return {"Name": name, "Tags": ["module"], "Address": "127.0.0.1", "Port": 80}


def test_datacenters_by_name_and_all_and_those_that_come_later(consul_server: Start) -> None:
    one, two = consul_server(), consul_server(hcl=['datacenter = "dc2"'])
    with Following(one.config(), ("all",)) as following:
        eventually(lambda: following.sources == ["consul"])
        federate(one, two)
        eventually(lambda: following.sources == ["consul", "consul/dc2"])
    with Following(one.config(), ("dc2", "dc1"), known=("consul/dc3", "push")) as following:
        eventually(lambda: sorted(following.sources) == ["consul", "consul/dc2"])
        assert set(following.lost) == {"consul/dc3"}
        assert "LICTOR_CONSUL_DATACENTERS" in following.lost["consul/dc3"]
    with Following(two.config(), ("dc1",), known=("consul",)) as following:
        eventually(lambda: following.sources == ["consul/dc1"])
        assert set(following.lost) == {"consul"}, "the agent's own is not among them"
    with two.client() as client:
        client.register(definition("far"))
    with Watching(ConsulWatcher(one.config(), datacenter="dc2")) as watching:
        eventually(lambda: watching.of("far"))
        assert watching.of("far")["far"].datacenter == "dc2"


def test_a_datacenter_that_is_cut_off_and_comes_back(consul_server: Start) -> None:
    one, two = consul_server(), consul_server(hcl=['datacenter = "dc2"'])
    federate(one, two)
    with two.client() as client:
        client.register(definition("far"))
    far = ConsulWatcher(one.config(), datacenter="dc2", contact=0.3, margin=0.5)
    with Watching(far) as watching, Watching(ConsulWatcher(one.config(), contact=0.3)) as near:
        eventually(lambda: watching.of("far") and near.updates)
        two.pause()
        eventually(lambda: isinstance(watching.updates[-1], Lost))
        assert watching.of("far")
        two.resume()
        eventually(lambda: isinstance(watching.updates[-1], Change))
        assert not any(isinstance(update, Lost) for update in near.updates)


def test_the_own_datacenter_needs_no_name(consul_server: Start) -> None:
    server = consul_server()
    server.kill()
    with Following(server.config(), ("local",), known=("consul", "consul/dc2")) as following:
        eventually(lambda: following.sources == ["consul"])
        eventually(lambda: set(following.lost) == {"consul/dc2"})


def test_as_long_as_nothing_is_known_all_are_lost(consul_server: Start) -> None:
    server = consul_server()
    server.kill()
    with Following(server.config(), ("dc1", "dc2"), known=("consul", "consul/dc2", "push")) as following:
        eventually(lambda: set(following.lost) == {"consul", "consul/dc2"})
        assert server.http_addr in following.lost["consul"]
        assert not following.watchers
        server.start()
        eventually(lambda: following.sources == ["consul", "consul/dc2"])


def test_a_token_for_the_catalog_alone_will_do(consul_server: Start) -> None:
    server = consul_server(acl=True)
    token = server.create_token('node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }')
    with Following(server.config(token=token), ("dc1",)) as following:
        eventually(lambda: following.sources == ["consul"])
    with Following(server.config(token=server.create_token("")), ("dc1",)) as following:
        eventually(lambda: "agent:read" in following.lost.get("consul", ""))


@pytest.mark.parametrize("body", ["{}", "[]", "null", '{"Config": null}', '{"Config": {"Datacenter": ""}}'])
def test_who_answers_and_is_no_agent_is_asked_again(scripted_consul: ScriptedConsul, body: str) -> None:
    scripted_consul.answer(body)
    scripted_consul.answer('{"Config": {"Datacenter": "dc1"}}')
    with Following(scripted_consul.config(), ("dc1",)) as following:
        eventually(lambda: following.sources == ["consul"])
        assert "no answer of Consul's" in following.lost["consul"]


@pytest.mark.parametrize("body", ["null", '{"dc1": 1}', "[1]"])
def test_a_list_of_datacenters_that_is_none_is_asked_for_again(
    scripted_consul: ScriptedConsul, body: str
) -> None:
    for said in (body, '["dc1", "dc2"]'):
        scripted_consul.answer('{"Config": {"Datacenter": "dc1"}}')
        scripted_consul.answer(said)
    with Following(scripted_consul.config(), ("all",), look_again=600) as following:
        eventually(lambda: following.sources == ["consul", "consul/dc2"])
        assert "no answer of Consul's" in following.lost["consul"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        pytest.param("local,dc2", "alone", id="a word among names"),
        pytest.param("all,dc2", "alone", id="another word among names"),
        pytest.param("dc 1", "no name", id="no name"),
        pytest.param("", "at least 1", id="nothing"),
    ],
)
def test_settings_that_name_no_datacenters(monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    monkeypatch.setenv("LICTOR_CONSUL_DATACENTERS", value)
    with pytest.raises(ConfigError, match=r"^LICTOR_CONSUL_DATACENTERS: ") as caught:
        DiscoverySettings.load()
    assert told in str(caught.value)


def test_names_of_datacenters_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICTOR_CONSUL_DATACENTERS", "dc1, dc-2,dc1")
    assert DiscoverySettings.load().consul_datacenters == ("dc1", "dc-2")
