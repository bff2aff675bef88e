"""Defines what a registry reports (instances, health, changes) and the contract of a watcher."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class Health(StrEnum):
    """The health of an instance, in Consul's words, from best to worst but for maintenance."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"
    MAINTENANCE = "maintenance"


class InstanceKey(NamedTuple):
    """What tells one instance of a source from another: ids are unique on a node only.

    A service that is renamed and keeps its id is another instance: the old one is gone.
    """

    module: str
    node: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInstance:
    """One running copy of a module, as its registry announces it.

    `address` is a literal IP address or a host name without port, `port` is 0 where the registry
    knows none, `scheme` is `http` or `https` (or what the registry says, unchecked: a caller that
    fetches refuses others). `datacenter` and `node` are empty where the registry has no such thing.
    """

    module: str
    id: str
    address: str
    port: int = 0
    scheme: str = "http"
    node: str = ""
    datacenter: str = ""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    health: Health = Health.PASSING
    key: InstanceKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once: instances are looked up by their key.
        object.__setattr__(self, "key", InstanceKey(self.module, self.node, self.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one source tells at one moment.

    `source` is the registry's name, followed by `/` and the datacenter where it has several
    (`consul`, `consul/dc2`). `present` are instances that are new or altered, `gone` the keys of
    those that went. If `complete`, `present` is all that the source holds: whatever else was
    known of it is gone. A change with nothing in it says that the source answered and that
    nothing is new. `doubt` says why the source itself is not sure of what it tells; from then on,
    and until a change comes without it, what is missing need not be gone.
    """

    source: str
    present: tuple[ServiceInstance, ...] = ()
    gone: tuple[InstanceKey, ...] = ()
    complete: bool = False
    doubt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A source cannot be reached, or its answers cannot be used; what it said last still stands."""

    source: str
    reason: str
    retry_in: float


class Watcher(Protocol):
    """Follows one source.

    `watch` first yields one complete change with everything, then a change whenever something
    may have changed, and an empty one now and then as a sign of life. It raises
    `RegistryUnavailable` or `RegistryRejected` when the source cannot be followed any longer: its
    caller waits and calls `watch` again, which starts with a complete change again. It ends only
    by being closed or cancelled, and holds no connection after that.
    """

    @property
    def source(self) -> str: ...

    def watch(self) -> AsyncGenerator[Change]: ...
