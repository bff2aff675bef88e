"""What many may wait for at once: one request of the API, asked anew when the change has come."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from web.waiting.answer import Answer, ask
from web.waiting.event_tail import EventFilter

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# What of a request decides its answer, besides path and query.
_DECISIVE = (
    "HTTP_ACCEPT",
    "HTTP_ACCEPT_ENCODING",
    "HTTP_AUTHORIZATION",
    "HTTP_HOST",
    "HTTP_IF_NONE_MATCH",
    "HTTP_X_REQUEST_ID",
)
_WORD = re.compile(r"[^/?&=, ]+")
# Answers of these kinds may be others after the next change; the rest are faults of the request.
_MAY_CHANGE = (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED, HTTPStatus.NOT_FOUND)


class Question:
    """A request without its `index` and `wait`, and which answer to it is worth waking for.

    Without `events` it is a blocking query, with them a long poll of the event log.
    """

    __slots__ = ("_app", "_environ", "events", "key", "words")

    def __init__(
        self, app: WSGIApplication, environ: Mapping[str, Any], events: EventFilter | None = None
    ) -> None:
        self._app = app
        self._environ = environ
        self.events = events
        # The names of modules that it asks for are among them.
        asked = f"{environ['PATH_INFO']} {unquote_plus(environ['QUERY_STRING'])}"
        self.words = frozenset(_WORD.findall(asked))
        self.key: Hashable = (
            environ["REQUEST_METHOD"],
            environ.get("SCRIPT_NAME", ""),
            environ["PATH_INFO"],
            environ["QUERY_STRING"],
            events,
            *(environ.get(name) for name in _DECISIVE),
        )

    def ask(self) -> Answer:
        """The answer as it is now."""
        if self.events is not None and (nothing := self._nothing()) is not None:
            return nothing
        return ask(self._app, self._environ)

    def is_answered_by(self, answer: Answer, index: int) -> bool:
        """Whether this is news, or a fault, for a client that knows all up to `index`."""
        if self.events is not None:
            return not answer.is_empty
        waits = answer.code in _MAY_CHANGE and answer.index is not None
        return not waits or (answer.index or 0) > index

    def _nothing(self) -> Answer | None:
        """The page without events, if there are none: asked in plain bytes, whatever the request takes."""
        plain = {**self._environ, "HTTP_ACCEPT_ENCODING": "identity"}
        plain.pop("HTTP_IF_NONE_MATCH", None)
        answer = ask(self._app, plain)
        if answer.code != HTTPStatus.OK or json.loads(answer.body)["items"]:
            return None
        return replace(answer, is_empty=True)
