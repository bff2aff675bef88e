"""`lictor forget`: modules without instances go, and why others stay is said."""

from __future__ import annotations

from tests.cli.command import Lictor
from tests.web.filling import Cache, instance


def test_a_module_without_instances_is_forgotten(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    cache.remove(instance("financial"))
    shown = lictor.run("show", "financial").stdout
    assert "GONE" in shown
    assert "http://10.0.0.1:8000" in shown
    done = lictor.run("forget", "financial")
    assert done.stdout == "financial is forgotten, with 1 manifest and 1 tombstone.\n"
    assert lictor.json("modules")["items"] == []
    assert lictor.json("events", "--type", "module.forgotten")["items"][0]["module"] == "financial"


def test_as_json(lictor: Lictor, cache: Cache) -> None:
    cache.announce(instance("financial"))
    index = cache.remove(instance("financial"))
    told = {"name": "financial", "index": index + 1, "manifests": 0, "tombstones": 1}
    assert lictor.json("forget", "financial") == told


def test_a_module_with_instances_is_not_forgotten(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    cache.push(instance("financial", 2))
    done = lictor.run("forget", "financial")
    assert (done.returncode, done.stdout) == (1, "")
    assert "financial has 2 instances (consul tells of 1, push tells of 1)" in done.stderr


def test_an_unknown_module_leads_to_those_like_it(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    done = lictor.run("forget", "finacial")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no module finacial. Did you mean financial?" in done.stderr
