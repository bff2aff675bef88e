"""Consul for tests: real agents on free ports, and a server for answers that no agent gives on demand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pytest

from discovery.consul.call import Call
from discovery.consul.client import AsyncConsulClient, ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.dev_agent import DevAgent, find_consul, free_ports
from discovery.errors import ConfigError, DiscoveryError

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
IN_DOCKER = "docker:"

T = TypeVar("T")


def eventually(ask: Callable[[], T], *, limit: float = 15.0) -> T:
    """The first answer of `ask` that is true; fails the test if none comes within `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        try:
            answer = ask()
            trouble = f"it is {answer!r}"
            if answer:
                return answer
        except DiscoveryError as error:
            trouble = str(error)
        if time.monotonic() > deadline:
            pytest.fail(f"what was awaited did not come within {limit:g} s: {trouble}")
        time.sleep(0.01)


# ------------------------------------------------------------------------- where a Consul comes from


@cache
def consul_source() -> str:
    """The path of a consul binary, or `docker:IMAGE`; ends the whole run if there is neither."""
    try:
        return str(find_consul(os.environ, ROOT))
    except ConfigError as error:
        return _get_consul(str(error))


@cache
def consul_binary() -> Path:
    """A consul binary, even where Docker has an image: for tests that stop, kill and pause an agent."""
    source = consul_source()
    if source.startswith(IN_DOCKER):
        source = _get_consul("these tests control an agent's process", "--binary")
    return Path(source)


def _get_consul(why: str, *arguments: str) -> str:
    script = ROOT / "scripts" / "get-consul"
    try:
        done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        _give_up(f"{why}\n{script} failed too: {error}")
    if done.returncode != 0:
        _give_up(f"{why}\n{done.stderr.strip()}")
    return done.stdout.strip()


def _give_up(reason: str) -> NoReturn:
    # Not a skip: a run without Consul has proved nothing, and must not look as if it had.
    pytest.exit(f"The tests need a real Consul, and there is none.\n{reason}", returncode=3)


# --------------------------------------------------------------------------------------- real agents


class RunningConsul(ABC):
    """A Consul that tests may use, but not control: others may use it at the same time."""

    @property
    @abstractmethod
    def http_addr(self) -> str:
        """What CONSUL_HTTP_ADDR would say."""

    def config(self, **changes: Any) -> ConsulConfig:
        """How to reach it, with `changes` to single fields."""
        return replace(ConsulConfig.from_env({"CONSUL_HTTP_ADDR": self.http_addr}), **changes)

    def client(self, **changes: Any) -> ConsulClient:
        return ConsulClient(self.config(**changes))

    def async_client(self, **changes: Any) -> AsyncConsulClient:
        return AsyncConsulClient(self.config(**changes))

    @abstractmethod
    def start(self) -> None:
        """Returns once the agent has a leader and stands in its own catalog."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it; does nothing if it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Certificates:
    """A certificate authority of its own, and what it signed for a server and for a client."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def create(cls, binary: Path, folder: Path) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        for arguments in (
            ("ca", "create"),
            ("cert", "create", "-server", f"-additional-ipaddress={HOST}"),
            ("cert", "create", "-client"),
        ):
            subprocess.run(
                [binary, "tls", *arguments], cwd=folder, check=True, capture_output=True, timeout=60
            )
        return cls(
            folder / "consul-agent-ca.pem",
            folder / "dc1-server-consul-0.pem",
            folder / "dc1-server-consul-0-key.pem",
            folder / "dc1-client-consul-0.pem",
            folder / "dc1-client-consul-0-key.pem",
        )


class ConsulServer(RunningConsul):
    """An agent of one's own, in development mode: whatever restarts it makes it forget everything.

    `acl` denies by default, and `management_token` may do all; `config()` carries no token.
    `tls` serves HTTPS beside HTTP, `mutual` demanding a client certificate; `config()` and
    `http_addr` then mean HTTPS, with the right authority, and with a client certificate only if it
    is asked for by `**server.client_certificate`. `unix_socket` listens there too. `hcl` is more of
    Consul's settings. The folder holds the certificates.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        acl: bool = False,
        tls: Literal["server", "mutual"] | None = None,
        unix_socket: Path | None = None,
        hcl: Sequence[str] = (),
    ) -> None:
        self.management_token = str(uuid.uuid4())
        self.certificates = Certificates.create(binary, folder / "certificates") if tls else None
        self._https_port = free_ports(1)[0] if tls else 0
        self._unix_socket = unix_socket
        self._acl = acl
        settings = [
            *hcl,
            *(self._acl_settings() if acl else ()),
            *(self._tls_settings(self.certificates, mutual=tls == "mutual") if self.certificates else ()),
            *([f'addresses {{ http = "{HOST} unix://{unix_socket}" }}'] if unix_socket else ()),
        ]
        self._agent = DevAgent(binary, http_port=0, dns_port=0, hcl=settings)

    def _acl_settings(self) -> list[str]:
        token = self.management_token
        return [
            'acl { enabled = true default_policy = "deny" '
            f'tokens {{ master = "{token}" agent = "{token}" }} }}'
        ]

    def _tls_settings(self, files: Certificates, *, mutual: bool) -> list[str]:
        return [
            f'ca_file = "{files.ca}" cert_file = "{files.server_cert}" key_file = "{files.server_key}"',
            f"verify_incoming_https = {str(mutual).lower()} ports {{ https = {self._https_port} }}",
        ]

    @property
    def http_addr(self) -> str:
        return f"https://{HOST}:{self._https_port}" if self.certificates else self._agent.http_addr

    @property
    def plain_http_addr(self) -> str:
        return self._agent.http_addr

    @property
    def dns_port(self) -> int:
        return self._agent.dns_port

    @property
    def pid(self) -> int:
        return self._agent.pid

    @property
    def client_certificate(self) -> dict[str, Path]:
        files = self.certificates
        if files is None:
            raise RuntimeError("this Consul does not speak TLS")
        return {"client_cert": files.client_cert, "client_key": files.client_key}

    def config(self, **changes: Any) -> ConsulConfig:
        if self.certificates:
            changes = {"ca_cert": self.certificates.ca, **changes}
        return super().config(**changes)

    def _managing_client(self) -> ConsulClient:
        """One with all rights, over plain HTTP."""
        plain = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": self.plain_http_addr})
        return ConsulClient(replace(plain, token=self.management_token if self._acl else ""))

    def create_token(self, rules: str) -> str:
        """A new token with these rules (HCL of a policy)."""
        return self.create_token_of(self.create_policy(rules))

    def create_policy(self, rules: str) -> str:
        """A new policy with these rules; returns its id."""
        with self._managing_client() as client:
            said = {"Name": f"policy-{uuid.uuid4()}", "Rules": rules}
            return str(client.send(put_json("/v1/acl/policy", said))["ID"])

    def create_token_of(self, policy: str) -> str:
        with self._managing_client() as client:
            token = client.send(put_json("/v1/acl/token", {"Policies": [{"ID": policy}]}))
        return str(token["SecretID"])

    def change_policy(self, policy: str, rules: str) -> None:
        with self._managing_client() as client:
            said = {"ID": policy, "Name": f"policy-{uuid.uuid4()}", "Rules": rules}
            client.send(put_json(f"/v1/acl/policy/{policy}", said))

    def start(self) -> None:
        self._agent.start()
        with self._managing_client() as client:
            eventually(lambda: client.health_state("passing").data)

    def stop(self) -> None:
        if self._agent.running:
            self.resume()
        self._agent.stop()

    def kill(self) -> None:
        self._agent.kill()

    def restart(self) -> None:
        """Kills it and starts it on the same ports, with an empty catalog."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """From now on it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        # Its threads do not all stop within that call.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def __exit__(self, *exc_info: object) -> None:
        # A clean end takes longer, and there is nothing to be kept.
        self.kill()


def federate(one: ConsulServer, other: ConsulServer) -> None:
    """Joins two datacenters; returns once each knows the other."""
    with one.client() as client, other.client() as far:
        (member,) = [
            member
            for member in client.query("/v1/agent/members", params={"wan": 1}).data
            if member["Name"].endswith(client.agent_self().data["Config"]["Datacenter"])
        ]
        far.send(
            Call(
                method="PUT",
                path=f"/v1/agent/join/{member['Addr']}:{member['Port']}",
                params=[("wan", "1")],
                parse=lambda reply: None,
            )
        )
        for knowing in (client, far):
            eventually(lambda knowing=knowing: len(knowing.catalog_datacenters().data) == 2)  # type: ignore[misc]


def put_json(path: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Call[Any]:
    content = json.dumps(body).encode()
    return Call(method="PUT", path=path, content=content, parse=lambda reply: json.loads(reply.body))


class ConsulInDocker(RunningConsul):
    """An agent in a container that shares the machine's network, so that its checks reach the tests."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._container: Any = None
        self._port = 0

    @property
    def http_addr(self) -> str:
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        # Only here: most machines that run the tests have a binary, and not all of them Docker.
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        # The container that would clean up after us is an image of its own to pull.
        testcontainers_config.ryuk_disabled = True
        self._port, dns, server, serf_lan, serf_wan = free_ports(5)
        ports = f"-http-port={self._port} -dns-port={dns} -server-port={server} -grpc-port=-1"
        gossip = f"-serf-lan-port={serf_lan} -serf-wan-port={serf_wan}"
        self._container = (
            DockerContainer(self._image)
            .with_kwargs(network_mode="host")
            .with_command(f"agent -dev -bind={HOST} -client={HOST} {ports} {gossip}")
        )
        self._container.start()
        with self.client() as client:
            eventually(lambda: client.health_state("passing").data, limit=60)

    def stop(self) -> None:
        if self._container is not None:
            self._container.stop()


# ---------------------------------------------------------------------------------- scripted answers


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes


@dataclass(frozen=True)
class _Script:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hangs: bool = False


class ScriptedConsul:
    """A server on a free port that gives the answers it was told, one each, and records the requests.

    A request for which no answer is left fails the test when the server is closed.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._scripts: deque[_Script] = deque()
        self._unexpected: list[str] = []
        self._closing = threading.Event()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body in one packet: in two, the second would wait 40 ms for the other side.
            wbufsize = -1

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                scripted._handle(self)
                self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, free_ports(1)[0]), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def http_addr(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    def config(self, **changes: Any) -> ConsulConfig:
        return replace(ConsulConfig.from_env({"CONSUL_HTTP_ADDR": self.http_addr}), **changes)

    def answer(
        self, body: bytes | str = b"", *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        content = body.encode() if isinstance(body, str) else body
        self._scripts.append(_Script(status, content, headers or {}))

    def answer_raw(self, raw: bytes) -> None:
        """Sends these bytes instead of an HTTP answer of our own, and closes the connection."""
        self._scripts.append(_Script(raw=raw))

    def hang(self) -> None:
        """Takes a request and does not answer."""
        self._scripts.append(_Script(hangs=True))

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.requests.append(Request(handler.command, parts.path, query, handler.headers, body))
        if not self._scripts:
            self._unexpected.append(f"{handler.command} {handler.path}")
            handler.send_error(500, "no answer was told to this server")
            return
        self._play(self._scripts.popleft(), handler)

    def _play(self, script: _Script, handler: BaseHTTPRequestHandler) -> None:
        if script.hangs:
            self._closing.wait(60)
            handler.close_connection = True
        elif script.raw is not None:
            handler.wfile.write(script.raw)
            handler.close_connection = True
        else:
            handler.send_response(script.status)
            for name, value in {"Content-Length": str(len(script.body)), **script.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(script.body)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        assert not self._unexpected, f"requests that no answer was scripted for: {self._unexpected}"
