"""What is answered to who sends no HTTP that can be read: gunicorn's exceptions in, problems as bytes out."""

from __future__ import annotations

import socket
from contextlib import suppress
from http import HTTPStatus

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http import errors as http_errors  # type: ignore[import-untyped]

from web.problems import BadRequest, HeadersTooLarge, PathTooLong, Problem, document, shortened


def problem_of(exc: BaseException) -> Problem | None:
    """None where the request is not at fault."""
    if isinstance(exc, http_errors.LimitRequestLine):
        return _PATH_TOO_LONG
    if isinstance(exc, http_errors.LimitRequestHeaders):
        return _HEADERS_TOO_LARGE
    if isinstance(exc, _UNREADABLE) and not isinstance(exc, _FAULTS_OF_THE_APPLICATION):
        return BadRequest(f"The request is not HTTP as it should be: {shortened(str(exc))}")
    return None


def problem_of_begin(begin: bytes) -> Problem:
    """Of a request whose head does not come to its end."""
    return _HEADERS_TOO_LARGE if b"\r\n" in begin else _PATH_TOO_LONG


def send(problem: Problem, client: socket.socket) -> None:
    """Sends it as the last of the connection, and does not wait for a client that takes it slowly."""
    answer = document(problem)
    body = answer.get_data()
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
        "Connection: close",
    ]
    # Who is gone by now is told nothing, and must not end the loop that this may run on.
    with suppress(OSError):
        util.write_nonblock(client, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


_PATH_TOO_LONG = PathTooLong(f"{PathTooLong.meaning} {PathTooLong.advice}")
_HEADERS_TOO_LARGE = HeadersTooLarge(f"{HeadersTooLarge.meaning} {HeadersTooLarge.advice}")
_FAULTS_OF_THE_APPLICATION = (http_errors.InvalidResponseHeader, http_errors.InvalidResponseHeaderName)
_UNREADABLE = (
    http_errors.InvalidRequestLine,
    http_errors.InvalidRequestMethod,
    http_errors.InvalidHTTPVersion,
    http_errors.InvalidHeader,
    http_errors.InvalidHeaderName,
    http_errors.ObsoleteFolding,
    http_errors.InvalidChunkSize,
    http_errors.ChunkMissingTerminator,
    http_errors.InvalidChunkExtension,
)
