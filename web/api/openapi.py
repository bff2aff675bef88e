"""Makes the OpenAPI 3.1 document from the application's own operations."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, get_args

from apispec import APISpec
from flask import Blueprint, Flask, current_app
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.routing import Rule

from discovery import __version__
from web import problems
from web.api.endpoint import Endpoint, Operation, plain
from web.api.read import INDEX_HEADER
from web.problems import Problem
from web.schemas.freshness import CONTACT_HEADER, STALE_HEADER
from web.schemas.parsing import JSON
from web.schemas.requests import NoParameters
from web.schemas.responses import ProblemBody

bp = Blueprint("openapi", __name__)

_REF = "#/components/schemas/{model}"
_TAGS = {
    "modules": "Which modules are here, and are they well?",
    "manifests": "What does each of them offer?",
    "events": "What happened?",
    "push": "Registering over HTTP, without any other registry.",
    "health": "Is this Lictor well?",
    "meta": "What describes the rest.",
}
_HEADERS: dict[str, dict[str, Any]] = {
    "ETag": {
        "description": "Names this state of the answer: the index in quotes, or a manifest's digest. Sent "
        "back in `If-None-Match` it gets 304 as long as nothing changed.",
        "schema": {"type": "string"},
    },
    INDEX_HEADER: {
        "description": "The index that the answer is true for: that of the newest event.",
        "schema": {"type": "integer", "minimum": 0},
    },
    STALE_HEADER: {
        "description": "While registries that feed the answer are out of reach: which, and since when, as in "
        "`consul; since=2026-05-01T12:00:30.000Z`. The answer is what was last known.",
        "schema": {"type": "string"},
    },
    CONTACT_HEADER: {
        "description": "When what each source that feeds the answer says was last confirmed, as in "
        "`consul; at=2026-05-01T12:00:30.000Z`; `never` for one that told nothing yet. The push registry is "
        "Lictor's own, and not listed.",
        "schema": {"type": "string"},
    },
    "Vary": {
        "description": "`Accept-Encoding`: bodies come compressed (gzip) where that is accepted.",
        "schema": {"type": "string"},
    },
    "Cache-Control": {"description": "`no-cache`: ask again each time.", "schema": {"type": "string"}},
    "Retry-After": {"description": "After how many seconds to try again.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}},
}
_OF_READS = ("ETag", INDEX_HEADER, STALE_HEADER, CONTACT_HEADER, "Cache-Control", "Vary")
_OF_STATUS = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of answers that the client has.",
    "schema": {"type": "string"},
}


@bp.get("/openapi.json")
@plain(
    summary="This document",
    tag="meta",
    schema={"type": "object", "description": "OpenAPI 3.1."},
    answer_description="The document.",
)
def show_openapi() -> bytes:
    document: bytes = current_app.extensions["lictor.openapi"]
    return document


def install(app: Flask) -> None:
    """Makes the document of all operations that the application has by now."""
    app.extensions["lictor.openapi"] = json.dumps(document_of(app), indent=2).encode() + b"\n"


def document_of(app: Flask) -> dict[str, Any]:
    spec = APISpec(
        title="Lictor",
        version=__version__,
        openapi_version="3.1.0",
        info={
            "description": "Which modules are here, are they well, and what does each of them offer?",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    operations = list(_operations(app))
    for name, schema in _schemas([operation for _, _, operation in operations]).items():
        spec.components.schema(name, schema)
    for name, header in _HEADERS.items():
        spec.components.header(name, header)
    spec.components.security_scheme(
        "pushToken",
        {
            "type": "http",
            "scheme": "bearer",
            "description": "The content of the file LICTOR_PUSH_TOKEN_FILE; not needed without that.",
        },
    )
    for rule, method, operation in operations:
        described = _described(rule.endpoint, operation)
        spec.path(path=_template(rule.rule), operations={method: described})
    return spec.to_dict()


def _operations(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        view = app.view_functions[rule.endpoint]
        if isinstance(view, Endpoint):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule, method.lower(), view.operation


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    wanted: dict[type[BaseModel], JsonSchemaMode] = {ProblemBody: "serialization"}
    for operation in operations:
        if operation.body is not None:
            wanted[operation.body] = "validation"
        if operation.answer is not None:
            wanted[operation.answer] = "serialization"
    _, schemas = models_json_schema(list(wanted.items()), ref_template=_REF)
    found: dict[str, Any] = schemas["$defs"]
    return found


def _template(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def _described(endpoint: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": endpoint.replace(".", "_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_parameters(operation.path, "path"), *_parameters(operation.query, "query")],
        "responses": {str(operation.status): _answer(operation), **_problems(operation)},
    }
    if operation.description:
        described["description"] = operation.description
    described["parameters"] += [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in operation.request_headers.items()
    ]
    if operation.conditional:
        described["parameters"].append(_IF_NONE_MATCH)
        described["responses"]["304"] = {
            "description": "Nothing changed since the answer that `If-None-Match` names.",
            "headers": _headers(_OF_READS),
        }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(operation.body)}}}
    if operation.needs_token:
        described["security"] = [{"pushToken": []}, {}]
    return described


def _parameters(model: type[BaseModel], place: str) -> Iterator[dict[str, Any]]:
    """A parameter for each field of a model."""
    if model is NoParameters:
        return
    described = model.model_json_schema()
    for name, schema in described["properties"].items():
        parameter = {"name": name, "in": place, "required": name in described.get("required", ())}
        schema = {key: value for key, value in schema.items() if key != "title"}
        for key in ("description", "allowEmptyValue"):
            if key in schema:
                parameter[key] = schema.pop(key)
        # A parameter is absent, never null.
        choices = [choice for choice in schema.pop("anyOf", []) if choice != {"type": "null"}]
        for choice in choices:
            schema.update(choice)
        if schema.get("default") in (None, [], ""):
            schema.pop("default", None)
        yield {**parameter, "schema": schema}


def _answer(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.answer_description or operation.summary + "."}
    if operation.answer is not None:
        answer["content"] = {JSON: {"schema": _schema_of(operation, operation.answer)}}
    elif operation.schema is not None:
        answer["content"] = {JSON: {"schema": dict(operation.schema)}}
    for media in operation.media:
        if "content" in answer:
            answer["content"].setdefault(media, {"schema": {"type": "string"}})
    headers = (*operation.headers, *(_OF_READS if operation.conditional else ()))
    if headers:
        answer["headers"] = _headers(headers)
    return answer


def _schema_of(operation: Operation, answer: type[BaseModel]) -> dict[str, Any]:
    """The schema of an answer, of which less may be asked for."""
    if "fields" not in operation.query.model_fields:
        return _ref(answer)
    whole = _ref(answer)
    if "items" not in answer.model_fields:
        return {"anyOf": [whole, _part_of(answer)]}
    (item,) = get_args(answer.model_fields["items"].annotation)
    others = [name for name in answer.model_fields if name != "items"]
    part = _part_of(answer)
    part["properties"]["items"] = {"type": "array", "items": _part_of(item)}
    return {"anyOf": [whole, {**part, "required": ["items", *others]}]}


def _part_of(model: type[BaseModel]) -> dict[str, Any]:
    """A schema for some of a model's fields: what `fields` leaves."""
    properties = f"{_ref(model)['$ref']}/properties"
    return {
        "type": "object",
        "description": "With `fields`: only these.",
        "properties": {name: {"$ref": f"{properties}/{name}"} for name in model.model_fields},
        "additionalProperties": False,
    }


def _problems(operation: Operation) -> dict[str, Any]:
    kinds: dict[int, list[type[Problem]]] = defaultdict(list)
    for kind in operation.problems:
        kinds[kind.status].append(kind)
    return {str(status): _problem_answer(status, of_status) for status, of_status in sorted(kinds.items())}


def _problem_answer(status: int, kinds: list[type[Problem]]) -> dict[str, Any]:
    lines = [f"`/problems/{kind.slug}`: {kind.meaning}" for kind in kinds]
    answer: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}.\n\n" + "\n\n".join(lines),
        "content": {problems.MEDIA_TYPE: {"schema": _ref(ProblemBody)}},
    }
    if status in _OF_STATUS:
        answer["headers"] = _headers(_OF_STATUS[status])
    return answer


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
