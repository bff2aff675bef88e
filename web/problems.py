"""Renders every error as `application/problem+json` (RFC 9457).

Problem                             type                        status
├── BadParameter                    bad-parameter               400
├── BadRequest                      bad-request                 400
├── TokenRequired                   token-required              401
├── PushDisabled                    push-disabled               403
├── ForeignCaller                   foreign-caller              403
├── UnknownModule                   unknown-module              404
├── NoManifest                      no-manifest                 404
├── UnknownManifest                 unknown-manifest            404
├── InstanceNotRegistered           instance-not-registered     404
├── UnknownPath                     unknown-path                404
├── WrongMethod                     wrong-method                405
├── NotAcceptable                   not-acceptable              406
├── RequestTimeout                  request-timeout             408
├── EventsGone                      events-gone                 410
├── BodyTooLarge                    body-too-large              413
├── PathTooLong                     path-too-long               414
├── WrongContentType                wrong-content-type          415
├── InvalidBody                     invalid-body                422
├── HeadersTooLarge                 headers-too-large           431
├── InternalError                   internal-error              500
├── CannotWait                      cannot-wait                 501
├── DatabaseUnavailable             database-unavailable        503
├── TooManyWatchers                 too-many-watchers           503
├── WrongSchema                     wrong-schema                503
└── TooStale                        too-stale                   503

A body has `type` (`/problems/` and the word above: a page that explains it), `title`, `status` and
`detail`; `errors` where single parameters or fields are faulty, each with `parameter` or `field`
and a `message`; `near` beside an unknown module, `oldest` beside events that are gone. More members
may come, none of these goes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from discovery.errors import UnknownInstance
from discovery.text import shortened
from manifest_cache.storage.database import SchemaMismatch, StoreUnavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_DATABASE = "2"
_RETRY_SCHEMA = "30"
_RETRY_REGISTRY = "5"


class Problem(Exception):
    """Anything that is answered instead of what was asked for.

    `detail` says what is wrong with this request, `errors` which parameters or fields are faulty;
    `members` are added to the body. The class says what all of its kind have in common: `meaning`
    and `advice` make up the page about it.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    status: ClassVar[int]
    meaning: ClassVar[str]
    advice: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.members = members

    @property
    def type(self) -> str:
        return f"/problems/{self.slug}"

    def body(self) -> dict[str, Any]:
        errors = {"errors": list(self.errors)} if self.errors else {}
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **errors,
            **self.members,
        }


class BadParameter(Problem):
    slug, status = "bad-parameter", 400
    title = "A parameter is faulty"
    meaning = "A parameter of the path or the query is unknown, out of range, or cannot be read."
    advice = "`errors` names each faulty parameter and what is allowed."

    @classmethod
    def of(cls, faults: Sequence[tuple[str, str]]) -> BadParameter:
        errors = [{"parameter": name, "message": message} for name, message in faults]
        return cls(_sentence(faults), errors=errors)


class BadRequest(Problem):
    slug, status = "bad-request", 400
    title = "The request cannot be understood"
    meaning = "The request is not HTTP as it should be: it breaks off, or contradicts itself."
    advice = "Look for what alters requests between the client and Lictor."


class TokenRequired(Problem):
    slug, status = "token-required", 401
    title = "A token is needed to push"
    meaning = "The request registers, or changes a registration, without the bearer token that this takes."
    advice = (
        "Send `Authorization: Bearer TOKEN` with the content of the file that LICTOR_PUSH_TOKEN_FILE names."
    )


class PushDisabled(Problem):
    slug, status = "push-disabled", 403
    title = "Registering by push is not enabled here"
    meaning = "This server takes no registrations over HTTP, or none until its token can be read."
    advice = (
        "Let the server listen on loopback only (LICTOR_BIND=127.0.0.1:8080), or put a secret into a file "
        "and name it in LICTOR_PUSH_TOKEN_FILE; and keep `push` in LICTOR_REGISTRIES."
    )


class ForeignCaller(Problem):
    slug, status = "foreign-caller", 403
    title = "Only programs of this machine may push without a token"
    meaning = (
        "The server listens on loopback and needs no token, and the request bears marks of a web page or a "
        "proxy: it may come from another machine."
    )
    advice = (
        "Address the server as localhost, 127.0.0.1 or [::1]; or set LICTOR_PUSH_TOKEN_FILE, send the token."
    )


class UnknownModule(Problem):
    slug, status = "unknown-module", 404
    title = "There is no such module"
    meaning = "No registry has ever announced a module of this name, or it was forgotten."
    advice = "`near` lists modules of like names. In Consul only services with the module tag are modules."


class NoManifest(Problem):
    slug, status = "no-manifest", 404
    title = "The module has no manifest yet"
    meaning = "The module is known, but none of its instances has served a good manifest so far."
    advice = "`manifest_error` of its instances says why, and when it is tried again."


class UnknownManifest(Problem):
    slug, status = "unknown-manifest", 404
    title = "The module has no such manifest"
    meaning = "The module is known, but never had a manifest with this digest."
    advice = "`/api/v1/modules/{name}/manifests` lists those that it had."


class InstanceNotRegistered(Problem):
    slug, status = "instance-not-registered", 404
    title = "The instance is not registered"
    meaning = (
        "No instance with this id is registered by push for this module: it was removed for lack of "
        "heartbeats, deregistered, or registered in another registry."
    )
    advice = "Register it again: `POST /api/v1/modules/register`."


class UnknownPath(Problem):
    slug, status = "unknown-path", 404
    title = "There is nothing at this path"
    meaning = "The path is none of those that Lictor serves."
    advice = "`/openapi.json` lists the paths of the API."


class WrongMethod(Problem):
    slug, status = "wrong-method", 405
    title = "This path does not take this method"
    meaning = "The path is served, but not for this HTTP method."
    advice = "The header `Allow` lists the methods that it takes."


class NotAcceptable(Problem):
    slug, status = "not-acceptable", 406
    title = "The answer does not come in that form"
    meaning = "The header `Accept` leaves out every form in which this path answers."
    advice = "Ask for `application/json`, or leave `Accept` away."


class RequestTimeout(Problem):
    slug, status = "request-timeout", 408
    title = "The request did not come in time"
    meaning = "The body of the request was not there 10 seconds after its headers."
    advice = "Send the body at once, or look for what holds it up between the client and Lictor."


class EventsGone(Problem):
    slug, status = "events-gone", 410
    title = "Events behind this index are not kept any longer"
    meaning = "The log is asked for from an index on behind which events were deleted for their age."
    advice = (
        "Read the modules again, and go on with the events after the index of that answer. `after=0` asks "
        "for all events that are kept; `oldest` is the index of the first of them. LICTOR_EVENT_RETENTION "
        "says how long they are kept."
    )


class PathTooLong(Problem):
    slug, status = "path-too-long", 414
    title = "The path and the query are too long"
    meaning = "The first line of the request, with path and query, has more than 8,190 bytes."
    advice = "Ask for less at once: `/api/v1/modules/lookup` takes several requests for very many names."


class HeadersTooLarge(Problem):
    slug, status = "headers-too-large", 431
    title = "The headers are too large"
    meaning = "The request has more than 100 headers, more than 32 KiB of them, or one of 8,190 bytes."
    advice = "Send fewer or shorter headers; cookies and tokens are what is usually long."


class BodyTooLarge(Problem):
    slug, status = "body-too-large", 413
    title = "The body is too large"
    meaning = "The body has more bytes than are taken."
    advice = "Shorten the manifest, or raise LICTOR_FETCH_MAX_BYTES, from which the limit follows."


class WrongContentType(Problem):
    slug, status = "wrong-content-type", 415
    title = "The body is not declared as JSON"
    meaning = "A body is taken as JSON only."
    advice = "Send `Content-Type: application/json`."


class InvalidBody(Problem):
    slug, status = "invalid-body", 422
    title = "The body is faulty"
    meaning = "The body is not JSON, or fields of it are missing, unknown or out of range."
    advice = "`errors` names every faulty field; an empty `field` is the body as a whole."

    @classmethod
    def of(cls, faults: Sequence[tuple[str, str]]) -> InvalidBody:
        errors = [{"field": name, "message": message} for name, message in faults]
        return cls(_sentence(faults), errors=errors)


class InternalError(Problem):
    slug, status = "internal-error", 500
    title = "Lictor failed"
    meaning = "A fault of Lictor itself; its log tells more."
    advice = "Report it with what the log says."


class CannotWait(Problem):
    slug, status = "cannot-wait", 501
    title = "This server holds no requests"
    meaning = "The request is to wait for a change, and the server that runs the application cannot hold it."
    advice = "Run Lictor by `lictor serve`, or ask without `index` and `wait` and not for an event stream."


class DatabaseUnavailable(Problem):
    slug, status = "database-unavailable", 503
    title = "The database cannot be used"
    meaning = "The database is away, locked, read-only or full. The log has the database's own words."
    advice = "Try again after `Retry-After` seconds; `lictor doctor` shows what is wrong."


class TooManyWatchers(Problem):
    slug, status = "too-many-watchers", 503
    title = "Too many requests wait already"
    meaning = "As many requests wait for a change as this process may hold."
    advice = (
        "Try again after `Retry-After` seconds, or ask without `index` and `wait`. LICTOR_MAX_WATCHERS is "
        "the bound; the limit of open files (`ulimit -n`) may lower it."
    )


class WrongSchema(Problem):
    slug, status = "wrong-schema", 503
    title = "The database has another schema"
    meaning = "The database's schema is not the one that this Lictor works with."
    advice = (
        "Run `lictor migrate` if it is empty or older; if a newer Lictor migrated it, upgrade this one. "
        "The log names both revisions."
    )


class TooStale(Problem):
    slug, status = "too-stale", 503
    title = "The answer would be older than asked for"
    meaning = "A registry that feeds the answer was last confirmed longer ago than `max_stale` allows."
    advice = "Leave `max_stale` away to get what was last known; `X-Lictor-Contact` tells how old it is."

    @classmethod
    def of(cls, source: str, max_stale: float, heard: str) -> TooStale:
        return cls(
            f"{source} was not confirmed within the last {max_stale:g} seconds ({heard}). {cls.advice}",
            headers={"Retry-After": _RETRY_REGISTRY},
        )


PROBLEMS = {kind.slug: kind for kind in Problem.__subclasses__()}
"""Every kind of problem by the last word of its `type`."""


def register(app: Flask) -> None:
    """Makes every failure of the application a problem: the one handler that there is."""
    app.register_error_handler(Exception, _answer)


def _answer(error: Exception) -> Response:
    problem = _problem_of(error)
    return _page(problem) if _wants_page() else document(problem)


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, SchemaMismatch):
        logger.error("%s", error)
        return WrongSchema(
            f"{WrongSchema.meaning} {WrongSchema.advice}", headers={"Retry-After": _RETRY_SCHEMA}
        )
    if isinstance(error, StoreUnavailable):
        logger.error("the database cannot be used: %s", error.reason)
        return DatabaseUnavailable(
            f"The database cannot be used at the moment. {DatabaseUnavailable.advice}",
            headers={"Retry-After": _RETRY_DATABASE},
        )
    if isinstance(error, UnknownInstance):
        return InstanceNotRegistered(f"{error}, with POST /api/v1/modules/register.")
    if isinstance(error, HTTPException):
        return _problem_of_http(error)
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return InternalError("An unexpected fault; the log of the server tells more.")


def _problem_of_http(error: HTTPException) -> Problem:
    if error.code == HTTPStatus.NOT_FOUND:
        return UnknownPath(f"There is nothing at {shortened(request.path)}. {UnknownPath.advice}")
    if error.code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return WrongMethod(
            f"{request.method} is not taken here; these methods are: {allowed}.", headers={"Allow": allowed}
        )
    if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return BodyTooLarge(f"At most {request.max_content_length} bytes are taken. {BodyTooLarge.advice}")
    return BadRequest(error.description or BadRequest.meaning)


def document(problem: Problem) -> Response:
    """The answer to a program."""
    response = Response(json.dumps(problem.body()) + "\n", problem.status, content_type=MEDIA_TYPE)
    response.headers.extend(problem.headers)
    response.headers["Cache-Control"] = "no-store"
    return response


def _page(problem: Problem) -> Response:
    page = render_template("problem.html", kind=problem, detail=problem.detail, **problem.members)
    response = Response(page, problem.status)
    response.headers.extend(problem.headers)
    response.headers["Cache-Control"] = "no-store"
    return response


def _wants_page() -> bool:
    """People who follow a link in a browser get a page, programs a document."""
    if request.path.startswith("/api/"):
        return False
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _sentence(faults: Sequence[tuple[str, str]]) -> str:
    return "; ".join(_named_faults(faults)) + "."


def _named_faults(faults: Sequence[tuple[str, str]], shown: int = 5) -> Iterator[str]:
    for name, message in faults[:shown]:
        yield f"{name}: {message}" if name else message
    if len(faults) > shown:
        yield f"and {len(faults) - shown} more"
