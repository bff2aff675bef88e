"""What is counted of the cache: the objects that /metrics shows, by Prometheus' client."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

FETCHES = Counter(
    "lictor_manifest_fetches_total",
    "Fetches of manifests, by what became of them: fetched, unchanged, or the type of the error.",
    ["outcome"],
)
FETCH_SECONDS = Histogram(
    "lictor_manifest_fetch_seconds",
    "How long a fetch took, from connecting to the last byte.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
FETCHES_IN_FLIGHT = Gauge("lictor_manifest_fetches_in_flight", "Fetches of manifests that are under way.")
