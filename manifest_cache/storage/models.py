"""The tables: what is known of modules, instances, manifests and registries, and the log of every change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Index,
    Integer,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlmodel import Field, SQLModel

from discovery.base import Health


def utc_now() -> datetime:
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in, aware datetimes in UTC out, on databases with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


# Numbers that are never given twice. SQLite gives them to columns of its own type alone, as wide as this.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def _moment(*, index: bool = False) -> Any:
    return Field(sa_type=UTCDateTime, index=index)


def _maybe_moment(*, index: bool = False) -> Any:
    return Field(default=None, sa_type=UTCDateTime, index=index)


class ModuleRow(SQLModel, table=True):
    """A module, and what its instances add up to.

    `versions` are those that its healthy instances serve, `drifting` the ones of them that come
    with more than one manifest.
    """

    __tablename__ = "modules"

    name: str = Field(primary_key=True)
    status: str
    version: str | None = None
    digest: str | None = None
    title: str | None = None
    total: int = 0
    passing: int = 0
    warning: int = 0
    critical: int = 0
    maintenance: int = 0
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    datacenters: list[str] = Field(default_factory=list, sa_type=JSON)
    registries: list[str] = Field(default_factory=list, sa_type=JSON)
    versions: list[str] = Field(default_factory=list, sa_type=JSON)
    drifting: list[str] = Field(default_factory=list, sa_type=JSON)
    first_seen: datetime = _moment()
    last_changed: datetime = _moment()


class InstanceRow(SQLModel, table=True):
    """One instance as its source announces it, what its manifest says, and when to fetch that next.

    `generation` grows with each registration and each return to health: the outcome of a fetch
    that began under an older one is not believed. `fetch_at` is when the manifest is asked for
    next, None where it is not: the instance is not well, pushed its manifest, or another of its
    module and version is asked in its turn. `confirmed` says whether the manifest is known for sure
    since the instance registered or became well: by a fetch, or because it announced its digest.
    """

    __tablename__ = "instances"
    __table_args__ = (
        UniqueConstraint("source", "module", "node", "id", name="uq_instances_key"),
        # A key that was given once is never given to another instance.
        {"sqlite_autoincrement": True},
    )

    key: int | None = Field(default=None, primary_key=True, sa_type=_NUMBER)
    source: str
    module: str = Field(foreign_key="modules.name", index=True)
    node: str = ""
    id: str
    registry_name: str = Field(sa_column_kwargs={"name": "registry"})
    datacenter: str = ""
    address: str
    port: int = 0
    scheme: str = "http"
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    meta: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    health: Health = Field(sa_type=Text)
    version: str | None = None
    digest: str | None = None
    etag: str | None = None
    error_type: str | None = None
    error_detail: str | None = None
    error_at: datetime | None = _maybe_moment()
    manifest_pushed: bool = False
    confirmed: bool = False
    fetch_at: datetime | None = _maybe_moment(index=True)
    fetch_failures: int = 0
    generation: int = 0
    first_seen: datetime = _moment()
    last_seen: datetime = _moment()
    last_changed: datetime = _moment()


class TombstoneRow(SQLModel, table=True):
    """An instance that is gone, as it was known last; if the instance comes back its tombstone goes."""

    __tablename__ = "tombstones"
    __table_args__ = (
        # Led by the id, by which instances that come back are looked for.
        UniqueConstraint("id", "module", "node", "source", name="uq_tombstones_key"),
        Index("ix_tombstones_module_key", "module", "key"),
        {"sqlite_autoincrement": True},
    )

    key: int | None = Field(default=None, primary_key=True, sa_type=_NUMBER)
    source: str
    module: str = Field(foreign_key="modules.name")
    node: str = ""
    id: str
    registry_name: str = Field(sa_column_kwargs={"name": "registry"})
    datacenter: str = ""
    address: str
    port: int = 0
    scheme: str = "http"
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    meta: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    health: Health = Field(sa_type=Text)
    version: str | None = None
    digest: str | None = None
    first_seen: datetime = _moment()
    gone_at: datetime = _moment(index=True)


class ManifestRow(SQLModel, table=True):
    """A manifest, stored once per module and digest, as canonical JSON (RFC 8785)."""

    __tablename__ = "manifests"

    module: str = Field(primary_key=True, foreign_key="modules.name")
    digest: str = Field(primary_key=True)
    version: str
    content: str = Field(sa_type=Text)
    first_seen: datetime = _moment()


class EventRow(SQLModel, table=True):
    """One line of the append-only log; the newest line's index is the index of the whole cache."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_module_index", "module", "index"), {"sqlite_autoincrement": True})

    index: int | None = Field(default=None, primary_key=True, sa_type=_NUMBER)
    at: datetime = _moment()
    type: str
    module: str | None = None
    instance: str | None = None
    registry_name: str | None = Field(default=None, sa_column_kwargs={"name": "registry"})
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)


class SourceRow(SQLModel, table=True):
    """What one source of a registry last said, whether it can be reached, and why it is doubted.

    `since` is when it was last connected, lost, doubted or believed again.
    `accept_requested` is an operator's word that the synchronizer has not acted on yet.
    """

    __tablename__ = "sources"

    name: str = Field(primary_key=True)
    registry_name: str = Field(sa_column_kwargs={"name": "registry"})
    connected: bool
    reason: str | None = None
    since: datetime = _moment()
    last_contact: datetime | None = _maybe_moment()
    instances: int = 0
    doubt: str | None = None
    accept_requested: bool = False

    @property
    def is_current(self) -> bool:
        """Whether what is known of it is what it says now: it can be reached, and is believed."""
        return self.connected and self.doubt is None


class PushLeaseRow(SQLModel, table=True):
    """How long a pushed instance is believed without a heartbeat, and what it last said of itself.

    `expires_at` is when it turns critical, or, once it `lapsed`, when it is removed.
    """

    __tablename__ = "push_leases"

    instance: int = Field(primary_key=True, foreign_key="instances.key", ondelete="CASCADE", sa_type=_NUMBER)
    heartbeat_interval: float
    deregister_after: float
    last_beat: datetime = _moment()
    expires_at: datetime = _moment(index=True)
    reported: Health = Field(sa_type=Text)
    note: str = ""
    lapsed: bool = False


class LeadershipRow(SQLModel, table=True):
    """Which synchronizer leads, in one row; no reader of the cache is told, so it has no events.

    `token` grows with each one that takes the lead, and who writes with an older one is refused.
    `holder` is None while nobody leads. `locks` names those locks that the leader has held since it
    leads: whoever gets one of them knows that it was lost. `renewed_at` moves while the leader lives.
    """

    __tablename__ = "leadership"

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    token: int = 0
    holder: str | None = None
    since: datetime | None = _maybe_moment()
    renewed_at: datetime | None = _maybe_moment()
    locks: list[str] = Field(default_factory=list, sa_type=JSON)


class WebhookPositionRow(SQLModel, table=True):
    """How far a receiver of webhooks has got: the last event that it was sent, or that was none for it.

    `series` is what the ids of its messages begin with.
    """

    __tablename__ = "webhook_positions"

    receiver: str = Field(primary_key=True)
    series: str
    position: int = Field(sa_type=_NUMBER)
