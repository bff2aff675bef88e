"""`lictor modules` and `lictor show`: show what the cache holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from web.cli.terminal.database import opened_snapshot, tell_of_lost_sources, unknown_module
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import COLOURS, age, console, moment, plain, show_json, show_table

if TYPE_CHECKING:
    from manifest_cache.storage.models import InstanceRow, ManifestRow, ModuleRow, TombstoneRow
    from manifest_cache.storage.reader import ModuleFilter, Snapshot

_STATUSES = ("available", "degraded", "unavailable")
_PAGE = 500
_TOMBSTONES = 5
# What an entry of a manifest's list is known by, the most telling first.
_NAMING_KEYS = ("name", "id", "path", "title", "label", "url", "href")


@click.command(
    epilog=epilog("lictor modules --status degraded --status unavailable", "lictor modules --q fin --json")
)
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(_STATUSES),
    help="Only modules of this status; may be given several times, for any of them.",
)
@click.option(
    "--tag", multiple=True, help="Only modules with this tag; given several times, with all of them."
)
@click.option(
    "--datacenter", multiple=True, help="Only modules of this datacenter; of any, if given several times."
)
@click.option("--q", default="", metavar="TEXT", help="Only modules with this text in their name or title.")
@click.option("--limit", type=click.IntRange(min=1), help="Show no more than this many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /api/v1/modules answers.")
def modules(
    status: Sequence[str],
    tag: Sequence[str],
    datacenter: Sequence[str],
    q: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the modules, and how they are."""
    from manifest_cache.storage.reader import ModuleFilter

    wanted = ModuleFilter(status=status, tag=tag, datacenter=datacenter, q=q)
    with opened_snapshot() as snapshot:
        rows, more = _found(snapshot, wanted, limit)
        tell_of_lost_sources(snapshot)
        index = snapshot.index
    if as_json:
        _show_list_json(rows, more, index)
    elif rows:
        _show_list(rows)
        if more:
            click.echo(f"These are the first {len(rows)}; there are more.", err=True)
    else:
        click.echo(
            "No module is like that." if wanted != ModuleFilter() else "There are no modules yet.", err=True
        )


def _found(snapshot: Snapshot, wanted: ModuleFilter, limit: int | None) -> tuple[list[ModuleRow], bool]:
    """The modules up to the limit, and whether there are more."""
    found: list[ModuleRow] = []
    for row in _all(snapshot, wanted):
        if len(found) == limit:
            return found, True
        found.append(row)
    return found, False


def _all(snapshot: Snapshot, wanted: ModuleFilter) -> Iterator[ModuleRow]:
    page = snapshot.modules(wanted, limit=_PAGE)
    while page:
        yield from page
        page = snapshot.modules(wanted, limit=_PAGE, after=page[-1].name)


def _show_list_json(rows: Sequence[ModuleRow], more: bool, index: int) -> None:
    from web.api import read as reading
    from web.schemas import responses

    cursor = reading.cursor_after("modules", rows[-1].name) if more else None
    answer = responses.ModuleList(items=[responses.Module.of(row) for row in rows], next=cursor, index=index)
    show_json(answer.model_dump(mode="json", exclude_unset=True))


def _show_list(rows: Sequence[ModuleRow]) -> None:
    show_table(
        ("MODULE", "STATUS", "VERSION", "INSTANCES", "TAGS", "CHANGED"),
        (
            (
                row.name,
                row.status,
                row.version or "-",
                _instances_of(row),
                ",".join(row.tags) or "-",
                age(row.last_changed),
            )
            for row in rows
        ),
    )


def _instances_of(row: ModuleRow) -> str:
    """How many instances pass, and how the others are: `2 of 3 pass, 1 critical`."""
    if not row.total:
        return "none"
    others = {"warning": row.warning, "critical": row.critical, "maintenance": row.maintenance}
    told = [
        f"{row.passing} of {row.total} pass",
        *(f"{count} {word}" for word, count in others.items() if count),
    ]
    return ", ".join(told)


@click.command(
    epilog=epilog(
        "lictor show financial", status="0 it is known, 1 it is not, 2 wrong use or wrong settings."
    )
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /api/v1/modules/NAME answers.")
def show(name: str, as_json: bool) -> None:
    """Show one module, its instances and its manifest.

    Also what is wrong with the manifests of its instances, when they are fetched again, and which
    instances went last.
    """
    with opened_snapshot() as snapshot:
        row = snapshot.module(name)
        if row is None:
            raise unknown_module(name, snapshot.near_names(name))
        instances = snapshot.instances([name]).get(name, [])
        manifest = snapshot.manifests([name]).get(name)
        tombstones = snapshot.tombstones(name, limit=_TOMBSTONES)
        tell_of_lost_sources(snapshot)
        if as_json:
            _show_module_json(snapshot, row, instances, manifest)
            return
    _show_module(row)
    _show_instances(instances)
    _show_tombstones(tombstones)
    _show_manifest(manifest)


def _show_module_json(
    snapshot: Snapshot, row: ModuleRow, instances: Sequence[InstanceRow], manifest: ManifestRow | None
) -> None:
    from web.schemas import responses

    shapes = responses.instance_shapes(snapshot, instances)
    shape = responses.Module.of(row, instances=shapes, manifest=manifest)
    show_json(shape.model_dump(mode="json", exclude_unset=True))


def _show_module(row: ModuleRow) -> None:
    from rich.text import Text

    heading = Text(plain(row.name), "bold").append("  ").append(row.status, COLOURS[row.status])
    console().print(heading, soft_wrap=True)
    _show_facts(
        {
            "title": row.title,
            "version": row.version,
            "digest": row.digest,
            "instances": _instances_of(row),
            "tags": ", ".join(row.tags),
            "datacenters": ", ".join(row.datacenters),
            "registries": ", ".join(row.registries),
            "first seen": moment(row.first_seen),
            "changed": f"{moment(row.last_changed)} ({age(row.last_changed)})",
        }
    )


def _show_facts(facts: dict[str, str | None]) -> None:
    for name, value in facts.items():
        if value:
            click.echo(f"  {name:<12} {plain(value)}")


def _show_instances(instances: Sequence[InstanceRow]) -> None:
    if not instances:
        return
    click.echo()
    show_table(
        ("INSTANCE", "ADDRESS", "HEALTH", "VERSION", "REGISTRY", "NODE", "CHANGED"),
        (
            (
                row.id,
                _address_of(row),
                row.health,
                row.version or "-",
                row.registry_name,
                row.node or "-",
                age(row.last_changed),
            )
            for row in instances
        ),
    )
    for row in instances:
        if row.error_type is not None:
            again = f"; it is tried again at {moment(row.fetch_at)}" if row.fetch_at else ""
            said = f"{row.error_type}: {row.error_detail}"
            click.echo(f"\nNo manifest of {plain(row.id)}: {plain(said)}{again}")


def _show_tombstones(tombstones: Sequence[TombstoneRow]) -> None:
    if not tombstones:
        return
    click.echo()
    show_table(
        ("GONE", "LAST ADDRESS", "LAST HEALTH", "VERSION", "REGISTRY", "NODE", "WENT"),
        (
            (
                row.id,
                _address_of(row),
                row.health,
                row.version or "-",
                row.registry_name,
                row.node or "-",
                age(row.gone_at),
            )
            for row in tombstones
        ),
    )


def _address_of(row: InstanceRow | TombstoneRow) -> str:
    host = f"[{row.address}]" if ":" in row.address else row.address
    return f"{row.scheme}://{host}:{row.port}" if row.port else f"{row.scheme}://{host} (no port)"


def _show_manifest(manifest: ManifestRow | None) -> None:
    if manifest is None:
        click.echo("\nThere is no manifest yet.")
        return
    content: dict[str, Any] = json.loads(manifest.content)
    click.echo(f"\nManifest, first seen {moment(manifest.first_seen)}")
    _show_facts(
        {key: _summary(value) for key, value in content.items() if key not in ("name", "version", "title")}
    )


def _summary(value: Any) -> str:
    """A field of a manifest on one line: lists by what names their entries."""
    if isinstance(value, list):
        return ", ".join(_named(entry) for entry in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _named(entry: Any) -> str:
    if isinstance(entry, dict):
        for key in _NAMING_KEYS:
            if isinstance(entry.get(key), str):
                version = entry.get("version")
                return f"{entry[key]} {version}" if isinstance(version, str) else str(entry[key])
    return entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
