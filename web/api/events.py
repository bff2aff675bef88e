"""The event log: lines behind an index in, a page of them out."""

from __future__ import annotations

from flask import Blueprint

from web.errors import EventsGone
from web.operation import read
from web.reading import Read, cursor_behind, page, place_behind
from web.schemas import Event, EventList, EventsQuery, rfc3339

bp = Blueprint("events", __name__)


@bp.get("/events")
@read(
    summary="The event log",
    tag="events",
    description="In the order of the index. To go on later, pass the last event's index as `after`. Where "
    "events behind it were deleted for their age the answer is 410; 0 asks for all that are kept.",
    query=EventsQuery,
    answer=EventList,
    problems=(EventsGone,),
)
def list_events(read: Read, query: EventsQuery) -> EventList:
    after = max(query.after, place_behind("events", query.cursor, int) or 0)
    refuse_missing(read, after)
    read.unless_known()
    found = read.snapshot.events(after=after, limit=query.limit + 1, module=query.module, types=query.type)
    rows, last = page(found, query.limit)
    return EventList(
        items=[Event.of(row) for row in rows],
        next=cursor_behind("events", last.index or 0) if last else None,
        index=read.snapshot.index,
    )


def refuse_missing(read: Read, after: int) -> None:
    """Raises EventsGone if events with an index above `after` are not kept any longer, unless it is 0."""
    oldest = read.snapshot.oldest_event
    if oldest is None or not 0 < after < read.snapshot.retained_after:
        return
    raise EventsGone(
        f"Events after {after} were deleted for their age; the oldest that is kept has the index "
        f"{oldest.index} and is of {rfc3339(oldest.at)}. {EventsGone.advice}",
        oldest=oldest.index,
    )
