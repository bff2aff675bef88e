"""Checks the arguments of `register` and makes a ServiceDefinition of them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from discovery.errors import ConfigError
from discovery.health.checks import Check, HTTPCheck, TCPCheck, TTLCheck
from discovery.timing.durations import parse_duration
from discovery.validation import (
    address_fault,
    label_fault,
    manifest_port_fault,
    meta_faults,
    path_fault,
    port_fault,
    tag_faults,
    text_fault,
)

DEFAULT_MODULE_TAG = "module"
DEFAULT_MANIFEST_PATH = "/manifest"
DEFAULT_DEREGISTER_AFTER = "10m"
DEFAULT_HEARTBEAT = 30.0
SCHEMES = ("http", "https")
_NOT_IN_HOST_NAMES = re.compile(r"[^A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDefinition:
    """One instance of a module, as it wants to be known; everything in it has been checked.

    `address` is empty where the registry or the way to it decides. `meta` holds what the library
    adds. `deregister_after`, `drain` and `heartbeat` are seconds; None: never removed for being
    critical.
    """

    name: str
    id: str
    port: int
    address: str = ""
    scheme: str = "http"
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    deregister_after: float | None = None
    drain: float = 0.0
    heartbeat: float = DEFAULT_HEARTBEAT
    manifest: Mapping[str, Any] | None = None
    manifest_path: str = DEFAULT_MANIFEST_PATH


def announcement(
    *,
    name: str,
    port: int,
    id: str | None = None,
    address: str = "",
    scheme: str = "http",
    tags: Iterable[str] = (),
    meta: Mapping[str, str] | None = None,
    check: Check | None = None,
    checks: Sequence[Check] | None = None,
    deregister_after: str | float | None = DEFAULT_DEREGISTER_AFTER,
    drain: str | float = 0,
    manifest: Mapping[str, Any] | None = None,
    manifest_path: str | None = None,
    manifest_port: int | None = None,
    version: str | None = None,
    module_tag: str = DEFAULT_MODULE_TAG,
) -> ServiceDefinition:
    """Checks everything at once; raises ConfigError with every fault, each named by its argument."""
    faults = [
        *_named("name", label_fault(name)),
        *_named("port", port_fault(port)),
        *_named("id", text_fault(id) if id is not None else None),
        *_named("address", address_fault(address) if address else None),
        *_named("module_tag", text_fault(module_tag)),
        *tag_faults(tags := _listed(tags)),
        *_version_faults(version),
        *_manifest_faults(manifest, name, version),
    ]
    if scheme not in SCHEMES:
        faults.append(f"scheme: must be one of {', '.join(SCHEMES)} (got {scheme!r})")
    all_checks, check_faults = _all_checks(check, checks)
    seconds, duration_faults = _deregister_after(deregister_after)
    drained, drain_faults = _drain(drain)
    merged, merge_faults = _merged(meta, _own_meta(scheme, manifest_path, manifest_port, version, manifest))
    faults += [*check_faults, *duration_faults, *drain_faults, *merge_faults, *meta_faults(merged)]
    if faults:
        raise ConfigError(faults)
    return ServiceDefinition(
        name=name,
        id=default_id(name, port) if id is None else id,
        port=port,
        address=address,
        scheme=scheme,
        tags=tuple(tags) if module_tag in tags else (module_tag, *tags),
        meta=merged,
        checks=all_checks,
        deregister_after=seconds,
        drain=drained,
        heartbeat=_heartbeat(all_checks),
        manifest=manifest,
        manifest_path=merged["manifest_path"],
    )


def default_id(name: str, port: int) -> str:
    """An id that is the same after a restart, and another one on another machine or port."""
    host = _NOT_IN_HOST_NAMES.sub("-", socket.gethostname()).strip("-") or "localhost"
    return f"{name}-{host}-{port}"


def canonical_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The one form of a manifest that its digest is made of and that is best served: RFC 8785."""
    return rfc8785.dumps(dict(manifest))


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """
    >>> manifest_digest({"version": "1.0.0", "name": "financial"})[:8]
    '9c7f1145'
    """
    return hashlib.sha256(canonical_manifest(manifest)).hexdigest()


def _named(name: str, fault: str | None) -> list[str]:
    return [f"{name}: {fault}"] if fault else []


def _listed(tags: Iterable[str]) -> Any:
    """A copy, as an iterator can be read but once; what is no list of texts is left for the check."""
    return tags if isinstance(tags, str) or not isinstance(tags, Iterable) else tuple(tags)


def _all_checks(check: Check | None, checks: Sequence[Check] | None) -> tuple[tuple[Check, ...], list[str]]:
    if check is None and checks is None:
        # Without any check Consul takes a dead module for a healthy one for ever.
        return (TTLCheck(),), []
    if checks is not None and not isinstance(checks, list | tuple):
        return (), [f"checks: give a list of HTTPCheck, TCPCheck or TTLCheck (got {checks!r})"]
    given = ([check] if check is not None else []) + list(checks or ())
    faults = []
    for one in given:
        if isinstance(one, HTTPCheck | TCPCheck | TTLCheck):
            faults += [f"check: {fault}" for fault in one.faults()]
        else:
            faults.append(f"check: give an HTTPCheck, TCPCheck or TTLCheck (got {one!r})")
    return tuple(given), faults


def _deregister_after(value: str | float | None) -> tuple[float | None, list[str]]:
    if value is None:
        return None, []
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        return None, [f"deregister_after: {exc}"]
    if seconds <= 0:
        return None, [f"deregister_after: must be longer than nothing (got {value!r}); None means never"]
    return seconds, []


def _drain(value: str | float) -> tuple[float, list[str]]:
    try:
        return parse_duration(value), []
    except ValueError as exc:
        return 0.0, [f"drain: {exc}"]


def _heartbeat(checks: tuple[Check, ...]) -> float:
    """How often the module speaks up: often enough for the shortest TTL even if one beat is lost."""
    thirds = (round(check.seconds / 3, 3) for check in checks if isinstance(check, TTLCheck))
    return min(thirds, default=DEFAULT_HEARTBEAT)


def _version_faults(version: object) -> list[str]:
    if version is None or (isinstance(version, str) and version):
        return []
    return [f'version: give a text such as "1.2.0" (got {version!r})']


def _manifest_faults(manifest: object, name: object, version: object) -> list[str]:
    if manifest is None:
        return []
    if not isinstance(manifest, Mapping):
        return [f"manifest: give a mapping (got {type(manifest).__name__})"]
    faults = []
    if manifest.get("name") != name:
        faults.append(
            f"manifest: its name must be that of the module, {name!r} (got {manifest.get('name')!r})"
        )
    own = manifest.get("version")
    if not isinstance(own, str) or not own:
        faults.append(f'manifest: its version must be a text such as "1.2.0" (got {own!r})')
    elif version is not None and version != own:
        faults.append(f"version: {version!r} contradicts the manifest's version {own!r}; give one of them")
    try:
        canonical_manifest(manifest)
    except (rfc8785.CanonicalizationError, RecursionError) as exc:
        faults.append(f"manifest: cannot be written as canonical JSON: {exc}")
    return faults


def _own_meta(
    scheme: object, manifest_path: object, manifest_port: object, version: object, manifest: object
) -> dict[str, Any]:
    """What the library says of the module in its meta."""
    meta = {
        "manifest_path": manifest_path,
        "manifest_port": str(manifest_port) if manifest_port is not None else None,
        "version": version if not _version_faults(version) else None,
    }
    if scheme != "http":
        meta["scheme"] = scheme
    if isinstance(manifest, Mapping):
        meta["version"] = meta["version"] or manifest.get("version")
        # A manifest that has no canonical form is already a fault of its own.
        with contextlib.suppress(rfc8785.CanonicalizationError, RecursionError):
            meta["manifest_digest"] = manifest_digest(manifest)
    return {key: value for key, value in meta.items() if value is not None}


def _merged(meta: Any, own: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The given meta and the library's; a key of both with two values is a fault."""
    if meta is not None and not isinstance(meta, Mapping):
        return meta, []
    given = dict(meta or {})
    faults = [
        f"meta: {key!r} is {given[key]!r}, but the argument says {value!r}; give one of them"
        for key, value in own.items()
        if given.get(key, value) != value and key != "scheme"
    ]
    if "scheme" in given and given["scheme"] != own.get("scheme", "http"):
        faults.append(f"meta: say the scheme by the argument scheme={given['scheme']!r}, not here")
    merged = {"manifest_path": DEFAULT_MANIFEST_PATH, **given, **own}
    faults += _named("manifest_path", path_fault(merged["manifest_path"]))
    if "manifest_port" in merged:
        faults += _named("manifest_port", manifest_port_fault(merged["manifest_port"]))
    return merged, faults
