"""Five hosts on a network of their own, whose cables are pulled: Lictor's, Consul's leader's, a module's.

It needs root on Linux; elsewhere it says why it did not run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.command import LICTOR
from tests.consul_server import consul_binary, eventually
from tests.faults.lan import Host, Lan, NoNamespaces, lan

Json = dict[str, Any]

SERVERS = ("server-0", "server-1", "server-2")
MANIFEST = {"name": "financial", "version": "1.0.0"}
# Failures are noticed sooner than by Consul's defaults, but not by those of a busy machine alone.
GOSSIP = 'gossip_lan { probe_interval = "500ms" probe_timeout = "400ms" suspicion_mult = 2 }'
LIMIT = 90.0


class Site:
    """Three Consul servers, Lictor beside an agent, and a module beside another; asked over Unix sockets."""

    def __init__(self, network: Lan, folder: Path) -> None:
        self.network = network
        self._folder = folder
        self._open = ExitStack()
        self._asking: dict[str, httpx.Client] = {}

    def start(self) -> None:
        hosts = self.network.hosts
        for host in hosts.values():
            self._start_consul(host)
        eventually(lambda: len(self._nodes()) == len(hosts), limit=LIMIT)
        (self._folder / "manifest").write_text(json.dumps(MANIFEST))
        self._run(hosts["module"], [sys.executable, "-m", "http.server", "8000"])
        self.register("financial-1")
        self._start_lictor(hosts["lictor"])

    def close(self) -> None:
        self._open.close()

    def _run(self, host: Host, command: list[str], **environment: str) -> None:
        log = self._folder / f"{host.name}.log"
        process = host.start(command, self._folder, log, environment)
        self._open.callback(_end, process)

    def _start_consul(self, host: Host) -> None:
        listening = self._folder / f"{host.name}.sock"
        is_server = ["-server", "-bootstrap-expect=3"] if host.name in SERVERS else []
        command = [
            *(str(consul_binary()), "agent", f"-node={host.name}", f"-data-dir={self._folder / host.name}"),
            *(f"-bind={host.address}", "-dns-port=-1", "-grpc-port=-1", "-log-level=warn", *is_server),
            *(f"-retry-join={self.network.hosts[name].address}" for name in SERVERS),
            *("-retry-interval=1s", f'-hcl=addresses {{ http = "127.0.0.1 unix://{listening}" }}'),
            f"-hcl=disable_update_check = true performance {{ raft_multiplier = 1 }} {GOSSIP}",
        ]
        self._run(host, command)
        self._asking[host.name] = self._client(listening)

    def _start_lictor(self, host: Host) -> None:
        listening = self._folder / "web.sock"
        settings = {
            "LICTOR_BIND": f"unix:{listening}",
            "LICTOR_WORKERS": "2",
            "LICTOR_REGISTRIES": "consul",
            "LICTOR_DOUBT": "2s",
            "LICTOR_REVALIDATE": "1s",
            "LICTOR_FETCH_DEADLINE": "2s",
            "LICTOR_FETCH_RETRY_MAX": "2s",
        }
        subprocess.run(
            [LICTOR, "migrate"], cwd=self._folder, env={**os.environ, **settings}, timeout=60, check=True
        )
        self._run(host, [str(LICTOR), "serve"], **settings)
        self._run(host, [str(LICTOR), "sync"], **settings)
        self._asking["web"] = self._client(listening)
        eventually(lambda: self.status() == "available", limit=LIMIT)

    def _client(self, path: Path) -> httpx.Client:
        """Asks over a Unix socket: files are everybody's, whatever the network."""
        # httpx forgets to close a socket that it could not connect.
        eventually(lambda: _listens(path), limit=LIMIT)
        transport = httpx.HTTPTransport(uds=str(path))
        client = httpx.Client(transport=transport, base_url="http://localhost", timeout=20)
        return self._open.enter_context(client)

    # Consul

    def consul(self, host: str, path: str) -> Any:
        """What the agent of a host answers; None while it cannot."""
        with suppress(httpx.HTTPError):
            answer = self._asking[host].get(path)
            return answer.json() if answer.status_code == 200 else None
        return None

    def _nodes(self) -> list[Json]:
        return self.consul("lictor", "/v1/catalog/nodes") or []

    def register(self, id_: str) -> None:
        """Registers an instance with the agent beside the module."""
        said = {
            "ID": id_,
            "Name": "financial",
            "Tags": ["module"],
            "Address": self.network.hosts["module"].address,
            "Port": 8000,
        }
        eventually(lambda: self._is_done("/v1/agent/service/register", said), limit=LIMIT)

    def deregister(self, id_: str) -> None:
        eventually(lambda: self._is_done(f"/v1/agent/service/deregister/{id_}"), limit=LIMIT)

    def _is_done(self, path: str, said: Json | None = None) -> bool:
        """Whether the agent beside the module did it: it may be asking a server that was just cut off."""
        with suppress(httpx.TimeoutException):
            self._asking["module"].put(path, json=said).raise_for_status()
            return True
        return False

    def leader(self) -> str:
        """The host of the server that the others take for the leader."""
        addresses = {f"{host.address}:8300": host.name for host in self.network.hosts.values()}
        found = eventually(lambda: addresses.get(self.consul("lictor", "/v1/status/leader")), limit=LIMIT)
        return str(found)

    # Lictor

    def read(self) -> httpx.Response | None:
        """The module as Lictor tells it, with status 200 whatever goes on; None while it is not known."""
        answer = self._asking["web"].get("/api/v1/modules/financial?include=manifest")
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        assert answer.json()["manifest"] in (MANIFEST, None)
        return answer

    def status(self) -> str:
        """The module's status once it has its manifest."""
        answer = self.read()
        return answer.json()["status"] if answer and answer.json()["manifest"] else ""

    def ids(self) -> set[str]:
        answer = self.read()
        assert answer is not None
        return {instance["id"] for instance in answer.json()["instances"]}

    def is_stale(self) -> bool:
        answer = self.read()
        assert answer is not None
        return "X-Lictor-Stale" in answer.headers


def _listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(str(path)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as open_:
        try:
            network = open_.enter_context(lan((*SERVERS, "lictor", "module")))
        except NoNamespaces as exc:
            pytest.skip(f"no hosts of their own on this machine, it takes root on Linux: {exc}")
        site = Site(network, tmp_path_factory.mktemp("site"))
        open_.callback(site.close)
        site.start()
        yield site


def settles(site: Site, ids: set[str]) -> Callable[[], bool]:
    return lambda: site.ids() == ids and site.status() == "available" and not site.is_stale()


@pytest.mark.timeout(400)
def test_lictors_host_is_cut_off(site: Site) -> None:
    site.network.cut("lictor")
    eventually(site.is_stale, limit=LIMIT)
    assert site.status() == "available", "what was known is served on"
    site.register("financial-2")
    eventually(lambda: len(site.consul("server-0", "/v1/health/service/financial") or []) == 2, limit=LIMIT)
    site.network.mend("lictor")
    eventually(settles(site, {"financial-1", "financial-2"}), limit=LIMIT)
    site.deregister("financial-2")
    eventually(settles(site, {"financial-1"}), limit=LIMIT)


@pytest.mark.timeout(400)
def test_the_leaders_host_is_cut_off(site: Site) -> None:
    cut = site.leader()
    site.network.cut(cut)
    eventually(lambda: site.leader() != cut, limit=LIMIT)
    site.register("financial-3")
    eventually(settles(site, {"financial-1", "financial-3"}), limit=LIMIT)
    site.network.mend(cut)
    site.deregister("financial-3")
    eventually(settles(site, {"financial-1"}), limit=LIMIT)


@pytest.mark.timeout(400)
def test_a_modules_host_is_cut_off(site: Site) -> None:
    site.network.cut("module")
    eventually(lambda: site.status() == "unavailable", limit=LIMIT)
    assert site.ids() == {"financial-1"}
    site.network.mend("module")
    eventually(settles(site, {"financial-1"}), limit=LIMIT)
