"""What the web server counts: requests and how long they took, for Prometheus to read.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Histogram(
    "lictor_http_request_duration_seconds",
    "How long requests took until their answer was ready, by method, route and status.",
    ["method", "route", "status"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

READ_CACHE = Counter(
    "lictor_read_cache_total",
    "Reads: from kept bytes (hit; quick where no thread was needed), made again (miss), or left to the "
    "application (passed).",
    ["outcome"],
)

WATCHERS = Gauge(
    "lictor_watchers",
    "Requests that wait for a change: blocking queries, long polls of the event log, event streams.",
    ["kind"],
    multiprocess_mode="livesum",
)
STREAMS_DROPPED = Counter(
    "lictor_streams_dropped_total",
    "Event streams that were ended because the client did not read; they can resume.",
    ["reason"],
)
