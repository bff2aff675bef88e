"""`lictor events` over a real cache: what happened, and what happens while one looks."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from discovery.base import Health
from tests.cli.command import LICTOR, Lictor
from tests.postgres_server import PostgresServer
from tests.web.filling import Cache, instance


def indexes(lictor: Lictor, *arguments: str) -> list[int]:
    return [event["index"] for event in lictor.json("events", *arguments)["items"]]


def fill(cache: Cache, count: int) -> int:
    """So many events at least: instances that come."""
    return cache.announce(*(instance("financial", number) for number in range(1, count + 1)))


def test_the_newest_events_are_shown_the_oldest_first(lictor: Lictor, cache: Cache) -> None:
    last = fill(cache, 30)
    lines = lictor.run("events").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(last - 19, last + 1))
    assert indexes(lictor) == list(range(last - 19, last + 1))
    assert indexes(lictor, "--limit", "3") == [last - 2, last - 1, last]


def test_events_behind_an_index(lictor: Lictor, cache: Cache) -> None:
    last = fill(cache, 30)
    assert indexes(lictor, "--after", "5") == list(range(6, last + 1))
    page = lictor.json("events", "--after", "5", "--limit", "3")
    assert [event["index"] for event in page["items"]] == [6, 7, 8]
    assert page["next"] is not None
    assert page["index"] == last
    assert lictor.json("events", "--after", str(last))["items"] == []
    assert lictor.run("events", "--after", str(last)).stderr == "There are no such events.\n"


def test_more_events_than_one_page_holds(lictor: Lictor, cache: Cache) -> None:
    last = fill(cache, 1100)
    assert indexes(lictor, "--after", "0") == list(range(1, last + 1))
    assert len(lictor.run("events", "--after", "0").stdout.splitlines()) == last


def test_a_line_says_what_changed(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial", version="1.0.0")
    cache.announce(instance("financial", health=Health.CRITICAL))
    cache.lose(reason="connection refused")
    said = lictor.run("events").stdout
    for part in (
        "instance.added            financial financial-1 (consul)  http://10.0.0.1:8000 passing",
        "instance.health_changed   financial financial-1 (consul)  health passing -> critical",
        "module.unavailable        financial (consul)  status available -> unavailable",
        "registry.lost             consul  connection refused",
    ):
        assert part in said
    assert "version 1.0.0" in said


def test_events_of_a_module_and_of_a_type(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    cache.module("billing", Health.CRITICAL)
    events = lictor.json("events", "--module", "billing")["items"]
    assert {event["module"] for event in events} == {"billing"}
    types = ["--type", "module.registered", "--type", "module.unavailable"]
    events = lictor.json("events", *types)["items"]
    assert [(event["type"], event["module"]) for event in events] == [
        ("module.registered", "financial"),
        ("module.registered", "billing"),
        ("module.unavailable", "billing"),
    ]


def test_followed_events_come_at_once_one_object_a_line(lictor: Lictor, cache: Cache) -> None:
    last = fill(cache, 2)
    following = lictor.start("events", "--follow", "--json")
    following.wait_for(rf'"index":{last},')
    times = []
    for count in range(5):
        began = time.monotonic()
        newest = cache.announce(*[instance("billing", number) for number in range(1, count + 2)])
        following.wait_for(rf'"index":{newest},')
        times.append(time.monotonic() - began)
    # It looks once a second anyway; being slow now and then is no fault.
    assert min(times) < 0.9, "they came by looking now and then, not by being told"
    following.process.send_signal(signal.SIGINT)
    assert following.wait() == 0
    lines = [json.loads(line) for line in following.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(1, newest + 1))
    assert lines == lictor.json("events", "--after", "0")["items"]


def test_following_behind_an_index_may_end_at_a_limit(lictor: Lictor, cache: Cache) -> None:
    last = fill(cache, 1)
    following = lictor.start("events", "--follow", "--after", str(last), "--limit", "2", "--json")
    # It begins behind an index, so it does not matter which is first.
    cache.announce(instance("billing"))
    assert following.wait() == 0
    assert [json.loads(line)["index"] for line in following.text.splitlines()] == [last + 1, last + 2]


def test_following_ends_when_nobody_reads_any_more(lictor: Lictor, cache: Cache) -> None:
    fill(cache, 2)
    with subprocess.Popen(
        [LICTOR, "events", "--follow"],
        cwd=lictor.folder,
        env=lictor.environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        # Nothing happens in the cache: it has to notice by itself.
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_following_goes_on_when_the_database_server_comes_back(lictor: Lictor) -> None:
    with PostgresServer() as server:
        url = server.create_database()
        with Cache(url) as cache:
            following = lictor.start("events", "--follow", LICTOR_DATABASE_URL=url)
            last = fill(cache, 1)
            following.wait_for(rf"^ +{last}  ")
            server.stop()
            following.wait_for(r"^The database cannot be read: .*; it is tried again in \d")
            server.start()
            newest = cache.announce(instance("billing"))
            following.wait_for(rf"^ +{newest}  ")
            assert following.end(signal.SIGINT) == 0


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_events(lictor: Lictor, cache: Cache, more: list[str]) -> None:
    assert lictor.run("events", *more).returncode == 0
    assert lictor.json("events") == {"items": [], "next": None, "index": 0}


def test_events_that_are_kept_no_longer_are_told_of(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial")
    cache.drop_events()
    done = lictor.run("events", "--after", "1", "--json")
    assert done.returncode == 0
    assert f"Events up to {cache.index() - 1} are not kept any longer" in done.stderr
    assert [event["index"] for event in json.loads(done.stdout)["items"]] == [cache.index()]
