"""The types of the log's events, as the API, the event stream and webhooks name them."""

from __future__ import annotations

from typing import Literal, get_args

EventType = Literal[
    "module.registered",
    "module.available",
    "module.degraded",
    "module.unavailable",
    "module.forgotten",
    "module.manifest_changed",
    "module.manifest_rejected",
    "module.version_skew",
    "module.drift",
    "instance.added",
    "instance.changed",
    "instance.health_changed",
    "instance.removed",
    "registry.connected",
    "registry.lost",
    "registry.doubted",
    "registry.accepted",
]

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
