"""The event log: lines behind an index in, a page of them out."""

from __future__ import annotations

from flask import Blueprint

from web.operation import read
from web.reading import Read, cursor_behind, page, place_behind
from web.schemas import Event, EventList, EventsQuery

bp = Blueprint("events", __name__)


@bp.get("/events")
@read(
    summary="The event log",
    tag="events",
    description="In the order of the index. To go on later, pass the last event's index as `after`.",
    query=EventsQuery,
    answer=EventList,
)
def list_events(read: Read, query: EventsQuery) -> EventList:
    behind = place_behind("events", query.cursor, int)
    read.unless_known()
    found = read.snapshot.events(
        after=max(query.after, behind or 0), limit=query.limit + 1, module=query.module, types=query.type
    )
    rows, last = page(found, query.limit)
    return EventList(
        items=[Event.of(row) for row in rows],
        next=cursor_behind("events", last.index or 0) if last else None,
        index=read.snapshot.index,
    )
