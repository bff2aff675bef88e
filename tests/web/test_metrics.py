"""What is counted of requests and what the cache holds, as Prometheus reads it; and the ids of requests."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

import discovery.consul.watch.metrics
import manifest_cache.metrics
import web.telemetry.metrics
from tests.cli.command import wait_until_gone
from tests.web.filling import Cache, instance
from tests.web.gunicorn_server import Gunicorn, running
from web.settings import Settings
from web.telemetry import multiprocess_metrics
from web.telemetry.consul_credentials import ConsulCredentials
from web.telemetry.logging_config import logging_config
from web.telemetry.request_id import request_id

ROUTE = "/api/v1/modules/<name>"


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


def counted(text: str, route: str, status: str, method: str = "GET") -> float:
    name = "lictor_http_request_duration_seconds_count"
    return value(text, name, method=method, route=route, status=status) or 0


def test_requests_are_counted_by_route_and_status(client: FlaskClient, cache: Cache) -> None:
    cache.module("financial")
    before = client.get("/metrics").text
    for name in ("financial", "financial", "unknown"):
        client.get(f"/api/v1/modules/{name}")
    client.get("/nowhere")
    client.open("/nowhere", method="BREW")
    after = client.get("/metrics").text
    assert counted(after, ROUTE, "200") - counted(before, ROUTE, "200") == 2
    assert counted(after, ROUTE, "404") - counted(before, ROUTE, "404") == 1
    assert counted(after, "none", "404") - counted(before, "none", "404") == 1
    assert counted(after, "none", "404", method="other") - counted(before, "none", "404", method="other") == 1


def test_what_the_cache_holds_is_told(client: FlaskClient, cache: Cache) -> None:
    cache.module("financial")
    cache.lose("consul", "gone")
    text = client.get("/metrics").text
    assert value(text, "lictor_database_up") == 1
    assert value(text, "lictor_modules", status="available") == 1
    assert value(text, "lictor_instances", health="passing") == 1
    assert value(text, "lictor_source_connected", source="consul") == 0
    assert value(text, "lictor_source_doubted", source="consul") == 0
    assert value(text, "lictor_index") == int(client.get("/api/v1/modules").headers["X-Lictor-Index"])
    contact = value(text, "lictor_source_last_contact_timestamp_seconds", source="consul")
    assert contact is not None
    assert abs(time.time() - contact) < 60


def test_modules_with_several_versions_are_named(client: FlaskClient, cache: Cache) -> None:
    cache.module("hr", version="1.0.0")
    cache.module("financial", version="1.0.0")
    assert value(client.get("/metrics").text, "lictor_module_versions", module="financial") is None
    cache.announce(instance("financial", 2))
    cache.serve("financial", version="2.0.0")
    text = client.get("/metrics").text
    assert value(text, "lictor_module_versions", module="financial") == 2
    assert value(text, "lictor_module_versions", module="hr") is None
    cache.remove(instance("financial", 1))
    assert value(client.get("/metrics").text, "lictor_module_versions", module="financial") is None


def test_it_answers_while_the_database_is_away(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    away = make_app(database_url=f"sqlite:///{tmp_path}/nowhere/lictor.db").test_client()
    answer = away.get("/metrics")
    assert answer.status_code == 200
    assert value(answer.text, "lictor_database_up") == 0
    assert value(answer.text, "lictor_index") is None


def test_openmetrics_where_it_is_accepted(client: FlaskClient, cache: Cache) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert answer.text.count("# EOF") == 1
    assert "lictor_database_up 1" in answer.text


def test_all_workers_are_added_up(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, workers="2") as server:
        before = counted(http.get("/metrics").text, "/healthz", "200")
        for _ in range(20):
            assert http.get("/healthz").status_code == 200
        answers = [http.get("/metrics").text for _ in range(6)]
        assert {counted(text, "/healthz", "200") - before for text in answers} == {20.0}
        folder = folder_of(server)
        assert folder.is_dir()
    assert not folder.exists()


def test_a_worker_that_has_only_begun_is_left_out(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        # It makes its files before it fills them.
        (folder_of(server) / "counter_1.db").touch()
        assert counted(http.get("/metrics").text, "/healthz", "200") >= 1


def test_what_a_killed_server_left_is_removed_by_the_next(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        folder = folder_of(server)
        family = [server.process.pid, *children(server.process.pid)]
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        wait_until_gone(*family[1:])
        server.process.wait()
        assert folder.is_dir()
    with running(tmp_path, http, database_url=database_url, bind=bind):
        assert not folder.exists()


def test_two_that_start_at_once_keep_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multiprocess_metrics, "_place", lambda: tmp_path)
    monkeypatch.setenv(multiprocess_metrics.VARIABLE, "")
    really, folders = fcntl.flock, []

    def shared() -> None:
        multiprocess_metrics.share()
        folders.append(Path(os.environ[multiprocess_metrics.VARIABLE]))
        monkeypatch.setenv(multiprocess_metrics.VARIABLE, "")

    def after_another_started(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", really)
        shared()
        really(file, how)

    monkeypatch.setattr(fcntl, "flock", after_another_started)
    shared()
    assert [folder.is_dir() for folder in folders] == [True, True]


def folder_of(server: Gunicorn) -> Path:
    """Where the processes of a server count, found by the lock that it holds there."""
    held = (entry.readlink() for entry in Path(f"/proc/{server.process.pid}/fd").iterdir())
    return next(path.parent for path in held if "/lictor-metrics-" in str(path))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("sent", ["a", "00-4bf92f3577b34da6-01", "a/b=+:@._-"])
def test_an_id_that_is_sent_comes_back(client: FlaskClient, cache: Cache, sent: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": sent}).headers["X-Request-Id"] == sent


def test_the_first_requests_of_a_process_may_come_at_once(
    make_app: Callable[..., Flask], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # As in a process that was forked just now.
    both = threading.Barrier(2)
    urandom = os.urandom

    def slow_urandom(size: int) -> bytes:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return urandom(size)

    monkeypatch.setattr(os, "urandom", slow_urandom)

    def ask(_: int) -> str:
        return app.test_client().get("/healthz").headers["X-Request-Id"]

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(ask, range(2)))) == 2


@pytest.mark.parametrize("sent", ["", "a b", "ä", "a" * 129])
def test_any_other_is_replaced(client: FlaskClient, cache: Cache, sent: str) -> None:
    ids = {client.get("/healthz", headers={"X-Request-Id": sent}).headers["X-Request-Id"] for _ in range(3)}
    assert len(ids) == 3
    assert sent not in ids


def test_lines_of_the_log_name_the_request() -> None:
    config = logging_config(Settings.load(log_format="text"))
    record = logging.LogRecord("x", logging.INFO, "", 1, "said", (), None)
    token = request_id.set("abc-1")
    try:
        assert config["filters"]["request"]["()"]().filter(record)
    finally:
        request_id.reset(token)
    assert config["formatters"]["text"]["()"]().format(record).endswith("said request=abc-1")
    assert json.loads(config["formatters"]["json"]["()"]().format(record))["request"] == "abc-1"


def test_what_others_say_makes_no_line_of_its_own(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, log_level="debug") as server:
        assert http.get("/x%0A2026-05-01 ERROR forged%1B[2J%C2%9B2J%E2%80%A8").status_code == 404
        (line,) = [line for line in server.log.split("\n") if "ERROR forged" in line]
    assert "GET /x\\x0a2026-05-01 ERROR forged\\x1b[2J" in line
    assert "\x1b" not in server.log


def test_every_metric_is_told_of(client: FlaskClient, cache: Cache) -> None:
    kept = {
        metric.name
        for module in (discovery.consul.watch.metrics, manifest_cache.metrics, web.telemetry.metrics)
        for one in vars(module).values()
        if isinstance(one, MetricWrapperBase)
        for metric in one.collect()
    }
    # The times at which counters began are families of their own.
    families = text_string_to_metric_families(client.get("/metrics").text)
    held = {
        family.name
        for family in families
        if family.name.startswith("lictor_") and not family.name.endswith("_created")
    }
    shown = {family.name for family in ConsulCredentials({}).describe()}
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    told = re.findall(r"^\| `(lictor_\w+?)(?:_total)?` \|", page.read_text(), re.M)
    assert sorted(told) == sorted(kept | held | shown)
