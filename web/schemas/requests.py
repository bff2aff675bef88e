"""Defines the shapes of what clients send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from discovery.timing.durations import parse_duration
from discovery.validation import address_fault, label_fault, meta_faults, path_fault, text_fault
from manifest_cache.ledger.event_types import EventType
from web.schemas.fields import EventField, InstanceField, ManifestField, ModuleField, TombstoneField
from web.schemas.parsing import Flag, Whole
from web.schemas.types import LARGEST_INDEX, LONGEST_WAIT, MOST_ITEMS, HealthWord, Status


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
