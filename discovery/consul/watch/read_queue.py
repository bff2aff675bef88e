"""Orders what is to be read next: the services and nodes most likely to have changed come first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

# Between two places that are read in passing, in seconds.
_PACE = 0.02


@dataclass(frozen=True, slots=True)
class Service:
    """The instances of a service, with all that is told of them."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """What is registered on a node, to see which services have changed."""

    name: str


Place: TypeAlias = Service | Node
"""Where to look; a node and a service of the same name are two."""


class ReadQueue:
    """Places that are to be read: each once, those likeliest to have changed first.

    What is to be read in passing only is given out slowly, so that it costs little however many
    changes come one after the other. Whoever took a place says when it is `done`.
    """

    def __init__(self) -> None:
        self._first: dict[Place, None] = {}
        self._likely: dict[Place, None] = {}
        self._then: dict[Place, None] = {}
        self._in_passing: dict[Place, None] = {}
        self._next_in_passing = 0.0
        self._taken = 0
        self._filled = asyncio.Event()
        self._calm = asyncio.Event()

    def add_urgent(self, places: Iterable[Place]) -> None:
        self._first.update(dict.fromkeys(places))
        self._filled.set()

    def add_guess(self, places: Iterable[Place]) -> None:
        """Has them read at once too, on a guess: see `is_found`."""
        self._likely.update(dict.fromkeys(places))
        self._filled.set()

    def drop_guesses(self) -> None:
        """What was guessed at is found, so the rest of the guesses can wait."""
        self._in_passing.update(self._likely)
        self._likely.clear()
        self._calm.set()

    def add_next(self, places: Iterable[Place]) -> None:
        self._then.update(dict.fromkeys(places))
        self._filled.set()

    def add_background(self, places: Iterable[Place]) -> None:
        self._in_passing.update(dict.fromkeys(places))
        self._filled.set()

    def __bool__(self) -> bool:
        return bool(self._first or self._likely or self._then or self._in_passing or self._taken)

    async def wait_idle(self) -> None:
        """Returns once all is done but what is read in passing."""
        while self._first or self._likely or self._then or self._taken:
            self._calm.clear()
            await self._calm.wait()

    def done(self) -> None:
        """What was taken has been read, and what followed from it is known."""
        self._taken -= 1
        self._calm.set()

    async def take(self) -> Place:
        while True:
            if waiting := self._first or self._likely or self._then:
                return self._given(next(iter(waiting)))
            pause = self._next_in_passing - time.monotonic()
            if self._in_passing and pause <= 0:
                self._next_in_passing = time.monotonic() + _PACE
                return self._given(next(iter(self._in_passing)))
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self._in_passing else None):
                    await self._filled.wait()

    def _given(self, place: Place) -> Place:
        """It is read now, so whatever else it was to be read for is done with that."""
        for waiting in (self._first, self._likely, self._then, self._in_passing):
            waiting.pop(place, None)
        self._taken += 1
        return place
