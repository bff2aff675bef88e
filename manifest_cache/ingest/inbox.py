"""Merges what registries report until it is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from discovery.base import Change, InstanceKey, Lost, ServiceInstance
from manifest_cache.ingest.plausibility import Accept


@dataclass(slots=True)
class _Pending:
    complete: bool = False
    doubt: str | None = None
    present: dict[InstanceKey, ServiceInstance] = field(default_factory=dict)
    gone: set[InstanceKey] = field(default_factory=set)
    heard: bool = False
    lost: Lost | None = None
    was_lost: Lost | None = None
    accept: Accept | None = None


class Inbox:
    """Merges updates of each source while they wait, so that it never holds more than there are instances.

    What arrives during a slow or failing write is written together by the next. That a source was lost
    is told even if it is back: what it confirms has to be confirmed from the beginning.
    """

    def __init__(self) -> None:
        self.taken_since = 0.0
        """Since when the first of the updates that were taken last had waited, on the monotonic clock."""
        self._waiting_since = 0.0
        self._pending: dict[str, _Pending] = {}
        self._filled = asyncio.Event()

    def put(self, update: Change | Lost | Accept) -> None:
        if not self._pending:
            self._waiting_since = time.monotonic()
        pending = self._pending.setdefault(update.source, _Pending())
        if isinstance(update, Lost):
            pending.lost = update
        elif isinstance(update, Accept):
            pending.accept = update
        else:
            self._merge(pending, update)
        self._filled.set()

    async def take(self) -> list[Change | Lost | Accept]:
        """All that waits, at least one update."""
        await self._filled.wait()
        self._filled.clear()
        self.taken_since = self._waiting_since
        pending, self._pending = self._pending, {}
        return list(_updates(pending))

    @staticmethod
    def _merge(pending: _Pending, change: Change) -> None:
        pending.heard, pending.doubt = True, change.doubt
        if pending.lost is not None:
            pending.lost, pending.was_lost = None, pending.lost
        if change.complete:
            pending.complete = True
            pending.present.clear()
            pending.gone.clear()
        for key in change.gone:
            pending.present.pop(key, None)
            pending.gone.add(key)
        for instance in change.present:
            pending.present[instance.key] = instance
            pending.gone.discard(instance.key)


def _updates(pending: dict[str, _Pending]) -> Iterable[Change | Lost | Accept]:
    for source, held in pending.items():
        if held.was_lost is not None:
            yield held.was_lost
        if held.heard:
            yield Change(
                source=source,
                present=tuple(held.present.values()),
                gone=() if held.complete else tuple(held.gone),
                complete=held.complete,
                doubt=held.doubt,
            )
        if held.accept is not None:
            yield held.accept
        if held.lost is not None:
            yield held.lost
