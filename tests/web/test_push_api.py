"""Registering by push over HTTP: registrations and heartbeats in; rows, refusals and every fault out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.filling import Cache, told

REGISTER = "/api/v1/modules/register"
BODY = {"name": "weather", "port": 9000}
MANIFEST = {"name": "weather", "version": "1.2.0", "title": "Weather"}


def faults(answer: TestResponse) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    assert answer.content_type == "application/problem+json"
    assert told(answer)["type"] == "/problems/invalid-body"
    return {error["field"]: error["message"] for error in told(answer)["errors"]}


def test_a_registration_is_readable_at_once(client: FlaskClient) -> None:
    answer = client.post(REGISTER, json={**BODY, "manifest": MANIFEST, "tags": ["iot"], "meta": {"a": "b"}})
    assert answer.status_code == 201
    done = told(answer)
    assert set(done) == {"instance", "index", "heartbeat_interval", "deregister_after"}
    assert (done["heartbeat_interval"], done["deregister_after"]) == (30, 600)
    assert answer.headers["X-Lictor-Index"] == str(done["index"])
    assert done["instance"]["id"] == "weather-127.0.0.1-9000"
    assert done["instance"]["address"] == "127.0.0.1"
    module = told(client.get("/api/v1/modules/weather?include=manifest"))
    assert module["manifest"] == MANIFEST
    assert module["instances"] == [done["instance"]]
    assert module["status"] == "available"


def test_everything_that_may_be_said(client: FlaskClient) -> None:
    body = {
        **BODY,
        "id": "w-1",
        "address": "weather.example.com",
        "scheme": "https",
        "tags": ["b", "a", "b"],
        "meta": {"team": "sky"},
        "manifest_path": "/about.json",
        "heartbeat_interval": "1m30s",
        "deregister_after": 120,
    }
    done = told(client.post(REGISTER, json=body))
    assert (done["heartbeat_interval"], done["deregister_after"]) == (90, 120)
    shape = done["instance"]
    assert (shape["id"], shape["address"], shape["scheme"]) == ("w-1", "weather.example.com", "https")
    assert shape["tags"] == ["b", "a"]
    assert shape["meta"] == {"team": "sky", "manifest_path": "/about.json"}


def test_the_same_id_replaces(client: FlaskClient) -> None:
    for port in (9000, 9001):
        client.post(REGISTER, json={"name": "weather", "id": "one", "port": port})
    (shape,) = told(client.get("/api/v1/modules/weather/instances"))["items"]
    assert shape["port"] == 9001


@pytest.mark.parametrize(
    ("remote", "address"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"), ("::ffff:192.0.2.7", "192.0.2.7")],
)
def test_the_clients_address_is_the_default(client: FlaskClient, remote: str, address: str) -> None:
    answer = client.post(REGISTER, json=BODY, environ_base={"REMOTE_ADDR": remote})
    assert told(answer)["instance"]["address"] == address


def test_over_a_unix_socket_the_address_must_be_said(client: FlaskClient) -> None:
    answer = client.post(REGISTER, json=BODY, environ_base={"REMOTE_ADDR": ""})
    assert list(faults(answer)) == ["address"]


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"name": None}, "name", "text"),
        ({"name": ""}, "name", "empty"),
        ({"name": "my_module"}, "name", "'_'"),
        ({"name": "-a"}, "name", "hyphen"),
        ({"name": "a" * 64}, "name", "63"),
        ({"name": "a" * 10_000}, "name", "63"),
        ({"name": "a\x00b"}, "name", "DNS"),
        ({"name": "a.b"}, "name", "'.'"),
        ({"name": 5}, "name", "text"),
        ({"port": 0}, "port", "1 to 65535"),
        ({"port": 65536}, "port", "1 to 65535"),
        ({"port": -1}, "port", "1 to 65535"),
        ({"port": "9000"}, "port", "whole number from 1 to 65535"),
        ({"port": 9000.5}, "port", "whole number from 1 to 65535"),
        ({"port": True}, "port", "whole number from 1 to 65535"),
        ({"port": None}, "port", "whole number from 1 to 65535"),
        ({"id": ""}, "id", "empty"),
        ({"id": "a/b"}, "id", "slash"),
        ({"id": ".."}, "id", "path"),
        ({"id": "a\nb"}, "id", "printed"),
        ({"id": "a" * 256}, "id", "255"),
        ({"address": "http://x"}, "address", "host name"),
        ({"address": "0.0.0.0"}, "address", "found"),
        ({"address": "::"}, "address", "found"),
        ({"address": "300.1.1.1"}, "address", "IP address"),
        ({"address": ""}, "address", "host name"),
        ({"scheme": "ftp"}, "scheme", "http or https"),
        ({"tags": "a"}, "tags", "list"),
        ({"tags": ["a", ""]}, "tags.1", "empty"),
        ({"tags": ["a", 7]}, "tags.1", "text"),
        ({"tags": ["\x00"]}, "tags.0", "printed"),
        ({"tags": ["a"] * 65}, "tags", "64"),
        ({"meta": []}, "meta", "object"),
        ({"meta": {"a": 1}}, "meta.a", "text"),
        ({"meta": {"a b": "c"}}, "meta", "letters"),
        ({"meta": {"a": "b" * 513}}, "meta", "512"),
        ({"meta": {str(n): "" for n in range(65)}}, "meta", "64"),
        ({"meta": {str(n): "" for n in range(64)}, "manifest_path": "/m"}, "meta", "64"),
        ({"manifest": []}, "manifest", "object"),
        ({"manifest": {}}, "manifest.version", "missing"),
        ({"manifest": {**MANIFEST, "name": "other"}}, "manifest.name", "weather"),
        ({"manifest": {**MANIFEST, "version": "1"}}, "manifest.version", "semantic"),
        ({"manifest": {**MANIFEST, "routes": [{"path": 1}]}}, "manifest.routes.0.path", "string"),
        ({"manifest": {**MANIFEST, "x": "y" * 1024 * 1024}}, "manifest", "1048576"),
        ({"manifest": MANIFEST, "manifest_path": "/m"}, "manifest_path", "not both"),
        ({"meta": {"manifest_path": "/m"}, "manifest_path": "/m"}, "meta", "manifest_path"),
        ({"manifest_path": "m"}, "manifest_path", "/"),
        ({"meta": {"manifest_port": "0"}}, "meta.manifest_port", "65535"),
        ({"meta": {"manifest_port": "http"}}, "meta.manifest_port", "digits"),
        ({"manifest_path": "//evil.example"}, "manifest_path", "/"),
        ({"manifest_path": "/a b"}, "manifest_path", "percent"),
        ({"heartbeat_interval": 0}, "heartbeat_interval", "0.1 to 86400"),
        ({"heartbeat_interval": "soon"}, "heartbeat_interval", "30s"),
        ({"heartbeat_interval": []}, "heartbeat_interval", "30s"),
        ({"heartbeat_interval": True}, "heartbeat_interval", "30s"),
        ({"heartbeat_interval": 1e300}, "heartbeat_interval", "0.1 to 86400"),
        ({"deregister_after": 0.5}, "deregister_after", "1 to"),
        ({"deregister_after": "32d"}, "deregister_after", "1 to"),
        ({"heartbeat": 3}, "heartbeat", "heartbeat_interval"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_a_faulty_field_is_named(client: FlaskClient, change: dict[str, Any], field: str, said: str) -> None:
    found = faults(client.post(REGISTER, json={**BODY, **change}))
    assert field in found
    assert said in found[field]
    assert told(client.get("/api/v1/modules"))["index"] == 0


def test_every_faulty_field_is_named_at_once(client: FlaskClient) -> None:
    body = {"port": 0, "tags": [""], "manifest": {"name": "x"}, "manifest_path": "y", "x": 1}
    found = faults(client.post(REGISTER, json=body))
    assert set(found) == {"name", "port", "tags.0", "manifest.version", "manifest_path", "x"}


def test_so_many_faults_that_not_all_are_told(client: FlaskClient) -> None:
    body = {**BODY, "meta": {str(number): number for number in range(10_000)}}
    assert 64 < len(faults(client.post(REGISTER, json=body))) <= 200


@pytest.mark.parametrize(
    ("raw", "field", "said"),
    [
        (b"", "", "JSON"),
        (b"{", "", "line 1"),
        (b"name=weather", "", "line 1"),
        (b"[]", "", "object"),
        (b"null", "", "object"),
        (b'"text"', "", "object"),
        (b'{"name": "weather", "port": NaN}', "port", "NaN"),
        (b'{"name": "weather", "port": Infinity}', "port", "Infinity"),
        (b'{"name": "weather", "name": "x", "port": 1}', "name", "twice"),
        (b'{"name": "\xff", "port": 1}', "", "UTF-8"),
        (b'{"name": "weather", "id": "\\ud800", "port": 1}', "id", "surrogate"),
        (b'{"name": "weather", "port": ' + b"9" * 5000 + b"}", "port", "number"),
        (b"[" * 10_000 + b"]" * 10_000, "", "deep"),
        (b'{"manifest":' * 10_000 + b"1" + b"}" * 10_000, "", "deep"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:40],
)
def test_what_is_no_json_object(client: FlaskClient, raw: bytes, field: str, said: str) -> None:
    found = faults(client.post(REGISTER, data=raw, content_type="application/json"))
    assert field in found
    assert said in found[field]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_declared_as_json(client: FlaskClient, content_type: str) -> None:
    answer = client.post(REGISTER, data=json.dumps(BODY), content_type=content_type)
    assert (answer.status_code, told(answer)["type"]) == (415, "/problems/wrong-content-type")


def test_a_charset_is_no_matter(client: FlaskClient) -> None:
    answer = client.post(REGISTER, data=json.dumps(BODY), content_type="application/json; charset=utf-8")
    assert answer.status_code == 201


def test_a_body_that_is_too_large(client: FlaskClient) -> None:
    raw = json.dumps({**BODY, "manifest": {**MANIFEST, "x": "y" * 2 * 1024 * 1024}})
    answer = client.post(REGISTER, data=raw, content_type="application/json")
    assert (answer.status_code, told(answer)["type"]) == (413, "/problems/body-too-large")
    assert "2097152" in told(answer)["detail"]


def test_heartbeats_and_the_end(cache: Cache, client: FlaskClient) -> None:
    client.post(REGISTER, json={**BODY, "id": "w-1", "heartbeat_interval": 5})
    index = cache.index()
    beat = client.post("/api/v1/modules/weather/heartbeat", json={"id": "w-1"})
    assert (beat.status_code, told(beat)) == (200, {"index": index, "heartbeat_interval": 5})
    worse = client.post(
        "/api/v1/modules/weather/heartbeat", json={"id": "w-1", "health": "warning", "note": "disk"}
    )
    assert told(worse)["index"] > index
    assert told(client.get("/api/v1/modules/weather"))["status"] == "degraded"
    gone = client.delete("/api/v1/modules/weather/instances/w-1")
    assert (gone.status_code, gone.data) == (204, b"")
    assert int(gone.headers["X-Lictor-Index"]) > told(worse)["index"]
    module = told(client.get("/api/v1/modules/weather"))
    assert (module["status"], module["instances"]) == ("unavailable", [])


def test_a_heartbeat_moves_last_seen(client: FlaskClient) -> None:
    client.post(REGISTER, json={**BODY, "id": "w-1"})

    def last_seen() -> str:
        (shape,) = told(client.get("/api/v1/modules/weather/instances"))["items"]
        return str(shape["last_seen"])

    before = last_seen()
    while last_seen() == before:
        client.post("/api/v1/modules/weather/heartbeat", json={"id": "w-1"})
    assert last_seen() > before


def test_who_is_not_registered_is_told_to_register(client: FlaskClient) -> None:
    for answer in (
        client.post("/api/v1/modules/weather/heartbeat", json={"id": "w-1"}),
        client.delete("/api/v1/modules/weather/instances/w-1"),
        client.delete("/api/v1/modules/weather/instances/%ff%00"),
    ):
        if answer.status_code == 400:
            assert told(answer)["errors"][0]["parameter"] == "id"
            continue
        assert (answer.status_code, told(answer)["type"]) == (404, "/problems/instance-not-registered")
        assert "register it again" in told(answer)["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "id"),
        ({"id": 1}, "id"),
        ({"id": "w", "health": "fine"}, "health"),
        ({"id": "w", "note": "\x00"}, "note"),
        ({"id": "w", "note": "x" * 1001}, "note"),
        ({"id": "w", "nota": ""}, "nota"),
    ],
)
def test_faulty_heartbeats(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    assert field in faults(client.post("/api/v1/modules/weather/heartbeat", json=body))


# Who may push

WRITES = [
    ("POST", REGISTER),
    ("POST", "/api/v1/modules/w/heartbeat"),
    ("DELETE", "/api/v1/modules/w/instances/w"),
]
MakeApp = Callable[..., Flask]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bind": "0.0.0.0:8080"}, "LICTOR_PUSH_TOKEN_FILE"),
        ({"bind": ":8080"}, "LICTOR_PUSH_TOKEN_FILE"),
        ({"bind": "[::]:8080"}, "LICTOR_PUSH_TOKEN_FILE"),
        ({"bind": "192.0.2.1:8080"}, "LICTOR_PUSH_TOKEN_FILE"),
        ({"bind": "unix:/run/lictor.sock"}, "LICTOR_PUSH_TOKEN_FILE"),
        ({"registries": ["consul"]}, "LICTOR_REGISTRIES"),
    ],
    ids=str,
)
def test_pushing_is_refused(
    cache: Cache, make_app: MakeApp, settings: dict[str, Any], said: str, method: str, path: str
) -> None:
    answer = make_app(**settings).test_client().open(path, method=method, json=BODY)
    assert (answer.status_code, told(answer)["type"]) == (403, "/problems/push-disabled")
    assert said in told(answer)["detail"]
    assert cache.index() == 0


@pytest.mark.parametrize("bind", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "127.8.8.8:80"])
@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"])
def test_on_loopback_programs_of_the_machine_may_push(
    cache: Cache, make_app: MakeApp, bind: str, host: str
) -> None:
    answer = make_app(bind=bind).test_client().post(REGISTER, json=BODY, headers={"Host": host})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "10.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://localhost:3000"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
def test_a_web_page_or_a_proxy_cannot_push_without_a_token(
    cache: Cache, client: FlaskClient, headers: dict[str, str]
) -> None:
    answer = client.post(REGISTER, json=BODY, headers=headers)
    assert (answer.status_code, told(answer)["type"]) == (403, "/problems/foreign-caller")
    assert cache.index() == 0
    assert client.get("/api/v1/modules", headers=headers).status_code == 200


def test_a_page_of_its_own_origin_may(client: FlaskClient) -> None:
    answer = client.post(REGISTER, json=BODY, headers={"Origin": "http://localhost"})
    assert answer.status_code == 201


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


@pytest.mark.parametrize("bind", ["127.0.0.1:8080", "0.0.0.0:8080", "unix:/run/lictor.sock"])
def test_a_token_file_asks_for_its_token_everywhere(
    cache: Cache, make_app: MakeApp, token_file: Path, bind: str
) -> None:
    client = make_app(bind=bind, push_token_file=token_file).test_client()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer s3cret2"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "s3cret"},
        {"Authorization": "Bearer \xe9"},
    ):
        answer = client.post(REGISTER, json=BODY, headers=headers)
        assert (answer.status_code, told(answer)["type"]) == (401, "/problems/token-required")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "s3cret" not in answer.text
    for scheme in ("Bearer", "bearer"):
        headers = {
            "Authorization": f"{scheme} s3cret",
            "Host": "lictor.example",
            "X-Forwarded-For": "192.0.2.1",
        }
        assert client.post(REGISTER, json={**BODY, "address": "10.0.0.1"}, headers=headers).status_code == 201
    assert client.get("/api/v1/modules").status_code == 200


def test_a_changed_token_counts_at_once(cache: Cache, make_app: MakeApp, token_file: Path) -> None:
    client = make_app(push_token_file=token_file).test_client()

    def status(token: str) -> int:
        return client.post(REGISTER, json=BODY, headers={"Authorization": f"Bearer {token}"}).status_code

    assert status("s3cret") == 201
    # As a secret is replaced that is mounted into a container: another file takes its name.
    new = token_file.with_suffix(".new")
    new.write_text("other!\n")
    new.replace(token_file)
    assert (status("s3cret"), status("other!")) == (401, 201)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"two words", "without spaces"),
        (b"\xff\xfe", "ASCII"),
        (b"x" * 5000, "4096"),
        (None, "cannot be read"),
    ],
    ids=["empty", "blank", "two words", "binary", "huge", "missing"],
)
def test_a_token_file_of_no_use_refuses_everybody(
    cache: Cache,
    make_app: MakeApp,
    token_file: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
    said: str,
) -> None:
    if content is None:
        token_file.unlink()
    else:
        token_file.write_bytes(content)
    client = make_app(push_token_file=token_file).test_client()
    with caplog.at_level(logging.ERROR):
        for sent in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer s3cret"}):
            answer = client.post(REGISTER, json=BODY, headers=sent)
            assert (answer.status_code, told(answer)["type"]) == (403, "/problems/push-disabled")
    (record,) = [record for record in caplog.records if "pushes are refused" in record.message]
    assert said in record.message
    ready = client.get("/readyz")
    (check,) = [check for check in told(ready)["checks"] if check["name"] == "push"]
    assert (ready.status_code, check["status"]) == (200, "warn")
    assert said in check["detail"]
    token_file.write_text("s3cret")
    headers = {"Authorization": "Bearer s3cret"}
    assert client.post(REGISTER, json=BODY, headers=headers).status_code == 201
