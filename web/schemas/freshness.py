"""Writes the headers that say how fresh a response is.

A source is confirmed when its registry was last heard of; while it is doubted, as of the moment
before. The push registry is Lictor's own database: what it knows is what is answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from discovery.registries import confirmed_by
from manifest_cache.storage.models import SourceRow
from web.schemas.types import rfc3339

STALE_HEADER = "X-Lictor-Stale"
CONTACT_HEADER = "X-Lictor-Contact"


def stale(lost: Iterable[SourceRow]) -> str:
    """What `X-Lictor-Stale` says: which sources are out of reach or doubted, and since when."""
    return ", ".join(f"{source.name}; since={rfc3339(source.since)}" for source in lost)


def contact(sources: Iterable[SourceRow]) -> str:
    """What `X-Lictor-Contact` says: when each source was last confirmed; empty if there is none."""
    return ", ".join(
        f"{source.name}; at={rfc3339(at) if (at := confirmed(source)) else 'never'}"
        for source in sources
        if confirmed_by(source.name) == "watch"
    )


def confirmed(source: SourceRow) -> datetime | None:
    """When what is known of a source was last what it says; None if it never told anything."""
    if source.doubt is not None and source.last_contact is not None:
        return min(source.last_contact, source.since)
    return source.last_contact


def longest_unconfirmed(sources: Iterable[SourceRow]) -> SourceRow | None:
    """Of the sources that feed an answer the one that was confirmed the longest ago."""
    return min(
        (source for source in sources if confirmed_by(source.name) == "watch"),
        key=lambda source: at.timestamp() if (at := confirmed(source)) else float("-inf"),
        default=None,
    )


def is_older(source: SourceRow | None, seconds: float, now: datetime) -> bool:
    """Whether a source was last confirmed more than so many seconds ago."""
    if source is None:
        return False
    at = confirmed(source)
    return at is None or (now - at).total_seconds() > seconds
