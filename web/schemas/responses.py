"""The shapes of what clients get, made of rows; apart from the tables on purpose."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from sqlmodel import SQLModel

from discovery.registries import confirmed_by
from manifest_cache.ledger.event_types import EVENT_TYPES
from manifest_cache.storage import models
from manifest_cache.storage.reader import Snapshot
from web.schemas.types import HealthWord, Index, Moment, Status


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


def _columns(row: SQLModel, shape: type[BaseModel]) -> dict[str, Any]:
    """What a row and a shape have in common by name."""
    names, values_of = _common(type(row), shape)
    return dict(zip(names, values_of(row), strict=True))


@functools.cache
def _common(kind: type[SQLModel], shape: type[BaseModel]) -> tuple[list[str], Callable[[SQLModel], Any]]:
    """The names and a getter of their values, which is quicker for many rows."""
    names = [name for name in shape.model_fields if name in kind.model_fields]
    return names, attrgetter(*names)


class ManifestError(_Answered):
    """Why there is no (new) manifest of an instance."""

    type: str = Field(description="A stable word for programs, such as `timeout` or `invalid`.")
    detail: str = Field(description="A sentence for people.")
    at: Moment
    retry_at: Moment | None = Field(
        description="When it is tried again; null while the instance is not well."
    )

    @classmethod
    def of(cls, row: models.InstanceRow) -> Self | None:
        if row.error_type is None or row.error_at is None:
            return None
        return cls(type=row.error_type, detail=row.error_detail or "", at=row.error_at, retry_at=row.fetch_at)


class Instance(_Answered):
    """One running copy of a module."""

    id: str
    module: str
    address: str
    port: int = Field(description="0 where the registry knows none.")
    scheme: str
    node: str = Field(description="Empty where the registry has no nodes.")
    datacenter: str = Field(description="Empty where the registry has no datacenters.")
    tags: list[str]
    meta: dict[str, str]
    health: HealthWord
    registry: str
    version: str | None
    digest: str | None = Field(description="The sha256 of its manifest's canonical JSON.")
    manifest_error: ManifestError | None
    first_seen: Moment
    last_seen: Moment
    last_changed: Moment

    @classmethod
    def of(cls, row: models.InstanceRow, last_seen: datetime | None = None) -> Self:
        """The shape of an instance; `last_seen` if it was seen later than its row says."""
        return cls.model_validate(
            {
                **_columns(row, cls),
                "last_seen": last_seen or row.last_seen,
                "health": str(row.health),
                "registry": row.registry_name,
                "manifest_error": ManifestError.of(row),
            }
        )


class Tombstone(_Answered):
    """An instance that is gone, as it was known last."""

    id: str
    module: str
    address: str
    port: int = Field(description="0 where the registry knew none.")
    scheme: str
    node: str = Field(description="Empty where the registry has no nodes.")
    datacenter: str = Field(description="Empty where the registry has no datacenters.")
    tags: list[str]
    meta: dict[str, str]
    health: HealthWord = Field(description="How it was at last.")
    registry: str = Field(description="The registry that told of it, and that it is gone.")
    version: str | None
    digest: str | None
    first_seen: Moment
    gone_at: Moment

    @classmethod
    def of(cls, row: models.TombstoneRow) -> Self:
        return cls.model_validate(
            {**_columns(row, cls), "health": str(row.health), "registry": row.registry_name}
        )


def instance_shapes(snapshot: Snapshot, rows: Sequence[models.InstanceRow]) -> list[Instance]:
    """The shapes of instances, with when their registry last confirmed each of them."""
    contacts = {
        source.name: source.last_contact
        for source in snapshot.sources
        if confirmed_by(source.name) == "watch"
    }
    beats = last_beats(snapshot, rows)
    return [
        Instance.of(row, _latest(row.last_seen, contacts.get(row.source), beats.get(row.key or 0)))
        for row in rows
    ]


# Databases bound how many variables a query may have.
_KEYS_AT_ONCE = 1000


def last_beats(snapshot: Snapshot, rows: Sequence[models.InstanceRow]) -> dict[int, datetime]:
    """When those of these instances that were pushed sent their last heartbeats, by their keys."""
    keys = [row.key for row in rows if confirmed_by(row.source) == "lease" and row.key is not None]
    return {
        key: lease.last_beat
        for start in range(0, len(keys), _KEYS_AT_ONCE)
        for key, lease in snapshot.leases(keys[start : start + _KEYS_AT_ONCE]).items()
    }


def _latest(*moments: datetime | None) -> datetime:
    return max(moment for moment in moments if moment is not None)


class InstanceCounts(_Answered):
    """How many instances a module has, in all and by health."""

    total: int
    passing: int
    warning: int
    critical: int
    maintenance: int


class Module(_Answered):
    """A service that offers something to the platform."""

    name: str
    title: str | None = Field(description="The name for people, from the manifest.")
    status: Status
    version: str | None = Field(description="The current manifest's version; null until there is one.")
    digest: str | None = Field(description="The sha256 of the current manifest's canonical JSON.")
    instance_counts: InstanceCounts
    tags: list[str]
    datacenters: list[str]
    registries: list[str]
    versions: list[str] = Field(
        description="The versions that its healthy instances serve, ascending: several are version skew."
    )
    drifting: list[str] = Field(
        description="Those of the versions that are served with more than one manifest."
    )
    first_seen: Moment
    last_changed: Moment
    instances: list[Instance] = Field(default_factory=list, description="Where they are asked for.")
    manifest: dict[str, Any] | None = Field(
        default=None, description="The current manifest, where it is asked for; null if there is none yet."
    )

    @classmethod
    def of(
        cls,
        row: models.ModuleRow,
        *,
        instances: Sequence[Instance] | None = None,
        manifest: models.ManifestRow | Literal["left out"] | None = "left out",
    ) -> Self:
        """The shape of a module; what is not embedded is not part of the answer at all."""
        embedded: dict[str, Any] = {}
        if instances is not None:
            embedded["instances"] = instances
        if not isinstance(manifest, str):
            embedded["manifest"] = json.loads(manifest.content) if manifest else None
        counts = InstanceCounts(
            total=row.total,
            passing=row.passing,
            warning=row.warning,
            critical=row.critical,
            maintenance=row.maintenance,
        )
        return cls.model_validate({**_columns(row, cls), "instance_counts": counts, **embedded})


class ManifestEntry(_Answered):
    """One manifest of a module's history."""

    digest: str
    version: str
    first_seen: Moment
    current: bool = Field(description="Whether it is the module's manifest now.")

    @classmethod
    def of(cls, row: models.ManifestRow, module: models.ModuleRow) -> Self:
        return cls(
            digest=row.digest,
            version=row.version,
            first_seen=row.first_seen,
            current=row.digest == module.digest,
        )


class Event(_Answered):
    """One line of the log."""

    index: int
    at: Moment
    # Not checked against the words that this program knows: a newer one may have written it.
    type: Annotated[str, WithJsonSchema({"type": "string", "enum": list(EVENT_TYPES)})]
    module: str | None
    instance: str | None
    registry: str | None
    data: dict[str, Any] = Field(description="What was (`was`) and what is (`is`), and where.")

    @classmethod
    def of(cls, row: models.EventRow) -> Self:
        return cls.model_validate({**_columns(row, cls), "registry": row.registry_name})


Next = Annotated[str | None, Field(description="The cursor of the page after this one; null on the last.")]


class ModuleList(_Answered):
    items: list[Module]
    next: Next
    index: Index


class ModuleLookup(_Answered):
    """Modules in the order in which they were asked for."""

    items: list[Module]
    unknown: list[str] = Field(description="The names of which there is no module.")
    index: Index


class InstanceList(_Answered):
    items: list[Instance]
    next: Next
    index: Index


class TombstoneList(_Answered):
    items: list[Tombstone]
    next: Next
    index: Index


class ManifestList(_Answered):
    items: list[ManifestEntry]
    next: Next
    index: Index


class EventList(_Answered):
    items: list[Event]
    next: Next
    index: Index


class Registered(_Answered):
    """A registration as it stands."""

    instance: Instance
    index: Index
    heartbeat_interval: float = Field(description="The seconds between two heartbeats that are expected.")
    deregister_after: float = Field(
        description="The seconds after which it is removed while critical for lack of heartbeats."
    )


class BeatTaken(_Answered):
    """What a heartbeat is answered with."""

    index: Index
    heartbeat_interval: float = Field(description="In how many seconds the next one is expected.")


class RefreshAsked(_Answered):
    """What was asked for, and what cannot be."""

    module: str
    asked: int = Field(description="Of how many instances the manifest is fetched now.")
    pushed: int = Field(description="How many pushed their manifest: none is fetched from them.")
    not_well: int = Field(
        description="How many are critical or in maintenance: they are asked once they are well."
    )
    detail: str = Field(description="The same as a sentence.")
    index: Index


class Alive(_Answered):
    status: Literal["ok"]


class Check(_Answered):
    """One thing that was looked at."""

    name: str
    status: Literal["pass", "warn"]
    detail: str


class Ready(_Answered):
    status: Literal["ready"]
    checks: list[Check]


class FaultyPart(_Answered):
    """A faulty parameter or field."""

    parameter: str = Field(default="", description="The parameter of the path or the query.")
    field: str = Field(default="", description="The field of the body, with dots between levels.")
    message: str = Field(description="What is wrong with it, and what is allowed.")


class ProblemBody(_Answered):
    """What is answered instead of what was asked for (RFC 9457)."""

    type: str = Field(description="A stable reference for programs; also a page that explains the problem.")
    title: str
    status: int
    detail: str = Field(description="What is wrong with this request, and what to do.")
    errors: list[FaultyPart] = Field(default_factory=list, description="Every faulty parameter or field.")
    near: list[str] = Field(default_factory=list, description="Names of modules like the one asked for.")
    oldest: int = Field(default=0, description="The index of the oldest event that is kept.")
