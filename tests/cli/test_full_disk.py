"""The disk is full: reads go on, nothing that was acknowledged is lost, and all is well again by itself."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
import pytest

from tests.cli.command import Lictor
from tests.consul_server import eventually
from tests.small_disk import SmallDisk

API = "/api/v1/modules"


@pytest.fixture
def on_small_disk(lictor: Lictor, small_disk: SmallDisk) -> Lictor:
    """Lictor with its database on the small disk, and nothing else there."""
    lictor.settings["LICTOR_DATABASE_URL"] = f"sqlite:///{small_disk.folder}/lictor.db"
    lictor.settings["LICTOR_REGISTRIES"] = "push"
    assert lictor.run("migrate").returncode == 0
    return lictor


def post(lictor: Lictor, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{lictor.url}{API}{path}", json=body, trust_env=False, timeout=20)


def register(lictor: Lictor, name: str, heartbeat_interval: float = 60) -> httpx.Response:
    return post(
        lictor,
        "/register",
        name=name,
        id="1",
        port=1,
        heartbeat_interval=heartbeat_interval,
        manifest={"name": name, "version": "1.0.0"},
    )


def health_events(lictor: Lictor, name: str) -> list[str]:
    answer = lictor.get(f"/api/v1/events?limit=1000&module={name}&type=instance.health_changed").json()
    return [event["data"]["is"]["health"] for event in answer["items"]]


def test_a_full_disk_stops_writes_and_nothing_else(on_small_disk: Lictor, small_disk: SmallDisk) -> None:
    lictor = on_small_disk
    lictor.serve()
    sync = lictor.start("sync")
    assert register(lictor, "missed", heartbeat_interval=0.1).status_code == 201
    eventually(lambda: health_events(lictor, "missed") == ["critical"])
    assert register(lictor, "beating", heartbeat_interval=1).status_code == 201
    acknowledged = {"beating", "missed"}

    small_disk.fill()
    for number in itertools.count():
        answer = register(lictor, f"m{number}")
        if answer.status_code != 201:
            break
        acknowledged.add(f"m{number}")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/database-unavailable")
    assert answer.headers["Retry-After"]
    # The heartbeats passes, and none can be taken.
    sync.wait_for("cannot expire leases")
    assert post(lictor, "/beating/heartbeat", id="1").status_code == 503
    for path in (API, f"{API}/beating", f"{API}/beating/manifest", "/api/v1/events", "/readyz"):
        assert lictor.get(path).status_code == 200, path
    assert {item["name"] for item in lictor.get(f"{API}?limit=1000").json()["items"]} == acknowledged
    assert lictor.run("modules").returncode == 0

    small_disk.free()
    assert register(lictor, "silent", heartbeat_interval=0.5).status_code == 201
    deadline = time.monotonic() + 60
    # That the silent one is missed shows that the synchronizer is at work again.
    while not health_events(lictor, "silent"):
        assert post(lictor, "/beating/heartbeat", id="1").status_code == 200
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert health_events(lictor, "beating") == []
    items = lictor.get("/api/v1/events?limit=1000").json()["items"]
    assert [event["index"] for event in items] == list(range(1, len(items) + 1))
    assert {item["name"] for item in lictor.get(f"{API}?limit=1000").json()["items"]} == {
        *acknowledged,
        "silent",
    }
