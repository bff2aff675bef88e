"""Finds which modules changed since an index, and how long a rendered text stays valid.

Nothing that a reader can see of a module changes without an event that names it, and nothing of a
source without one that names no module.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from manifest_cache.storage.reader import Snapshot


class Changes:
    """All changes between two indexes, of the newest of which it knows; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Of events that name no module: under None.
        self._last: dict[str | None, int] = {}
        self._known_from = 0
        self._known_to = -1

    def forget(self) -> None:
        """Begins again, as the database does that was put back."""
        with self._lock:
            self._last.clear()
            self._known_from, self._known_to = 0, -1

    def follow(self, snapshot: Snapshot) -> None:
        """Learns what changed until now."""
        with self._lock:
            if snapshot.index <= self._known_to:
                return
            changed = snapshot.last_changes(self._known_to) if self._known_to >= 0 else None
            if changed is None:
                self._last.clear()
                self._known_from = snapshot.index
            else:
                self._last |= changed
            self._known_to = snapshot.index

    def covers(self, index: int) -> bool:
        """Whether it is known what changed until this index."""
        return index <= self._known_to

    def unchanged_until(self, since: int, names: Iterable[str | None]) -> int:
        """The index up to which none of these changed after `since`: itself, where that is not known."""
        with self._lock:
            if not self._known_from <= since <= self._known_to:
                return since
            changed = any(self._last.get(name, -1) > since for name in names)
            return since if changed else self._known_to
