"""Turns what registries tell of an instance into columns, and rows into what is remembered of them."""

from __future__ import annotations

import logging
from typing import Any

from discovery.base import InstanceKey, ServiceInstance
from discovery.text import quoted
from manifest_cache.storage.models import InstanceRow, ModuleRow, TombstoneRow

logger = logging.getLogger(__name__)

# An index of PostgreSQL holds no more of a row, in bytes; the name of the source is a part of it too.
_LONGEST_KEY = 2500
# Characters kept of why a registry cannot be reached: it may have answered with a whole page.
_LONGEST_REASON = 1000
_REMEMBERED = set(TombstoneRow.model_fields) - {"key", "gone_at"}


def has_place(instance: ServiceInstance) -> bool:
    """Whether an instance can be known by its key; one that cannot is said to be left out."""
    # No character takes more than four bytes.
    if 4 * sum(map(len, instance.key)) <= _LONGEST_KEY:
        return True
    if (size := sum(len(part.encode()) for part in instance.key)) <= _LONGEST_KEY:
        return True
    logger.warning(
        "left out, as its module, node and id have %d bytes, and %d are allowed: module=%s instance=%s",
        size,
        _LONGEST_KEY,
        quoted(instance.module),
        quoted(instance.id),
    )
    return False


def harmless(reason: str) -> str:
    """Words of a registry, or of whatever answers in its place, without what a database or terminal minds."""
    return "".join(letter if letter.isprintable() else "�" for letter in reason[:_LONGEST_REASON])


def is_row_of(row: InstanceRow, source: str, key: InstanceKey) -> bool:
    # The id tells most apart, and costs least.
    return row.id == key.id and row.source == source and key_of(row) == key


def key_of(row: InstanceRow | TombstoneRow) -> InstanceKey:
    return InstanceKey(row.module, row.node, row.id)


def asked_at(row: InstanceRow) -> tuple[object, ...]:
    """All that decides from where a manifest is fetched."""
    meta = row.meta
    return row.scheme, row.address, row.port, meta.get("manifest_path"), meta.get("manifest_port")


def remembered_of(module: ModuleRow) -> dict[str, Any]:
    """What a module without instances was."""
    return {name: getattr(module, name) for name in ("status", "version", "digest", "title")}


def tombstone_fields(row: InstanceRow) -> dict[str, Any]:
    """What is remembered of an instance that is gone."""
    return {name: getattr(row, name) for name in _REMEMBERED}


def definition_of(instance: ServiceInstance) -> dict[str, Any]:
    return {
        "address": instance.address,
        "port": instance.port,
        "scheme": instance.scheme,
        "datacenter": instance.datacenter,
        "tags": list(instance.tags),
        "meta": dict(instance.meta),
    }
