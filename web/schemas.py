"""The shapes of the API: what clients may send, and what they get; apart from the tables on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from sqlmodel import SQLModel

from discovery.durations import parse_duration
from discovery.names import address_fault, label_fault, meta_faults, path_fault, text_fault
from manifest_cache import models
from manifest_cache.event_types import EVENT_TYPES, EventType
from manifest_cache.push import SOURCE as PUSH
from manifest_cache.reader import Snapshot
from web.fields import EventField, InstanceField, ManifestField, ModuleField, TombstoneField
from web.parsing import Flag, Whole

MOST_ITEMS = 1000
LARGEST_INDEX = 2**63 - 1
LONGEST_WAIT = 600

Status = Literal["available", "degraded", "unavailable"]
HealthWord = Literal["passing", "warning", "critical", "maintenance"]


def rfc3339(at: datetime) -> str:
    """A moment in UTC, to the millisecond, with a Z.

    >>> rfc3339(datetime(2026, 5, 1, 12, 0, 30, 999999, tzinfo=UTC))
    '2026-05-01T12:00:30.999Z'
    """
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _obeys(fault_of: Callable[[object], str | None]) -> AfterValidator:
    """A rule of discovery as a rule of the API."""

    def check(value: Any) -> Any:
        fault = fault_of(value)
        if fault:
            # Braces would be taken for placeholders.
            raise PydanticCustomError("rule", "{fault}", {"fault": fault})
        return value

    return AfterValidator(check)


def _meta_fault(meta: object) -> str | None:
    return "; ".join(fault.removeprefix("meta: ") for fault in meta_faults(meta)) or None


def _id_fault(id_: object) -> str | None:
    fault = text_fault(id_)
    if fault is None and ("/" in str(id_) or id_ in (".", "..")):
        return "must be no path, and hold no slash: it stands in the path that deregisters the instance"
    return fault


AS_ITS_SCHEMA = "As `/api/v1/schemas/manifest` says."
_MONTH = 31 * 24 * 60 * 60


def _within(least: float, most: float) -> BeforeValidator:
    """Seconds in these bounds, sent as a number or as a duration."""

    def parse(value: object) -> float:
        try:
            seconds = parse_duration(value) if isinstance(value, int | float | str) else -1
        except ValueError:
            seconds = -1
        if not least <= seconds <= most:
            raise PydanticCustomError(
                "seconds",
                "must be {least} to {most} seconds, as a number or as a duration such as 30s or 1h30m",
                {"least": f"{least:g}", "most": f"{most:.0f}"},
            )
        return seconds

    return BeforeValidator(parse)


_DURATION = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h|d))+$"


def _duration_schema(least: float, most: float) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": least, "maximum": most},
                {"type": "string", "pattern": _DURATION, "examples": ["30s", "5m"]},
            ]
        }
    )


def _short_duration(schema: dict[str, Any]) -> None:
    """In a query everything is text."""
    schema.pop("anyOf", None)
    schema |= {"type": "string", "pattern": r"^([0-9]{1,6}(ms|s)?|[0-9]{1,4}m|[0-9]{1,3}h)$"}


# What is asked


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
Line = Annotated[str, Field(pattern=_ONE_LINE)]
Limit = Annotated[Whole, Field(ge=1, le=MOST_ITEMS, description="How many items at most.")]
Cursor = Annotated[
    str | None,
    Field(max_length=1000, description="`next` of the page before; what it holds is not for clients."),
]
Include = Annotated[
    list[Literal["manifest", "instances"]],
    Field(description="What to embed; may be repeated or separated by commas."),
]


_FIELDS: Any = Field(
    default_factory=list,
    description="Only these fields of each item; may be repeated or separated by commas.",
)


class NoParameters(_Asked):
    """A path or query without parameters."""


class WaitQuery(_Asked):
    """What makes a read wait."""

    index: Whole | None = Field(
        default=None,
        ge=0,
        le=LARGEST_INDEX,
        description="Holds the answer until the index has passed this one, as a blocking query of Consul: "
        "pass what `X-Lictor-Index` said.",
    )
    wait: Annotated[float | None, _within(0, LONGEST_WAIT)] = Field(
        default=None,
        description="How long the answer may be held: a number of seconds or a duration such as `30s`, 10m "
        "at most and 5m where it is missing, and up to a sixteenth more.",
        json_schema_extra=_short_duration,
    )


class ReadQuery(WaitQuery):
    """What every read of the cache may be asked."""

    max_stale: Annotated[float | None, _within(0, _MONTH)] = Field(
        default=None,
        description="503 instead of an answer where a registry that feeds it was last confirmed longer ago: "
        "a number of seconds or a duration such as `30s` or `5m`.",
        json_schema_extra=_short_duration,
    )


class ModulePath(_Asked):
    name: Annotated[Line, Field(min_length=1, max_length=255, description="The module's name.")]


class ManifestPath(ModulePath):
    digest: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            description="The manifest's digest: 64 hexadecimal digits, in lower case.",
        ),
    ]


class InstancePath(ModulePath):
    id: Annotated[Line, Field(min_length=1, max_length=255, description="The instance's id.")]


class ModulesQuery(ReadQuery):
    status: list[Status] = Field(
        default_factory=list, description="Any of these statuses; may be repeated or separated by commas."
    )
    tag: list[Annotated[Line, Field(min_length=1, max_length=255)]] = Field(
        default_factory=list,
        max_length=20,
        description="All of these tags; may be repeated or separated by commas.",
    )
    datacenter: list[Annotated[Line, Field(min_length=1, max_length=255)]] = Field(
        default_factory=list,
        max_length=20,
        description="Any of these datacenters; may be repeated or separated by commas.",
    )
    q: Annotated[Line, Field(max_length=200)] = Field(
        default="", description="Part of the name or the title, in whatever case."
    )
    include: Include = Field(default_factory=list)
    fields: list[ModuleField] = _FIELDS
    limit: Limit = 100
    cursor: Cursor = None


class ModuleQuery(ReadQuery):
    include: Include = Field(default_factory=list)
    fields: list[ModuleField] = Field(
        default_factory=list, description="Only these fields; may be repeated or separated by commas."
    )


class LookupQuery(ReadQuery):
    name: list[Annotated[Line, Field(min_length=1, max_length=255)]] = Field(
        min_length=1,
        max_length=MOST_ITEMS,
        description="The names of the modules; may be repeated or separated by commas.",
    )
    include: Include = Field(default_factory=list)
    fields: list[ModuleField] = _FIELDS


class PageQuery(ReadQuery):
    limit: Limit = 100
    cursor: Cursor = None


class ManifestsQuery(PageQuery):
    fields: list[ManifestField] = _FIELDS


class TombstonesQuery(PageQuery):
    fields: list[TombstoneField] = _FIELDS


class InstancesQuery(PageQuery):
    fields: list[InstanceField] = _FIELDS
    passing: Flag = Field(
        default=False,
        description="Only instances to send traffic to: those that pass. May stand bare, as in Consul.",
        json_schema_extra={"allowEmptyValue": True},
    )


class EventsQuery(PageQuery):
    fields: list[EventField] = _FIELDS
    after: Whole = Field(
        default=0, ge=0, le=LARGEST_INDEX, description="Only events with a greater index than this one."
    )
    module: Annotated[Line, Field(max_length=255)] | None = Field(
        default=None, description="Only events of this module."
    )
    type: list[EventType] = Field(
        default_factory=list, description="Any of these types; may be repeated or separated by commas."
    )


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


BeatSeconds = Annotated[float, _within(0.1, 86400), _duration_schema(0.1, 86400)]
RemovalSeconds = Annotated[float, _within(1, _MONTH), _duration_schema(1, _MONTH)]
Tag = Annotated[
    str,
    Field(max_length=255),
    _obeys(text_fault),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255}),
]
InstanceId = Annotated[
    str,
    Field(max_length=255),
    _obeys(_id_fault),
    WithJsonSchema({"type": "string", "pattern": "^[^/]+$", "maxLength": 255}),
]
Meta = Annotated[
    dict[str, str],
    _obeys(_meta_fault),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": 64,
            "propertyNames": {"pattern": "^(?!consul-)[A-Za-z0-9_-]{1,128}$"},
            "additionalProperties": {"type": "string", "maxLength": 512},
        }
    ),
]
WholeManifest = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "required": ["name", "version"], "description": AS_ITS_SCHEMA}),
]
UrlPath = Annotated[
    str,
    Field(max_length=512),
    _obeys(path_fault),
    WithJsonSchema({"type": "string", "pattern": '^/(?!/)[!"$-~]*$', "maxLength": 512}),
]


class Registration(_Sent):
    """An instance of a module that registers itself."""

    name: Annotated[str, _obeys(label_fault)] = Field(
        description="The module's name: a DNS label.",
        json_schema_extra={"pattern": "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"},
    )
    id: InstanceId | None = Field(
        default=None,
        description="What tells the instance from others of the module; `NAME-ADDRESS-PORT` where it is "
        "missing. A registration with an id that is known replaces what was known.",
    )
    address: Annotated[str, _obeys(address_fault)] | None = Field(
        default=None,
        description="The IP address or host name under which others reach it; the client's own where it is "
        "missing.",
    )
    port: int = Field(ge=1, le=65535, description="The port on which it serves.")
    scheme: Literal["http", "https"] = Field(default="http", description="How it is spoken to.")
    tags: list[Tag] = Field(default_factory=list, max_length=64, description="Words to find it by.")
    meta: Meta = Field(
        default_factory=dict,
        description="Up to 64 pairs of texts, with the limits of Consul: keys of up to 128 letters a-z, "
        "digits, hyphens and underscores, values of up to 512 bytes.",
    )
    manifest: WholeManifest | None = Field(
        default=None, description="The manifest itself; nothing is fetched then. Its name is the module's."
    )
    manifest_path: UrlPath | None = Field(
        default=None,
        description="The path under which the instance serves its manifest. Where both this and `manifest` "
        "are missing, the server's default path is fetched.",
    )
    heartbeat_interval: BeatSeconds | None = Field(
        default=None,
        description="The seconds, or a duration such as `30s`, between two heartbeats; after three missed "
        "ones the instance is critical. From 0.1 seconds to a day; the server has a default.",
    )
    deregister_after: RemovalSeconds | None = Field(
        default=None,
        description="The seconds, or a duration such as `10m`, after which a critical instance without "
        "heartbeats is removed. From 1 second to 31 days; the server has a default.",
    )


class Beat(_Sent):
    """A heartbeat of a registered instance."""

    id: InstanceId = Field(description="The instance's id.")
    health: HealthWord = Field(default="passing", description="How the instance says it is.")
    note: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] = Field(
        default="", description="What it has to say about that."
    )


# What is answered

Moment = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
Index = Annotated[int, Field(ge=0, description="The index that the answer is true for.")]


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


def _columns(row: SQLModel, shape: type[BaseModel]) -> dict[str, Any]:
    """What a row and a shape have in common by name."""
    return {name: getattr(row, name) for name in shape.model_fields if name in type(row).model_fields}


class ManifestError(_Answered):
    """Why there is no (new) manifest of an instance."""

    type: str = Field(description="A stable word for programs, such as `timeout` or `invalid`.")
    detail: str = Field(description="A sentence for people.")
    at: Moment
    retry_at: Moment | None = Field(
        description="When it is tried again; null while the instance is not well."
    )

    @classmethod
    def of(cls, row: models.Instance) -> Self | None:
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
    def of(cls, row: models.Instance, last_seen: datetime | None = None) -> Self:
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
    def of(cls, row: models.Tombstone) -> Self:
        return cls.model_validate(
            {**_columns(row, cls), "health": str(row.health), "registry": row.registry_name}
        )


def instance_shapes(snapshot: Snapshot, rows: Sequence[models.Instance]) -> list[Instance]:
    """The shapes of instances, with when their registry last confirmed each of them."""
    contacts = {source.name: source.last_contact for source in snapshot.sources if source.name != PUSH}
    beats = last_beats(snapshot, rows)
    return [
        Instance.of(row, _latest(row.last_seen, contacts.get(row.source), beats.get(row.key or 0)))
        for row in rows
    ]


# Databases bound how many variables a query may have.
_KEYS_AT_ONCE = 1000


def last_beats(snapshot: Snapshot, rows: Sequence[models.Instance]) -> dict[int, datetime]:
    """When those of these instances that were pushed sent their last heartbeats, by their keys."""
    keys = [row.key for row in rows if row.source == PUSH and row.key is not None]
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
        row: models.Module,
        *,
        instances: Sequence[Instance] | None = None,
        manifest: models.Manifest | Literal["left out"] | None = "left out",
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
    def of(cls, row: models.Manifest, module: models.Module) -> Self:
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
    def of(cls, row: models.Event) -> Self:
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
        description="The seconds after which it is removed while critical for want of heartbeats."
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
