"""The pages for people: what the cache holds in, HTML out that is safe whatever a module says."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient

from discovery.base import Health
from tests.web.filling import REASON, Cache, instance
from web import pages

VOID = {"meta", "link", "img", "input", "br", "circle", "path", "rect"}


class Page(HTMLParser):
    """The elements of a page; fails on markup that does not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def page(client: FlaskClient, path: str = "/") -> Page:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "text/html; charset=utf-8"
    return Page(answer.text)


def test_modules_and_their_state(cache: Cache, client: FlaskClient) -> None:
    cache.module("billing", title="Invoices")
    cache.module("financial", Health.PASSING, Health.CRITICAL)
    cache.module("mailer", Health.CRITICAL, version=None)
    shown = page(client)
    assert "3 modules 1 available 1 degraded 1 unavailable" in shown.text
    assert "billing Invoices available 1.0.0 1 of 1 passing" in shown.text
    assert "financial degraded 1.0.0 1 of 2 passing" in shown.text
    assert "mailer unavailable no manifest 0 of 1 passing" in shown.text
    assert len(shown.all("th", scope="col")) == 7
    assert len(shown.all("th", scope="row")) == 3
    assert shown.all("html", lang="en")
    (changed, *_) = shown.all("time")
    assert "UTC" in str(changed["title"])
    assert str(changed["datetime"]).endswith("Z")


def test_an_empty_cache_tells_how_to_register(client: FlaskClient) -> None:
    shown = page(client)
    assert "No module has registered yet" in shown.text
    assert "lictor register --name hello" in shown.text
    assert "curl http://localhost/api/v1/modules/register" in shown.text
    assert "Authorization" not in shown.text


def test_what_it_tells_is_what_can_be_done(
    cache: Cache, make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    by_push = page(make_app(registries=["push"], push_token_file=tmp_path / "token").test_client()).text
    assert "lictor register" not in by_push
    assert f'"Authorization: Bearer $(cat {tmp_path / "token"})"' in by_push
    assert "curl" not in page(make_app(registries=["consul"]).test_client()).text


def test_the_push_it_tells_of_works(client: FlaskClient) -> None:
    text = client.get("/").text
    body = text.partition("-d '")[2].partition("'</code>")[0].replace("&#34;", '"')
    answer = client.post("/api/v1/modules/register", data=body, content_type="application/json")
    assert answer.status_code == 201
    assert "hello" in page(client).text


def test_links_lead_to_what_they_name(cache: Cache, client: FlaskClient) -> None:
    """Consul takes names with a slash and tags with a comma."""
    names = ["team/app", "a b", "50%", "a?b#c"]
    cache.announce(*(instance(name, tags=("module", "one,two", "x=1&y", "a+b")) for name in names))
    shown = page(client)
    for address in (str(link["href"]) for link in shown.all("a")):
        if address.startswith("#"):
            continue
        assert client.get(address).status_code == 200, address
        if "tag=" in address:
            assert "No module matches" not in page(client, address).text, address
    assert "one,two" in shown.text
    for name in names:
        assert Page(client.get(f"/modules/{quote(name, safe='')}").text).all("h1")


def test_all_instances_of_a_module_with_a_slash(
    cache: Cache, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_INSTANCES_SHOWN", 1)
    cache.announce(instance("team/app"), instance("team/app", 2))
    (link,) = [
        str(link["href"])
        for link in page(client, "/modules/team/app").all("a")
        if "team" in str(link["href"])
    ]
    assert "team/app-2" in client.get(link).text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?q=bill&status=", ["billing"]),
        ("?q=&status=degraded", ["financial"]),
        ("?tag=core", ["billing"]),
        ("?q=%20", ["billing", "financial"]),
        ("?q=nothing", []),
    ],
)
def test_the_filter(cache: Cache, client: FlaskClient, query: str, expected: list[str]) -> None:
    cache.announce(instance("billing", tags=("core",)))
    cache.announce(instance("financial", 1), instance("financial", 2, health=Health.CRITICAL))
    shown = page(client, f"/{query}")
    links = [str(link["href"]) for link in shown.all("a")]
    assert [link for link in links if link.startswith("/modules/")] == [
        f"/modules/{name}" for name in expected
    ]
    assert ("No module matches" in shown.text) is (not expected)
    assert shown.all("form", method="get")


def test_pages_follow_each_other(cache: Cache, client: FlaskClient) -> None:
    cache.announce(*(instance(f"m{number:03}", tags=("x",)) for number in range(101)))
    first = page(client, "/?tag=x&status=available")
    (following,) = first.all("a", rel="next")
    second = page(client, str(following["href"]))
    assert [str(link["href"]) for link in second.all("a") if "/modules/m" in str(link["href"])] == [
        "/modules/m100"
    ]
    assert "101 of 101 match" in second.text


def test_a_lost_registry_is_told_on_top(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    cache.lose()
    for path in ("/", "/modules/financial"):
        text = page(client, path).text
        assert "Consul is out of reach since just now ; shown is what was last known." in text
        assert REASON in text


def test_a_modules_page(cache: Cache, client: FlaskClient) -> None:
    cache.module(
        "financial",
        Health.PASSING,
        Health.CRITICAL,
        title="Budgets",
        description="Plans.",
        links=[{"url": "https://docs.example", "title": "Handbook"}],
    )
    cache.announce(instance("financial", meta={"restarted": "yes"}))
    cache.serve("financial", version="2.0.0", title="Budgets", description="Plans.")
    shown = page(client, "/modules/financial")
    for words in (
        "financial degraded Budgets Plans.",
        "financial-1 passing http://10.0.0.1:8000 2.0.0 node-a · dc1 consul",
        "financial-2 critical http://10.0.0.2:8000",
        '"version": "2.0.0"',
        "2.0.0 current",
        "module.manifest_changed financial-1 1.0.0 → 2.0.0",
    ):
        assert words in shown.text
    assert "Handbook" not in shown.text
    assert shown.all("a", href="/api/v1/modules/financial/manifest")


def test_instances_that_are_gone_are_told(cache: Cache, client: FlaskClient) -> None:
    cache.module("mailer", Health.PASSING, Health.CRITICAL)
    assert "Instances that are gone" not in client.get("/modules/mailer").text
    cache.remove(instance("mailer", 2))
    page = client.get("/modules/mailer").text
    told = page[page.index("Instances that are gone") : page.index('id="manifest-heading"')]
    assert "mailer-2" in told
    assert "http://10.0.0.2:8000" in told
    assert "mailer-1" not in told


def test_a_manifest_that_was_not_taken_is_told(cache: Cache, client: FlaskClient) -> None:
    cache.announce(instance("financial"))
    cache.refuse("financial", "answered 404 <b>")
    text = page(client, "/modules/financial").text
    assert "Manifest not taken (http-status)" in text
    assert "answered 404 <b>" in text
    assert "Next try" in text
    assert "No instance has served a good manifest yet." in text


def test_a_module_that_is_not_there_leads_to_those_like_it(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    answer = client.get("/modules/finacial", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert Page(answer.text).all("a", href="/modules/financial")


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_nothing_that_a_module_says_becomes_markup(cache: Cache, client: FlaskClient) -> None:
    name = "evil-" + EVIL.replace("/", "")
    cache.announce(
        instance(name, tags=(EVIL,), meta={"x": EVIL}, address=EVIL, node=EVIL, datacenter=EVIL),
        instance(name, 2, tags=(EVIL,)),
    )
    said: dict[str, Any] = {
        "version": "1.0.0",
        "title": EVIL,
        "description": EVIL + "\u202e",
        "links": [{"url": "https://ok.example/" + EVIL, "title": EVIL}],
        "x": EVIL,
    }
    cache.announce(instance("evil"))
    cache.serve("evil", **said)
    cache.refuse(name, EVIL)
    for path in ("/", f"/?q={quote(EVIL)}&tag={quote(EVIL)}", "/modules/evil", f"/modules/{quote(name)}"):
        answer = client.get(path)
        assert answer.status_code == 200
        shown = Page(answer.text)
        assert [script["src"] for script in shown.all("script")] == [shown.all("script")[0]["src"]]
        assert all(str(image["src"]).startswith("/static/") for image in shown.all("img"))
        assert not any(attribute.startswith("on") for _, found in shown.elements for attribute in found)
        assert "alert(1)" in shown.text
    missing = client.get(f"/modules/{quote('no-' + EVIL.replace('/', ''))}", headers={"Accept": "text/html"})
    assert missing.status_code == 404
    assert not Page(missing.text).all("script")


@pytest.mark.parametrize(
    ("url", "is_shown"),
    [
        ("https://docs.example/x", True),
        ("http://docs.example", True),
        ("mailto:team@docs.example", True),
        ("JavaScript&colon;alert(1)", False),
        ("/docs", False),
        ("//evil.example", False),
        ("https:evil", False),
        ("file:///etc/passwd", False),
        ("https://[", False),
    ],
)
def test_links_lead_to_harmless_places_only(
    cache: Cache, client: FlaskClient, url: str, is_shown: bool
) -> None:
    cache.announce(instance("financial"))
    cache.serve("financial", version="1.0.0", links=[{"url": url, "title": "A link"}])
    links = page(client, "/modules/financial").all("a", href=url)
    assert bool(links) is is_shown
    assert all("noopener" in str(link["rel"]) for link in links)


@pytest.mark.parametrize("path", ["/", "/modules/financial", "/problems/bad-parameter"])
def test_pages_confine_the_browser(cache: Cache, client: FlaskClient, path: str) -> None:
    cache.module("financial")
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"


def test_answers_of_the_api_confine_it_too(client: FlaskClient) -> None:
    for path in ("/api/v1/modules", "/api/v1/nothing", "/static/lictor.css"):
        headers = client.get(path, buffered=True).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_nothing_is_styled_or_run_in_line(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    for path in ("/", "/modules/financial"):
        shown = page(client, path)
        assert not shown.all("style")
        assert not any("style" in found for _, found in shown.elements)
        linked = [str(found[key]) for _, found in shown.elements for key in ("src",) if key in found]
        linked += [str(link["href"]) for link in shown.all("link")]
        for address in linked:
            answer = client.get(address, buffered=True)
            assert (answer.status_code, address.partition("?v=")[0][:8]) == (200, "/static/")
            assert "max-age=86400" in answer.headers["Cache-Control"]


def test_a_page_that_is_known_is_not_sent_again(cache: Cache, client: FlaskClient) -> None:
    cache.module("financial")
    for path in ("/", "/modules/financial"):
        first = client.get(path)
        known = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (known.status_code, known.data) == (304, b"")
        # A browser that kept it would show how long ago things were by then.
        assert first.headers["Cache-Control"] == "no-store"
    etag = client.get("/").headers["ETag"]
    cache.announce(instance("mailer"))
    assert client.get("/", headers={"If-None-Match": etag}).status_code == 200


def test_faulty_parameters_of_a_page(client: FlaskClient) -> None:
    for path in ("/?status=fine", "/?x=1", "/?cursor=%00", "/?q=" + "a" * 201, "/modules/x?y=1"):
        answer = client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 400, path
        assert answer.content_type.startswith("text/html")
