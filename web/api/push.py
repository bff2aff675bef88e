"""Takes push registrations, heartbeats and deregistrations."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any

from flask import Blueprint, request

from discovery.base import Health, ServiceInstance
from discovery.validation import manifest_port_fault, meta_faults
from manifest_cache.errors import ManifestInvalid
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.manifest import ParsedManifest, manifest_from_object
from web.api.endpoint import write
from web.backend import backend
from web.problems import InstanceNotRegistered, InvalidBody
from web.schemas.parsing import Fault, body_of, dotted
from web.schemas.requests import Beat, InstancePath, ModulePath, Registration
from web.schemas.responses import BeatTaken, Instance, Registered

bp = Blueprint("push", __name__)


@bp.post("/modules/register")
@write(
    summary="Register an instance of a module",
    tag="push",
    description="An instance with the same name and id is replaced. It stays by heartbeats: after three "
    "missed ones it is critical, and `deregister_after` later it is removed.",
    body=Registration,
    answer=Registered,
    answer_description="Registered, and readable on every worker.",
    status=201,
)
def register(registry: PushTables, document: dict[str, Any]) -> tuple[Registered, int]:
    done = registry.register(_registration(document))
    answer = Registered(
        instance=Instance.of(done.instance),
        index=done.index,
        heartbeat_interval=done.heartbeat_interval,
        deregister_after=done.deregister_after,
    )
    return answer, done.index


@bp.post("/modules/<name>/heartbeat")
@write(
    summary="Say that an instance lives, and how it is",
    tag="push",
    path=ModulePath,
    body=Beat,
    answer=BeatTaken,
    answer_description="Noted.",
    problems=(InstanceNotRegistered,),
)
def heartbeat(registry: PushTables, name: str, document: dict[str, Any]) -> tuple[BeatTaken, int]:
    beat, faults = body_of(Beat, document)
    if beat is None:
        raise InvalidBody.of(faults)
    done = registry.heartbeat(name, beat.id, Health(beat.health), beat.note)
    return BeatTaken(index=done.index, heartbeat_interval=done.heartbeat_interval), done.index


@bp.delete("/modules/<name>/instances/<id>")
@write(
    summary="Deregister an instance",
    tag="push",
    path=InstancePath,
    answer_description="Gone.",
    status=204,
    problems=(InstanceNotRegistered,),
)
def deregister(registry: PushTables, name: str, id: str) -> tuple[None, int]:
    return None, registry.deregister(name, id)


def _registration(document: dict[str, Any]) -> PushRegistration:
    """Raises InvalidBody with every fault, those of the manifest included."""
    sent, faults = body_of(Registration, document)
    manifest, manifest_faults = _manifest(document)
    faults += manifest_faults
    if sent is None or faults:
        raise InvalidBody.of([*faults, *_contradictions(document)])
    address = sent.address or _clients_address()
    faults = [*_contradictions(document), *_missing_address(address), *_faulty_meta(sent)]
    if faults:
        raise InvalidBody.of(faults)
    return PushRegistration(
        instance=ServiceInstance(
            module=sent.name,
            id=sent.id or f"{sent.name}-{address}-{sent.port}",
            address=address,
            port=sent.port,
            scheme=sent.scheme,
            tags=tuple(dict.fromkeys(sent.tags)),
            meta=_meta(sent),
            health=Health.PASSING,
        ),
        manifest=manifest,
        heartbeat_interval=sent.heartbeat_interval,
        deregister_after=sent.deregister_after,
    )


def _manifest(document: dict[str, Any]) -> tuple[ParsedManifest | None, list[Fault]]:
    """The manifest within the document, and its faults; what is no object is the shape's fault."""
    said, name = document.get("manifest"), document.get("name")
    if not isinstance(said, dict):
        return None, []
    try:
        parsed = manifest_from_object(said, module=name if isinstance(name, str) else None)
    except ManifestInvalid as exc:
        return None, [(dotted(f"/manifest{fault.path}"), fault.message) for fault in exc.faults]
    most = backend().settings.fetch_max_bytes
    if len(parsed.canonical) > most:
        return None, [
            ("manifest", f"has {len(parsed.canonical)} bytes as canonical JSON, but {most} are allowed")
        ]
    return parsed, []


def _contradictions(document: dict[str, Any]) -> Iterable[Fault]:
    if document.get("manifest") is not None and document.get("manifest_path") is not None:
        yield "manifest_path", "give either this or `manifest`, not both"
    meta = document.get("meta")
    if document.get("manifest_path") is not None and isinstance(meta, dict) and "manifest_path" in meta:
        yield "meta", "must not hold `manifest_path` beside the field of that name"


def _missing_address(address: str) -> Iterable[Fault]:
    if not address:
        yield "address", "is missing, and the client's own is not known here"


def _faulty_meta(sent: Registration) -> Iterable[Fault]:
    port = sent.meta.get("manifest_port")
    if port is not None and (wrong := manifest_port_fault(port)) is not None:
        yield "meta.manifest_port", wrong
    for fault in meta_faults(_meta(sent)):
        yield "meta", fault.removeprefix("meta: ")


def _meta(sent: Registration) -> dict[str, str]:
    return {**sent.meta, "manifest_path": sent.manifest_path} if sent.manifest_path else sent.meta


def _clients_address() -> str:
    """The address that the request came from; empty over a Unix socket."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
