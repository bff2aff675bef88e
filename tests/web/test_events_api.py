"""The event log over HTTP: an index in, what came after it out."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from discovery.base import Health
from tests.web.filling import Cache, instance, told


def events(client: FlaskClient, query: str = "") -> Any:
    answer = client.get(f"/api/v1/events{query}")
    assert answer.status_code == 200, answer.text
    return told(answer)


@pytest.fixture
def full(cache: Cache) -> Cache:
    cache.module("financial")
    cache.module("mailer")
    cache.announce(instance("mailer", health=Health.CRITICAL))
    return cache


def test_events_come_in_the_order_of_the_index(full: Cache, client: FlaskClient) -> None:
    answer = events(client)
    indexes = [event["index"] for event in answer["items"]]
    assert indexes == list(range(1, full.index() + 1))
    assert answer["index"] == full.index()
    assert set(answer["items"][0]) == {"index", "at", "type", "module", "instance", "registry", "data"}
    last = answer["items"][-1]
    assert last["type"] == "module.unavailable"
    assert (last["data"]["was"], last["data"]["is"]) == ({"status": "available"}, {"status": "unavailable"})


def test_after(full: Cache, client: FlaskClient) -> None:
    assert events(client, "?after=3")["items"][0]["index"] == 4
    nothing = events(client, f"?after={full.index() + 1000}")
    assert (nothing["items"], nothing["next"]) == ([], None)


def test_pages_go_on_where_the_last_one_ended(full: Cache, client: FlaskClient) -> None:
    found = events(client, "?after=2&limit=3")
    read = list(found["items"])
    while found["next"]:
        # As a client that only adds the cursor does it.
        found = events(client, f"?after=2&limit=3&cursor={found['next']}")
        read += found["items"]
    assert [event["index"] for event in read] == list(range(3, full.index() + 1))


def test_filters(full: Cache, client: FlaskClient) -> None:
    assert {event["module"] for event in events(client, "?module=mailer")["items"]} == {"mailer"}
    wanted = {"module.available", "registry.connected"}
    found = events(client, "?type=module.available,registry.connected")["items"]
    assert {event["type"] for event in found} == wanted


def test_events_that_are_kept_no_longer_are_not_passed_over(full: Cache, client: FlaskClient) -> None:
    cursor = events(client, "?limit=2")["next"]
    oldest = full.index()
    full.drop_events()
    full.announce(instance("weather"))
    for query in ("?after=1", f"?after={oldest - 2}", "?after=1&module=weather", f"?cursor={cursor}"):
        answer = client.get(f"/api/v1/events{query}")
        assert (answer.status_code, answer.content_type) == (410, "application/problem+json")
        problem = told(answer)
        assert (problem["type"], problem["oldest"]) == ("/problems/events-gone", oldest)
        assert f"the oldest that is kept has the index {oldest} " in problem["detail"]
        assert answer.headers["X-Lictor-Index"] == str(full.index())
    kept = list(range(oldest, full.index() + 1))
    for query in ("", "?after=0", f"?after={oldest - 1}"):
        assert [event["index"] for event in events(client, query)["items"]] == kept
    assert [event["index"] for event in events(client, f"?after={oldest}")["items"]] == kept[1:]


def test_a_heartbeat_alone_makes_no_event(cache: Cache, client: FlaskClient) -> None:
    body = {"name": "weather", "id": "w1", "port": 1, "address": "10.0.0.9"}
    registered = told(client.post("/api/v1/modules/register", json=body))["index"]
    client.post("/api/v1/modules/weather/heartbeat", json={"id": "w1"})
    assert events(client)["index"] == registered
