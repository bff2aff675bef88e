"""Serves the event log in pages."""

from __future__ import annotations

from flask import Blueprint, Response, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from discovery.text import shortened
from web.api.endpoint import read
from web.api.read import Read, cursor_after, page, parse_cursor
from web.problems import BadParameter, CannotWait, EventsGone
from web.request_context import StreamStart, context_of
from web.schemas.parsing import JSON
from web.schemas.requests import EventsQuery
from web.schemas.responses import Event, EventList
from web.schemas.types import LARGEST_INDEX, rfc3339
from web.waiting.event_tail import EventFilter

EVENT_STREAM = "text/event-stream"

bp = Blueprint("events", __name__)


@bp.get("/events")
@read(
    summary="The event log",
    tag="events",
    description="In the order of the index. To go on later, pass the last event's index as `after`. Where "
    "events behind it were deleted for their age the answer is 410; 0 asks for all that are kept. With "
    "`wait` and without `index` the answer is held until there is an event to answer with. As "
    "`text/event-stream` it never ends: from behind `Last-Event-ID` or `after`, or from now on, with the "
    "index as `id`, the type as `event` and the event as `data`.",
    media=(JSON, EVENT_STREAM),
    request_headers={
        "Last-Event-ID": "Of a stream: the `id` of the last event that the client has; wins over `after`."
    },
    query=EventsQuery,
    answer=EventList,
    problems=(EventsGone,),
)
def list_events(read: Read, query: EventsQuery) -> EventList | Response:
    if prefers_stream(request.headers.get("Accept", "")):
        return _stream(read, query)
    after = max(query.after, parse_cursor("events", query.cursor, int) or 0)
    refuse_missing(read, after)
    read.raise_if_not_modified()
    found = read.snapshot.events(after=after, limit=query.limit + 1, module=query.module, types=query.type)
    rows, last = page(found, query.limit)
    if not rows and query.wait and query.index is None:
        raise CannotWait(f"There is no such event yet. {CannotWait.advice}")
    return EventList(
        items=[Event.of(row) for row in rows],
        next=cursor_after("events", last.index or 0) if last else None,
        index=read.snapshot.index,
    )


def prefers_stream(accept: str) -> bool:
    """Whether a client that sent this header Accept takes a stream rather than a list."""
    accepted: MIMEAccept = parse_accept_header(accept, MIMEAccept)
    return accepted.best_match((JSON, EVENT_STREAM)) == EVENT_STREAM


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


def _stream(read: Read, query: EventsQuery) -> Response:
    faults = [
        (name, "is not taken by a stream, which never ends")
        for name in ("limit", "cursor", "index", "wait")
        if name in query.model_fields_set
    ]
    if faults:
        raise BadParameter.of(faults)
    position = _last_event_id()
    if position is None:
        position = query.after if "after" in query.model_fields_set else read.snapshot.index
    refuse_missing(read, position)
    if request.method == "GET":
        context = context_of(request.environ)
        if not context.can_wait:
            raise CannotWait(f"An event stream never ends. {CannotWait.advice}")
        context.stream = StreamStart(EventFilter(query.module, frozenset(query.type)), position)
    return Response(content_type=EVENT_STREAM)


def _last_event_id() -> int | None:
    said = request.headers.get("Last-Event-ID", "")
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 20 and int(said) <= LARGEST_INDEX):
        raise BadParameter.of(
            [("Last-Event-ID", f"must be a whole number from 0 to {LARGEST_INDEX} (got {shortened(said)})")]
        )
    return int(said)
