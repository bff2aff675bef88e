"""Parses and validates a manifest; gives its canonical bytes and digest.

Run as `python -m manifest_cache.manifest`, the package prints the manifest's JSON Schema.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import semver
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from discovery.text import quoted
from manifest_cache.errors import Fault, ManifestInvalid
from manifest_cache.manifest import strict_json
from manifest_cache.manifest.canonical_json import canonical_json

SCHEMA_ID = "urn:lictor:manifest:1"
LONGEST_LIST = 1_000
LONGEST_NAME = 255

# The expression that semver.org itself suggests.
SEMANTIC_VERSION = (
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$"
)
# Titles end up in terminals, names in URLs, all of it in databases that may not take a NUL.
_NAME = r"^[^\s\x00-\x1f\x7f]+$"
_LINE = r"^[^\x00-\x1f\x7f]*$"
_TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
_PATH = r"^/[^\s\\\x00-\x1f\x7f]*$"
_IN_WORDS = {
    _NAME: "must not be empty, nor contain spaces or control characters",
    _LINE: "must be one line without control characters",
    _TEXT: "must not contain control characters other than tabs and line breaks",
    _PATH: 'must be a path that begins with "/" and has no spaces or backslashes',
}


def _semantic(version: str) -> str:
    if not (version.isascii() and version.isprintable() and semver.Version.is_valid(version)):
        raise PydanticCustomError(
            "semantic_version",
            "must be a semantic version like 1.4.0 or 2.0.0-rc.1 (semver.org), not {said}",
            {"said": quoted(version)},
        )
    return version


def _harmless(reference: str) -> str:
    # These run as a program in the page that offers the link.
    if reference.strip().lower().startswith(("javascript:", "data:", "vbscript:")):
        raise PydanticCustomError(
            "harmful_reference",
            "must be an address to go to (https://…, mailto:…, a path), not {said}",
            {"said": quoted(reference)},
        )
    return reference


Name = Annotated[str, Field(max_length=LONGEST_NAME, pattern=_NAME)]
Line = Annotated[str, Field(pattern=_LINE)]
Text = Annotated[str, Field(pattern=_TEXT)]
UrlPath = Annotated[str, Field(pattern=_PATH)]
Reference = Annotated[str, Field(min_length=1, pattern=_LINE), AfterValidator(_harmless)]
Version = Annotated[
    str,
    Field(max_length=LONGEST_NAME, json_schema_extra={"pattern": SEMANTIC_VERSION}),
    AfterValidator(_semantic),
]

Item = TypeVar("Item")
Several = Annotated[list[Item], Field(max_length=LONGEST_LIST)]
# A list within a list stops at its first fault: faults would otherwise multiply without bound.
Nested = Annotated[list[Item], Field(max_length=LONGEST_LIST, fail_fast=True)]


class _Said(BaseModel):
    """A part of a manifest: typed where the name is known, kept as it is where not."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


def _either(schema: dict[str, Any]) -> None:
    """Lets the JSON Schema accept the second name of a required field as the validator does."""
    (first,) = schema.pop("required")
    second = {"title": "label", "name": "id", "url": "href"}[first]
    schema["properties"][second] = {**schema["properties"][first], "description": f"The same as `{first}`."}
    schema["anyOf"] = [{"required": [first]}, {"required": [second]}]


class Route(_Said):
    """A path that the module answers under its base path."""

    model_config = ConfigDict(title="Route")

    path: Annotated[Line, Field(min_length=1, description="Below `base_path`; may hold `{parameters}`.")]
    methods: Nested[Name] | None = Field(None, description="HTTP methods; any where this is missing.")
    permissions: Nested[Name] | None = Field(None, description="Names of permissions that a caller needs.")
    title: Line | None = None
    description: Text | None = None


class NavigationItem(_Said):
    """An entry for an application's menu."""

    model_config = ConfigDict(title="Navigation item", json_schema_extra=_either)

    title: Line = Field(validation_alias=AliasChoices("title", "label"))
    path: Line | None = Field(None, description="Where it leads within the application.")
    href: Reference | None = Field(None, description="Where it leads outside of the application.")
    icon: Line | None = None
    order: float | None = Field(None, description="Entries with lower numbers come first.")
    permissions: Nested[Name] | None = Field(None, description="Names of permissions to be shown the entry.")
    children: Nested[NavigationItem] | None = None


class Permission(_Said):
    """A right that the module knows and an application may grant."""

    model_config = ConfigDict(title="Permission")

    name: Name
    title: Line | None = None
    description: Text | None = None


class Requirement(_Said):
    """An interface or module without which this one does not work."""

    model_config = ConfigDict(title="Requirement", json_schema_extra=_either)

    name: Name = Field(validation_alias=AliasChoices("name", "id"))
    version: Line | None = Field(None, description="A version or a range such as `>=1.2 <2`.")
    optional: bool | None = Field(None, description="True if the module works without it.")


class Provision(_Said):
    """An interface that the module offers to others."""

    model_config = ConfigDict(title="Provision", json_schema_extra=_either)

    name: Name = Field(validation_alias=AliasChoices("name", "id"))
    version: Line | None = Field(None, description="The interface's version, not the module's.")
    description: Text | None = None


class UserInterface(_Said):
    """How an application loads the module's part of its user interface."""

    model_config = ConfigDict(title="User interface")

    entry: Reference | None = Field(None, description="The script to load: a remote entry or an ES module.")
    type: Line | None = Field(None, description="What `entry` is, such as `module`, `var` or `system`.")
    integrity: Line | None = Field(None, description="Subresource integrity of `entry`.")


class Link(_Said):
    """Somewhere to go from the module: its documentation, source, dashboard, runbook."""

    model_config = ConfigDict(title="Link", json_schema_extra=_either)

    url: Reference = Field(validation_alias=AliasChoices("url", "href"))
    title: Line | None = None
    rel: Line | None = Field(None, description="A link relation such as `documentation` or `help`.")
    icon: Line | None = None
    type: Line | None = None


def _named(field: str) -> BeforeValidator:
    """Takes a bare string for an object that has only the field that identifies it."""

    def spelled_out(said: Any) -> Any:
        return {field: said} if isinstance(said, str) else said

    return BeforeValidator(spelled_out)


class Manifest(_Said):
    """What a module says of itself. Only `name` and `version` must be there; unknown fields are kept."""

    model_config = ConfigDict(title="Module manifest")

    name: Name = Field(description="The module's name, as it is registered.")
    version: Version = Field(description="The module's semantic version.")
    title: Line | None = Field(None, description="The name for people.")
    description: Text | None = None
    base_path: UrlPath | None = Field(None, description="The path below which the module serves.")
    routes: Several[Annotated[Route, _named("path")]] | None = None
    navigation: Several[NavigationItem] | None = None
    permissions: Several[Annotated[Permission, _named("name")]] | None = None
    requires: Several[Annotated[Requirement, _named("name")]] | None = None
    provides: Several[Annotated[Provision, _named("name")]] | None = None
    ui: Annotated[UserInterface, _named("entry")] | None = None
    links: Several[Annotated[Link, _named("url")]] | None = None
    health_path: UrlPath | None = Field(None, description="The path that answers whether the module is well.")


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """A good manifest, as the canonical bytes of just what the module said."""

    name: str
    version: str
    canonical: bytes
    digest: str

    @property
    def manifest(self) -> Manifest:
        """The same, typed; made again at each call, as it takes twenty times the room of the bytes."""
        return Manifest.model_validate(strict_json.load(self.canonical))


class _WrongModule(Exception):
    pass


def parse_manifest(
    raw: bytes | str, *, module: str | None = None, source: str | None = None
) -> ParsedManifest:
    """Checks a document strictly; raises `ManifestInvalid` with every fault and its place.

    `module` is the name that the manifest must bear; `source`, where the document came from, heads
    the error's detail.
    """
    document = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    try:
        value = strict_json.load(document)
        canonical = canonical_json(value)
        manifest = _checked(value, module)
    except (strict_json.NotStrict, UnicodeEncodeError, ValidationError, _WrongModule):
        raise ManifestInvalid(_all_faults(document, module), source=source) from None
    return ParsedManifest(manifest.name, manifest.version, canonical, hashlib.sha256(canonical).hexdigest())


def manifest_from_object(value: Mapping[str, Any], *, module: str | None = None) -> ParsedManifest:
    """Checks a manifest that arrived within another JSON document; its faults have no line or column."""
    try:
        text = json.dumps(dict(value))
    except RecursionError:
        message = f"the document is nested deeper than {strict_json.MAX_DEPTH} levels"
        raise ManifestInvalid([Fault("too-deep", "", message)]) from None
    except ValueError as error:
        # A whole number that is too long even to be written down.
        raise ManifestInvalid([Fault("number-out-of-range", "", str(error))]) from None
    try:
        return parse_manifest(text, module=module)
    except ManifestInvalid as error:
        placeless = [replace(fault, line=None, column=None) for fault in error.faults]
        raise ManifestInvalid(placeless) from None


def _checked(value: Any, module: str | None) -> Manifest:
    manifest = Manifest.model_validate(value)
    if module is not None and manifest.name != module:
        raise _WrongModule
    return manifest


def _all_faults(raw: bytes, module: str | None) -> list[Fault]:
    """What is wrong with a refused document, in the order of its text."""
    try:
        document = strict_json.examine(raw)
    except ManifestInvalid as error:
        return list(error.faults)
    faults = [*document.faults]
    seen = {fault.path for fault in faults}
    for fault in _schema_faults(document, module):
        if len(faults) >= strict_json.MAX_FAULTS:
            break
        # What is no JSON at all need not also be of the wrong type.
        if fault.path not in seen:
            faults.append(fault)
    return sorted(faults, key=lambda fault: (fault.line or 0, fault.column or 0))


def _schema_faults(document: strict_json.Examined, module: str | None) -> Iterator[Fault]:
    value = document.value
    if not isinstance(value, dict):
        yield document.fault("not-an-object", (), f"the document must be a JSON object, not {_said(value)}")
        return
    try:
        Manifest.model_validate(value)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            yield document.fault("invalid", details["loc"], _message(details))
    name = value.get("name")
    if module is not None and isinstance(name, str) and name != module:
        message = f"must be {quoted(module)}, the name of the module that serves it, not {quoted(name)}"
        yield document.fault("wrong-module", ("name",), message)


_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "float_type": "a number",
    "list_type": "a list",
    "model_type": "an object",
}


def _message(details: ErrorDetails) -> str:
    """Pydantic's finding, said as advice."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {_said(details['input'])}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"{_IN_WORDS[context['pattern']]}, not {_said(details['input'])}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, not {len(details['input'])}"
    if kind == "too_long":
        return f"must have at most {context['max_length']} entries, not {len(details['input'])}"
    return details["msg"]


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"the number {value}"


@functools.lru_cache(maxsize=4096)
def version_key(version: str) -> semver.Version:
    """Sorts semantic versions by precedence; those that differ in build metadata alone are equal."""
    return semver.Version.parse(version)


def manifest_json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a manifest, the same at every call."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **Manifest.model_json_schema(mode="validation"),
    }
