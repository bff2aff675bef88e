"""Asks the application without a server: an environ in, its answer and the bytes of it on the wire out."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from web.api.read import INDEX_HEADER
from web.response_cache.whole_answer import Headers, whole_answer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a client wants to be answered: its version of HTTP, and whether the connection is kept."""

    version: str
    keeps_alive: bool

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> Protocol:
        version = "HTTP/1.0" if environ.get("SERVER_PROTOCOL") == "HTTP/1.0" else "HTTP/1.1"
        wishes = {wish.strip() for wish in environ.get("HTTP_CONNECTION", "").lower().split(",")}
        has_body = environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ
        keeps_alive = "close" not in wishes and (version == "HTTP/1.1" or "keep-alive" in wishes)
        # A body that nobody read would be taken for the next request.
        return cls(version, keeps_alive and not has_body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application answered, whole; `index` is what it is true for, None if it does not say."""

    status: str
    code: int
    index: int | None
    headers: Headers
    body: bytes
    # Of a page of events: whether it holds none.
    is_empty: bool = False
    _wire: dict[Protocol, bytes] = field(default_factory=dict, init=False)

    def give(self, start_response: StartResponse) -> Iterable[bytes]:
        start_response(self.status, self.headers)
        return [self.body]

    def wire(self, protocol: Protocol) -> bytes:
        """The bytes that a client gets; made once for all who speak alike."""
        found = self._wire.get(protocol)
        if found is None:
            connection = ("Connection", "keep-alive" if protocol.keeps_alive else "close")
            found = self._wire[protocol] = (
                head(protocol, self.status, [connection, *self.headers]) + self.body
            )
        return found


def head(protocol: Protocol, status: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{protocol.version} {status}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def ask(app: WSGIApplication, environ: Mapping[str, Any]) -> Answer:
    """The application's answer; the environ stays as it is."""
    status, headers, content = whole_answer(app, dict(environ))
    code = int(status[:3])
    index = next((int(value) for name, value in headers if name == INDEX_HEADER), None)
    if environ["REQUEST_METHOD"] == "HEAD" or code in _WITHOUT_BODY:
        return Answer(status, code, index, headers, b"")
    headers = [line for line in headers if line[0] != "Content-Length"]
    return Answer(status, code, index, [*headers, ("Content-Length", str(len(content)))], content)


_OF_THE_CONNECTION = ("wsgi.input", "wsgi.errors", "gunicorn.socket", "wsgi.early_hints", "werkzeug.request")


def kept(environ: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that may be asked with later, when the connection that it came over serves others."""
    plain = {name: value for name, value in environ.items() if name not in _OF_THE_CONNECTION}
    plain["wsgi.errors"] = environ["wsgi.errors"]
    plain["wsgi.input"] = io.BytesIO()
    plain.pop("CONTENT_LENGTH", None)
    plain.pop("HTTP_TRANSFER_ENCODING", None)
    return plain
