"""Renders modules as JSON, and only those again that changed.

A text that was made at one index holds at another one if no event tells of its module in between.
The one thing that moves without events is when an instance was last seen.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from manifest_cache.storage import models
from manifest_cache.storage.reader import Snapshot
from web.rendering.instance_json import InstanceTexts, filled_in
from web.rendering.module_changes import Changes
from web.schemas.responses import Module

# How long, in seconds, a text may be given that tells by itself when an instance was last seen.
_LAST_SEEN_FOR = 5.0
# Memory that a text takes besides its bytes, roughly.
_OVERHEAD = 300


Heard: TypeAlias = tuple[datetime | None, ...]
"""When each source was last heard of."""


class Projection(NamedTuple):
    """What of a module is wanted: its `fields`, all if empty, and what is embedded."""

    fields: frozenset[str] = frozenset()
    instances: bool = False
    manifest: bool = False

    @classmethod
    def of(cls, fields: Collection[str], include: Collection[str]) -> Projection:
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

    def __init__(self, limit: int, changes: Changes) -> None:
        self._limit = limit
        self._changes = changes
        self._instances = InstanceTexts(limit // 4)
        self._lock = threading.Lock()
        self._parts: OrderedDict[tuple[str, Projection], _Part] = OrderedDict()
        self._size = 0

    def texts(
        self,
        snapshot: Snapshot,
        names: Sequence[str],
        projection: Projection,
        rows: Sequence[models.ModuleRow] = (),
    ) -> bytes:
        """The texts of these modules, separated by commas; `rows` are theirs, where they are at hand."""
        self._changes.follow(snapshot)
        with self._lock:
            now, heard = time.monotonic(), tuple(source.last_contact for source in snapshot.sources)
            kept = ((name, self._part(name, projection, snapshot)) for name in names)
            found = {name: part.text for name, part in kept if part and part.is_of(heard, now)}
        missing = [name for name in names if name not in found]
        made = {}
        for name, text, is_lasting in self._encoded(snapshot, missing, projection, rows):
            found[name] = text
            made[name, projection] = _Part(snapshot.index, text)
            if not is_lasting:
                # Not all at once, so that they need not all be made again at once.
                expires = now + _LAST_SEEN_FOR * random.uniform(0.5, 1)
                made[name, projection] = _Part(snapshot.index, text, expires, heard)
        if made:
            self._keep(made)
        return filled_in(b",".join(found[name] for name in names if name in found), snapshot.sources)

    def forget(self) -> None:
        with self._lock:
            self._parts.clear()
            self._size = 0

    def _part(self, name: str, projection: Projection, snapshot: Snapshot) -> _Part | None:
        part = self._parts.get((name, projection))
        # One that is true at a later index too is left: the snapshot is of before, or of a database that
        # was put back.
        if part is None or self._changes.unchanged_until(part.made_at, [name]) != snapshot.index:
            return None
        self._parts.move_to_end((name, projection))
        return part

    def _keep(self, made: Mapping[tuple[str, Projection], _Part]) -> None:
        with self._lock:
            for key, part in made.items():
                self._throw_away(key)
                self._parts[key] = part
                self._size += len(part.text) + _OVERHEAD
            while self._size > self._limit:
                self._throw_away(next(iter(self._parts)))

    def _throw_away(self, key: tuple[str, Projection]) -> None:
        part = self._parts.pop(key, None)
        if part is not None:
            self._size -= len(part.text) + _OVERHEAD

    def _encoded(
        self,
        snapshot: Snapshot,
        names: Sequence[str],
        projection: Projection,
        rows: Sequence[models.ModuleRow],
    ) -> Iterator[tuple[str, bytes, bool]]:
        """The name and the text of each module, and whether the text lasts until the module changes."""
        if not names:
            return
        wanted = frozenset(names)
        rows = [row for row in rows if row.name in wanted] or snapshot.modules_named(names)
        stored = snapshot.stored_instances(names) if projection.instances else {}
        instances = self._instances.of(snapshot, stored)
        manifests = snapshot.manifests(names) if projection.manifest else {}
        only = set(projection.fields) or None
        for row in rows:
            members = [Module.of(row).model_dump_json(exclude_unset=True, include=only)[1:-1]]
            texts, is_lasting = instances.get(row.name, ("", True))
            if projection.instances:
                members.append(f'"instances":[{texts}]')
            if projection.manifest:
                manifest = manifests.get(row.name)
                members.append(f'"manifest":{manifest.content if manifest else "null"}')
            yield row.name, f"{{{','.join(filter(None, members))}}}".encode(), is_lasting
