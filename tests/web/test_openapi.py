"""The document of the API: made from the operations, valid, whole, and true to what is answered."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from manifest_cache.manifest import manifest_json_schema
from tests.web.filling import Cache, instance, told


@pytest.fixture
def document(client: FlaskClient) -> Any:
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    return told(answer)


def test_it_is_valid(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_it_tells_of_every_route_and_of_no_other(client: FlaskClient, document: Any) -> None:
    app: Flask = client.application
    routes = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/api/") or rule.rule in ("/healthz", "/readyz", "/openapi.json")
    }
    assert {(path, method) for path, item in document["paths"].items() for method in item} == routes


def test_every_read_may_wait_and_nothing_else(document: Any) -> None:
    for item in document["paths"].values():
        for method, operation in item.items():
            parameters = {parameter["name"] for parameter in operation["parameters"]}
            reads = method == "get" and "X-Lictor-Index" in operation["responses"]["200"].get("headers", {})
            assert ({"index", "wait"} <= parameters) == reads
    assert set(document["paths"]["/api/v1/events"]["get"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }


def test_every_parameter_and_field_is_described(document: Any) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            for parameter in operation["parameters"]:
                assert parameter.get("description"), (path, parameter["name"])
            assert operation["summary"]
    for name in ("Registration", "Beat"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description"), (name, field)


def validate(document: Any, path: str, method: str, status: int, body: Any) -> None:
    """Raises where an answer is not as the document says."""
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:api", resource)
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    (schema,) = (media["schema"] for name, media in content.items() if name != "text/event-stream")
    # The first one is the whole answer, the others are what is left of it by `fields`.
    schema = schema.get("anyOf", [schema])[0]
    reference = {"$ref": f"urn:api{schema['$ref']}"} if "$ref" in schema else schema
    Draft202012Validator(reference, registry=registry).validate(body)


def test_answers_are_as_it_says(cache: Cache, client: FlaskClient, document: Any) -> None:
    cache.module("financial")
    cache.announce(instance("mailer"))
    cache.refuse("mailer")
    cache.lose()
    asked = [
        ("/api/v1/modules", "/api/v1/modules?limit=1&include=manifest,instances"),
        ("/api/v1/modules", "/api/v1/modules?limit=0"),
        ("/api/v1/modules/{name}", "/api/v1/modules/mailer?include=manifest"),
        ("/api/v1/modules/{name}", "/api/v1/modules/mailr"),
        ("/api/v1/modules/{name}/manifest", "/api/v1/modules/financial/manifest"),
        ("/api/v1/modules/{name}/manifest", "/api/v1/modules/mailer/manifest"),
        ("/api/v1/modules/{name}/manifests", "/api/v1/modules/financial/manifests"),
        ("/api/v1/modules/{name}/manifests/{digest}", f"/api/v1/modules/financial/manifests/{'0' * 64}"),
        ("/api/v1/modules/{name}/instances", "/api/v1/modules/mailer/instances?passing"),
        ("/api/v1/events", "/api/v1/events"),
        ("/api/v1/schemas/manifest", "/api/v1/schemas/manifest"),
        ("/healthz", "/healthz"),
        ("/readyz", "/readyz"),
    ]
    for path, url in asked:
        answer = client.get(url)
        described = document["paths"][path]["get"]["responses"][str(answer.status_code)]
        assert answer.content_type in described["content"]
        validate(document, path, "get", answer.status_code, told(answer))
        if answer.status_code == 200 and path.startswith("/api/v1/modules"):
            assert {"ETag", "X-Lictor-Index", "X-Lictor-Stale", "Cache-Control"} <= set(described["headers"])


def test_answers_to_writes_are_as_it_says(client: FlaskClient, document: Any) -> None:
    registered = client.post("/api/v1/modules/register", json={"name": "w", "id": "w", "port": 1})
    validate(document, "/api/v1/modules/register", "post", 201, told(registered))
    refused = client.post("/api/v1/modules/register", json={})
    validate(document, "/api/v1/modules/register", "post", 422, told(refused))
    beat = client.post("/api/v1/modules/w/heartbeat", json={"id": "w"})
    validate(document, "/api/v1/modules/{name}/heartbeat", "post", 200, told(beat))
    responses = document["paths"]["/api/v1/modules/register"]["post"]["responses"]
    assert set(responses) == {
        "201",
        "400",
        "401",
        "403",
        "406",
        "408",
        "413",
        "414",
        "415",
        "422",
        "431",
        "500",
        "503",
    }
    assert (
        "content"
        not in document["paths"]["/api/v1/modules/{name}/instances/{id}"]["delete"]["responses"]["204"]
    )


def test_the_schema_of_a_manifest(client: FlaskClient) -> None:
    answer = client.get("/api/v1/schemas/manifest")
    assert told(answer) == manifest_json_schema()
    Draft202012Validator.check_schema(told(answer))
