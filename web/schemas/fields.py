"""Lists the fields to which a response can be narrowed."""

from __future__ import annotations

from typing import Literal

ModuleField = Literal[
    "name",
    "title",
    "status",
    "version",
    "digest",
    "instance_counts",
    "tags",
    "datacenters",
    "registries",
    "versions",
    "drifting",
    "first_seen",
    "last_changed",
    "instances",
    "manifest",
]
InstanceField = Literal[
    "id",
    "module",
    "address",
    "port",
    "scheme",
    "node",
    "datacenter",
    "tags",
    "meta",
    "health",
    "registry",
    "version",
    "digest",
    "manifest_error",
    "first_seen",
    "last_seen",
    "last_changed",
]
ManifestField = Literal["digest", "version", "first_seen", "current"]
EventField = Literal["index", "at", "type", "module", "instance", "registry", "data"]
TombstoneField = Literal[
    "id",
    "module",
    "address",
    "port",
    "scheme",
    "node",
    "datacenter",
    "tags",
    "meta",
    "health",
    "registry",
    "version",
    "digest",
    "first_seen",
    "gone_at",
]
