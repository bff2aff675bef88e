"""Renders instances as JSON, and only those again that changed.

Of a module of many instances mostly one changes. When an instance was last seen is, but for those
that were pushed, when its source was last heard of: the text keeps the place open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from discovery.registries import confirmed_by
from manifest_cache.storage import models
from manifest_cache.storage.raw_rows import Stored
from manifest_cache.storage.reader import Snapshot
from web.schemas.responses import Instance, last_beats
from web.schemas.types import rfc3339

# No JSON holds this character but as an escape.
_MARK = "\0"
_Contacts: TypeAlias = Mapping[str, datetime | None]

# Memory that a text takes besides its bytes, roughly.
_OVERHEAD = 300


class _Lasting(NamedTuple):
    """A text that is the same until its instance changes, if its source was heard of since."""

    text: str
    source: str
    last_seen: datetime

    def is_of(self, contacts: _Contacts) -> bool:
        contact = contacts.get(self.source)
        return contact is not None and contact >= self.last_seen


class InstanceTexts:
    """Texts by their rows' fingerprints, within a bound of bytes: those go first that were kept first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Lasting] = OrderedDict()
        self._size = 0

    def of(
        self, snapshot: Snapshot, rows: Mapping[str, Sequence[Stored[models.InstanceRow]]]
    ) -> dict[str, tuple[str, bool]]:
        """By module the texts of its instances, and whether they last until an instance changes."""
        prints = {name: [row.fingerprint() for row in of_module] for name, of_module in rows.items()}
        contacts = {source.name: source.last_contact for source in snapshot.sources}
        lasting = self._known((print_ for of_module in prints.values() for print_ in of_module), contacts)
        unknown = {
            print_: row.object()
            for name, of_module in rows.items()
            for print_, row in zip(prints[name], of_module, strict=True)
            if print_ not in lasting
        }
        written = _lasting(unknown, contacts)
        self._keep(written)
        texts = {print_: kept.text for print_, kept in {**lasting, **written}.items()}
        passing = _passing(snapshot, {p: row for p, row in unknown.items() if p not in written})
        texts |= passing
        return {
            name: (",".join(texts[print_] for print_ in of_module), passing.keys().isdisjoint(of_module))
            for name, of_module in prints.items()
        }

    def _known(self, prints: Iterable[Hashable], contacts: _Contacts) -> dict[Hashable, _Lasting]:
        with self._lock:
            found = ((print_, self._kept.get(print_)) for print_ in prints)
            return {print_: kept for print_, kept in found if kept is not None and kept.is_of(contacts)}

    def _keep(self, written: Mapping[Hashable, _Lasting]) -> None:
        with self._lock:
            for print_, lasting in written.items():
                if print_ not in self._kept:
                    self._size += len(lasting.text) + _OVERHEAD
                self._kept[print_] = lasting
            while self._size > self._limit:
                _, lasting = self._kept.popitem(last=False)
                self._size -= len(lasting.text) + _OVERHEAD


def filled_in(text: bytes, sources: Sequence[models.SourceRow]) -> bytes:
    """The texts with when these sources were last heard of."""
    for source in sources:
        if source.last_contact is not None:
            place = f"{_MARK}{source.name}{_MARK}".encode()
            text = text.replace(place, f'"{rfc3339(source.last_contact)}"'.encode())
    return text


def _lasting(rows: Mapping[Hashable, models.InstanceRow], contacts: _Contacts) -> dict[Hashable, _Lasting]:
    found: dict[Hashable, _Lasting] = {}
    for print_, row in rows.items():
        contact = contacts.get(row.source)
        if confirmed_by(row.source) == "lease" or contact is None or contact < row.last_seen:
            continue
        if text := _open(row, contact):
            found[print_] = _Lasting(text, row.source, row.last_seen)
    return found


def _passing(snapshot: Snapshot, rows: Mapping[Hashable, models.InstanceRow]) -> dict[Hashable, str]:
    beats = last_beats(snapshot, list(rows.values()))
    return {
        print_: Instance.of(row, max(row.last_seen, beats.get(row.key or 0, row.last_seen))).model_dump_json()
        for print_, row in rows.items()
    }


def _open(row: models.InstanceRow, contact: datetime) -> str | None:
    """The text without when the instance was last seen; None where that place is not found."""
    text = Instance.of(row, contact).model_dump_json()
    # The last one of its kind: what modules say of themselves stands before it.
    before, member, after = text.rpartition(f'"last_seen":"{rfc3339(contact)}"')
    return f'{before}"last_seen":{_MARK}{row.source}{_MARK}{after}' if member else None
