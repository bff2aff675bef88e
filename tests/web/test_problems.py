"""Whatever cannot be answered is told as problem+json: bad input and troubles in, advice out."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.filling import Cache, told
from web import create_app
from web.problems import PROBLEMS
from web.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
API = "/api/v1"
MakeApp = Callable[..., Flask]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """Asks an application that knows one module, over a database of each kind; nothing here changes it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('asked')}/lictor.db"
    else:
        url = request.getfixturevalue("postgres").create_database()
    with Cache(url) as cache:
        cache.module("known")
    app = create_app(Settings.load(database_url=url))
    yield app.test_client()
    app.extensions["lictor"].close()


def problem(answer: TestResponse, status: int, slug: str) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    found = told(answer)
    assert found["type"] == f"/problems/{slug}"
    assert found["status"] == status
    assert found["title"] == PROBLEMS[slug].title
    assert found["detail"]
    return found


def cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


BAD_PARAMETERS = [
    ("/modules?limit=0", "limit", "1 to 1000"),
    ("/modules?limit=1001", "limit", "1 to 1000"),
    ("/modules?limit=-1", "limit", "1 to 1000"),
    ("/modules?limit=abc", "limit", "1 to 1000"),
    ("/modules?limit=", "limit", "1 to 1000"),
    ("/modules?limit=1.5", "limit", "1 to 1000"),
    ("/modules?limit=1_0", "limit", "1 to 1000"),
    ("/modules?limit=%2B5", "limit", "1 to 1000"),
    ("/modules?limit=\u0661", "limit", "1 to 1000"),
    ("/modules?limit=" + "9" * 5000, "limit", "1 to 1000"),
    ("/modules?limit=1&limit=2", "limit", "2 times"),
    ("/modules?cursor=", "cursor", "leave it away"),
    ("/modules?cursor=xyz", "cursor", "leave it away"),
    ("/modules?cursor=%00", "cursor", "leave it away"),
    ("/modules?cursor=" + "A" * 2000, "cursor", "1000"),
    ("/modules?cursor=" + cursor(["modules", 5]), "cursor", "leave it away"),
    ("/modules?cursor=" + cursor(["modules", "a\x00b"]), "cursor", "leave it away"),
    ("/modules?cursor=" + cursor(["modules", "\ud800"]), "cursor", "leave it away"),
    ("/modules?cursor=" + cursor({"a": 1}), "cursor", "leave it away"),
    ("/modules?cursor=" + cursor(["events", 5]), "cursor", "leave it away"),
    ("/events?cursor=" + cursor(["events", "5"]), "cursor", "leave it away"),
    ("/events?cursor=" + cursor(["events", True]), "cursor", "leave it away"),
    ("/events?cursor=" + cursor(["events", -1]), "cursor", "leave it away"),
    ("/events?cursor=" + cursor(["events", 2**63]), "cursor", "leave it away"),
    ("/modules/known/manifests?cursor=" + cursor(["manifests", "0" * 64]), "cursor", "leave it away"),
    ("/modules?status=fine", "status", "available, degraded or unavailable"),
    ("/modules?status=", "status", "available, degraded or unavailable"),
    ("/modules?status=available,fine", "status", "available, degraded or unavailable"),
    ("/modules?include=foo", "include", "manifest or instances"),
    ("/modules?tag=", "tag", "empty"),
    ("/modules?tag=%00", "tag", "characters"),
    ("/modules?tag=" + ",".join("a" * 21), "tag", "20"),
    ("/modules?datacenter=%0A", "datacenter", "characters"),
    ("/modules?q=%00", "q", "characters"),
    ("/modules?q=" + "a" * 201, "q", "200"),
    ("/modules?Status=available", "Status", "status"),
    ("/modules?fields=nam", "fields", "name, title"),
    ("/modules/known/instances?fields=name", "fields", "id, module"),
    ("/events?fields=", "fields", "index, at"),
    ("/modules/lookup", "name", "is missing"),
    ("/modules/lookup?name=", "name", "empty"),
    ("/modules/lookup?name=" + "a" * 10_000, "name", "255"),
    ("/modules/lookup?name=" + ",".join("a" * 1001), "name", "1000"),
    ("/modules?max_stale=-1", "max_stale", "seconds"),
    ("/modules/known/manifest?max_stale=soon", "max_stale", "0 to 2678400 seconds"),
    ("/events?max_stale=32d", "max_stale", "2678400"),
    ("/modules?%00=", "\\x00", "limit"),
    ("/modules/known?status=available", "status", "include"),
    ("/modules/known/manifest?x", "x", "max_stale"),
    ("/modules?index=-1", "index", "whole number from 0"),
    ("/modules?index=", "index", "whole number from 0"),
    ("/modules?index", "index", "whole number from 0"),
    ("/modules?index=1&index=2", "index", "2 times"),
    ("/modules?index=9223372036854775808", "index", "whole number from 0"),
    ("/modules?index=1&wait=-5s", "wait", "0 to 600 seconds"),
    ("/modules?index=1&wait=11m", "wait", "0 to 600 seconds"),
    ("/modules?index=1&wait=soon", "wait", "0 to 600 seconds"),
    ("/modules/known/manifest?index=x", "index", "whole number from 0"),
    ("/modules?index=99999&limit=0", "limit", "1 to 1000"),
    ("/schemas/manifest?index=5", "index", "no parameters"),
    ("/modules/known/instances?passing=maybe", "passing", "true or false"),
    ("/modules/known/manifests/abc", "digest", "characters"),
    ("/modules/" + "a" * 10_000, "name", "255"),
    ("/modules/a%00b", "name", "characters"),
    ("/modules/a%0Ab/manifest", "name", "characters"),
    ("/events?after=-1", "after", "whole number from 0"),
    ("/events?after=x", "after", "whole number from 0"),
    ("/events?after=9223372036854775808", "after", "whole number from 0"),
    ("/events?type=module.gone", "type", "module.registered"),
    ("/events?module=%00", "module", "characters"),
    ("/schemas/manifest?x=1", "x", "no parameters"),
]


@pytest.mark.parametrize(("path", "parameter", "said"), BAD_PARAMETERS, ids=lambda value: str(value)[:50])
def test_a_faulty_parameter_is_named(asked: FlaskClient, path: str, parameter: str, said: str) -> None:
    found = problem(asked.get(API + path), 400, "bad-parameter")
    (error,) = found["errors"]
    assert error["parameter"] == parameter
    assert said in error["message"]


def test_every_faulty_parameter_is_named_at_once(asked: FlaskClient) -> None:
    found = problem(asked.get(f"{API}/modules?limit=0&status=x&index=-1&cursor="), 400, "bad-parameter")
    assert {error["parameter"] for error in found["errors"]} >= {"limit", "status", "index"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1",
        "/api/v1/",
        "/api/v1/modules/",
        "/api/v1//modules",
        "/api/v1/modules//manifest",
        "/api/v2/modules",
        "/api/v1/%ff",
        "/nothing",
        "/static/nothing.css",
        "/static/../settings.py",
        "/metric",
    ],
)
def test_an_unknown_path(asked: FlaskClient, path: str) -> None:
    problem(asked.get(path), 404, "unknown-path")


def test_a_path_that_is_no_utf8_is_an_unknown_module(asked: FlaskClient) -> None:
    problem(asked.get(f"{API}/modules/%ff%fe"), 404, "unknown-module")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", f"{API}/modules", "GET, HEAD, OPTIONS"),
        ("PATCH", f"{API}/modules/x", "GET, HEAD, OPTIONS"),
        ("GET", f"{API}/modules/x/heartbeat", "OPTIONS, POST"),
        ("GET", f"{API}/modules/x/instances/y", "DELETE, OPTIONS"),
        ("DELETE", "/healthz", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method(asked: FlaskClient, method: str, path: str, allowed: str) -> None:
    answer = asked.open(path, method=method)
    found = problem(answer, 405, "wrong-method")
    assert answer.headers["Allow"] == allowed
    assert allowed in found["detail"]


@pytest.mark.parametrize("accept", ["text/html", "text/event-stream", "application/xml;q=0.9", "x/y"])
def test_a_form_in_which_nothing_is_answered(asked: FlaskClient, accept: str) -> None:
    problem(asked.get(f"{API}/modules", headers={"Accept": accept}), 406, "not-acceptable")


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/*", "application/json", "text/html,*/*;q=0.1", "", "application/json;q=0.5, x/y"],
)
def test_forms_in_which_it_is(asked: FlaskClient, accept: str) -> None:
    assert asked.get(f"{API}/modules", headers={"Accept": accept}).status_code == 200


def test_an_empty_database_says_what_to_run(make_app: MakeApp) -> None:
    client = make_app().test_client()
    for path in (f"{API}/modules", "/readyz"):
        answer = client.get(path)
        found = problem(answer, 503, "wrong-schema")
        assert "lictor migrate" in found["detail"]
        assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/healthz").status_code == 200
    answer = client.post(f"{API}/modules/register", json={"name": "a", "port": 1})
    problem(answer, 503, "wrong-schema")


def test_a_database_that_is_migrated_meanwhile_is_used(database_url: str, make_app: MakeApp) -> None:
    client = make_app().test_client()
    assert client.get("/readyz").status_code == 503
    with Cache(database_url):
        assert client.get("/readyz").status_code == 200
        assert client.get(f"{API}/modules").status_code == 200


def test_an_unexpected_fault_tells_nothing_of_itself(
    cache: Cache, make_app: MakeApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()

    def fail() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(app.extensions["lictor"], "snapshot", fail)
    with caplog.at_level(logging.ERROR):
        answer = app.test_client().get(f"{API}/modules")
    problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


class TestSQLiteInTrouble:
    @pytest.mark.parametrize("content", [b"no database" * 100, None], ids=["not a database", "a folder"])
    def test_a_file_of_no_use(self, make_app: MakeApp, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "lictor.db"
        path.mkdir() if content is None else path.write_bytes(content)
        answer = make_app().test_client().get(f"{API}/modules")
        problem(answer, 503, "database-unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert str(tmp_path) not in answer.text

    def test_a_locked_database_refuses_writes_and_still_reads(
        self, cache: Cache, client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.module("known")
        with sqlite3.connect(tmp_path / "lictor.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            assert client.get(f"{API}/modules").status_code == 200
            answer = client.post(f"{API}/modules/register", json={"name": "a", "port": 1})
            problem(answer, 503, "database-unavailable")
            other.execute("ROLLBACK")
        other.close()
        assert client.post(f"{API}/modules/register", json={"name": "a", "port": 1}).status_code == 201

    def test_a_newer_schema(self, cache: Cache, client: FlaskClient, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "lictor.db") as other:
            other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.close()
        found = problem(client.get(f"{API}/modules"), 503, "wrong-schema")
        assert "upgrade" in found["detail"]

    def test_a_database_that_comes_back(self, cache: Cache, client: FlaskClient, tmp_path: Path) -> None:
        cache.module("known")
        assert client.get(f"{API}/modules").status_code == 200
        with sqlite3.connect(tmp_path / "lictor.db") as other:
            other.execute("ALTER TABLE modules RENAME TO hidden")
            # The one that is known already is as right as before.
            assert client.get(f"{API}/modules").status_code == 200
            assert client.get(f"{API}/modules/known").status_code == 503
            other.execute("ALTER TABLE hidden RENAME TO modules")
        other.close()
        assert client.get(f"{API}/modules/known").status_code == 200


def test_every_kind_of_problem_is_documented_and_has_a_page(asked: FlaskClient) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for slug, kind in PROBLEMS.items():
        assert f"### {slug}\n\n{kind.status}. {kind.meaning} {kind.advice}\n" in page
        answer = asked.get(f"/problems/{slug}")
        assert answer.status_code == 200
        assert answer.content_type.startswith("text/html")
        assert kind.title in answer.text
    assert asked.get("/problems/none").status_code == 404


def test_people_get_a_page_and_programs_a_document(asked: FlaskClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    page = asked.get("/nothing", headers=browser)
    assert page.status_code == 404
    assert page.content_type.startswith("text/html")
    problem(asked.get("/nothing"), 404, "unknown-path")
    problem(asked.get(f"{API}/nothing", headers=browser), 404, "unknown-path")
