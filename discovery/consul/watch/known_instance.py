"""Reads entries of Consul's answers into instances, and what else is known of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from discovery.base import Health, InstanceKey, ServiceInstance

_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class KnownInstance:
    """An instance as `health/service` told it, at an index, with the health that its checks had then.

    It `inherits` its address where it has none of its own: then it is its node's. `written` is the
    index at which its registration was last written.
    """

    instance: ServiceInstance
    index: int
    unwell: frozenset[Health]
    inherits: bool
    written: int


_WELL: frozenset[Health] = frozenset()


def first_of(found: Mapping[InstanceKey, KnownInstance]) -> ServiceInstance | None:
    return next((known.instance for known in found.values()), None)


def read_instance(entry: Any, index: int, sibling: ServiceInstance | None) -> KnownInstance | None:
    """One entry of `health/service`; None for what is no instance of a module, a sidecar proxy say.

    What it has in common with a sibling, another instance of the module, is kept once.
    """
    node, service = entry.get("Node") or {}, entry.get("Service") or {}
    if service.get("Kind"):
        return None
    meta: Mapping[str, str] = {
        _shared(name): _shared(value) for name, value in (service.get("Meta") or {}).items()
    }
    tags = tuple([_shared(tag) for tag in service.get("Tags") or ()])
    if sibling is not None:
        meta = sibling.meta if sibling.meta == meta else meta
        tags = sibling.tags if sibling.tags == tags else tags
    instance = ServiceInstance(
        module=_shared(service.get("Service")),
        id=text_of(service.get("ID")),
        address=_shared(service.get("Address")) or _shared(node.get("Address")),
        port=_port(service.get("Port")),
        scheme=meta.get("scheme", "http"),
        node=_shared(node.get("Node")),
        datacenter=_shared(node.get("Datacenter")),
        tags=tags,
        meta=meta,
    )
    unwell = set()
    for check in entry.get("Checks") or ():
        if check.get("Status") in {Health.CRITICAL, Health.WARNING}:
            unwell.add(Health(check["Status"]))
        if check.get("Status") == Health.CRITICAL and is_maintenance(text_of(check.get("CheckID"))):
            unwell.add(Health.MAINTENANCE)
    return KnownInstance(
        instance,
        index,
        frozenset(unwell) if unwell else _WELL,
        inherits=not service.get("Address"),
        written=int(service.get("ModifyIndex") or 0),
    )


def _port(value: Any) -> int:
    """A port to connect to; 0 for whatever is none, which Consul takes as well."""
    return value if isinstance(value, int) and 0 < value <= _HIGHEST_PORT else 0


def has_unwell_checks(entry: Any) -> bool:
    return any(check.get("Status") != Health.PASSING for check in entry.get("Checks") or ())


def is_same(one: KnownInstance | None, other: KnownInstance | None) -> bool:
    """Whether two readings tell of the same registration: an inherited address is none of its own."""
    if one is None or other is None:
        return one is other
    if one.inherits and other.inherits:
        return one.instance == replace(other.instance, address=one.instance.address)
    return one.instance == other.instance


def by_place(checks: Iterable[Any]) -> dict[tuple[str, str], frozenset[str]]:
    """The ids of checks by their node, in lower case, and service; those of a node have no service."""
    grouped: dict[tuple[str, str], set[str]] = {}
    for check in checks:
        where = (text_of(check.get("Node")).lower(), text_of(check.get("ServiceID")))
        grouped.setdefault(where, set()).add(text_of(check.get("CheckID")))
    return {where: frozenset(ids) for where, ids in grouped.items()}


def addresses_of(nodes: Iterable[Any]) -> dict[str, str]:
    return {text_of(node.get("Node")): text_of(node.get("Address")) for node in nodes}


def is_maintenance(check_id: str) -> bool:
    return check_id == "_node_maintenance" or check_id.startswith("_service_maintenance:")


def text_of(value: Any) -> str:
    """Text that every database takes: without NUL and without halves of surrogate pairs."""
    text = str(value or "")
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _shared(value: Any) -> str:
    """The same of what many instances have alike, each kept once."""
    return sys.intern(text_of(value))
