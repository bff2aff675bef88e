"""Writes the lines of the event log: what was and what is, as plain JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlmodel import SQLModel

from manifest_cache.storage.models import InstanceRow, SourceRow
from manifest_cache.storage.raw_rows import ReadTransaction, WriteTransaction
from manifest_cache.storage.raw_statements import statements

_EVENTS = SQLModel.metadata.tables["events"]


class EventLog:
    """The events of one transaction, kept in their order until `write`."""

    def __init__(self, writing: WriteTransaction, now: datetime) -> None:
        self._writing = writing
        self._now = now
        self._lines: list[dict[str, Any]] = []

    def add(
        self,
        type_: str,
        *,
        module: str | None = None,
        instance: str | None = None,
        registry: str | None = None,
        was: Mapping[str, Any] | None = None,
        is_: Mapping[str, Any] | None = None,
        **where: str,
    ) -> None:
        self._lines.append(
            {
                "at": self._now,
                "type": type_,
                "module": module,
                "instance": instance,
                "registry": registry,
                "data": {**where, "was": was, "is": is_},
            }
        )

    def instance(
        self,
        type_: str,
        row: InstanceRow,
        was: Mapping[str, Any] | None = None,
        is_: Mapping[str, Any] | None = None,
    ) -> None:
        """A line about an instance."""
        self.add(
            type_,
            module=row.module,
            instance=row.id,
            registry=row.registry_name,
            was=was,
            is_=is_,
            source=row.source,
            node=row.node,
        )

    def difference(
        self,
        type_: str,
        before: Mapping[str, Any],
        row: InstanceRow,
        leave_out: Collection[str] = (),
    ) -> bool:
        """Logs how an instance differs from before (`described`); returns whether it does."""
        after = described(row)
        differing = [name for name in after if after[name] != before[name] and name not in leave_out]
        if differing:
            self.instance(
                type_,
                row,
                was={name: before[name] for name in differing},
                is_={name: after[name] for name in differing},
            )
        return bool(differing)

    def source(self, type_: str, source: SourceRow, was: Mapping[str, Any]) -> None:
        """A line about a source of a registry."""
        self.add(
            type_,
            registry=source.registry_name,
            was=was,
            is_={"connected": source.connected, "reason": source.reason, "doubt": source.doubt},
            source=source.name,
        )

    def write(self) -> int:
        """Stores the lines; returns the index, that of the newest one of all."""
        if self._lines:
            statements(_EVENTS, self._writing.dialect).insert(self._writing.cursor, self._lines)
        return index_of(self._writing)


def index_of(reading: ReadTransaction) -> int:
    """The index of the newest event that the transaction sees, 0 if there is none."""
    return reading.value('SELECT max("index") FROM events') or 0


def described(row: InstanceRow) -> dict[str, Any]:
    """All of an instance that a reader can see but for the times, as plain JSON values."""
    return {
        "address": row.address,
        "port": row.port,
        "scheme": row.scheme,
        "datacenter": row.datacenter,
        "tags": row.tags,
        "meta": row.meta,
        "health": str(row.health),
        "version": row.version,
        "digest": row.digest,
        "manifest_error": described_error(row),
    }


def described_error(row: InstanceRow) -> dict[str, Any] | None:
    """Why there is no (new) manifest of an instance."""
    if row.error_type is None:
        return None
    return {
        "type": row.error_type,
        "detail": row.error_detail,
        "at": row.error_at and rfc3339(row.error_at),
        "retry_at": row.fetch_at and rfc3339(row.fetch_at),
    }


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
