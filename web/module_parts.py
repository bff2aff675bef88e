"""Modules as JSON: names in, one text for each out, of which only those are made anew that changed.

A text that was made at one index holds at another one if no event tells of its module in between.
The one thing that moves without events is when an instance was last seen: where that is when its
source was last heard of, the text keeps the place open.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from manifest_cache import models
from manifest_cache.push import SOURCE as PUSH
from manifest_cache.reader import Snapshot
from web.response_schemas import Instance, Module, last_beats
from web.vocabulary import rfc3339

# How long, in seconds, a text may be given that tells by itself when an instance was last seen.
_LAST_SEEN_FOR = 5.0
# What a text takes beside its bytes, roughly.
_OVERHEAD = 300
# No JSON holds this character but as an escape.
_MARK = "\0"


Heard: TypeAlias = tuple[datetime | None, ...]
"""When each source was last heard of."""


class Shape(NamedTuple):
    """What of a module is wanted: its `fields`, all if empty, and what is embedded."""

    fields: frozenset[str] = frozenset()
    instances: bool = False
    manifest: bool = False

    @classmethod
    def of(cls, fields: Collection[str], include: Collection[str]) -> Shape:
        """What is included comes beside the fields; a field that has to be embedded is."""
        wanted = {*fields, *include}
        return cls(frozenset(wanted) if fields else frozenset(), "instances" in wanted, "manifest" in wanted)


class _Part(NamedTuple):
    """A module's text as of the index `made_at`.

    Where it tells by itself when an instance was last seen, it `expires` (on the monotonic clock),
    and is of no use any more as soon as another source was heard of than those `heard` of.
    """

    made_at: int
    text: bytes
    expires: float = float("inf")
    heard: Heard | None = None

    def is_of(self, heard: Heard, now: float) -> bool:
        """Whether what it tells of instances being seen is still so."""
        return self.heard is None or (self.heard == heard and now < self.expires)


class ModuleParts:
    """Texts of modules within a bound of bytes: those go first that were not wanted for the longest time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._parts: OrderedDict[tuple[str, Shape], _Part] = OrderedDict()
        self._size = 0
        self._changed: dict[str, int] = {}
        self._known_to = -1

    def texts(
        self, snapshot: Snapshot, names: Sequence[str], shape: Shape, rows: Sequence[models.Module] = ()
    ) -> bytes:
        """The texts of these modules, separated by commas; `rows` are theirs, where they are at hand."""
        with self._lock:
            self._follow(snapshot)
            now, heard = time.monotonic(), tuple(source.last_contact for source in snapshot.sources)
            kept = ((name, self._part(name, shape, snapshot)) for name in names)
            found = {name: part.text for name, part in kept if part and part.is_of(heard, now)}
        missing = [name for name in names if name not in found]
        made = {}
        for name, text, is_lasting in _encoded(snapshot, missing, shape, rows):
            found[name] = text
            made[name, shape] = _Part(snapshot.index, text)
            if not is_lasting:
                # Not all at once, so that they need not all be made anew at once.
                expires = now + _LAST_SEEN_FOR * random.uniform(0.5, 1)
                made[name, shape] = _Part(snapshot.index, text, expires, heard)
        if made:
            self._keep(made)
        return _filled_in(b",".join(found[name] for name in names if name in found), snapshot.sources)

    def _follow(self, snapshot: Snapshot) -> None:
        """Learns which modules changed until now."""
        if snapshot.index > self._known_to:
            if self._known_to < snapshot.retained_after:
                self._parts.clear()
                self._size = 0
            else:
                self._changed |= snapshot.changed_modules(self._known_to)
            self._known_to = snapshot.index

    def _part(self, name: str, shape: Shape, snapshot: Snapshot) -> _Part | None:
        part = self._parts.get((name, shape))
        # An index below what is known is that of a snapshot of before, or the database was put back.
        if part is None or snapshot.index < self._known_to:
            return None
        if self._changed.get(name, -1) > part.made_at:
            return None
        self._parts.move_to_end((name, shape))
        return part

    def _keep(self, made: Mapping[tuple[str, Shape], _Part]) -> None:
        with self._lock:
            for key, part in made.items():
                self._throw_away(key)
                self._parts[key] = part
                self._size += len(part.text) + _OVERHEAD
            while self._size > self._limit:
                self._throw_away(next(iter(self._parts)))

    def _throw_away(self, key: tuple[str, Shape]) -> None:
        part = self._parts.pop(key, None)
        if part is not None:
            self._size -= len(part.text) + _OVERHEAD


def _encoded(
    snapshot: Snapshot, names: Sequence[str], shape: Shape, rows: Sequence[models.Module]
) -> Iterator[tuple[str, bytes, bool]]:
    """The name and the text of each module, and whether the text lasts until the module changes."""
    if not names:
        return
    wanted = frozenset(names)
    rows = [row for row in rows if row.name in wanted] or snapshot.modules_named(names)
    instances = snapshot.instances(names) if shape.instances else {}
    manifests = snapshot.manifests(names) if shape.manifest else {}
    seen = _LastSeen(snapshot, [row for of_module in instances.values() for row in of_module])
    only = set(shape.fields) or None
    for row in rows:
        members = [Module.of(row).model_dump_json(exclude_unset=True, include=only)[1:-1]]
        is_lasting = True
        if shape.instances:
            texts = [seen.text_of(instance) for instance in instances.get(row.name, [])]
            is_lasting = all(lasting for _, lasting in texts)
            members.append(f'"instances":[{",".join(text for text, _ in texts)}]')
        if shape.manifest:
            manifest = manifests.get(row.name)
            members.append(f'"manifest":{manifest.content if manifest else "null"}')
        yield row.name, f"{{{','.join(filter(None, members))}}}".encode(), is_lasting


class _LastSeen:
    """Texts of instances, and whether they last until the instance changes."""

    def __init__(self, snapshot: Snapshot, rows: Sequence[models.Instance]) -> None:
        self._contacts = {source.name: source.last_contact for source in snapshot.sources}
        self._beats = last_beats(snapshot, rows)

    def text_of(self, row: models.Instance) -> tuple[str, bool]:
        if row.source == PUSH:
            beat = self._beats.get(row.key or 0)
            return Instance.of(row, max(row.last_seen, beat or row.last_seen)).model_dump_json(), False
        contact = self._contacts.get(row.source)
        if contact is None or contact < row.last_seen:
            return Instance.of(row).model_dump_json(), False
        text = Instance.of(row, contact).model_dump_json()
        # The last one of its kind: what modules say of themselves stands before it.
        before, member, after = text.rpartition(f'"last_seen":"{rfc3339(contact)}"')
        return f'{before}"last_seen":{_MARK}{row.source}{_MARK}{after}' if member else text, bool(member)


def _filled_in(text: bytes, sources: Sequence[models.Source]) -> bytes:
    for source in sources:
        if source.last_contact is not None:
            place = f"{_MARK}{source.name}{_MARK}".encode()
            text = text.replace(place, f'"{rfc3339(source.last_contact)}"'.encode())
    return text
