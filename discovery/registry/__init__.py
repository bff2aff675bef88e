"""Describes a registry once: its watchers, how far it is believed, how a module registers through it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from discovery.base import Lost, Watcher

if TYPE_CHECKING:
    from discovery.announce.road import Road, RoadOptions
    from discovery.registry.check_result import CheckResult
    from discovery.settings import DiscoverySettings

ConfirmedBy = Literal["watch", "lease"]
"""What says that an instance is still there: the watch of its source, or its own heartbeats."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How far absence is believed that a registry reports.

    `max_drop` is the share of a source's instances that may go missing at once; more are doubted
    for `doubt` seconds.
    """

    max_drop: float
    doubt: float


class RegistryLock(Protocol):
    """A lock that elects a leader, held in a registry; it serves one event loop.

    `registry` is the name of the registry that holds it. `held` says whether it is held for sure,
    and `changed` is set when that changes. `run` keeps asking for it between `request` and `release`,
    until it is cancelled.
    """

    registry: str
    changed: asyncio.Event

    @property
    def held(self) -> bool: ...

    def request(self, *, had_it: bool) -> None: ...

    def release(self) -> None: ...

    async def run(self) -> None: ...


class Registry(ABC):
    """One registry, configured. A subclass and a row in `discovery/registries.py` are all it takes.

    `name` is the registry's name in LICTOR_REGISTRIES, in the tables and in the API.
    """

    name: ClassVar[str]
    confirmed_by: ClassVar[ConfirmedBy] = "watch"

    @classmethod
    @abstractmethod
    def configured(
        cls, settings: DiscoverySettings, environ: Mapping[str, str], given: Any | None = None
    ) -> Self:
        """The registry as settings and environment describe it; `given` replaces what the environment says.

        Raises ConfigError with every fault.
        """

    @classmethod
    def road(cls, options: RoadOptions) -> Road | None:
        """How a module registers through it; None where it cannot. Raises ConfigError with every fault."""
        return None

    @property
    @abstractmethod
    def policy(self) -> Policy: ...

    async def watchers(self, known: Collection[str]) -> AsyncGenerator[Watcher | Lost]:
        """Yields a watcher for each source, as it becomes known; nothing where modules announce themselves.

        `known` are the sources of earlier runs, of all registries.
        """
        return
        yield

    def lock(self, holder: str) -> RegistryLock | None:
        """A lock that elects the leader among candidates, `holder` being one; None where there is none."""
        return None

    def check(self) -> Iterator[CheckResult]:
        """What `lictor doctor` checks of it, one result after the other."""
        yield from ()
