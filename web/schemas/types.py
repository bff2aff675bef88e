"""The words and values that requests and responses of the API share: states, moments, bounds."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    Field,
    PlainSerializer,
    WithJsonSchema,
)

MOST_ITEMS = 1000
LARGEST_INDEX = 2**63 - 1
LONGEST_WAIT = 600

Status = Literal["available", "degraded", "unavailable"]
HealthWord = Literal["passing", "warning", "critical", "maintenance"]


@functools.lru_cache(maxsize=1024)
def rfc3339(at: datetime) -> str:
    """A moment in UTC, to the millisecond, with a Z.

    >>> rfc3339(datetime(2026, 5, 1, 12, 0, 30, 999999, tzinfo=UTC))
    '2026-05-01T12:00:30.999Z'
    """
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
Index = Annotated[int, Field(ge=0, description="The index that the answer is true for.")]
