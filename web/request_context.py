"""What the layers around one request tell each other: one object in its WSGI environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from web.api.read import CacheInfo
    from web.waiting.event_tail import EventFilter

_KEY = "lictor.context"


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A stream of the events that `wanted` takes, from behind the index `position`."""

    wanted: EventFilter
    position: int


@dataclass(slots=True)
class RequestContext:
    """The server says whether it `can_wait`, and the id of the request; the application says the rest.

    `route` is the rule that matched, `facts` is what the answer depends on, where it may be kept, and
    `stream` is set where the answer is the beginning of an event stream.
    """

    request_id: str | None = None
    can_wait: bool = False
    route: str = "none"
    facts: CacheInfo | None = None
    stream: StreamStart | None = None


def context_of(environ: WSGIEnvironment) -> RequestContext:
    """The context of the request; a new one where no layer has asked for it yet."""
    context: RequestContext = environ.setdefault(_KEY, RequestContext())
    return context


def set_context(environ: WSGIEnvironment, context: RequestContext) -> None:
    environ[_KEY] = context
