"""Every metric that alerts, dashboard and runbooks name is one that Lictor tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from discovery.consul.dev_agent import free_ports
from tests.alerts.promtool import ROOT, alerts, names, queries, texts
from tests.cli.command import Lictor
from tests.consul_server import RunningConsul, eventually
from tests.web.filling import Cache, instance


@pytest.fixture
def lictor(tmp_path: Path) -> Iterator[Lictor]:
    web, metrics = free_ports(2)
    command = Lictor(
        tmp_path,
        LICTOR_BIND=f"127.0.0.1:{web}",
        LICTOR_METRICS_BIND=f"127.0.0.1:{metrics}",
        LICTOR_WORKERS="2",
    )
    yield command
    command.close()
    command.show()


def told(text: str) -> set[str]:
    """The metrics of Lictor's that an answer of `/metrics` tells, those too that have no series yet."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
        if family.name.startswith("lictor_") and not family.name.endswith("_created")
    }


def series_of(text: str, name: str) -> list[dict[str, str]]:
    return [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def documented() -> dict[str, set[str]]:
    """The metrics of docs/metrics.md with their labels."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(lictor_\w+)` \| \w+ \|([^|]*)\|", page, re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_the_running_processes_tell_what_is_named(lictor: Lictor, consul: RunningConsul) -> None:
    where = {"CONSUL_HTTP_ADDR": consul.http_addr, "LICTOR_LEADER_KEY": f"lictor/{lictor.folder.name}"}
    with Cache(f"sqlite:///{lictor.database}") as cache:
        cache.module("financial", version="1.0.0")
        cache.announce(instance("financial", 2))
        cache.serve("financial", version="2.0.0")
    lictor.serve(**where)
    synchronizer = lictor.start("sync", **where)
    synchronizer.wait_for("leading")
    address = f"http://{lictor.settings['LICTOR_METRICS_BIND']}/metrics"

    def sync() -> str:
        return httpx.get(address, trust_env=False).text

    eventually(lambda: series_of(sync(), "lictor_consul_queries_total"))
    web = lictor.get("/metrics").text
    exposed = told(web) | told(sync())
    # Under gunicorn a counter with labels is told once it has counted.
    assert set(documented()) - exposed <= {"lictor_streams_dropped_total"}
    # The alert on the lead relies on this: the web server's own gauge is told apart by its label.
    assert series_of(sync(), "lictor_leader") == [{}]
    assert all("pid" in labels for labels in series_of(web, "lictor_leader"))


def test_only_known_metrics_and_labels_are_asked_for() -> None:
    known = documented()
    # Prometheus and Grafana add these; `pid` is the client library's.
    of_all = {"namespace", "job", "instance", "pid", "le"}
    expressions = [(alert["alert"], alert["expr"]) for alert in alerts()] + queries()
    for place, expression in expressions:
        asked = names(expression)
        assert asked, place
        assert asked <= set(known), place
        labels = of_all.union(*(known[name] for name in asked))
        assert set(re.findall(r"(\w+) ?(?:=~|!~|!=|=)\s*\"", expression)) <= labels, place
        for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert set(re.findall(r"\w+", listed)) <= labels, place


def test_only_known_metrics_are_named() -> None:
    for name, text in texts():
        assert names(text) <= set(documented()), name
