"""`lictor validate`: checks a manifest and points at each fault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from discovery.text import counted
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import console, plain, show_json

if TYPE_CHECKING:
    from rich.text import Text

    from manifest_cache.errors import Fault, ManifestInvalid
    from manifest_cache.manifest import ParsedManifest

# As much of a long line as fits beside its number on a narrow terminal.
_BEFORE, _AFTER = 40, 30


@click.command(
    epilog=epilog(
        "lictor validate manifest.json",
        "curl -s http://127.0.0.1:8001/manifest | lictor validate --module financial -",
        status="0 the manifest is good, 1 it is not, 2 wrong use, or the file cannot be read.",
    )
)
@click.argument("file", type=click.File("rb"))
@click.option("--module", metavar="NAME", help="The name that the manifest must bear.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def validate(ctx: click.Context, file: BinaryIO, module: str | None, as_json: bool) -> None:
    """Check a manifest, and point at each fault.

    The one in FILE (- for standard input) is checked as Lictor checks what it fetches, also for its
    size (LICTOR_FETCH_MAX_BYTES).
    """
    from manifest_cache.errors import ManifestInvalid
    from manifest_cache.manifest import parse_manifest
    from manifest_cache.settings import CacheSettings

    # Standard input need not be a file that has a name.
    name = getattr(file, "name", "<stdin>")
    limit = CacheSettings.load().fetch_max_bytes
    try:
        raw = file.read(limit + 1)
    except OSError as exc:
        raise click.UsageError(f"{name} cannot be read: {exc.strerror or exc}", ctx) from exc
    if len(raw) > limit:
        _report_too_large(name, limit, as_json)
        ctx.exit(1)
    try:
        parsed = parse_manifest(raw, module=module)
    except ManifestInvalid as exc:
        _report_faults(name, raw, exc, as_json)
        ctx.exit(1)
    _report_good(name, parsed, as_json)


def _report_too_large(name: str, limit: int, as_json: bool) -> None:
    message = f"is larger than {limit} bytes, the limit that LICTOR_FETCH_MAX_BYTES sets"
    if as_json:
        fault = {"type": "too-large", "path": "", "message": message, "line": None, "column": None}
        show_json({"valid": False, "type": "too-large", "faults": [fault]})
    else:
        click.echo(f"{plain(name)} {message}")


def _report_faults(name: str, raw: bytes, error: ManifestInvalid, as_json: bool) -> None:
    if as_json:
        show_json(
            {"valid": False, "type": error.type, "faults": [_as_object(fault) for fault in error.faults]}
        )
        return
    lines = raw.decode(errors="replace").split("\n")
    out = console()
    for fault in error.faults:
        out.print(_pointed(name, lines, fault), soft_wrap=True)
    out.print(f"{plain(name)}: {counted(len(error.faults), 'fault')}", soft_wrap=True)


def _as_object(fault: Fault) -> dict[str, Any]:
    return {
        "type": fault.type,
        "path": fault.path,
        "message": fault.message,
        "line": fault.line,
        "column": fault.column,
    }


def _pointed(name: str, lines: list[str], fault: Fault) -> Text:
    """`file:line:column: path: message`, as editors read it, and below it the line with a caret."""
    from rich.cells import cell_len
    from rich.text import Text

    place = f":{fault.line}:{fault.column}" if fault.line is not None else ""
    path = f"{fault.path}: " if fault.path else ""
    text = Text(f"{plain(name)}{place}: ", "bold").append(plain(f"{path}{fault.message}"), "red")
    if fault.line is None or fault.column is None or fault.line > len(lines):
        return text
    line, caret = lines[fault.line - 1], fault.column - 1
    start, end = max(0, caret - _BEFORE), caret + _AFTER
    before = ("…" if start else "") + plain(line[start:caret].replace("\t", " "))
    after = plain(line[caret:end].rstrip().replace("\t", " ")) + ("…" if len(line) > end else "")
    margin = f"{fault.line:>6} | "
    text.append(f"\n{margin}", "dim").append(before + after)
    return text.append(f"\n{' ' * 6} | ", "dim").append(" " * cell_len(before)).append("^", "bold red")


def _report_good(name: str, parsed: ParsedManifest, as_json: bool) -> None:
    if as_json:
        found = {"valid": True, "name": parsed.name, "version": parsed.version, "digest": parsed.digest}
        show_json(found | {"manifest": json.loads(parsed.canonical)})
    else:
        click.echo(f"{plain(name)} is a good manifest: {parsed.name} {parsed.version}")
        click.echo(f"digest {parsed.digest}")
