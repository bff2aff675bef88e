"""Secrets and certificates that are rotated under a running program, against a real Consul."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

import discovery
from discovery import ConfigError, TTLCheck
from discovery.consul.call import Call
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.watch.watcher import ConsulWatcher
from tests.consul_server import Certificates, ConsulServer, consul_binary, eventually, put_json
from tests.watching import Watching

RULES = 'service_prefix "" { policy = "write" } node_prefix "" { policy = "write" }'

StartConsul = Callable[..., ConsulServer]


@pytest.fixture
def name() -> str:
    return f"rotated-{uuid.uuid4().hex[:8]}"


class Tokens:
    """Tokens that are made, put into a file as Kubernetes does it, and revoked."""

    def __init__(self, server: ConsulServer, folder: Path) -> None:
        environ = {"CONSUL_HTTP_ADDR": server.plain_http_addr, "CONSUL_HTTP_TOKEN": server.management_token}
        self.managing = ConsulConfig.from_env(environ)
        self._policy = server.create_policy(RULES)
        self._folder = folder
        self._number = 0
        self._accessor = ""
        self.file = folder / "token"
        self.rotate()
        self.file.symlink_to(folder / "..data" / "token")

    def rotate(self) -> str:
        """A new token in the place of the old one, which is of no use any more; returns the new one."""
        with ConsulClient(self.managing) as client:
            made = client.send(put_json("/v1/acl/token", {"Policies": [{"ID": self._policy}]}))
            self.put(made["SecretID"])
            if self._accessor:
                gone = Call(method="DELETE", path=f"/v1/acl/token/{self._accessor}", parse=lambda reply: None)
                client.send(gone)
        self._accessor = made["AccessorID"]
        return str(made["SecretID"])

    def put(self, content: str) -> None:
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir()
        (version / "token").write_text(content)
        new = self._folder / "..new"
        new.symlink_to(version)
        new.replace(self._folder / "..data")


@pytest.fixture
def server(consul_server: StartConsul) -> ConsulServer:
    return consul_server(acl=True)


@pytest.fixture
def tokens(server: ConsulServer, tmp_path: Path) -> Tokens:
    return Tokens(server, tmp_path)


def with_token(server: ConsulServer, tokens: Tokens, **more: str) -> ConsulConfig:
    named = {"CONSUL_HTTP_ADDR": server.http_addr, "CONSUL_HTTP_TOKEN_FILE": str(tokens.file)}
    return ConsulConfig.from_env(named | more)


def test_a_registration_lives_on_when_its_token_is_rotated(
    server: ConsulServer, tokens: Tokens, name: str
) -> None:
    config = with_token(server, tokens)
    check = TTLCheck("2s")
    with (
        ConsulClient(tokens.managing) as managing,
        discovery.register(name=name, port=8001, consul=config, check=check) as registration,
    ):
        assert registration.wait_registered(10)
        tokens.rotate()
        # Consul writes into its catalog what a check says by the token that it was registered with.
        registration.report("warning", "with the new token")
        eventually(lambda: "warning" in statuses(managing, name))
        registration.report("passing")
        eventually(lambda: statuses(managing, name) == {"passing"})


def statuses(client: ConsulClient, name: str) -> set[str]:
    return {check["Status"] for check in client.health_service(name).data[0]["Checks"]}


def test_a_watch_goes_on_when_its_token_is_rotated(server: ConsulServer, tokens: Tokens, name: str) -> None:
    with (
        ConsulClient(tokens.managing) as managing,
        Watching(ConsulWatcher(with_token(server, tokens))) as watching,
    ):
        eventually(lambda: watching.updates)
        tokens.rotate()
        managing.register({"Name": name, "Port": 80, "Tags": ["module"]})
        eventually(lambda: name in watching.of(name))


def test_a_token_file_that_became_useless_leaves_the_token_in_use(
    server: ConsulServer, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    with ConsulClient(with_token(server, tokens)) as client:
        assert client.catalog_nodes().data
        held = tokens.file.read_text()
        tokens.put(held + "\nand another line")
        eventually(lambda: client.catalog_nodes().data and str(tokens.file) in caplog.text)
        tokens.put("")
        assert client.catalog_nodes().data
    assert held not in caplog.text


def test_no_token_that_was_ever_sent_is_told(server: ConsulServer, tokens: Tokens) -> None:
    first = tokens.file.read_text()
    with ConsulClient(with_token(server, tokens)) as client:
        client.catalog_nodes()
        second = tokens.rotate()
        eventually(lambda: client.catalog_nodes().data)
        said = client._excerpt(f"{first} and {second} are secrets")
    assert said == "*** and *** are secrets"


def test_an_empty_token_file_leaves_the_variable_in_force(
    server: ConsulServer, tokens: Tokens, tmp_path: Path
) -> None:
    token = tokens.file.read_text()
    tokens.put("")
    with ConsulClient(with_token(server, tokens, CONSUL_HTTP_TOKEN=token)) as client:
        assert client.catalog_nodes().data


# ---------------------------------------------------------------------------------------- certificates


def put_in_place(new: Certificates, old: Certificates) -> None:
    for file in ("ca", "server_cert", "server_key", "client_cert", "client_key"):
        shutil.copy(getattr(new, file), getattr(old, file))


def test_a_watch_goes_on_when_all_certificates_are_rotated(
    consul_server: StartConsul, tmp_path: Path, name: str
) -> None:
    server = consul_server(tls="mutual")
    files = server.certificates
    assert files is not None
    with Watching(ConsulWatcher(server.config(**server.client_certificate))) as watching:
        eventually(lambda: watching.updates)
        put_in_place(Certificates.create(consul_binary(), tmp_path / "new"), files)
        server.restart()
        with server.client(**server.client_certificate) as client:
            client.register({"Name": name, "Port": 80, "Tags": ["module"]})
        eventually(lambda: name in watching.of(name), limit=30)


def test_a_certificate_whose_key_has_not_come_yet_is_awaited(
    consul_server: StartConsul, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = consul_server(tls="mutual")
    files = server.certificates
    assert files is not None
    with Watching(ConsulWatcher(server.config(**server.client_certificate))) as watching:
        eventually(lambda: watching.updates)
        other = Certificates.create(consul_binary(), tmp_path / "other")
        shutil.copy(other.client_cert, files.client_cert)
        plain = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": server.plain_http_addr})
        with ConsulClient(plain) as client:
            client.register({"Name": "first", "Port": 80, "Tags": ["module"]})
            eventually(lambda: "first" in watching.of("first"))
            eventually(lambda: "CONSUL_CLIENT_KEY: " in caplog.text)
            client.register({"Name": "second", "Port": 80, "Tags": ["module"]})
        eventually(lambda: "second" in watching.of("second"))
    assert caplog.text.count("what was read before stays in use") == 1


def chain(folder: Path) -> tuple[Path, Path, Path]:
    """An intermediate authority's certificate alone, and what it signed for a server."""
    root = trustme.CA()
    intermediate = root.create_child_ca()
    issued = intermediate.issue_cert("127.0.0.1")
    authority, certificate, key = folder / "ca.pem", folder / "server.pem", folder / "server-key.pem"
    authority.write_bytes(intermediate.cert_pem.bytes())
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return authority, certificate, key


def test_an_intermediate_authority_alone_is_trusted(consul_server: StartConsul, tmp_path: Path) -> None:
    server = consul_server(tls="server")
    files = server.certificates
    assert files is not None
    authority, certificate, key = chain(tmp_path)
    for new, old in ((authority, files.ca), (certificate, files.server_cert), (key, files.server_key)):
        shutil.copy(new, old)
    server.restart()
    with ConsulClient(server.config(ca_cert=authority)) as client:
        assert client.catalog_nodes().data


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfe", "does not hold text"),
        ("tökén".encode(), "no HTTP header can carry"),
        (None, "cannot read"),
    ],
)
def test_a_token_file_that_is_of_no_use_at_the_start_is_refused(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    environ: dict[str, Any] = {"CONSUL_HTTP_TOKEN_FILE": os.fspath(file)}
    with pytest.raises(ConfigError, match=rf"CONSUL_HTTP_TOKEN_FILE: .*{fault}"):
        ConsulConfig.from_env(environ)
