"""Serves modules, their instances and their manifests."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Blueprint

from discovery.text import shortened
from manifest_cache.storage import models
from manifest_cache.storage.reader import ModuleFilter
from web.api.endpoint import read
from web.api.read import Read, broken_cursor, cursor_after, list_of, page, parse_cursor
from web.problems import NoManifest, Problem, UnknownManifest, UnknownModule
from web.rendering.module_json import Projection
from web.schemas.requests import (
    AS_ITS_SCHEMA,
    InstancesQuery,
    LookupQuery,
    ManifestPath,
    ManifestsQuery,
    ModulePath,
    ModuleQuery,
    ModulesQuery,
    TombstonesQuery,
)
from web.schemas.responses import (
    InstanceList,
    ManifestEntry,
    ManifestList,
    Module,
    ModuleList,
    ModuleLookup,
    Tombstone,
    TombstoneList,
    instance_shapes,
)

bp = Blueprint("modules", __name__)

_MANIFEST_SCHEMA = {"type": "object", "description": AS_ITS_SCHEMA}


@bp.get("/modules")
@read(
    summary="All modules",
    tag="modules",
    description="In the order of their names. With `include=manifest,instances` one call replaces a crawl.",
    query=ModulesQuery,
    answer=ModuleList,
)
def list_modules(read: Read, query: ModulesQuery) -> bytes:
    after = parse_cursor("modules", query.cursor, str)
    read.raise_if_not_modified()
    wanted = ModuleFilter(status=query.status, tag=query.tag, datacenter=query.datacenter, q=query.q)
    found = read.snapshot.module_names(wanted, limit=query.limit + 1, after=after)
    names, last = page(found, query.limit)
    return list_of(
        _texts(read, names, Projection.of(query.fields, query.include)),
        next=cursor_after("modules", last) if last is not None else None,
        index=read.snapshot.index,
    )


@bp.get("/modules/lookup")
@read(
    summary="Several modules by their names",
    tag="modules",
    description="In the order in which they are asked for, each once. Names of which there is no module are "
    "listed as `unknown`. A module that is itself called `lookup` is found by `?name=lookup`.",
    query=LookupQuery,
    answer=ModuleLookup,
)
def look_up_modules(read: Read, query: LookupQuery) -> bytes:
    asked = list(dict.fromkeys(query.name))
    rows = read.snapshot.modules_named(asked)
    read.raise_if_not_modified(modules=rows)
    known = {row.name for row in rows}
    found = [name for name in asked if name in known]
    read.about = frozenset(asked)
    return list_of(
        _texts(read, found, Projection.of(query.fields, query.include), rows),
        unknown=[name for name in asked if name not in known],
        index=read.snapshot.index,
    )


@bp.get("/modules/<name>")
@read(
    summary="One module, with its instances",
    tag="modules",
    path=ModulePath,
    query=ModuleQuery,
    answer=Module,
    problems=(UnknownModule,),
)
def show_module(read: Read, name: str, query: ModuleQuery) -> bytes:
    module = known_module(read, name)
    read.raise_if_not_modified(modules=[module])
    read.about = frozenset([name])
    embedded = query.include if query.fields else [*query.include, "instances"]
    return _texts(read, [name], Projection.of(query.fields, embedded), [module])


@bp.get("/modules/<name>/manifest")
@read(
    summary="The current manifest",
    tag="manifests",
    description="Byte for byte canonical JSON (RFC 8785). The ETag is its digest.",
    path=ModulePath,
    schema=_MANIFEST_SCHEMA,
    answer_description="The manifest.",
    problems=(UnknownModule, NoManifest),
)
def show_manifest(read: Read, name: str) -> bytes:
    module = known_module(read, name)
    manifest = read.snapshot.manifest(name, module.digest) if module.digest else None
    if manifest is None:
        raise _no_manifest(read, name)
    read.raise_if_not_modified(etag=manifest.digest, modules=[module])
    return manifest.content.encode()


@bp.get("/modules/<name>/manifests")
@read(
    summary="The manifests that a module had",
    tag="manifests",
    description="The newest first.",
    path=ModulePath,
    query=ManifestsQuery,
    answer=ManifestList,
    problems=(UnknownModule,),
)
def list_manifests(read: Read, name: str, query: ManifestsQuery) -> ManifestList:
    module = known_module(read, name)
    after = parse_cursor("manifests", query.cursor, str)
    if after is not None and read.snapshot.manifest(name, after) is None:
        raise broken_cursor()
    read.raise_if_not_modified(modules=[module])
    history = read.snapshot.manifest_history(name, limit=query.limit + 1, after=after)
    rows, last = page(history, query.limit)
    return ManifestList(
        items=[ManifestEntry.of(row, module) for row in rows],
        next=cursor_after("manifests", last.digest) if last else None,
        index=read.snapshot.index,
    )


@bp.get("/modules/<name>/manifests/<digest>")
@read(
    summary="One of the manifests that a module had",
    tag="manifests",
    description="Byte for byte canonical JSON (RFC 8785). The ETag is its digest.",
    path=ManifestPath,
    schema=_MANIFEST_SCHEMA,
    answer_description="The manifest.",
    problems=(UnknownModule, UnknownManifest),
)
def show_manifest_of_history(read: Read, name: str, digest: str) -> bytes:
    module = known_module(read, name)
    manifest = read.snapshot.manifest(name, digest)
    if manifest is None:
        raise UnknownManifest(f"The module {name} has no manifest {digest}. {UnknownManifest.advice}")
    read.raise_if_not_modified(etag=manifest.digest, modules=[module])
    return manifest.content.encode()


@bp.get("/modules/<name>/instances")
@read(
    summary="The instances of a module",
    tag="modules",
    description="In the order in which they became known.",
    path=ModulePath,
    query=InstancesQuery,
    answer=InstanceList,
    problems=(UnknownModule,),
)
def list_instances(read: Read, name: str, query: InstancesQuery) -> InstanceList:
    module = known_module(read, name)
    after = parse_cursor("instances", query.cursor, int)
    read.raise_if_not_modified(modules=[module])
    found = read.snapshot.instance_page(name, passing=query.passing, limit=query.limit + 1, after=after)
    rows, last = page(found, query.limit)
    read.tells_last_seen = True
    return InstanceList(
        items=instance_shapes(read.snapshot, rows),
        next=cursor_after("instances", last.key or 0) if last else None,
        index=read.snapshot.index,
    )


@bp.get("/modules/<name>/tombstones")
@read(
    summary="The instances of a module that are gone",
    tag="modules",
    description="The last to go first, each as it was known last. An instance that comes back is none of "
    "them any longer.",
    path=ModulePath,
    query=TombstonesQuery,
    answer=TombstoneList,
    problems=(UnknownModule,),
)
def list_tombstones(read: Read, name: str, query: TombstonesQuery) -> TombstoneList:
    known_module(read, name)
    before = parse_cursor("tombstones", query.cursor, int)
    # Those who told of them may feed the module no longer, so that any of them counts.
    read.raise_if_not_modified()
    rows, last = page(read.snapshot.tombstones(name, limit=query.limit + 1, before=before), query.limit)
    return TombstoneList(
        items=[Tombstone.of(row) for row in rows],
        next=cursor_after("tombstones", last.key or 0) if last else None,
        index=read.snapshot.index,
    )


def known_module(read: Read, name: str) -> models.ModuleRow:
    """The module of this name. Raises UnknownModule with names that are like it."""
    module = read.snapshot.module(name)
    if module is None:
        near = read.snapshot.near_names(name)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownModule(f"There is no module {shortened(name)}.{hint}", near=near)
    return module


def _no_manifest(read: Read, name: str) -> Problem:
    faults = [row.error_detail for row in read.snapshot.instances([name])[name] if row.error_detail]
    why = f"The last try failed: {faults[0]}" if faults else "None was fetched so far."
    return NoManifest(f"The module {name} has no manifest yet. {why}")


def _texts(
    read: Read, names: Sequence[str], projection: Projection, rows: Sequence[models.ModuleRow] = ()
) -> bytes:
    read.tells_last_seen |= projection.instances
    return read.parts.texts(read.snapshot, names, projection, rows)
