"""Until when what the synchronizer shows to Consul is valid: told by its metrics and by `lictor doctor`."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

import discovery.consul.doctor
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.doctor import check_consul
from discovery.settings import DiscoverySettings
from tests.cli.command import Lictor, Running
from tests.consul_server import ConsulServer, ScriptedConsul, eventually, put_json
from tests.web.filling import Cache
from tests.web.gunicorn_server import free_port
from web.telemetry.certificate_validity import Validity, validities
from web.telemetry.consul_credentials import ConsulCredentials

CERTIFICATE = "lictor_certificate_expiry_timestamp_seconds"
TOKEN = "lictor_consul_token_expiry_timestamp_seconds"


def told(bind: str) -> dict[str, float]:
    """The end of what each setting names, and of the token."""
    text = httpx.get(f"http://{bind}/metrics", trust_env=False).text
    return {
        sample.labels.get("setting", sample.name): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (CERTIFICATE, TOKEN)
    }


def expiring_token(server: ConsulServer, ttl: str) -> tuple[str, float]:
    """A new token that ends, and when it does."""
    environ = {"CONSUL_HTTP_ADDR": server.plain_http_addr, "CONSUL_HTTP_TOKEN": server.management_token}
    with ConsulClient(ConsulConfig.from_env(environ)) as client:
        said = {"Policies": [{"Name": "global-management"}], "ExpirationTTL": ttl}
        made = client.send(put_json("/v1/acl/token", said))
        # Consul tells nanoseconds.
        return str(made["SecretID"]), datetime.fromisoformat(made["ExpirationTime"]).timestamp()


def end_of(certificate: Path) -> float:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


def made(folder: Path, name: str, *, days: float) -> Path:
    """A certificate that ends in so many days, signed by nobody of note."""
    ends = datetime.now(UTC) + timedelta(days=days)
    made = trustme.CA().issue_cert(name, not_after=ends, not_before=ends - timedelta(days=30))
    path = folder / f"{name}.pem"
    made.cert_chain_pems[0].write_to_path(str(path))
    return path


def sync(lictor: Lictor, server: ConsulServer, **settings: str) -> tuple[Running, str]:
    """A synchronizer that asks this Consul, and where its metrics are."""
    bind = f"127.0.0.1:{free_port()}"
    settings |= {"LICTOR_REGISTRIES": "consul", "CONSUL_HTTP_ADDR": server.http_addr}
    return lictor.start("sync", LICTOR_METRICS_BIND=bind, **settings), bind


def test_sync_tells_until_when_its_certificates_and_its_token_are_valid(
    lictor: Lictor, cache: Cache, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server(acl=True, tls="mutual")
    files = server.certificates
    assert files is not None
    token, end = expiring_token(server, "2h")
    authorities = lictor.folder / "ca.pem"
    shutil.copy(files.ca, authorities)
    synchronizer, bind = sync(
        lictor,
        server,
        CONSUL_HTTP_TOKEN=token,
        CONSUL_CACERT=str(authorities),
        CONSUL_CLIENT_CERT=str(files.client_cert),
        CONSUL_CLIENT_KEY=str(files.client_key),
    )
    synchronizer.wait_for("metrics on")
    eventually(lambda: TOKEN in told(bind))
    assert told(bind)[TOKEN] == pytest.approx(end, abs=0.01)
    assert told(bind)["CONSUL_CLIENT_CERT"] == end_of(files.client_cert)
    assert told(bind)["CONSUL_CACERT"] == end_of(files.ca)
    sooner = made(lictor.folder, "sooner", days=3)
    authorities.write_bytes(files.ca.read_bytes() + sooner.read_bytes())
    assert told(bind)["CONSUL_CACERT"] == end_of(sooner)
    authorities.write_text("no certificate")
    assert "CONSUL_CACERT" not in told(bind)
    assert "CONSUL_CLIENT_CERT" in told(bind)
    synchronizer.wait_for("CONSUL_CACERT: it cannot be told until when .*ca.pem is valid: ")
    assert synchronizer.end() == 0


def test_what_has_no_end_is_not_told(
    lictor: Lictor, cache: Cache, consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server(acl=True)
    synchronizer, bind = sync(lictor, server, CONSUL_HTTP_TOKEN=server.management_token)
    synchronizer.wait_for("leading")
    assert not told(bind)
    assert synchronizer.end() == 0


def test_the_end_of_a_token_stays_known_once_consul_has_forgotten_it(scripted_consul: ScriptedConsul) -> None:
    environ = {"CONSUL_HTTP_ADDR": scripted_consul.http_addr, "CONSUL_HTTP_TOKEN": "a"}
    credentials = ConsulCredentials(environ)
    scripted_consul.answer(
        '{"CreateTime": "2026-05-01T14:00:00.123456789+02:00", "ExpirationTime": "2026-05-01T13:00:00Z"}'
    )
    scripted_consul.answer("ACL not found", status=403)
    for _ in range(2):
        with credentials.asking():
            pass
        eventually(lambda: "lictor consul token" not in {thread.name for thread in threading.enumerate()})
    assert len(scripted_consul.requests) == 2
    values = {sample.name: sample.value for family in credentials.collect() for sample in family.samples}
    assert values[TOKEN] == datetime(2026, 5, 1, 13, tzinfo=UTC).timestamp()
    created = values["lictor_consul_token_created_timestamp_seconds"]
    assert created == pytest.approx(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp(), abs=0.2)


@pytest.mark.parametrize("share", [0.2, 1.1])
def test_doctor_says_when_the_token_ends(
    consul_server: Callable[..., ConsulServer], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    server = consul_server(acl=True)
    token, end = expiring_token(server, "2h")
    # Of its life, of which all is left.
    monkeypatch.setattr(discovery.consul.doctor, "_LITTLE", share)
    checks = check_consul(server.config(token=token), DiscoverySettings())
    (found,) = [check for check in checks if check.check == "consul token"]
    assert found.status == ("warn" if share > 1 else "ok")
    assert f"ends at {datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M}" in found.detail


def test_authorities_that_ended_do_not_count_while_another_is_valid(tmp_path: Path) -> None:
    old, new = (made(tmp_path, name, days=days) for name, days in (("old", -1), ("new", 20)))

    def ends(*files: Path) -> dict[str, float]:
        folder = tmp_path / f"{len(files)}-{files[0].name}"
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        environ = {"CONSUL_HTTP_SSL": "true", "CONSUL_CAPATH": str(folder)}
        _, expiry, *_ = ConsulCredentials(environ).collect()
        return {sample.labels["setting"]: sample.value for sample in expiry.samples}

    assert ends(old, new) == {"CONSUL_CAPATH": end_of(new)}
    assert ends(old) == {"CONSUL_CAPATH": end_of(old)}


def test_certificates_are_read_as_others_read_them(tmp_path: Path) -> None:
    long_ago, far_off = datetime(1955, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    issued = trustme.CA().issue_cert("a", not_before=long_ago, not_after=far_off)
    pem = issued.cert_chain_pems[0].bytes()
    assert validities(b"words before\n" + pem) == [Validity(long_ago.timestamp(), far_off.timestamp())]


@pytest.mark.parametrize(
    "content", [b"", b"\x30", b"\x02\x01\x00", bytes(40)], ids=["nothing", "cut off", "a number", "zeros"]
)
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    text = base64.b64encode(content) or b"\n"
    with pytest.raises(ValueError):  # noqa: PT011 - what is wrong is said by the library that reads it
        validities(b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n")
