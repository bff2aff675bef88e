"""What becomes of documents: good ones get one canonical form, bad ones every fault with its place."""

from __future__ import annotations

import hashlib
import json
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from manifest_cache.errors import Fault, ManifestInvalid
from manifest_cache.manifest import (
    manifest_from_object,
    manifest_json_schema,
    parse_manifest,
    version_key,
)
from manifest_cache.manifest.canonical_json import canonical_json

DOCS = Path(__file__).parents[2] / "docs"
GOOD: dict[str, Any] = {"name": "orders", "version": "1.4.2"}
FULL: dict[str, Any] = {
    **GOOD,
    "title": "Orders",
    "description": "Takes orders.\nAnd keeps them.",
    "base_path": "/orders",
    "routes": [
        {"path": "/", "methods": ["GET", "POST"], "permissions": ["orders.read"], "timeout": 5},
        "/health",
    ],
    "navigation": [
        {
            "title": "Orders",
            "path": "/orders",
            "icon": "cart",
            "order": 1.5,
            "children": [{"label": "Open", "href": "https://example.com/open"}],
        }
    ],
    "permissions": ["orders.read", {"name": "orders.write", "title": "Write orders"}],
    "requires": [{"name": "users", "version": "^2.0"}, {"id": "mail", "optional": True}, "ledger"],
    "provides": [{"name": "orders", "version": "1.2"}],
    "ui": {"entry": "/static/remoteEntry.js", "type": "module"},
    "links": [{"title": "Docs", "url": "https://example.com/docs", "rel": "documentation"}],
    "health_path": "/health",
    "x-team": {"name": "Red", "size": 3},
}


PARTS = ("routes", "navigation", "permissions", "requires", "provides", "links")


def faults_of(raw: bytes | str, **options: Any) -> tuple[Fault, ...]:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(raw, **options)
    return caught.value.faults


def only_fault_of(raw: bytes | str, **options: Any) -> Fault:
    (fault,) = faults_of(raw, **options)
    return fault


def with_fields(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


# Good manifests


def test_the_least_manifest_has_a_name_and_a_version() -> None:
    parsed = parse_manifest(b'{"version": "1.4.2", "name": "orders"}', module="orders")

    assert (parsed.name, parsed.version) == ("orders", "1.4.2")
    assert parsed.canonical == b'{"name":"orders","version":"1.4.2"}'
    assert parsed.digest == hashlib.sha256(parsed.canonical).hexdigest()
    assert parsed.manifest.routes is None


def test_every_known_field_is_typed_and_every_unknown_one_kept() -> None:
    parsed = parse_manifest(json.dumps(FULL))
    manifest = parsed.manifest

    assert manifest.routes is not None
    assert [route.path for route in manifest.routes] == ["/", "/health"]
    assert manifest.routes[0].model_extra == {"timeout": 5}
    assert manifest.navigation is not None
    assert manifest.navigation[0].order == 1.5
    assert manifest.navigation[0].children is not None
    assert manifest.navigation[0].children[0].title == "Open"
    assert manifest.permissions is not None
    assert [permission.name for permission in manifest.permissions] == ["orders.read", "orders.write"]
    assert manifest.requires is not None
    assert [required.name for required in manifest.requires] == ["users", "mail", "ledger"]
    assert manifest.ui is not None
    assert manifest.ui.entry == "/static/remoteEntry.js"
    assert manifest.links is not None
    assert manifest.links[0].url == "https://example.com/docs"
    assert manifest.model_extra == {"x-team": {"name": "Red", "size": 3}}


def test_the_canonical_form_is_what_the_module_said_and_nothing_of_ours() -> None:
    parsed = parse_manifest(json.dumps(FULL, indent=4))

    assert json.loads(parsed.canonical) == FULL
    assert parsed.canonical == rfc8785.dumps(FULL)


@pytest.mark.parametrize("field", sorted(set(FULL) - set(GOOD)))
def test_every_optional_field_may_be_null(field: str) -> None:
    parsed = parse_manifest(with_fields(**{field: None}))

    assert json.loads(parsed.canonical)[field] is None


def test_a_text_is_read_as_its_utf8_bytes_are() -> None:
    text = with_fields(title="Bestellungen für 🦊")

    assert parse_manifest(text) == parse_manifest(text.encode())


def test_a_manifest_within_another_document_is_the_same_manifest() -> None:
    assert manifest_from_object(FULL, module="orders") == parse_manifest(json.dumps(FULL))


# The canonical form

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = (
    st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(1e15, 1e25).map(float)
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
documents = st.dictionaries(texts.map(lambda key: f"x-{key}"), values, max_size=5).map(
    lambda x: {**x, **GOOD}
)


@given(documents)
@settings(deadline=None)
def test_the_canonical_form_is_that_of_rfc_8785(document: dict[str, Any]) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)


@given(documents)
@settings(deadline=None)
def test_the_canonical_form_is_its_own_canonical_form(document: dict[str, Any]) -> None:
    first = parse_manifest(rfc8785.dumps(document))

    assert parse_manifest(first.canonical) == first


@given(documents, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_keys_and_layout_do_not_matter(document: dict[str, Any], random: Any) -> None:
    keys = list(document)
    random.shuffle(keys)
    shuffled = {key: document[key] for key in keys}

    one = parse_manifest(json.dumps(shuffled, indent=random.choice([None, 1, 4])))
    other = parse_manifest(json.dumps(document, ensure_ascii=False))

    assert one.digest == other.digest


def test_keys_are_ordered_by_utf16_units_not_by_code_points() -> None:
    parsed = parse_manifest(with_fields(x={"\ue000": 1, "\U0001f98a": 2}))

    assert '{"\U0001f98a":2,"\ue000":1}'.encode() in parsed.canonical


@given(st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
@settings(deadline=None)
def test_any_bytes_are_refused_with_a_reason_and_never_break(raw: bytes) -> None:
    assert faults_of(raw)


@given(documents, st.data())
@settings(deadline=None)
def test_a_damaged_manifest_is_refused_with_a_reason_or_is_still_one(
    document: dict[str, Any], data: st.DataObject
) -> None:
    raw = json.dumps(document).encode()
    place = data.draw(st.integers(0, len(raw) - 1))
    damaged = raw[:place] + data.draw(st.binary(max_size=3)) + raw[place + 1 :]

    try:
        canonical = parse_manifest(damaged).canonical
    except ManifestInvalid:
        assert faults_of(damaged)
    else:
        assert parse_manifest(canonical).canonical == canonical


# Bad documents


@pytest.mark.parametrize(
    ("raw", "type", "path", "place", "message"),
    [
        pytest.param(b"", "not-json", "", (1, 1), "is empty", id="nothing"),
        pytest.param(b" \n ", "not-json", "", (2, 2), "is empty", id="white space"),
        pytest.param(b"<!doctype html><p>", "not-json", "", (1, 1), "is HTML", id="HTML"),
        pytest.param(b'{"name": "a",\n', "not-json", "", (2, 1), "ends too early", id="cut off"),
        pytest.param(b'{"name": "a', "not-json", "", (1, 10), "ends too early", id="cut off in a text"),
        pytest.param(b'{"a": 1} {}', "not-json", "", (1, 10), "follows after its end", id="two documents"),
        pytest.param(b'{"a": 1,\n}', "not-json", "", None, "is not JSON", id="comma too many"),
        pytest.param(b"\xef\xbb\xbf{}", "not-json", "", (1, 1), "byte order mark", id="BOM"),
        pytest.param('{"a": "b"}'.encode("utf-16"), "not-utf8", "", (1, 1), "is UTF-16", id="UTF-16"),
        pytest.param(b'{\n"a": "\xe9"}', "not-utf8", "", (2, 7), "byte 0xe9", id="Latin-1"),
        pytest.param(b"[]", "not-an-object", "", (1, 1), "not a list", id="a list"),
        pytest.param(b'"orders"', "not-an-object", "", (1, 1), 'not "orders"', id="a text"),
        pytest.param(b"null", "not-an-object", "", (1, 1), "not null", id="null"),
        pytest.param(b"7", "not-an-object", "", (1, 1), "not the number 7", id="a number"),
    ],
)
def test_what_cannot_be_read(
    raw: bytes, type: str, path: str, place: tuple[int, int] | None, message: str
) -> None:
    fault = only_fault_of(raw)

    assert (fault.type, fault.path) == (type, path)
    assert message in fault.message
    assert place is None or (fault.line, fault.column) == place


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have(literal: str) -> None:
    fault = only_fault_of(f'{{"name": "a", "version": "1.0.0",\n "x": [1, {literal}]}}')

    assert (fault.type, fault.path, fault.line, fault.column) == ("not-json", "/x/1", 2, 11)
    assert literal in fault.message


@pytest.mark.parametrize(
    "literal",
    ["9007199254740993", "-9007199254740993", "1" * 22, "9" * 5000, "1e400", "-1e400"],
    ids=["2^53+1", "-2^53-1", "22 digits", "5000 digits", "1e400", "-1e400"],
)
def test_a_number_that_no_double_holds(literal: str) -> None:
    fault = only_fault_of(f'{{"name": "a", "version": "1.0.0", "x": {literal}}}')

    assert (fault.type, fault.path, fault.column) == ("number-out-of-range", "/x", 40)
    assert len(fault.message) < 150


def test_a_large_number_that_a_double_holds_is_kept() -> None:
    parsed = parse_manifest('{"name": "a", "version": "1.0.0", "x": [100000000000000000000, 1e21, 1.0]}')

    assert parsed.canonical.endswith(b'"x":[100000000000000000000,1e+21,1]}')


def test_a_key_that_stands_twice() -> None:
    fault = only_fault_of('{"name": "a",\n "version": "1.0.0",\n "x": {"y": 1,\n "y": 2}}')

    assert (fault.type, fault.path, fault.line, fault.column) == ("duplicate-key", "/x/y", 4, 2)
    assert "first on line 3" in fault.message


def test_a_key_that_stands_three_times() -> None:
    faults = faults_of('{"name": "a", "version": "1.0.0",\n"x": 1,\n"x": 2,\n"x": 3}')

    assert [fault.line for fault in faults] == [3, 4]
    assert all("first on line 2" in fault.message for fault in faults)


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(r'"x": "\ud800"', id="value"),
        pytest.param(r'"\ud800": 1', id="key"),
        pytest.param(r'"x": "\ud800", "y": 0.5', id="beside a float"),
    ],
)
def test_half_of_a_surrogate_pair(member: str) -> None:
    fault = only_fault_of(f'{{"name": "a", "version": "1.0.0", {member}}}')

    assert fault.type == "lone-surrogate"
    # What is stored and shown must itself be text.
    assert str(fault).encode()


@pytest.mark.parametrize("depth", [65, 1_000, 10_000, 1_000_000])
@pytest.mark.parametrize("bracket", ["[]", '{"a":}'], ids=["lists", "objects"])
def test_nesting_has_a_limit(depth: int, bracket: str) -> None:
    opening, closing = bracket[:-1], bracket[-1]
    raw = opening * depth + "1" + closing * depth

    fault = only_fault_of(raw)

    assert fault.type == "too-deep"
    assert fault.column == len(opening) * 64 + 1


def test_nesting_that_never_closes_has_the_same_limit() -> None:
    assert only_fault_of(b"[" * 1_000_000).type == "too-deep"


def test_nesting_up_to_the_limit_is_good_and_brackets_in_texts_do_not_count() -> None:
    nested = "[" * 63 + "]" * 63
    text = r"\"[{\\" * 100

    assert parse_manifest(f'{{"name": "a", "version": "1.0.0", "x": {nested}, "y": "{text}"}}')


def test_a_document_within_another_has_the_same_limit() -> None:
    document: dict[str, Any] = dict(GOOD)
    inner = document
    for _ in range(100_000):
        inner["x"] = inner = {}

    with pytest.raises(ManifestInvalid) as caught:
        manifest_from_object(document)

    assert caught.value.type == "too-deep"
    # Taking it apart from outside spares the interpreter a recursion at its end.
    while document:
        document = document.pop("x", {})


# Bad manifests


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"name": 3}, "/name", "must be a string, not the number 3"),
        ({"name": ""}, "/name", "must not be empty"),
        ({"name": "a b"}, "/name", 'nor contain spaces or control characters, not "a b"'),
        ({"name": "a" * 256}, "/name", "must have at most 255 characters, not 256"),
        ({"version": "1.4"}, "/version", 'semantic version like 1.4.0 or 2.0.0-rc.1 (semver.org), not "1.4"'),
        ({"version": "v1.4.0"}, "/version", 'not "v1.4.0"'),
        ({"version": "1.4.0\n"}, "/version", r'not "1.4.0\n"'),
        ({"version": "1.04.0"}, "/version", "semantic version"),
        ({"version": "\u0661.\u0662.\u0663"}, "/version", "semantic version"),
        ({"version": ""}, "/version", "semantic version"),
        ({"version": 1.4}, "/version", "must be a string, not the number 1.4"),
        ({"version": "9" * 5000 + ".0.0"}, "/version", "must have at most 255 characters"),
        ({"title": "a\x1b[2Jb"}, "/title", r"must be one line without control characters, not "),
        ({"description": "a\x00b"}, "/description", "must not contain control characters"),
        ({"base_path": "orders"}, "/base_path", 'must be a path that begins with "/"'),
        ({"health_path": ["/a"]}, "/health_path", "must be a string, not a list"),
        ({"routes": {"a": 1}}, "/routes", "must be a list, not an object"),
        ({"routes": [{"path": "/"}, {}]}, "/routes/1/path", "is missing"),
        ({"routes": [{"path": "/", "methods": ["GET", 1]}]}, "/routes/0/methods/1", "must be a string"),
        ({"routes": ["/"] * 1001}, "/routes", "must have at most 1000 entries, not 1001"),
        ({"navigation": [{"path": "/"}]}, "/navigation/0/title", "is missing"),
        ({"navigation": [{"title": "a", "order": "1"}]}, "/navigation/0/order", 'must be a number, not "1"'),
        (
            {"navigation": [{"label": "a", "children": [{"label": 1}]}]},
            "/navigation/0/children/0/label",
            "must be a string",
        ),
        ({"permissions": [{"title": "a"}]}, "/permissions/0/name", "is missing"),
        ({"requires": [{"id": True}]}, "/requires/0/id", "must be a string, not true"),
        ({"requires": [{"name": "a", "optional": 1}]}, "/requires/0/optional", "must be true or false"),
        ({"ui": 3}, "/ui", "must be an object, not the number 3"),
        ({"links": [{"url": ""}]}, "/links/0/url", "must not be empty"),
        ({"links": [" JavaScript:alert(1)"]}, "/links/0/url", "must be an address to go to"),
        ({"navigation": [{"title": "a", "href": "data:text/html,x"}]}, "/navigation/0/href", "address to go"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
def test_a_field_of_the_wrong_kind(fields: dict[str, Any], path: str, message: str) -> None:
    fault = only_fault_of(with_fields(**fields))

    assert (fault.type, fault.path) == ("invalid", path)
    assert message in fault.message


@pytest.mark.parametrize("field", ["name", "version"])
def test_what_every_manifest_must_have(field: str) -> None:
    document = {key: value for key, value in GOOD.items() if key != field}

    fault = only_fault_of("\n  " + json.dumps(document))

    assert str(fault) == f"line 2, column 3: /{field}: is missing"


def test_a_manifest_of_another_module() -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(with_fields(), module="financial")

    assert caught.value.type == "wrong-module"
    assert caught.value.faults[0].path == "/name"
    assert 'must be "financial"' in caught.value.detail
    assert 'not "orders"' in caught.value.detail


def test_all_faults_are_told_together_in_the_order_of_the_text() -> None:
    raw = """{
  "version": "1",
  "routes": [{"path": 1}, {"path": 2}],
  "x": NaN,
  "x": 12345678901234567890,
  "name": "orders"
}"""

    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(raw, module="financial", source="manifest.json")

    error = caught.value
    assert [(fault.type, fault.path, fault.line) for fault in error.faults] == [
        ("invalid", "/version", 2),
        ("invalid", "/routes/0/path", 3),
        ("invalid", "/routes/1/path", 3),
        ("not-json", "/x", 4),
        ("duplicate-key", "/x", 5),
        ("number-out-of-range", "/x", 5),
        ("wrong-module", "/name", 6),
    ]
    assert error.type == "not-json"
    assert error.detail.startswith("manifest.json: line 2, column 14: /version: must be")
    assert error.detail.endswith("; and 4 more")
    assert str(error) == error.detail


def test_faults_within_another_document_have_no_place() -> None:
    with pytest.raises(ManifestInvalid) as caught:
        manifest_from_object({"name": "orders", "x": float("nan")})

    assert [str(fault) for fault in caught.value.faults] == [
        "/version: is missing",
        "/x: NaN is not JSON: leave the field out, or say null",
    ]


@pytest.mark.parametrize(
    "raw",
    [
        '{"name": 1, "x": [' + "[]," * 340_000 + "[]]}",
        '{"name": 1, "x": [' + "NaN," * 250_000 + "1]}",
        '{"name": "a", "version": "1.0.0", "navigation": [' + '{"title": 1},' * 999 + "{}]}",
        '{"name": "a", "version": "1.0.0", "navigation": [{"title": "a", "children": ['
        + "{}," * 340_000
        + "{}]}]}",
        '{"name": "a", "version": "1.0.0", "' + "k" * 500_000 + '": [' + "NaN," * 100_000 + "1]}",
        '{"name": 1, ' + '"k":1,' * 170_000 + '"k":1}',
        json.dumps({part: [{"title": 1, "description": 1} for _ in range(1000)] for part in PARTS})
        + " " * 700_000,
    ],
    ids=[
        "many values",
        "many faults",
        "many wrong entries",
        "many wrong children",
        "long key",
        "one key many times",
        "many wrong parts",
    ],
)
def test_a_mebibyte_of_faults_takes_bounded_time_and_makes_a_short_report(raw: str) -> None:
    used = time.thread_time()

    faults = faults_of(raw)

    assert time.thread_time() - used < 15
    assert 0 < len(faults) <= 100
    assert all(len(str(fault)) < 400 for fault in faults)


# Versions


def test_versions_are_ordered_by_semantic_precedence() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.2", "1.0.0-alpha.10", "1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0"]

    assert sorted(set(ordered), key=version_key) == ordered
    assert version_key("1.0.0+one") == version_key("1.0.0+two")


# The schema


def test_the_published_schema_is_current() -> None:
    command = [sys.executable, "-m", "manifest_cache.manifest"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=DOCS.parent).stdout

    assert json.loads(printed) == manifest_json_schema()
    assert (DOCS / "manifest.schema.json").read_text(encoding="utf-8") == printed, (
        "docs/manifest.schema.json is not that of the model; "
        "run: python -m manifest_cache.manifest > docs/manifest.schema.json"
    )


def test_the_schema_says_what_it_is() -> None:
    schema = manifest_json_schema()

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:lictor:manifest:1"
    assert schema["required"] == ["name", "version"]


def test_every_field_of_the_schema_is_documented() -> None:
    page = (DOCS / "manifest.md").read_text(encoding="utf-8")
    schema = manifest_json_schema()
    parts = [schema, *schema["$defs"].values()]

    undocumented = [name for part in parts for name in part["properties"] if f"`{name}`" not in page]

    assert undocumented == []


def test_the_example_in_the_docs_is_a_good_manifest() -> None:
    page = (DOCS / "manifest.md").read_text(encoding="utf-8")
    example = page.split("```json\n")[1].split("```")[0]

    parsed = parse_manifest(example, module="financial")

    assert set(type(parsed.manifest).model_fields) == set(json.loads(example))
