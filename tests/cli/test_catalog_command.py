"""`lictor modules` and `lictor show` over a real cache: tables for people, the API's shapes for programs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from discovery.base import Health
from tests.cli.command import Lictor
from tests.web.filling import Cache, instance
from web import create_app
from web.settings import Settings


@pytest.fixture
def api(lictor: Lictor) -> Callable[[str], object]:
    """What the API answers from the same database."""
    settings = Settings.load(database_url=f"sqlite:///{lictor.database}")
    app = create_app(settings)
    return lambda path: app.test_client().get(path).get_json()


def names(lictor: Lictor, *arguments: str) -> list[str]:
    return [module["name"] for module in lictor.json("modules", *arguments)["items"]]


def fill(cache: Cache) -> None:
    cache.module("billing", Health.PASSING, Health.CRITICAL, title="Invoices")
    cache.module("financial", Health.PASSING, version="1.4.0", title="Finance")
    cache.module("reporting", Health.CRITICAL, version=None)


def test_modules_are_a_table(lictor: Lictor, cache: Cache) -> None:
    fill(cache)
    done = lictor.run("modules")
    heading, *rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert done.stderr == ""
    assert [cell.strip() for cell in heading if cell.strip()] == [
        "MODULE",
        "STATUS",
        "VERSION",
        "INSTANCES",
        "TAGS",
        "CHANGED",
    ]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert [row[:4] for row in cells] == [
        ["billing", "degraded", "1.0.0", "1 of 2 pass, 1 critical"],
        ["financial", "available", "1.4.0", "1 of 1 pass"],
        ["reporting", "unavailable", "-", "0 of 1 pass, 1 critical"],
    ]


def test_modules_as_json_are_what_the_api_answers(
    lictor: Lictor, cache: Cache, api: Callable[[str], object]
) -> None:
    fill(cache)
    assert lictor.json("modules") == api("/api/v1/modules")
    assert lictor.json("modules", "--limit", "2") == api("/api/v1/modules?limit=2")
    assert lictor.json("modules", "--status", "degraded") == api("/api/v1/modules?status=degraded")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--status", "available"], ["financial"]),
        (["--status", "available", "--status", "unavailable"], ["financial", "reporting"]),
        (["--q", "INV"], ["billing"]),
        (["--q", "in"], ["billing", "financial", "reporting"]),
        (["--tag", "core"], ["ledger"]),
        (["--tag", "core", "--tag", "other"], []),
        (["--datacenter", "dc2"], ["ledger"]),
        (["--limit", "1"], ["billing"]),
    ],
)
def test_modules_can_be_narrowed(
    lictor: Lictor, cache: Cache, arguments: list[str], found: list[str]
) -> None:
    fill(cache)
    cache.announce(instance("ledger", tags=("core", "module"), datacenter="dc2", health=Health.WARNING))
    assert names(lictor, *arguments) == found


def test_all_modules_are_shown_unless_limited(lictor: Lictor, cache: Cache) -> None:
    cache.announce(*(instance(f"module-{number:04}") for number in range(1203)))
    assert len(names(lictor)) == 1203
    assert lictor.json("modules")["next"] is None
    limited = lictor.run("modules", "--limit", "7")
    assert len(limited.stdout.splitlines()) == 8
    assert limited.stderr == "These are the first 7; there are more.\n"


def test_no_modules(lictor: Lictor, cache: Cache) -> None:
    assert lictor.run("modules").stderr == "There are no modules yet.\n"
    cache.module("financial")
    assert lictor.run("modules", "--status", "degraded").stderr == "No module is like that.\n"
    assert lictor.json("modules", "--status", "degraded")["items"] == []


def test_what_may_be_old_is_told_beside_the_table(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    cache.lose(reason="connection refused")
    for command in (["modules"], ["show", "financial"]):
        done = lictor.run(*command)
        assert done.returncode == 0
        assert "financial" in done.stdout
        assert done.stderr.startswith("consul has been out of reach since 0s ago (connection refused)") or (
            "s ago (connection refused): what it said last is shown." in done.stderr
        )


def test_show_tells_all_of_a_module(lictor: Lictor, cache: Cache) -> None:
    cache.announce(
        instance("financial", 1), instance("financial", 2, health=Health.CRITICAL, address="fd00::2")
    )
    cache.serve(
        "financial",
        version="1.4.0",
        title="Finance",
        routes=["/invoices", {"path": "/accounts"}],
        requires=[{"name": "ledger", "version": ">=2"}],
        extra={"a": 1},
    )
    done = lictor.run("show", "financial")
    said = done.stdout
    assert done.returncode == 0
    for part in (
        "financial  degraded",
        "title        Finance",
        "version      1.4.0",
        "instances    1 of 2 pass, 1 critical",
        "http://10.0.0.1:8000",
        "http://[fd00::2]:8000",
        "routes       /invoices, /accounts",
        "requires     ledger >=2",
        'extra        {"a": 1}',
    ):
        assert part in said


def test_show_tells_why_there_is_no_manifest(lictor: Lictor, cache: Cache) -> None:
    cache.announce(instance("financial"))
    cache.refuse("financial", "answered 404")
    said = lictor.run("show", "financial").stdout
    assert "No manifest of financial-1: http-status: http://10.0.0.1:8000/manifest: answered 404" in said
    assert "; it is tried again at 2" in said
    assert "There is no manifest yet." in said


def test_show_as_json_is_what_the_api_answers(
    lictor: Lictor, cache: Cache, api: Callable[[str], object]
) -> None:
    fill(cache)
    assert lictor.json("show", "billing") == api("/api/v1/modules/billing?include=manifest")
    assert lictor.json("show", "reporting") == api("/api/v1/modules/reporting?include=manifest")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_unknown_name_is_told_with_names_like_it(lictor: Lictor, cache: Cache, more: list[str]) -> None:
    fill(cache)
    done = lictor.run("show", "finacial", *more)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "Error: there is no module finacial. Did you mean financial?\n"
    assert "`lictor modules` lists all." in lictor.run("show", "xyzzy").stderr
