"""`lictor serve` and `lictor sync` alone: they run, they end on a signal, they refuse what cannot work."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.cli.command import Lictor, wait_until_gone
from tests.consul_server import eventually
from tests.web.filling import Cache, instance
from tests.web.gunicorn_server import free_port

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def taken(lictor: Lictor) -> Iterator[str]:
    """The address of `lictor`, on which somebody else listens."""
    host, _, port = lictor.settings["LICTOR_BIND"].partition(":")
    with closing(socket.create_server((host, int(port)))):
        yield lictor.settings["LICTOR_BIND"]


@pytest.mark.parametrize("number", SIGNALS)
def test_serve_serves_until_a_signal(lictor: Lictor, cache: Cache, number: signal.Signals) -> None:
    cache.module("financial")
    server = lictor.serve()
    assert lictor.get("/api/v1/modules").json()["items"][0]["name"] == "financial"
    workers = server.descendants()
    assert workers
    assert server.end(number) == 0
    wait_until_gone(*workers)


def test_serve_takes_its_address_from_an_option(lictor: Lictor, cache: Cache) -> None:
    wanted = lictor.settings["LICTOR_BIND"]
    lictor.serve("--bind", wanted, LICTOR_BIND="127.0.0.1:1")
    assert lictor.get("/readyz").status_code == 200


def test_serve_is_not_led_astray_by_the_working_directory(lictor: Lictor, cache: Cache) -> None:
    for name in ("web.py", "consul.py", "discovery.py"):
        (lictor.folder / name).write_text("raise SystemExit('the wrong one was imported')\n")
    lictor.serve()
    assert lictor.get("/readyz").status_code == 200


def test_serve_replaces_its_workers_on_hangup(lictor: Lictor, cache: Cache) -> None:
    server = lictor.serve()
    before = server.descendants()
    server.process.send_signal(signal.SIGHUP)
    wait_until_gone(*before)
    eventually(lictor.is_ready)


def test_serve_refuses_an_address_in_use(lictor: Lictor, cache: Cache, taken: str) -> None:
    done = lictor.run("serve")
    assert done.returncode == 1
    assert f"cannot listen on {taken}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_sync_ends_soon_after_a_signal(lictor: Lictor, cache: Cache, number: signal.Signals) -> None:
    synchronizer = lictor.start("sync")
    synchronizer.wait_for("following source=consul")
    synchronizer.wait_for("connection refused")
    began = time.monotonic()
    assert synchronizer.end(number) == 0
    assert time.monotonic() - began < 8
    assert "Traceback" not in synchronizer.text


def test_sync_ends_in_time_while_the_database_is_locked(lictor: Lictor, cache: Cache) -> None:
    with cache.database.write():
        synchronizer = lictor.start("sync", LICTOR_REGISTRIES="push")
        synchronizer.wait_for("cannot .*locked")
        began = time.monotonic()
        assert synchronizer.end() == 0
        assert time.monotonic() - began < 8


def test_sync_says_what_it_cannot_fetch_and_goes_on(lictor: Lictor, cache: Cache) -> None:
    port = int(lictor.settings["CONSUL_HTTP_ADDR"].rpartition(":")[2])
    cache.push(instance("financial", address="127.0.0.1", port=port))
    synchronizer = lictor.start("sync", LICTOR_REGISTRIES="push")
    synchronizer.wait_for("manifest rejected module=financial instance=financial-1")
    assert lictor.json("show", "financial")["instances"][0]["manifest_error"]["type"] == "unreachable"
    assert synchronizer.end() == 0


def test_sync_serves_its_own_metrics(lictor: Lictor, cache: Cache) -> None:
    bind = f"127.0.0.1:{free_port()}"
    first = lictor.start("sync", LICTOR_METRICS_BIND=bind, LICTOR_REGISTRIES="push")
    first.wait_for("metrics on")
    for wanted in ("process_cpu_seconds_total", 'lictor_database_seconds_count{what="read due fetches"}'):
        eventually(lambda: wanted in httpx.get(f"http://{bind}/metrics", trust_env=False).text)  # noqa: B023
    second = lictor.start("sync", LICTOR_METRICS_BIND=bind, LICTOR_REGISTRIES="push")
    second.wait_for(f"LICTOR_METRICS_BIND: no metrics are served, for nothing can listen on {bind}")
    second.wait_for("standing by")
    assert second.end() == 0
    assert first.end() == 0
