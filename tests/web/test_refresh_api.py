"""Asking for manifests over HTTP: who may, what is asked, and what is said of what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from discovery.base import Change, Health
from tests.web.filling import Cache, instance, told

REFRESH = "/api/v1/modules/weather/refresh"
PUSHED = {"name": "weather", "version": "1.2.0"}


def fill(cache: Cache, *healths: Health) -> None:
    found = [instance("weather", number, health=health) for number, health in enumerate(healths, 1)]
    cache.store.apply([Change(source="consul", present=tuple(found))])


def test_what_is_asked_is_told(client: FlaskClient, cache: Cache) -> None:
    fill(cache, Health.PASSING, Health.WARNING, Health.CRITICAL)
    answer = client.post(REFRESH)
    assert answer.status_code == 202
    assert answer.headers["Cache-Control"] == "no-store"
    said = told(answer)
    assert answer.headers["X-Lictor-Index"] == str(said["index"])
    assert (said["module"], said["asked"], said["pushed"], said["not_well"]) == ("weather", 2, 0, 1)
    assert said["detail"] == (
        "The manifest of 2 instances is fetched now. 1 instance is not healthy, and asked once healthy again."
    )


def test_pushed_manifests_are_not_fetched(client: FlaskClient) -> None:
    client.post("/api/v1/modules/register", json={"name": "weather", "port": 9000, "manifest": PUSHED})
    said = told(client.post(REFRESH))
    assert (said["asked"], said["pushed"]) == (0, 1)
    assert said["detail"].startswith(
        "No manifest is fetched. 1 instance pushed the manifest when registering"
    )


def test_a_module_without_instances(client: FlaskClient, cache: Cache) -> None:
    fill(cache, Health.PASSING)
    cache.store.apply([Change(source="consul", complete=True)])
    answer = client.post(REFRESH)
    assert answer.status_code == 202
    assert told(answer)["detail"] == "No manifest is fetched: the module has no instance."


def test_an_unknown_module(client: FlaskClient) -> None:
    answer = client.post(REFRESH)
    assert (answer.status_code, told(answer)["type"]) == (404, "/problems/unknown-module")


def test_it_needs_no_push_registry(make_app: Callable[..., Flask], cache: Cache) -> None:
    fill(cache, Health.PASSING)
    client = make_app(registries="consul").test_client()
    assert client.post(REFRESH).status_code == 202
    assert client.post("/api/v1/modules/register", json={"name": "a", "port": 1}).status_code == 403


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Origin"])
def test_who_may_not_push_may_not_ask(client: FlaskClient, cache: Cache, header: str) -> None:
    fill(cache, Health.PASSING)
    assert client.post(REFRESH, headers={header: "http://elsewhere.example"}).status_code == 403


def test_the_token_is_needed(make_app: Callable[..., Flask], cache: Cache, tmp_path: Path) -> None:
    fill(cache, Health.PASSING)
    (tmp_path / "token").write_text("secret")
    client = make_app(push_token_file=tmp_path / "token", bind="0.0.0.0:80").test_client()
    assert client.post(REFRESH).status_code == 401
    assert client.post(REFRESH, headers={"Authorization": "Bearer secret"}).status_code == 202
