"""What is counted of the registries' watches, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CONSUL_QUERIES = Counter(
    "lictor_consul_queries_total",
    "Queries to Consul, by what was asked for and what became of it (ok, failed, refused, stalled).",
    ["kind", "outcome"],
)
CONSUL_QUERIES_IN_FLIGHT = Gauge(
    "lictor_consul_queries_in_flight",
    "Queries to Consul that wait for an answer now, each over a connection of its own.",
)
WATCH_RESTARTS = Counter(
    "lictor_watch_restarts_total",
    "Loops of a watch that made no progress for longer than their query may take, and were restarted.",
    ["loop"],
)
ANTI_ENTROPY_REPAIRS = Counter(
    "lictor_anti_entropy_repairs_total",
    "Differences from Consul that the watches missed and the full comparison found and mended: expected 0.",
)
