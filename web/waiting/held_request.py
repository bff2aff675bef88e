"""A request of the API that many clients may wait for at once: it is asked again after a change."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

from werkzeug.datastructures import MultiDict

from web.api.read import INDEX_HEADER
from web.problems import BadParameter
from web.response_cache.raw_response import RawResponse
from web.schemas.parsing import query_of
from web.schemas.requests import EventsQuery, WaitQuery
from web.waiting.event_tail import EventFilter

if TYPE_CHECKING:
    from web.server.request import Request

Ask = Callable[["Request"], Awaitable[RawResponse]]

_EVENTS = "/api/v1/events"
# What of a request decides its answer, besides path and query.
_DECISIVE = (b"accept", b"accept-encoding", b"authorization", b"host", b"if-none-match")
_WORD = re.compile(r"[^/?&=, ]+")
# Answers of these kinds may be others after the next change; the rest are faults of the request.
_MAY_CHANGE = (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says about waiting, and its query without that."""

    index: int | None
    seconds: float | None
    query: str

    @classmethod
    def of(cls, request: Request) -> Wish | None:
        """None if it says nothing, or something faulty, which the application then tells."""
        parts = request.query.split("&")
        about = [part for part in parts if _name(part) in WaitQuery.model_fields]
        if not about:
            return None
        try:
            said = query_of(WaitQuery, MultiDict(parse_qsl("&".join(about), keep_blank_values=True)))
        except BadParameter:
            return None
        return cls(said.index, said.wait, "&".join(part for part in parts if part not in about))

    def events(self, request: Request) -> EventFilter | None:
        """What a long poll of the event log waits for; None if the request is none."""
        if self.index is not None or request.path != _EVENTS or request.method != "GET":
            return None
        try:
            asked = query_of(EventsQuery, MultiDict(parse_qsl(self.query, keep_blank_values=True)))
        except BadParameter:
            return None
        return EventFilter(asked.module, frozenset(asked.type))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, the index that it is true for, None if it does not say, and whether it is an empty page."""

    response: RawResponse
    index: int | None
    is_empty: bool

    @classmethod
    def of(cls, response: RawResponse, *, is_empty: bool = False) -> Answer:
        index = response.header(INDEX_HEADER)
        return cls(response, None if index is None else int(index), is_empty)


class Question:
    """A request without its `index` and `wait`, and which answer to it is worth waking for.

    Without `events` it is a blocking query, with them a long poll of the event log.
    """

    __slots__ = ("_ask", "_request", "events", "key", "words")

    def __init__(self, ask: Ask, request: Request, events: EventFilter | None = None) -> None:
        self._ask = ask
        self._request = request
        self.events = events
        # The names of modules that it asks for are among them.
        self.words = frozenset(_WORD.findall(f"{request.path} {unquote_plus(request.query)}"))
        self.key: Hashable = (
            request.method,
            request.path,
            request.query,
            events,
            *map(request.header, _DECISIVE),
        )

    async def ask(self) -> Answer:
        """The answer as it is now."""
        response = await self._ask(self._request)
        if self.events is None:
            return Answer.of(response)
        page = response
        if response.code == HTTPStatus.NOT_MODIFIED:
            page = await self._ask(self._request.without(b"if-none-match"))
        is_empty = _is_empty(page)
        return Answer.of(page if is_empty else response, is_empty=is_empty)

    def is_answered_by(self, answer: Answer, index: int) -> bool:
        """Whether this is news, or a fault, for a client that knows all up to `index`."""
        if self.events is not None:
            return not answer.is_empty
        waits = answer.response.code in _MAY_CHANGE and answer.index is not None
        return not waits or (answer.index or 0) > index


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0])


def _is_empty(response: RawResponse) -> bool:
    """Whether it is a page without events: too short to be worth compressing."""
    if response.code != HTTPStatus.OK or response.header("Content-Encoding") is not None:
        return False
    return not json.loads(response.body)["items"]
