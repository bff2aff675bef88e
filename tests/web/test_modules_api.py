"""Reading modules, instances and manifests: what the cache holds goes in, shapes and headers come out."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, get_args

import pytest
from flask.testing import FlaskClient
from pydantic import BaseModel

from discovery.base import Health
from tests.web.filling import Cache, instance, told
from web.schemas import requests, responses

API = "/api/v1"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def get(client: FlaskClient, path: str, **headers: str) -> Any:
    answer = client.get(API + path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/json"
    return told(answer)


def names(answer: Any) -> list[str]:
    return [item["name"] for item in answer["items"]]


def test_an_empty_cache_is_an_empty_list(client: FlaskClient) -> None:
    assert get(client, "/modules") == {"items": [], "next": None, "index": 0}


def test_a_module_has_the_shape_of_the_design(cache: Cache, client: FlaskClient) -> None:
    index = cache.module("financial", Health.PASSING, Health.CRITICAL, title="Financial planning")
    answer = get(client, "/modules")
    (module,) = answer["items"]
    assert answer["index"] == index
    assert set(module) == {
        *("name", "title", "status", "version", "digest", "instance_counts", "tags"),
        *("datacenters", "registries", "first_seen", "last_changed", "versions", "drifting"),
    }
    assert (module["name"], module["title"], module["status"]) == (
        "financial",
        "Financial planning",
        "degraded",
    )
    counts = {"total": 2, "passing": 1, "warning": 0, "critical": 1, "maintenance": 0}
    assert module["instance_counts"] == counts
    assert (module["datacenters"], module["registries"]) == (["dc1"], ["consul"])
    assert MOMENT.fullmatch(module["first_seen"])
    assert MOMENT.fullmatch(module["last_changed"])


def test_instances_that_are_gone_are_tombstones(cache: Cache, client: FlaskClient) -> None:
    cache.announce(*(instance("financial", number) for number in (1, 2, 3)))
    cache.serve("financial", version="1.0.0")
    index = cache.remove(*(instance("financial", number) for number in (1, 2, 3)))
    answer = get(client, "/modules/financial/tombstones?limit=2")
    assert answer["index"] == index
    assert [item["id"] for item in answer["items"]] == ["financial-3", "financial-2"]
    (shape,) = get(client, f"/modules/financial/tombstones?limit=2&cursor={answer['next']}")["items"]
    assert MOMENT.fullmatch(shape.pop("first_seen"))
    assert MOMENT.fullmatch(shape.pop("gone_at"))
    assert len(shape.pop("digest")) == 64
    assert shape == {
        "id": "financial-1",
        "module": "financial",
        "address": "10.0.0.1",
        "port": 8000,
        "scheme": "http",
        "node": "node-a",
        "datacenter": "dc1",
        "tags": [],
        "meta": {},
        "health": "passing",
        "registry": "consul",
        "version": "1.0.0",
    }
    assert client.get(f"{API}/modules/finacial/tombstones").status_code == 404


def test_one_module_comes_with_its_instances(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("financial", tags=("module", "finance"), meta={"version": "1.0.0"}))
    cache.serve("financial", version="1.0.0")
    module = get(client, "/modules/financial")
    assert "manifest" not in module
    (shape,) = module["instances"]
    assert MOMENT.fullmatch(shape.pop("first_seen"))
    assert MOMENT.fullmatch(shape.pop("last_seen"))
    assert MOMENT.fullmatch(shape.pop("last_changed"))
    assert shape == {
        "id": "financial-1",
        "module": "financial",
        "address": "10.0.0.1",
        "port": 8000,
        "scheme": "http",
        "node": "node-a",
        "datacenter": "dc1",
        "tags": ["module", "finance"],
        "meta": {"version": "1.0.0"},
        "health": "passing",
        "registry": "consul",
        "version": "1.0.0",
        "digest": module["digest"],
        "manifest_error": None,
    }


def test_a_manifest_that_was_not_taken_says_why_and_when_it_is_tried_again(
    cache: Cache, client: FlaskClient
) -> None:
    cache.announce(instance("financial"))
    cache.refuse("financial", "answered 404")
    (shape,) = get(client, "/modules/financial")["instances"]
    error = shape["manifest_error"]
    assert error["type"] == "http-status"
    assert "answered 404" in error["detail"]
    assert MOMENT.fullmatch(error["at"])
    assert MOMENT.fullmatch(error["retry_at"])


def test_the_manifest_is_canonical_and_its_etag_is_its_digest(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("financial"))
    cache.serve("financial", version="1.0.0", title="Budgets — Übersicht", base_path="/f")
    answer = client.get(f"{API}/modules/financial/manifest")
    expected = '{"base_path":"/f","name":"financial","title":"Budgets — Übersicht","version":"1.0.0"}'
    assert answer.data == expected.encode()
    assert answer.content_type == "application/json"
    digest = hashlib.sha256(answer.data).hexdigest()
    assert answer.headers["ETag"] == f'"{digest}"'
    assert get(client, "/modules/financial")["digest"] == digest


def test_include_embeds_what_is_asked_for_and_nothing_else(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial", title="Budgets")
    cache.module("mailer", version=None)
    both = get(client, "/modules?include=manifest,instances")["items"]
    assert [item["manifest"] and item["manifest"]["title"] for item in both] == ["Budgets", None]
    assert [len(item["instances"]) for item in both] == [1, 1]
    assert both == get(client, "/modules?include=instances&include=manifest")["items"]
    (one, _) = get(client, "/modules?include=manifest")["items"]
    assert ("instances" in one, "manifest" in one) == (False, True)
    assert get(client, "/modules/financial?include=manifest")["manifest"]["title"] == "Budgets"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=available", ["billing", "catalog"]),
        ("status=degraded,unavailable", ["financial", "mailer"]),
        ("status=degraded&status=unavailable", ["financial", "mailer"]),
        ("tag=finance", ["billing", "financial"]),
        ("tag=finance,core", ["billing"]),
        ("tag=core&tag=finance", ["billing"]),
        ("datacenter=dc2", ["catalog"]),
        ("datacenter=dc1,dc2&status=available", ["billing", "catalog"]),
        ("q=FIN", ["financial"]),
        ("q=planning", ["financial"]),
        ("q=%25", []),
        ("q=", ["billing", "catalog", "financial", "mailer"]),
        ("tag=nothing", []),
    ],
)
def test_filters(cache: Cache, client: FlaskClient, query: str, expected: list[str]) -> None:
    cache.announce(
        instance("billing", tags=("finance", "core")),
        instance("catalog", datacenter="dc2"),
        instance("financial", 1, tags=("finance",)),
        instance("financial", 2, tags=("finance",), health=Health.CRITICAL),
        instance("mailer", health=Health.MAINTENANCE),
    )
    cache.serve("financial", version="1.0.0", title="Financial Planning")
    assert names(get(client, f"/modules?{query}")) == expected


def pages(client: FlaskClient, path: str) -> list[Any]:
    """All items of a list, read page by page."""
    items: list[Any] = []
    answer = get(client, path)
    while True:
        items += answer["items"]
        if answer["next"] is None:
            return items
        answer = get(client, f"{path}&cursor={answer['next']}")


def test_pages_hold_every_module_once_while_things_change(cache: Cache, client: FlaskClient) -> None:
    cache.announce(*(instance(f"m{number}") for number in range(5)))
    first = get(client, "/modules?limit=2")
    assert names(first) == ["m0", "m1"]
    cache.announce(instance("a-new-one"), instance("m1", 2), instance("m9"))
    second = get(client, f"/modules?limit=2&cursor={first['next']}")
    assert names(second) == ["m2", "m3"]
    last = get(client, f"/modules?limit=2&cursor={second['next']}")
    assert (names(last), last["next"]) == (["m4", "m9"], None)


def test_instances_in_pages_and_only_passing_ones(cache: Cache, client: FlaskClient) -> None:
    cache.announce(
        instance("financial", 1),
        instance("financial", 2, health=Health.WARNING),
        instance("financial", 3),
        instance("other", 1),
    )
    path = "/modules/financial/instances"
    assert [item["id"] for item in pages(client, f"{path}?limit=1")] == [f"financial-{n}" for n in (1, 2, 3)]
    passing = ["financial-1", "financial-3"]
    for query in ("?passing", "?passing=", "?passing=true", "?passing=1", "?limit=5&passing"):
        assert [item["id"] for item in get(client, path + query)["items"]] == passing
    for query in ("", "?passing=false", "?passing=0"):
        assert len(get(client, path + query)["items"]) == 3
    assert [item["id"] for item in pages(client, f"{path}?passing&limit=1")] == passing


def test_the_history_of_manifests(cache: Cache, client: FlaskClient) -> None:
    versions = ["1.0.0", "1.1.0", "2.0.0"]
    for number, version in enumerate(versions):
        cache.announce(instance("financial", meta={"started": str(number)}))
        cache.serve("financial", version=version)
    entries = pages(client, "/modules/financial/manifests?limit=1")
    assert [entry["version"] for entry in entries] == versions[::-1]
    assert [entry["current"] for entry in entries] == [True, False, False]
    assert set(entries[0]) == {"digest", "version", "first_seen", "current"}
    oldest = entries[-1]["digest"]
    answer = client.get(f"{API}/modules/financial/manifests/{oldest}")
    assert answer.headers["ETag"] == f'"{oldest}"'
    assert json.loads(answer.data) == {"name": "financial", "version": "1.0.0"}


def test_an_unknown_module_is_told_with_names_like_it(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.module("mailer")
    for path in ("", "/manifest", "/manifests", "/instances", f"/manifests/{'0' * 64}"):
        answer = client.get(f"{API}/modules/finacial{path}")
        assert answer.status_code == 404
        assert answer.content_type == "application/problem+json"
        assert told(answer)["type"] == "/problems/unknown-module"
        assert told(answer)["near"] == ["financial"]
        assert "financial" in told(answer)["detail"]
        assert answer.headers["X-Lictor-Index"] == str(cache.index())
    assert told(client.get(f"{API}/modules/zzz"))["near"] == []


def test_no_manifest_yet_says_why(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("financial"))
    answer = client.get(f"{API}/modules/financial/manifest")
    assert (answer.status_code, told(answer)["type"]) == (404, "/problems/no-manifest")
    cache.refuse("financial", "answered 404")
    assert "answered 404" in told(client.get(f"{API}/modules/financial/manifest"))["detail"]


def test_a_manifest_that_it_never_had(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    answer = client.get(f"{API}/modules/financial/manifests/{'0' * 64}")
    assert (answer.status_code, told(answer)["type"]) == (404, "/problems/unknown-manifest")


def test_a_module_may_be_called_like_a_path(cache: Cache, client: FlaskClient) -> None:
    cache.module("register")
    assert get(client, "/modules/register")["name"] == "register"
    refused = client.put(f"{API}/modules/register")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS, POST")


READS = [
    "/modules",
    "/modules?status=degraded",
    "/modules/financial",
    "/modules/financial/manifest",
    "/modules/financial/manifests",
    "/modules/financial/instances",
    "/events",
]


@pytest.mark.parametrize("path", READS)
def test_every_read_is_conditional(cache: Cache, client: FlaskClient, path: str) -> None:
    index = cache.module("financial")
    answer = client.get(API + path)
    etag = answer.headers["ETag"]
    assert answer.headers["X-Lictor-Index"] == str(index)
    assert answer.headers["Cache-Control"] == "no-cache"
    if not path.endswith("/manifest"):
        assert etag == f'"{index}"'
    for sent in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        known = client.get(API + path, headers={"If-None-Match": sent})
        assert (known.status_code, known.data) == (304, b"")
        assert known.headers["ETag"] == etag
        assert known.headers["X-Lictor-Index"] == str(index)
        assert "Content-Type" not in known.headers
    assert client.get(API + path, headers={"If-None-Match": '"x"'}).status_code == 200
    cache.announce(instance("financial", health=Health.WARNING))
    fresh = client.get(API + path, headers={"If-None-Match": etag})
    # A manifest is the same as before, whatever happens to the module.
    assert fresh.status_code == (304 if path.endswith("/manifest") else 200)
    assert fresh.headers["X-Lictor-Index"] == str(cache.index())


@pytest.mark.parametrize("path", READS)
def test_head_is_get_without_the_body(cache: Cache, client: FlaskClient, path: str) -> None:
    cache.module("financial")
    got, head = client.get(API + path), client.head(API + path)
    assert (head.status_code, head.data) == (200, b"")
    for name in ("ETag", "X-Lictor-Index", "Content-Type", "Content-Length"):
        assert head.headers[name] == got.headers[name]


def test_what_is_not_there_is_404_whatever_the_client_knows(client: FlaskClient) -> None:
    for sent in ("*", '"0"'):
        assert client.get(f"{API}/modules/nobody", headers={"If-None-Match": sent}).status_code == 404


def test_a_lost_registry_is_told_by_the_answers_that_it_feeds(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.push(instance("weather", node="", datacenter=""))
    assert "X-Lictor-Stale" not in client.get(f"{API}/modules").headers
    cache.lose()
    index = str(cache.index())
    for path in (*READS, "/modules/nobody"):
        stale = client.get(API + path).headers["X-Lictor-Stale"]
        name, _, since = stale.partition("; since=")
        assert name == "consul"
        assert MOMENT.fullmatch(since)
    known = client.get(f"{API}/modules", headers={"If-None-Match": f'"{index}"'})
    assert known.status_code == 304
    assert known.headers["X-Lictor-Stale"].startswith("consul; since=")
    for path in ("", "/instances"):
        assert "X-Lictor-Stale" not in client.get(f"{API}/modules/weather{path}").headers


def test_several_lost_registries(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("financial"), source="consul/dc1")
    cache.lose("consul/dc1")
    cache.lose("consul/dc2")
    stale = client.get(f"{API}/modules").headers["X-Lictor-Stale"].split(", ")
    assert [part.partition(";")[0] for part in stale] == ["consul/dc1", "consul/dc2"]


def test_one_modules_answer_names_the_sources_that_feed_it(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("near"), instance("both"))
    cache.announce(instance("far"), instance("both", 2), source="consul/dc2")
    cache.lose("consul/dc2")
    for name, is_stale in (("near", False), ("far", True), ("both", True)):
        for path in ("", "/instances"):
            headers = client.get(f"{API}/modules/{name}{path}").headers
            assert ("consul/dc2" in headers.get("X-Lictor-Stale", "")) == is_stale


def test_names_that_need_quoting(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("größe: 50% <b>"))
    answer = get(client, "/modules/gr%C3%B6%C3%9Fe%3A%2050%25%20%3Cb%3E")
    assert answer["name"] == "größe: 50% <b>"


def test_several_modules_by_name(cache: Cache, client: FlaskClient) -> None:
    for name in ("financial", "mailer", "lookup"):
        cache.module(name)
    answer = get(client, "/modules/lookup?name=mailer&name=nobody&name=financial,mailer&include=manifest")
    assert (names(answer), answer["unknown"], answer["index"]) == (
        ["mailer", "financial"],
        ["nobody"],
        cache.index(),
    )
    assert answer["items"][0]["manifest"]["name"] == "mailer"
    assert answer["items"][1] == get(client, "/modules?q=financial&include=manifest")["items"][0]
    assert names(get(client, "/modules/lookup?name=lookup")) == ["lookup"]
    assert get(client, "/modules/lookup?name=a,b") == {
        "items": [],
        "unknown": ["a", "b"],
        "index": cache.index(),
    }


def test_only_the_fields_that_are_asked_for(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    expected = {"name": "financial", "status": "available"}
    for path in ("/modules?fields=name,status", "/modules/lookup?name=financial&fields=status&fields=name"):
        assert get(client, path)["items"] == [expected]
    assert get(client, "/modules/financial?fields=status,name") == expected
    assert set(get(client, "/modules/financial?fields=name,manifest&include=instances")) == {
        "name",
        "instances",
        "manifest",
    }
    assert list(get(client, "/modules/financial?fields=instances")) == ["instances"]
    for path, fields in {
        "instances": {"id", "health"},
        "manifests": {"digest", "current"},
        "tombstones": {"id", "gone_at"},
    }.items():
        answer = get(client, f"/modules/financial/{path}?fields={','.join(fields)}")
        assert set(answer) == {"items", "next", "index"}
        assert all(set(item) == fields for item in answer["items"])
    events = get(client, "/events?fields=index,type&limit=2")
    assert [set(item) for item in events["items"]] == [{"index", "type"}] * 2


def test_every_field_can_be_asked_for() -> None:
    shapes: dict[type[BaseModel], type[BaseModel]] = {
        requests.ModulesQuery: responses.Module,
        requests.ModuleQuery: responses.Module,
        requests.LookupQuery: responses.Module,
        requests.InstancesQuery: responses.Instance,
        requests.ManifestsQuery: responses.ManifestEntry,
        requests.TombstonesQuery: responses.Tombstone,
        requests.EventsQuery: responses.Event,
    }
    for query, shape in shapes.items():
        (listed,) = get_args(query.model_fields["fields"].annotation)
        assert set(get_args(listed)) == set(shape.model_fields)


def test_what_modules_say_of_themselves_is_not_taken_for_ours(cache: Cache, client: FlaskClient) -> None:
    """Texts are put together from parts; a text of a module that looks like a part is left as it is."""
    moment = "2026-01-01T00:00:00.000Z"
    meta = {"last_seen": moment, "note": '"last_seen":"' + moment + '"', "zero": "\\u0000consul\\u0000"}
    cache.announce(instance("financial", meta=meta, tags=('"last_seen":', "],{")))
    cache.serve("financial", version="1.0.0", title='"last_seen":"' + moment + '"')
    for _ in range(2):
        module = get(client, "/modules/financial?include=manifest")
        assert module["instances"][0]["meta"] == meta
        assert module["instances"][0]["last_seen"] > moment
        assert module["manifest"]["title"] == '"last_seen":"' + moment + '"'
        cache.announce(instance("mailer"))
