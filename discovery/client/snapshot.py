"""Holds what a client knows of the platform at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from discovery.base import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running copy of a module; `said` is all that Lictor's API says of it."""

    id: str
    module: str
    address: str
    port: int
    scheme: str
    health: Health
    version: str | None
    datacenter: str
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    said: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def url(self) -> str:
        """Where to send requests: `http://10.0.0.5:8000`."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        return cls(
            id=said["id"],
            module=said["module"],
            address=said["address"],
            port=said["port"],
            scheme=said["scheme"],
            health=Health(said["health"]),
            version=said["version"],
            datacenter=said["datacenter"],
            tags=tuple(said["tags"]),
            meta=said["meta"],
            said=said,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module with its instances; `manifest` is None until there is one.

    `status` is `available`, `degraded` or `unavailable`. `said` is all that Lictor's API says of it.
    """

    name: str
    status: str
    version: str | None
    digest: str | None
    manifest: Mapping[str, Any] | None = field(repr=False)
    instances: tuple[Instance, ...]
    said: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        return cls(
            name=said["name"],
            status=said["status"],
            version=said["version"],
            digest=said["digest"],
            manifest=said.get("manifest"),
            instances=tuple(map(Instance.of, said["instances"])),
            said=said,
        )


@dataclass(frozen=True, slots=True)
class View:
    """All modules at an index; one that changes is another view.

    `confirmed_at` is when Lictor last said that this holds, in seconds since 1970. `stale` names the
    registries that were out of Lictor's reach then, as its header X-Lictor-Stale does; empty for none.
    """

    index: int
    modules: Mapping[str, Module]
    confirmed_at: float
    stale: str = ""

    def with_modules(
        self, found: Sequence[Module], gone: Sequence[str], *, index: int, confirmed_at: float, stale: str
    ) -> View:
        """The view in which these modules are other, and those are not there any longer."""
        modules = {name: module for name, module in self.modules.items() if name not in gone}
        modules.update((module.name, module) for module in found)
        return View(index, modules, confirmed_at, stale)

    def confirmed(self, at: float) -> View:
        return View(self.index, self.modules, at, self.stale)
