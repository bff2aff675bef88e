"""What is to be read next: names in, as likely to have changed as they are, one name at a time out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

# Between two names that are read in passing, in seconds.
_PACE = 0.02


class ToRead:
    """Names of services that are to be read: each once, those likeliest to have changed first.

    What is to be read in passing only is given out slowly, so that it costs little however many
    changes come one after the other.
    """

    def __init__(self) -> None:
        self._first: dict[str, None] = {}
        self._then: dict[str, None] = {}
        self._in_passing: dict[str, None] = {}
        self._next_in_passing = 0.0
        self._filled = asyncio.Event()

    def first(self, names: Iterable[str]) -> None:
        self._first.update(dict.fromkeys(names))
        self._filled.set()

    def then(self, names: Iterable[str]) -> None:
        self._then.update(dict.fromkeys(names))
        self._filled.set()

    def in_passing(self, names: Iterable[str]) -> None:
        self._in_passing.update(dict.fromkeys(names))
        self._filled.set()

    def __bool__(self) -> bool:
        return bool(self._first or self._then or self._in_passing)

    async def take(self) -> str:
        while True:
            if names := self._first or self._then:
                return self._given(next(iter(names)))
            pause = self._next_in_passing - time.monotonic()
            if self._in_passing and pause <= 0:
                self._next_in_passing = time.monotonic() + _PACE
                return self._given(next(iter(self._in_passing)))
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self._in_passing else None):
                    await self._filled.wait()

    def _given(self, name: str) -> str:
        """It is read now, so whatever else it was to be read for is done with that."""
        for names in (self._first, self._then, self._in_passing):
            names.pop(name, None)
        return name
