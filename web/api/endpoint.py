"""Operations of the API: one description each, from which requests are checked and the document is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from flask import Response, request
from pydantic import BaseModel

from manifest_cache.storage.reader import Snapshot
from web import problems as errors
from web.api.read import INDEX_HEADER, NOTHING, NotModified, Read, Renderer, Rerendered
from web.backend import backend
from web.problems import CannotWait, NotAcceptable, Problem
from web.rendering.module_json import ModuleParts
from web.request_context import context_of
from web.schemas import parsing
from web.schemas.parsing import JSON
from web.schemas.requests import NoParameters, ReadQuery, WaitQuery

View: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What an operation takes and answers.

    A view gets the path's fields by name, the checked `query` where there is one of its own, and where there
    is a `body` the JSON object that was sent as `document`: it checks that against the same model,
    for it may know of more faults. It returns an `answer`, the bytes of a JSON document of this
    `schema`, or nothing. `problems` are those of its own; those of its kind are added.
    """

    summary: str
    tag: str
    description: str = ""
    path: type[BaseModel] = NoParameters
    query: type[BaseModel] = NoParameters
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    answer_description: str = ""
    schema: Mapping[str, Any] | None = None
    status: int = 200
    headers: tuple[str, ...] = ()
    problems: tuple[type[Problem], ...] = field(default=())
    conditional: bool = False
    media: tuple[str, ...] = (JSON,)
    request_headers: Mapping[str, str] = field(default_factory=dict)
    needs_token: bool = False


class Endpoint:
    """A view of Flask that checks a request by its operation before the view's own function sees it."""

    def __init__(self, operation: Operation, function: View) -> None:
        self.operation = operation
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, **path: str) -> Response:
        _check_accept(self.operation.media)
        arguments = dict(parsing.path_of(self.operation.path, path))
        query = parsing.query_of(self.operation.query, request.args)
        if self.operation.query not in _OF_ANY:
            arguments["query"] = query
        return self._answer(arguments, query)

    def _answer(self, arguments: Mapping[str, Any], query: BaseModel) -> Response:
        return self._respond(self._function(**arguments))

    def _respond(self, answer: BaseModel | Response | bytes | None, fields: Collection[str] = ()) -> Response:
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, (BaseModel, bytes)):
            return Response(_document(answer, fields), self.operation.status, content_type=JSON)
        # Nothing has no type.
        response = Response(status=self.operation.status)
        del response.headers["Content-Type"]
        return response


class ReadEndpoint(Endpoint):
    """Answers from one state of the cache, which the view gets as `read`; 304 to who knows it."""

    def _answer(self, arguments: Mapping[str, Any], query: BaseModel) -> Response:
        max_stale = query.max_stale if isinstance(query, ReadQuery) else None
        parts = backend().module_parts
        with backend().snapshot() as snapshot:
            read = Read(snapshot, parts, request.if_none_match, max_stale)
            try:
                if isinstance(query, WaitQuery) and not context_of(request.environ).can_wait:
                    _refuse_to_wait(query, snapshot.index)
                answer = self._function(read=read, **arguments)
                response = self._respond(answer, getattr(query, "fields", ()))
            except NotModified:
                response = Response(status=304)
                del response.headers["Content-Type"]
            except Problem as problem:
                raise read.explain(problem) from None
            context_of(request.environ).facts = read.facts(self._again(arguments, query, max_stale, parts))
            return read.finish(response)

    def _again(
        self,
        arguments: Mapping[str, Any],
        query: BaseModel,
        max_stale: float | None,
        parts: ModuleParts,
    ) -> Renderer | None:
        if len(self.operation.media) > 1:
            # It looks into the request itself.
            return None

        def again(snapshot: Snapshot) -> Rerendered:
            read = Read(snapshot, parts, NOTHING, max_stale)
            answer = self._function(read=read, **arguments)
            return read.finish_again(_document(answer, getattr(query, "fields", ())), again)

        return again


class WriteEndpoint(Endpoint):
    """Changes the push registry, which the view gets as `registry`; who may not is refused first.

    The view returns its answer and the index that it brought about.
    """

    def __call__(self, **path: str) -> Response:
        self._check_caller()
        return super().__call__(**path)

    def _answer(self, arguments: Mapping[str, Any], query: BaseModel) -> Response:
        body = {} if self.operation.body is None else {"document": parsing.document_of(request)}
        answer, index = self._change({**arguments, **body})
        response = self._respond(answer)
        response.headers[INDEX_HEADER] = str(index)
        response.headers["Cache-Control"] = "no-store"
        return response

    def _check_caller(self) -> None:
        backend().push_guard.check(request)

    def _change(self, arguments: Mapping[str, Any]) -> tuple[BaseModel | None, int]:
        with backend().push() as registry:
            changed: tuple[BaseModel | None, int] = self._function(registry=registry, **arguments)
            return changed


class RequestEndpoint(WriteEndpoint):
    """Asks the synchronizer for something, through the `store` that the view gets.

    Who may not push may not ask either, but push need not be among the registries.
    """

    def _check_caller(self) -> None:
        backend().push_guard.check_caller(request)

    def _change(self, arguments: Mapping[str, Any]) -> tuple[BaseModel | None, int]:
        with backend().store() as store:
            changed: tuple[BaseModel | None, int] = self._function(store=store, **arguments)
            return changed


def read(**described: Any) -> Callable[[View], ReadEndpoint]:
    """Makes a view an operation that reads the cache."""
    problems = (
        *described.pop("problems", ()),
        errors.TooStale,
        *_OF_EVERY_REQUEST,
        *_OF_THE_DATABASE,
        *_OF_WAITING,
    )
    query = described.pop("query", ReadQuery)
    operation = Operation(**described, query=query, problems=problems, conditional=True)
    return lambda function: ReadEndpoint(operation, function)


def write(**described: Any) -> Callable[[View], WriteEndpoint]:
    """Makes a view an operation that changes the push registry."""
    operation = _writing(described)
    return lambda function: WriteEndpoint(operation, function)


def command(**described: Any) -> Callable[[View], RequestEndpoint]:
    """Makes a view an operation that asks the synchronizer for something."""
    operation = _writing(described)
    return lambda function: RequestEndpoint(operation, function)


def _writing(described: dict[str, Any]) -> Operation:
    of_body = _OF_A_BODY if described.get("body") else ()
    problems = (
        *described.pop("problems", ()),
        *of_body,
        *_OF_THE_GUARD,
        *_OF_EVERY_REQUEST,
        *_OF_THE_DATABASE,
    )
    return Operation(**described, problems=problems, headers=(INDEX_HEADER,), needs_token=True)


def plain(**described: Any) -> Callable[[View], Endpoint]:
    """Makes a view an operation that needs neither."""
    problems = (*described.pop("problems", ()), *_OF_EVERY_REQUEST)
    operation = Operation(**described, problems=problems)
    return lambda function: Endpoint(operation, function)


_OF_ANY = (NoParameters, ReadQuery)
_OF_EVERY_REQUEST = (
    errors.BadParameter,
    errors.BadRequest,
    NotAcceptable,
    errors.PathTooLong,
    errors.HeadersTooLarge,
    errors.InternalError,
)
_OF_THE_DATABASE = (errors.DatabaseUnavailable, errors.WrongSchema)
_OF_WAITING = (errors.TooManyWatchers, CannotWait)
_OF_A_BODY = (errors.RequestTimeout, errors.BodyTooLarge, errors.WrongContentType, errors.InvalidBody)
_OF_THE_GUARD = (errors.TokenRequired, errors.PushDisabled, errors.ForeignCaller)


def _document(answer: BaseModel | bytes, fields: Collection[str]) -> bytes:
    if isinstance(answer, bytes):
        return answer
    return answer.model_dump_json(exclude_unset=True, include=_only(answer, fields)).encode()


def _only(answer: BaseModel, fields: Collection[str]) -> Any:
    """Of each item of a list these fields, as pydantic wants to be told."""
    if not fields:
        return None
    return {**dict.fromkeys(type(answer).model_fields, True), "items": {"__all__": set(fields)}}


def _refuse_to_wait(query: WaitQuery, index: int) -> None:
    """Raises CannotWait where the answer would have to be held: a server that can holds it by itself."""
    if query.index is not None and query.wait != 0 and index <= query.index:
        raise CannotWait(f"The index has not passed {query.index} yet. {CannotWait.advice}")


def _check_accept(media: Sequence[str]) -> None:
    accepted = request.accept_mimetypes
    if accepted and not accepted.best_match(media):
        offered = " or ".join(media)
        raise NotAcceptable(
            f"The answer comes as {offered}, which the header Accept ({accepted}) leaves out."
        )
