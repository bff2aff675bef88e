"""Serves `/metrics` for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from flask import Blueprint, Response, request
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from manifest_cache.storage.database import StoreError
from manifest_cache.storage.reader import Snapshot
from web.backend import Backend, backend
from web.telemetry.multiprocess_metrics import VARIABLE

bp = Blueprint("metrics", __name__)

_PAGE = 1000
# Each is a series of its own. While more modules are in the midst of a rollout, one more tells nothing new.
_MOST_SKEWED = 100


@bp.get("/metrics")
def metrics() -> Response:
    """In the text format, or in OpenMetrics' where that is accepted."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    body = encode(_counted()) + encode(_held(backend()))
    if content_type.startswith("application/openmetrics-text"):
        # Each part ends with it, and it must stand at the end alone.
        body = body.replace(b"# EOF\n", b"") + b"# EOF\n"
    return Response(body, content_type=content_type, headers={"Cache-Control": "no-store"})


def _counted() -> CollectorRegistry:
    """What this process counted, or under gunicorn what all workers did."""
    if VARIABLE not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    registry.register(_Workers(Path(os.environ[VARIABLE])))
    return registry


def _held(backend: Backend) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Cache(backend))
    return registry


class _Workers(Collector):
    """What all workers counted, each in files of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._folder.glob("*.db") if _is_filled(file)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _is_filled(file: Path) -> bool:
    """A worker that begins makes its files before it fills them, and some go when one ends."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


class _Cache(Collector):
    """What the cache holds at the moment; only `lictor_database_up` where the database is away."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("lictor_database_up", "Whether the database can be read.")
        try:
            with self._backend.snapshot() as snapshot:
                families = list(_families(snapshot))
        except StoreError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from families


def _families(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("lictor_index", "The index of the newest event.", value=snapshot.index)
    modules = GaugeMetricFamily("lictor_modules", "Modules, by status.", labels=["status"])
    for status, number in sorted(snapshot.status_counts().items()):
        modules.add_metric([status], number)
    yield modules
    versions = GaugeMetricFamily(
        "lictor_module_versions",
        "How many versions a module's healthy instances serve, of modules with several: at most 100 of them.",
        labels=["module"],
    )
    for name, number in islice(_skewed(snapshot), _MOST_SKEWED):
        versions.add_metric([name], number)
    yield versions
    instances = GaugeMetricFamily("lictor_instances", "Instances, by health.", labels=["health"])
    for health, number in sorted(snapshot.health_counts().items()):
        instances.add_metric([health], number)
    yield instances
    connected = GaugeMetricFamily(
        "lictor_source_connected", "Whether a source of a registry can be reached.", labels=["source"]
    )
    doubted = GaugeMetricFamily(
        "lictor_source_doubted", "Whether what a source tells is not all believed.", labels=["source"]
    )
    contact = GaugeMetricFamily(
        "lictor_source_last_contact_timestamp_seconds",
        "When a source was last heard of, within five seconds, in seconds since 1970.",
        labels=["source"],
    )
    for source in snapshot.sources:
        connected.add_metric([source.name], source.connected)
        doubted.add_metric([source.name], source.doubt is not None)
        if source.last_contact is not None:
            contact.add_metric([source.name], source.last_contact.timestamp())
    yield from (connected, doubted, contact)


def _skewed(snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    """The modules whose healthy instances serve several versions, in the order of their names."""
    after: str | None = None
    while page := snapshot.modules(limit=_PAGE, after=after):
        yield from ((module.name, len(module.versions)) for module in page if len(module.versions) > 1)
        after = page[-1].name
