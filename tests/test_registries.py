"""Holds each registry to the contract of all, and shows what takes its words from their descriptions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from discovery.errors import ConfigError
from discovery.registries import REGISTRIES, ROADS
from discovery.settings import DiscoverySettings
from tests.consul_proxy import Asked, ConsulProxy, Meddling
from tests.consul_server import RunningConsul, eventually
from tests.registry_contract import RegistryContract
from web import create_app
from web.settings import Settings


class TestConsul(RegistryContract):
    registry = "consul"

    @pytest.fixture(autouse=True)
    def _proxy(self, consul: RunningConsul) -> Iterator[None]:
        self._consul = consul
        with ConsulProxy(consul.http_addr) as self._way:
            yield

    def given(self) -> Any:
        return self._way.config()

    def put(self, database_url: str, name: str, id_: str, port: int, health: str = "passing") -> None:
        with self._consul.client() as client:
            client.register(
                {
                    "Name": name,
                    "ID": id_,
                    "Address": "127.0.0.1",
                    "Port": port,
                    "Tags": ["module"],
                    "Check": {"CheckID": id_, "TTL": "10m"},
                }
            )
            # Registering again keeps what a check said before.
            check = client.api.agent.check
            assert (check.ttl_pass if health == "passing" else check.ttl_fail)(id_)

    def remove(self, database_url: str, name: str, id_: str) -> None:
        with self._consul.client() as client:
            assert client.api.agent.service.deregister(id_)

    @contextmanager
    def garbage(self, database_url: str) -> Iterator[None]:
        answered: list[Asked] = []

        def garbled(asked: Asked) -> Meddling:
            answered.append(asked)
            return Meddling(status=200, headers={"x-consul-index": "7"}, body=b"{[ no JSON")

        self._way.meddle = garbled
        # Something has to move, or the blocking queries go on waiting behind the proxy.
        self.put(database_url, "contract-stir", "contract-stir", 9000)
        eventually(lambda: answered)
        yield
        self._way.meddle = lambda asked: None
        self.remove(database_url, "contract-stir", "contract-stir")


class TestPush(RegistryContract):
    registry = "push"

    def given(self) -> Any:
        return None

    def _client(self, database_url: str) -> Any:
        return create_app(Settings.load(database_url=database_url, registries=("push",))).test_client()

    def put(self, database_url: str, name: str, id_: str, port: int, health: str = "passing") -> None:
        client = self._client(database_url)
        manifest = {"name": name, "version": "1.0.0"}
        body = {"name": name, "id": id_, "address": "127.0.0.1", "port": port, "manifest": manifest}
        assert client.post("/api/v1/modules/register", json=body).status_code in (200, 201)
        beat = client.post(f"/api/v1/modules/{name}/heartbeat", json={"id": id_, "health": health})
        assert beat.status_code == 200

    def remove(self, database_url: str, name: str, id_: str) -> None:
        answer = self._client(database_url).delete(f"/api/v1/modules/{name}/instances/{id_}")
        assert answer.status_code in (200, 204)

    @contextmanager
    def garbage(self, database_url: str) -> Iterator[None]:
        answer = self._client(database_url).post("/api/v1/modules/register", data=b"{[ no JSON")
        assert 400 <= answer.status_code < 500
        yield


def test_the_settings_know_the_registries_that_there_are() -> None:
    assert DiscoverySettings.load(registries=",".join(REGISTRIES)).registries == tuple(REGISTRIES)
    with pytest.raises(ConfigError, match="'pigeon' is no registry; there are consul, push"):
        DiscoverySettings.load(registries="pigeon")


def test_the_command_line_offers_the_registries_that_take_modules() -> None:
    command = [sys.executable, "-m", "web.cli", "register", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"[{'|'.join(ROADS)}]" in help_text
