"""Holds one call to Consul and what comes back: nothing here is sent, and nothing touches a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar

from discovery.errors import RegistryRejected

T = TypeVar("T")

Consistency = Literal["default", "stale", "consistent"]


@dataclass(frozen=True, slots=True)
class ConsulResult:
    """What Consul answered to a read.

    `index` is what the next blocking query passes on; it is 0, which means "do not block", where
    Consul sent none or not a number. `known_leader`, `last_contact` (seconds since the answering
    server last heard from the leader) and `filtered_by_acls` are None where Consul did not say.
    `size` is that of the answer's body in bytes.
    """

    data: Any
    index: int = 0
    known_leader: bool | None = None
    last_contact: float | None = None
    filtered_by_acls: bool | None = None
    size: int = field(default=0, compare=False)


class QueryOptions(TypedDict, total=False):
    """The options of every read of the catalog: see `query`."""

    params: Mapping[str, str | int] | None
    index: int | None
    wait: float | None
    consistency: Consistency
    dc: str | None


@dataclass(frozen=True, slots=True)
class ConsulReply:
    """What came over the wire, complete and unpacked; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request to Consul and what to make of the reply; nothing is sent yet.

    `path` is that of the URL, so what is put into it is quoted. `hold` is how long, in seconds,
    Consul may sit on the answer. `absent` is the error that a 404 stands for, None if `parse` knows
    better.
    """

    method: str
    path: str
    parse: Callable[[ConsulReply], T]
    params: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    hold: float = 0.0
    absent: type[RegistryRejected] | None = RegistryRejected
