"""Formats an event as one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from web.cli.terminal.output import console, moment, plain

if TYPE_CHECKING:
    from manifest_cache.storage.models import EventRow

_SHORT_DIGEST = 12

_COLOURS = {
    "module.available": "green",
    "module.degraded": "yellow",
    "module.unavailable": "red",
    "module.manifest_rejected": "red",
    "module.version_skew": "yellow",
    "module.drift": "yellow",
    "registry.connected": "green",
    "registry.lost": "red",
    "registry.doubted": "yellow",
    "registry.accepted": "green",
}


def line_writer() -> Callable[[EventRow], None]:
    """Writes a line per event, whose columns need not know what else will come."""
    from rich.text import Text

    out = console()

    def show(event: EventRow) -> None:
        text = Text(f"{event.index or 0:>7}  {moment(event.at)}  ")
        text.append(f"{plain(event.type):<24}", _COLOURS.get(event.type, ""))
        who = " ".join(plain(part) for part in (event.module, event.instance) if part)
        text.append(f"  {who or plain(event.registry_name or '')}", "bold")
        if event.registry_name and who:
            text.append(f" ({plain(event.registry_name)})", "dim")
        if told := _told(event):
            text.append(f"  {told}")
        out.print(text, soft_wrap=True)

    return show


def _told(event: EventRow) -> str:
    """What the event says besides its type and whom it is about, in a few words."""
    before, after = _state(event, "was"), _state(event, "is")
    if event.type == "instance.added":
        return plain(
            f"{after.get('scheme')}://{after.get('address')}:{after.get('port')} {after.get('health')}"
        )
    if error := after.get("manifest_error"):
        return plain(f"{error.get('type')}: {error.get('detail')}")
    if event.type.startswith("registry."):
        return plain(after.get("reason") or "")
    return ", ".join(
        f"{plain(key)} {_value(key, before[key])} -> {_value(key, after[key])}"
        if key in before
        else f"{plain(key)} {_value(key, after[key])}"
        for key in after
    )


def _state(event: EventRow, which: str) -> dict[str, Any]:
    return event.data.get(which) or {}


def _value(key: str, value: object) -> str:
    if value is None:
        return "none"
    if key == "digest" and isinstance(value, str):
        return value[:_SHORT_DIGEST]
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
