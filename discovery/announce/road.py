"""One way for a module to register, and the arguments that say which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from discovery.announce.definition import ServiceDefinition
from discovery.announce.registrar import Registrar

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig

NEAR_PAUSE = 2.0
FAR_PAUSE = 15.0
"""The longest pauses between tries: a registry on this machine is asked more often than a shared one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadOptions:
    """What `register` was told of the registry; the rest a road takes from `environ`."""

    environ: Mapping[str, str]
    consul: ConsulConfig | None = None
    lictor_url: str | None = None
    token: str = ""
    token_file: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """One way to a registry: how it is named, what it cannot carry, and how an registrar for it is made.

    `connect` is called in the thread that keeps a registration; `scope` tells, with an instance's
    id, one registration from another.
    """

    name: str
    scope: Callable[[ServiceDefinition], str]
    faults: Callable[[ServiceDefinition], list[str]]
    connect: Callable[[ServiceDefinition], Registrar]
    longest_pause: float
    takes_reports: Callable[[ServiceDefinition], bool]
