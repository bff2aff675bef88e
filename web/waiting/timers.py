"""When what is due: items with moments in, those whose moment has come out; many thousands, cheaply."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Moments are rounded up to this, in seconds: what is due at about the same time wakes once.
_STEP = 0.05


class Timers(Generic[Item]):
    """Items by the step in which they are due; what is taken away leaves nothing behind but its step."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._items: dict[int, dict[Item, None]] = {}

    def add(self, moment: float, item: Item) -> int:
        """Returns the step, by which the item can be taken away."""
        step = math.ceil(moment / _STEP)
        if step not in self._items:
            self._items[step] = {}
            heapq.heappush(self._steps, step)
        self._items[step][item] = None
        return step

    def remove(self, step: int, item: Item) -> None:
        if step in self._items:
            self._items[step].pop(item, None)

    def due(self, now: float) -> list[Item]:
        found: list[Item] = []
        while self._steps and self._steps[0] * _STEP <= now:
            found += self._items.pop(heapq.heappop(self._steps))
        return found

    def next(self) -> float | None:
        """The moment at which something may be due."""
        return self._steps[0] * _STEP if self._steps else None
