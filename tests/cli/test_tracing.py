"""OpenTelemetry traces of the real commands, taken by a real OTLP receiver; and none where none is wanted."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest

from discovery.errors import ConfigError
from discovery.tracing import check, is_wanted
from tests.cli.command import Lictor
from tests.consul_server import RunningConsul, eventually
from tests.manifest_server import ManifestServer, manifest
from tests.otlp_receiver import OTLPReceiver, Span
from tests.web.filling import Cache

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def collector() -> Iterator[OTLPReceiver]:
    with OTLPReceiver() as receiver:
        yield receiver


def test_a_request_is_a_span_within_its_callers_trace(
    lictor: Lictor, cache: Cache, collector: OTLPReceiver
) -> None:
    cache.module("financial")
    server = lictor.serve(**collector.environment)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    asked = httpx.get(
        f"{lictor.url}/api/v1/modules/financial",
        headers={"traceparent": f"00-{trace}-{parent}-01"},
        trust_env=False,
    )
    assert asked.status_code == 200
    span = collector.wait_for("GET /api/v1/modules/<name>")
    assert (span.trace, span.parent, span.is_error) == (trace, parent, False)
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["url.path"] == "/api/v1/modules/financial"
    assert (span.resource["service.name"], span.resource["lictor.part"]) == ("lictor", "web server")
    within = [other for other in collector.named("database read") if other.trace == trace]
    assert [other.parent for other in within] == [span.id]
    assert server.end() == 0


def test_the_synchronizers_work_is_spans(
    lictor: Lictor, cache: Cache, consul: RunningConsul, collector: OTLPReceiver
) -> None:
    name = f"traced-{uuid.uuid4().hex[:8]}"
    lictor.settings |= {
        "CONSUL_HTTP_ADDR": consul.http_addr,
        "LICTOR_LEADER_KEY": f"lictor/{name}",
        "OTEL_SERVICE_NAME": "catalog",
    }
    synchronizer = lictor.start("sync", **collector.environment)
    with ManifestServer({"/manifest": manifest({"name": name, "version": "1.0.0"})}) as module:
        with consul.client() as client:
            place = {"Address": module.host, "Port": module.port}
            client.register({"Name": name, "Tags": ["module"], **place})
            module.wait_for_requests(1)
            client.deregister(name)
        fetch = eventually(lambda: _of_module(collector, name))[0]
        assert module.requests[0].headers["traceparent"].startswith(f"00-{fetch.trace}-{fetch.id}-")
    writing = collector.wait_for("write manifests")
    inside = [span for span in collector.named("database write") if span.parent == writing.id]
    assert [span.trace for span in inside] == [writing.trace]
    assert any(span.name.startswith("consul GET /v1/") for span in collector.spans)
    assert synchronizer.end() == 0
    assert fetch.resource["service.name"] == "catalog"


def _of_module(collector: OTLPReceiver, name: str) -> list[Span]:
    return [span for span in collector.named("fetch manifest") if span.attributes["lictor.module"] == name]


def test_an_endpoint_that_is_away_harms_nobody(lictor: Lictor, cache: Cache) -> None:
    nobody = {ENDPOINT: "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    synchronizer = lictor.start("sync", LICTOR_REGISTRIES="push", **nobody)
    synchronizer.wait_for("127.0.0.1.*port=9|Failed to export|[Tt]ransient error")
    began = time.monotonic()
    assert synchronizer.end() == 0
    assert time.monotonic() - began < 10, "the SDK would go on trying for half a minute"


@pytest.mark.parametrize("command", ["sync", "serve", "up"])
def test_a_missing_package_is_named(lictor: Lictor, cache: Cache, command: str) -> None:
    package = lictor.folder / "path" / "opentelemetry"
    package.mkdir(parents=True)
    # An empty package of that name hides the installed one.
    (package / "__init__.py").touch()
    done = lictor.run(command, PYTHONPATH=str(package.parent), **{ENDPOINT: "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert f"{ENDPOINT}: is set, but OpenTelemetry is not installed: run `pip install 'lictor[otel]'`" in (
        done.stderr
    )


def test_nothing_is_imported_where_no_endpoint_is_set() -> None:
    code = (
        "import sys; from web.wsgi import app; import manifest_cache.sync\n"
        "app.test_client().get('/healthz')\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], wanted: bool) -> None:
    check(environ)
    assert is_wanted(environ) is wanted


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf"):
        check({ENDPOINT: "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
