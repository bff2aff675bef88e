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
STORING_SECONDS = Histogram(
    "lictor_change_storing_seconds",
    "How long after a registry told of a change it was stored: the lag of the synchronizer.",
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300),
)
DATABASE_SECONDS = Histogram(
    "lictor_database_seconds",
    "How long the synchronizer's transactions took, by what they do.",
    ["what"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DATABASE_FAILURES = Counter(
    "lictor_database_failures_total",
    "Transactions of the synchronizer that the database could not serve; each is tried again.",
)
DOUBTS = Counter("lictor_doubts_total", "How often a source began to be doubted.", ["source"])
EVENTS_DELETED = Counter("lictor_events_deleted_total", "Events that were deleted for their age.")
MANIFESTS_COLLECTED = Counter(
    "lictor_manifests_collected_total", "Manifests that were deleted because nothing told of them any longer."
)
MODULES_FORGOTTEN = Counter(
    "lictor_modules_forgotten_total", "Modules that were forgotten because they had no instance for long."
)

LEADER = Gauge("lictor_leader", "Whether this synchronizer leads (1) or stands by (0).")

LEADERSHIP_CHANGES = Counter(
    "lictor_leadership_changes_total", "How often this synchronizer took the lead or gave it up."
)
WEBHOOK_DELIVERIES = Counter(
    "lictor_webhook_deliveries_total",
    "Tries to deliver a webhook, by receiver and what became of them: delivered, or why not.",
    ["receiver", "outcome"],
)
WEBHOOK_LAG = Gauge(
    "lictor_webhook_lag_seconds",
    "How old the oldest event is that a receiver of webhooks is still to be sent; 0 if there is none.",
    ["receiver"],
)
