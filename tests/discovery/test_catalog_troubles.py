"""A Lictor that fails in odd ways, and what becomes of those who ask it through the client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from discovery.client import AsyncCatalog, Catalog
from discovery.errors import RegistryUnavailable
from tests.consul_server import eventually
from tests.manifest_server import Behaviour, Connection, ManifestServer, Request, answer, head, silence

MODULES, EVENTS, LOOKUP = (f"/api/v1/{path}" for path in ("modules", "events", "modules/lookup"))


def json_answer(said: Any) -> Behaviour:
    # The server does, and a client that is not told may ask once more over the same connection.
    headers = {"Content-Type": "application/json", "X-Lictor-Index": "5", "Connection": "close"}
    return answer(json.dumps(said), headers=headers)


NOTHING = json_answer({"items": [], "next": None, "index": 5})


def stream(*modules: str) -> Behaviour:
    """Tells of these modules once, and stays open."""

    def behave(connection: Connection, request: Request) -> None:
        connection.send(head(headers={"Content-Type": "text/event-stream", "X-Lictor-Index": "5"}))
        connection.send(b": as Lictor does\n\n")
        for number, module in enumerate(modules):
            event = json.dumps({"module": module})
            connection.send(f"id: {6 + number}\ndata: {event}\n\n".encode())
        connection.pause(10)

    return behave


@pytest.fixture
def server() -> Iterator[ManifestServer]:
    with ManifestServer({MODULES: NOTHING, EVENTS: stream()}) as server:
        yield server


@pytest.fixture
def catalog(server: ManifestServer) -> Iterator[Catalog]:
    with Catalog(url_of(server)) as catalog:
        yield catalog


def url_of(server: ManifestServer) -> str:
    return f"http://{server.host}:{server.port}"


def asked(server: ManifestServer, path: str) -> list[str]:
    """The targets of the requests for a path."""
    return [request.target for request in server.requests if urlsplit(request.target).path == path]


def seconds_for(count: int, ask: Callable[[], list[str]]) -> float:
    """How long it takes from the first request until there were so many."""
    eventually(ask)
    begun = time.monotonic()
    eventually(lambda: len(ask()) >= count, limit=60)
    return time.monotonic() - begun


def test_events_that_are_never_kept_are_asked_for_at_growing_pauses(server: ManifestServer) -> None:
    server.routes[EVENTS] = answer(status="410 Gone")
    with Catalog(url_of(server)) as catalog:
        assert catalog.modules() == []
        assert seconds_for(6, lambda: asked(server, MODULES)) > 0.05 + 0.1 + 0.2 + 0.4


def test_what_changed_and_cannot_be_read_is_asked_for_at_growing_pauses(server: ManifestServer) -> None:
    server.routes |= {EVENTS: stream("orders"), LOOKUP: answer(status="500 Internal Server Error")}
    with Catalog(url_of(server)):
        assert seconds_for(7, lambda: asked(server, LOOKUP)) > 0.05 + 0.1 + 0.2 + 0.4 + 0.8


def test_names_of_many_modules_fit_into_requests(server: ManifestServer) -> None:
    names = {f"{'ü' * 200}-{number}" for number in range(60)}
    server.routes |= {
        EVENTS: stream(*sorted(names)),
        LOOKUP: lambda connection, request: json_answer({"items": [], "unknown": []})(connection, request),
    }

    def told() -> set[str]:
        queries = (parse_qsl(urlsplit(target).query) for target in asked(server, LOOKUP))
        return {value for pairs in queries for name, value in pairs if name == "name"}

    with Catalog(url_of(server)):
        eventually(lambda: told() == names)
    assert max(map(len, asked(server, LOOKUP))) < 8000, "the web server takes no longer line"


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '"text"', '{"items": [1]}', "\xff"], ids=lambda body: body[:9]
)
def test_an_answer_without_sense_ends_nothing(server: ManifestServer, body: str) -> None:
    server.routes[MODULES] = answer(body.encode("latin-1"))
    with Catalog(url_of(server)) as catalog:
        with pytest.raises(RegistryUnavailable, match="make no sense, is it Lictor"):
            catalog.modules()
        server.routes[MODULES] = NOTHING
        eventually(lambda: catalog.connected)
        assert catalog.modules() == []


def test_only_the_first_read_waits_for_a_lictor_that_hangs(
    server: ManifestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.client.feed._TIMEOUT", 60.0)
    server.routes[MODULES] = silence
    with Catalog(url_of(server), timeout=1.0) as catalog:
        begun = time.monotonic()
        for _ in range(50):
            with pytest.raises(RegistryUnavailable, match="nothing is known"):
                catalog.modules()
        assert time.monotonic() - begun < 30


def test_one_that_does_not_wait_ends_with_its_context(server: ManifestServer) -> None:
    before = set(threading.enumerate())
    with Catalog(url_of(server), timeout=0):
        pass
    eventually(lambda: not set(followers()) - before)


_FORKED_AS_IT_BEGINS = """
import os, sys, threading, time
from discovery.client import Catalog
url, copy = sys.argv[1:]
catalog = Catalog(url, copy=copy)
threading.Thread(target=catalog.start, daemon=True).start()
# Who opens a pipe to write into it waits until the other thread has opened it to read from it.
pipe = os.open(copy, os.O_WRONLY)
child = os.fork()
if child == 0:
    os.unlink(copy)
    os._exit(0 if catalog.modules() == [] else 1)
print(child, flush=True)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_child_that_is_forked_as_it_begins_begins_by_itself(server: ManifestServer, tmp_path: Path) -> None:
    copy = tmp_path / "catalog.json"
    os.mkfifo(copy)
    command = [sys.executable, "-c", _FORKED_AS_IT_BEGINS, url_of(server), str(copy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                os.kill(child, signal.SIGKILL)
                process.kill()


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lictor catalog"]


@pytest.mark.anyio
async def test_one_that_is_cancelled_while_it_waits_leaves_nothing(server: ManifestServer) -> None:
    server.routes[MODULES] = silence

    async def enter() -> None:
        async with AsyncCatalog(url_of(server), timeout=60):
            raise AssertionError("nothing is known yet")

    entering = asyncio.create_task(enter())
    await asyncio.to_thread(server.wait_for_requests, 1)
    entering.cancel()
    await asyncio.wait({entering}, timeout=20)
    assert entering.cancelled()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "follow Lictor"] == []
