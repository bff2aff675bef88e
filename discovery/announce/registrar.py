"""What a registry must offer so that a module can be kept registered there: the contract of a Registrar."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from discovery.base import Health

T = TypeVar("T")

MayRestore = Callable[[], bool]
"""Whether a registration that somebody else altered is to be set right again."""


_LONGEST_NOTE = 1000


class Registrar(Protocol):
    """Announces one instance to one registry; made and used within one event loop.

    Every method raises RegistryUnavailable (try again soon) or RegistryRejected (trying again
    helps only if somebody mends something), and nothing else on purpose.
    """

    async def register(self) -> None:
        """Registers the instance; what is registered under its id is replaced."""

    async def is_announced(self, may_restore: MayRestore) -> bool:
        """Asks the registry whether the instance is still there as it was announced."""

    async def keep_alive(self, may_restore: MayRestore) -> str:
        """Keeps the instance registered; returns, with the reason, when it must be announced again."""

    async def deregister(self) -> None:
        """Deregisters the instance; one that the registry does not know is no error."""

    def report(self, health: Health, note: str) -> None:
        """Tells what the module says of itself from now on."""

    async def aclose(self) -> None: ...


def fitting(note: str) -> str:
    """A note as every registry takes it: not long, without NUL and halves of characters."""
    return note.replace("\x00", "")[:_LONGEST_NOTE].encode(errors="replace").decode()


async def first_of(*works: Coroutine[Any, Any, T]) -> T:
    """Runs all at once; the outcome is that of the first that ends, and the others are cancelled."""
    tasks = [asyncio.create_task(work, name="registration") for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
