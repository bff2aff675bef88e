"""Answers from kept bytes: the same as those made again, for every client, after every change, everywhere."""

from __future__ import annotations

import gzip
import itertools
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY

from discovery.base import Health
from manifest_cache.ingest.plausibility import Doubted, Trusted
from tests.consul_server import eventually
from tests.web.filling import Cache, instance, told
from tests.web.gunicorn_server import running

API = "/api/v1"
BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
READS = [
    "/modules",
    "/modules?limit=2",
    "/modules?include=manifest,instances",
    "/modules?include=instances&status=available",
    "/modules?q=fin&tag=module",
    "/modules?fields=name,status,instances",
    "/modules/lookup?name=weather,financial,nobody&include=instances",
    "/modules/financial",
    "/modules/financial?fields=name,last_changed",
    "/modules/financial?include=manifest",
    "/modules/financial/manifest",
    "/modules/financial/manifests",
    "/modules/financial/instances",
    "/modules/financial/instances?passing",
    "/modules/weather",
    "/modules/weather/instances",
    "/modules/nobody",
    "/modules?limit=0",
    "/events",
    "/events?after=3&limit=5",
    "/events?module=financial",
    "/schemas/manifest",
]
CLIENTS: list[dict[str, str]] = [
    {},
    {"Accept-Encoding": "gzip"},
    {"Accept-Encoding": "br, gzip;q=0.5"},
    {"Accept-Encoding": "gzip;q=0"},
    {"If-None-Match": "*"},
    {"If-None-Match": '"0", W/"1"'},
    {"Accept": "text/html"},
    {"Accept": "*/*"},
]


def changes(cache: Cache) -> Iterator[Any]:
    """Every kind of change, one after the other."""
    yield cache.index()
    yield cache.announce(*(instance("financial", number, tags=("module",)) for number in range(1, 4)))
    yield cache.serve("financial", version="1.0.0", title="Financial")
    yield cache.push(instance("weather", node="", datacenter=""))
    yield cache.refuse("weather")
    yield cache.announce(instance("financial", 1, health=Health.CRITICAL))
    yield cache.registry.heartbeat("weather", "weather-1", Health.WARNING)
    yield cache.announce(instance("financial", 1, meta={"started": "again"}))
    yield cache.serve("financial", version="1.1.0", title="Finance")
    yield cache.lose()
    yield cache.announce(instance("mailer"))
    yield cache.store.apply([Doubted("consul", "9 of 10 are gone")])
    yield cache.store.apply([Trusted("consul")])
    yield cache.remove(*(instance("financial", number) for number in range(1, 4)))
    yield cache.registry.deregister("weather", "weather-1")


@BOTH
def test_kept_answers_are_those_that_are_made_anew(cache: Cache, make_app: Callable[..., Flask]) -> None:
    keeping, other, making = (make_app(read_cache_bytes=limit).test_client() for limit in (2**26, 2**26, 0))
    clients, methods = itertools.cycle(CLIENTS), itertools.cycle(["GET", "GET", "GET", "HEAD", "GET"])
    for number, _ in enumerate(changes(cache)):
        # On the database that takes longer every other path each time.
        for path in READS if cache.database.is_sqlite else READS[number % 2 :: 2]:
            client, method = next(clients), next(methods)
            expected = said(making, method, path, client)
            # The first time it is made, the second time it is kept.
            assert said(keeping, method, path, client) == expected, (number, method, path, client)
            assert said(keeping, method, path, client) == expected, (number, method, path, client)
            assert said(keeping, "GET", path, {}) == said(other, "GET", path, {})


def said(client: FlaskClient, method: str, path: str, headers: dict[str, str]) -> Any:
    answer = client.open(API + path, method=method, headers=headers)
    # What tells of the moment and of the request is another one each time.
    passing = ("X-Request-Id", "X-Lictor-Contact")
    lines = sorted(line for line in answer.headers.items() if line[0] not in passing)
    return answer.status, lines, answer.data


def hits() -> float:
    return REGISTRY.get_sample_value("lictor_read_cache_total", {"outcome": "hit"}) or 0.0


def test_what_is_asked_again_is_kept_until_something_changes(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    before = hits()
    for path in ("/modules", "/modules/financial", "/events"):
        for _ in range(3):
            client.get(API + path)
    assert hits() - before == 6
    cache.announce(instance("mailer"))
    assert len(told(client.get(f"{API}/modules"))["items"]) == 2
    assert hits() - before == 6


def test_what_was_kept_longest_unasked_goes_when_there_is_no_room(
    cache: Cache, make_app: Callable[..., Flask]
) -> None:
    for number in range(20):
        cache.announce(instance(f"m{number}"))
    client = make_app(read_cache_bytes=20_000).test_client()
    before = hits()
    for path in ("/modules", *(f"/modules/m{number}" for number in range(20)), "/modules", "/modules"):
        assert client.get(API + path).status_code == 200
    assert hits() - before == 1


def test_an_answer_that_has_no_room_at_all(cache: Cache, make_app: Callable[..., Flask]) -> None:
    cache.module("financial")
    client = make_app(read_cache_bytes=1).test_client()
    before = hits()
    for _ in range(3):
        assert told(client.get(f"{API}/modules"))["items"]
    assert hits() == before


def test_answers_go_while_others_are_asked_for(cache: Cache, make_app: Callable[..., Flask]) -> None:
    cache.module("financial")
    app = make_app(read_cache_bytes=20_000)
    statuses: set[int] = set()
    end = threading.Event()

    def ask_again() -> None:
        client = app.test_client()
        while not end.is_set():
            statuses.add(client.get(f"{API}/modules/financial").status_code)

    interval = sys.getswitchinterval()
    # As often as can be, so that what may come between two steps does.
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask_again) for _ in range(3)]
        for thread in threads:
            thread.start()
        client = app.test_client()
        for limit in range(1, 400):
            statuses.add(client.get(f"{API}/modules?limit={limit}").status_code)
        end.set()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert statuses == {200}


def test_bodies_are_packed_for_those_who_accept_it(cache: Cache, client: FlaskClient) -> None:
    for number in range(20):
        cache.module(f"m{number}")
    plain = client.get(f"{API}/modules")
    packed = client.get(f"{API}/modules", headers={"Accept-Encoding": "gzip, deflate"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert len(packed.data) == int(packed.headers["Content-Length"]) < len(plain.data) / 4
    assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
    assert packed.headers["ETag"] == f"W/{plain.headers['ETag']}"
    for answer in (plain, packed):
        for accepted in ({}, {"Accept-Encoding": "gzip"}):
            known = client.get(
                f"{API}/modules", headers={"If-None-Match": answer.headers["ETag"], **accepted}
            )
            assert (known.status_code, known.headers["Vary"]) == (304, "Accept-Encoding")
            # That of the body which it stands for.
            assert known.headers["ETag"] == (packed if accepted else plain).headers["ETag"]
    short = client.get(f"{API}/modules?limit=1", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in short.headers


def test_answers_say_when_their_registries_were_last_confirmed(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.announce(instance("catalog"), source="consul/dc2")
    cache.push(instance("weather", node="", datacenter=""))
    for _ in range(2):
        heard = client.get(f"{API}/modules").headers["X-Lictor-Contact"].split(", ")
        assert [part.partition("; at=2")[0] for part in heard] == ["consul", "consul/dc2"]
        assert "X-Lictor-Contact" not in client.get(f"{API}/modules/weather").headers
        assert "X-Lictor-Contact" in client.get(f"{API}/modules/nobody").headers
    cache.lose("consul/dc9")
    assert "consul/dc9; at=never" in client.get(f"{API}/modules").headers["X-Lictor-Contact"]


def test_who_wants_no_stale_answer_gets_none(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.push(instance("weather", node="", datacenter=""))
    cache.lose()
    for path in ("/modules?max_stale=1h", "/modules/financial/manifest?max_stale=3600"):
        assert client.get(API + path).status_code == 200
    eventually(lambda: client.get(f"{API}/modules?max_stale=200ms").status_code == 503)
    refused = client.get(f"{API}/modules?max_stale=200ms")
    problem = told(refused)
    assert problem["type"] == "/problems/too-stale"
    assert problem["detail"].startswith("consul was not confirmed within the last 0.2 seconds (consul; at=20")
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.headers["X-Lictor-Stale"].startswith("consul; since=")
    assert client.get(f"{API}/modules?max_stale=1h").status_code == 200
    # Nobody but Lictor itself tells of it.
    assert client.get(f"{API}/modules/weather?max_stale=0").status_code == 200


def test_what_a_doubted_registry_tells_is_not_confirmed(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.store.apply([Doubted("consul", "9 of 10 are gone")])
    since = client.get(f"{API}/modules").headers["X-Lictor-Stale"].partition("since=")[2]
    assert client.get(f"{API}/modules").headers["X-Lictor-Contact"].partition("at=")[2] <= since


@BOTH
def test_no_read_misses_what_was_known_before_it_began(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    """Many readers and writers on two workers: whatever anybody has seen, all see from then on."""
    known, faults, end = [0], [], threading.Event()
    seen: set[tuple[str, str]] = set()

    def read(path: str) -> None:
        with httpx.Client(base_url=f"http://{bind}", trust_env=False, timeout=20) as client:
            while not end.is_set():
                before = known[0]
                answer = client.get(API + path)
                index = int(answer.headers["X-Lictor-Index"])
                if index < before:
                    faults.append((path, before, index))
                seen.add((f"{path} {index}", answer.text))
                known[0] = max(known[0], before, index)

    with running(tmp_path, http, database_url=database_url, bind=bind, workers="2"):
        cache.module("financial")
        paths = ["/modules", "/modules", "/modules/financial/manifests", "/modules/financial/manifests"]
        readers = [threading.Thread(target=read, args=(path,)) for path in paths]
        for reader in readers:
            reader.start()
        for number in range(20):
            body = {"name": "weather", "id": f"w-{number}", "port": 1}
            answer = http.post(f"{API}/modules/register", json=body)
            known[0] = max(known[0], answer.json()["index"])
            known[0] = max(known[0], cache.announce(instance("catalog", number)))
        end.set()
        for reader in readers:
            reader.join(20)
    assert faults == []
    # Whoever made it, an answer to one question at one index is one and the same.
    assert len({key for key, _ in seen}) == len(seen)
    assert len(seen) > 10


def test_a_database_that_is_put_back(cache: Cache, client: FlaskClient, tmp_path: Path) -> None:
    def health() -> str:
        (module,) = told(client.get(f"{API}/modules/lookup?name=financial&include=instances"))["items"]
        health: str = module["instances"][0]["health"]
        return health

    def status() -> str:
        status: str = told(client.get(f"{API}/modules/financial"))["status"]
        return status

    cache.module("financial")
    for number in range(3):
        cache.announce(instance("mailer", number))
        assert health() == "passing"
    with (
        closing(sqlite3.connect(tmp_path / "lictor.db")) as live,
        closing(sqlite3.connect(":memory:")) as saved,
    ):
        live.backup(saved)
        before = cache.index()
        for number in range(3, 9):
            cache.announce(instance("mailer", number))
            assert health() == "passing"
        last = cache.index()
        assert status() == "available"
        saved.backup(live)
    assert (cache.index(), health()) == (before, "passing")
    cache.announce(instance("financial", health=Health.CRITICAL))
    number = 3
    while cache.index() < last:
        cache.announce(instance("mailer", number))
        number += 1
    # What was kept at this index tells of what never was.
    assert (cache.index(), status()) == (last, "unavailable")
    cache.announce(instance("mailer", number))
    assert (health(), status()) == ("critical", "unavailable")


@BOTH
def test_what_nothing_happened_to_is_given_at_the_new_index(
    cache: Cache, make_app: Callable[..., Flask]
) -> None:
    keeping, making = (make_app(read_cache_bytes=limit).test_client() for limit in (2**26, 0))
    paths = [
        "/modules/financial",
        "/modules/lookup?name=financial,fresh&include=instances",
        "/modules/lookup?name=financial&fields=name",
    ]
    cache.announce(instance("financial"))
    for change in (
        lambda: cache.announce(instance("mailer")),
        lambda: cache.announce(*(instance("mailer", number) for number in range(2, 9))),
        lambda: cache.announce(instance("fresh")),
        lambda: cache.lose(),
        lambda: cache.drop_events(),
        lambda: cache.announce(instance("mailer", health=Health.WARNING)),
        lambda: cache.announce(instance("financial", health=Health.WARNING)),
    ):
        change()
        for path in paths:
            answer = said(keeping, "GET", path, {})
            assert answer == said(making, "GET", path, {})
            assert dict(answer[1])["X-Lictor-Index"] == str(cache.index())
