"""Checks queries and bodies against pydantic models, and reports every fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, TypeVar, get_args, get_origin

from flask import Request
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge

from discovery.text import shortened
from manifest_cache.errors import ManifestInvalid
from manifest_cache.manifest import strict_json
from web.problems import BadParameter, InvalidBody, Problem, WrongContentType

JSON = "application/json"
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}

Model = TypeVar("Model", bound=BaseModel)
Fault = tuple[str, str]


def _whole(value: object) -> object:
    """Digits only: Python would take ` 1_0 ` for a number, and others would not."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"-?[0-9]{1,30}", value):
        raise PydanticCustomError("int_parsing", "must be a whole number")
    return int(value)


def _flag(value: object) -> object:
    return _FLAGS.get(value.lower(), value) if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number in a query."""

Flag = Annotated[bool, BeforeValidator(_flag)]
"""True where the parameter stands bare, as in Consul's `?passing`."""


def path_of(model: type[Model], values: Mapping[str, str]) -> Model:
    """Raises BadParameter."""
    try:
        return model.model_validate(values, strict=True)
    except ValidationError as exc:
        raise BadParameter.of(_faults(model, exc)) from exc


def query_of(model: type[Model], sent: MultiDict[str, str]) -> Model:
    """Raises BadParameter with every fault. Lists may be repeated or separated by commas."""
    faults = [
        (shortened(name)[1:-1], _unknown_parameter(model)) for name in sent if name not in model.model_fields
    ]
    given: dict[str, Any] = {}
    for name in (name for name in model.model_fields if name in sent):
        values = sent.getlist(name)
        if _is_list(model.model_fields[name]):
            given[name] = [part.strip(" ") for value in values for part in value.split(",")]
        elif len(values) > 1:
            faults.append((name, f"is given {len(values)} times, but only once allowed"))
        else:
            given[name] = values[0]
    try:
        query = model.model_validate(given)
    except ValidationError as exc:
        # Of a list, its name: which of the items is faulty the message shows.
        faults += [(name.partition(".")[0], message) for name, message in _faults(model, exc)]
    if faults:
        raise BadParameter.of(faults)
    return query


def document_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request bears. Raises WrongContentType or InvalidBody."""
    if request.mimetype != JSON:
        said = f"not as {shortened(request.mimetype)}" if request.mimetype else "but comes without a type"
        raise WrongContentType(f"The body must be declared as {JSON}, {said}.")
    raw = request.get_data(cache=False)
    # What comes in chunks, without a length, is cut off at the limit without a word.
    if request.content_length is None and len(raw) == request.max_content_length:
        raise RequestEntityTooLarge
    value = _strictly_read(raw)
    if not isinstance(value, dict):
        raise InvalidBody.of([("", "must be a JSON object")])
    return value


def body_of(model: type[Model], document: Mapping[str, Any]) -> tuple[Model | None, list[Fault]]:
    """The model, or None and every fault; whoever knows of more faults adds them."""
    try:
        return model.model_validate(document), []
    except ValidationError as exc:
        return None, _faults(model, exc)


def _strictly_read(raw: bytes) -> Any:
    try:
        value = strict_json.load(raw)
        if rb"\ud" not in raw.lower():
            return value
        json.dumps(value, ensure_ascii=False).encode()
    except (strict_json.NotStrict, UnicodeEncodeError):
        raise _unreadable(raw) from None
    return value


def _unreadable(raw: bytes) -> Problem:
    try:
        faults: Sequence[Any] = strict_json.examine(raw).faults
    except ManifestInvalid as exc:
        faults = exc.faults
    return InvalidBody.of(
        [(dotted(fault.path), _placed(fault.message, fault.line, fault.column)) for fault in faults]
    )


def _placed(message: str, line: int | None, column: int | None) -> str:
    return f"{message} (line {line}, column {column})" if line is not None else message


def dotted(pointer: str) -> str:
    """A JSON pointer as the name of a field: `/tags/0` becomes `tags.0`."""
    return pointer.removeprefix("/").replace("/", ".")


def _is_list(field: FieldInfo) -> bool:
    kinds = [field.annotation, *get_args(field.annotation)]
    return any(get_origin(kind) is list for kind in kinds)


def _unknown_parameter(model: type[BaseModel]) -> str:
    if not model.model_fields:
        return "is not known; there are no parameters here"
    return f"is not known; allowed here: {', '.join(model.model_fields)}"


def _faults(model: type[BaseModel], error: ValidationError) -> list[Fault]:
    return list(islice(_each_fault(model, error), strict_json.MAX_FAULTS))


def _each_fault(model: type[BaseModel], error: ValidationError) -> Iterator[Fault]:
    for details in error.errors(include_url=False):
        name = ".".join(str(part) for part in details["loc"])
        yield shortened(name)[1:-1], _message(model, details)


def _message(model: type[BaseModel], details: ErrorDetails) -> str:
    """Pydantic's finding, said as advice that names what is allowed."""
    kind, context, said = details["type"], details.get("ctx", {}), _said(details["input"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"is not known; allowed here: {', '.join(model.model_fields)}"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')} (got {said})"
    if kind in _NUMBERS:
        return f"must be {_number(model, details)} (got {said})"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]} (got {said})"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return f"must have at most {context['max_length']} {unit}, not {len(details['input'])}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"holds characters that are not allowed (got {said})"
    return details["msg"].removeprefix("Value error, ")


_NUMBERS = {
    "int_type",
    "int_parsing",
    "int_parsing_size",
    "int_from_float",
    "greater_than_equal",
    "less_than_equal",
}
_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "bare, true or false",
    "list_type": "a list",
    "dict_type": "an object",
}


def _number(model: type[BaseModel], details: ErrorDetails) -> str:
    """The whole numbers that a field takes, in words."""
    limits = model.model_fields[str(details["loc"][0])].metadata
    least = next(limit.ge for limit in limits if hasattr(limit, "ge"))
    most = next(limit.le for limit in limits if hasattr(limit, "le"))
    return f"a whole number from {least} to {most}"


def _said(value: object) -> str:
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return shortened(json.dumps(value))[1:-1]
