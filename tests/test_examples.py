"""The sample modules: good manifests, and a registration that comes and goes with the program."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from discovery.consul.dev_agent import free_ports
from manifest_cache.manifest import ParsedManifest, manifest_from_object, parse_manifest
from tests.consul_server import ConsulServer, eventually

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PUBLIC = EXAMPLES / "documents" / "public"


def reporting_manifest(start: int) -> ParsedManifest:
    manifest_of = runpy.run_path(str(EXAMPLES / "reporting" / "app.py"))["manifest_of"]
    return manifest_from_object(manifest_of(start), module="reporting")


def manifests() -> list[ParsedManifest]:
    return [
        parse_manifest((EXAMPLES / "financial" / "manifest.json").read_bytes(), module="financial"),
        parse_manifest((PUBLIC / "manifest.json").read_bytes(), module="documents"),
        reporting_manifest(0),
    ]


def test_what_one_manifest_requires_another_provides() -> None:
    required = {need.name for parsed in manifests() for need in parsed.manifest.requires or ()}
    provided = {offer.name for parsed in manifests() for offer in parsed.manifest.provides or ()}
    assert required
    assert required <= provided


def test_reporting_brings_another_manifest_at_each_start() -> None:
    starts = [reporting_manifest(start) for start in range(3)]
    assert [parsed.version for parsed in starts] == ["1.0.0", "1.1.0", "1.2.0"]
    assert [len(parsed.manifest.routes or ()) for parsed in starts] == [1, 2, 3]


def commands(port: int, folder: Path) -> dict[str, list[str | Path]]:
    lictor = Path(sys.executable).with_name("lictor")
    http_server = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    return {
        "financial": [sys.executable, EXAMPLES / "financial" / "app.py", "--port", str(port)],
        "reporting": [
            *(sys.executable, EXAMPLES / "reporting" / "app.py"),
            *("--port", str(port), "--state", folder / "starts"),
        ],
        "documents": [
            *(lictor, "register", "--name", "documents", "--port", str(port)),
            *("--check", "http:/health,interval=1s"),
            *("--manifest", PUBLIC / "manifest.json", "--manifest-path", "/manifest.json", "--"),
            *http_server,
            *("--directory", PUBLIC),
        ],
    }


@contextmanager
def running(command: list[str | Path], consul: ConsulServer) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(command, env=os.environ | {"CONSUL_HTTP_ADDR": consul.http_addr})
    try:
        yield program
    finally:
        if program.poll() is None:
            program.kill()
            program.wait()


@pytest.mark.parametrize("name", ["financial", "reporting", "documents"])
def test_sample(name: str, tmp_path: Path, consul_server: Callable[..., ConsulServer]) -> None:
    consul = consul_server()
    (port,) = free_ports(1)
    with consul.client() as client, running(commands(port, tmp_path)[name], consul) as program:
        (entry,) = eventually(lambda: client.query(f"/v1/health/service/{name}", params={"passing": 1}).data)
        service = entry["Service"]
        assert "module" in service["Tags"]
        assert service["Port"] == port

        served = httpx.get(
            f"http://127.0.0.1:{port}{service['Meta'].get('manifest_path', '/manifest')}", trust_env=False
        )
        parsed = parse_manifest(served.content, module=name)
        assert service["Meta"]["version"] == parsed.version
        assert service["Meta"]["manifest_digest"] == parsed.digest

        program.terminate()
        program.wait(20)
        assert client.health_service(name).data == []
