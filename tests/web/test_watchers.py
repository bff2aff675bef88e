"""Those who wait at a real gunicorn: changes by another process in, answers and events to all of them out."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.consul_server import eventually
from tests.web.filling import Cache, instance
from tests.web.gunicorn_server import Gunicorn, free_port, running
from tests.web.raw_http import Connection

API = "/api/v1"
STREAM = {"Accept": "text/event-stream"}
Site = tuple[Cache, str, httpx.Client]


@pytest.fixture
def bind() -> str:
    return f"127.0.0.1:{free_port()}"


@contextmanager
def asking(bind: str) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://{bind}", trust_env=False, limits=limits, timeout=30) as client:
        yield client


@pytest.fixture
def http(bind: str) -> Iterator[httpx.Client]:
    with asking(bind) as client:
        yield client


@contextmanager
def serving(folder: Path, bind: str, http: httpx.Client, database_url: str) -> Iterator[Gunicorn]:
    with running(folder, http, database_url=database_url, bind=bind, workers="2") as server:
        eventually(lambda: server.log.count("Booting worker") == 2)
        yield server
        assert server.end() == 0
        assert "[ERROR]" not in server.log
        assert "Traceback" not in server.log


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers over a database of each kind, which this process writes to."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/lictor.db"
    else:
        url = request.getfixturevalue("postgres").create_database()
    bind = f"127.0.0.1:{free_port()}"
    with Cache(url) as cache, asking(bind) as http:
        cache.module("financial")
        with serving(folder, bind, http, url):
            yield cache, bind, http


@pytest.fixture
def site(shared: Site) -> Site:
    for kind in ("blocking", "poll", "stream"):
        await_watchers(shared[2], kind, 0)
    return shared


@pytest.fixture
def server(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> Iterator[Gunicorn]:
    """Two workers for a test that ends them."""
    cache.module("financial")
    with serving(tmp_path, bind, http, database_url) as server:
        yield server


def watchers(http: httpx.Client, kind: str) -> int:
    """How many wait, of all workers together."""
    found = re.search(rf'^lictor_watchers{{kind="{kind}"}} (\S+)$', http.get("/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def await_watchers(http: httpx.Client, kind: str, count: int) -> None:
    eventually(lambda: watchers(http, kind) == count, limit=30)


def connections(stack: ExitStack, bind: str, count: int) -> list[Connection]:
    return [stack.enter_context(Connection(bind)) for _ in range(count)]


def test_hundreds_wait_and_none_is_in_the_way(site: Site) -> None:
    cache, bind, http = site
    index = cache.index()
    with ExitStack() as stack:
        queries = connections(stack, bind, 300)
        streams = connections(stack, bind, 200)
        for query in queries:
            query.ask(f"{API}/modules/financial?index={index}&wait=5m")
        for stream in streams:
            stream.ask(f"{API}/events", **STREAM)
        await_watchers(http, "blocking", 300)
        await_watchers(http, "stream", 200)
        assert http.get(f"{API}/modules").status_code == 200
        newest = cache.announce(instance("financial", 1002))
        for query in queries:
            answer = query.answer()
            assert (answer.status, answer.index) == (200, newest)
            assert answer.told["instances"][-1]["id"] == "financial-1002"
        for stream in streams:
            assert stream.head().status == 200
            frame = stream.frame()
            assert frame is not None
            assert frame.id == index + 1
        # The connections of the queries live on, and wait once more.
        for query in queries:
            query.ask(f"{API}/modules/financial?index={newest}")
        await_watchers(http, "blocking", 300)
        cache.announce(instance("financial", 1003))
        assert {query.answer().status for query in queries} == {200}
    await_watchers(http, "blocking", 0)
    await_watchers(http, "stream", 0)


def test_whoever_leaves_is_let_go(site: Site) -> None:
    cache, bind, http = site
    with ExitStack() as stack:
        for number, connection in enumerate(connections(stack, bind, 60)):
            if number % 2:
                connection.ask(f"{API}/modules?index={cache.index()}&wait=10m")
            else:
                connection.ask(f"{API}/events", **STREAM)
        await_watchers(http, "blocking", 30)
        await_watchers(http, "stream", 30)
    await_watchers(http, "blocking", 0)
    await_watchers(http, "stream", 0)


def test_after_the_wait_the_answer_is_what_is_there(site: Site) -> None:
    cache, bind, _ = site
    index = cache.index()
    with Connection(bind) as client:
        for _ in range(2):
            client.ask(f"{API}/modules?index={index}&wait=200ms")
            answer = client.answer()
            assert (answer.status, answer.index) == (200, index)
            assert "connection" not in answer.headers


def test_clients_of_all_kinds(site: Site) -> None:
    cache, bind, http = site
    target = f"{API}/modules?index={cache.index()}&wait=1m"
    with ExitStack() as stack:
        old, closing, head, pipelining, with_body = connections(stack, bind, 5)
        old.ask(target, version="1.0")
        closing.ask(target, Connection="close")
        head.ask(target, method="HEAD")
        pipelining.ask(target)
        pipelining.ask(f"{API}/modules/financial")
        with_body.ask(target, Content_Length="5")
        with_body.sock.sendall(b"hello")
        await_watchers(http, "blocking", 5)
        index = cache.announce(instance("clients"))
        for client in (old, closing):
            answer = client.answer()
            assert (answer.status, answer.index, answer.headers["connection"]) == (200, index, "close")
            assert client.is_closed()
        assert with_body.answer().index == index
        answer = head.answer(is_head=True)
        assert (answer.status, answer.index) == (200, index)
        assert int(answer.headers["content-length"]) > 100
        head.ask(f"{API}/modules")
        assert head.answer().index == index
        assert pipelining.answer().index == index
        assert pipelining.answer().told["name"] == "financial"


def test_long_polling_of_the_log(site: Site) -> None:
    cache, bind, http = site
    index = cache.index()
    with Connection(bind) as any_event, Connection(bind) as of_polled, Connection(bind) as in_vain:
        any_event.ask(f"{API}/events?after={index}&wait=1m", Accept_Encoding="gzip")
        of_polled.ask(f"{API}/events?after={index}&wait=1m&module=polled&type=instance.added")
        in_vain.ask(f"{API}/events?after={index}&wait=2s&module=nobody")
        await_watchers(http, "poll", 3)
        cache.announce(instance("financial", 1004))
        assert any_event.answer().told["items"][0]["index"] == index + 1
        assert of_polled.is_quiet
        cache.announce(instance("polled"))
        (event,) = of_polled.answer().told["items"]
        assert (event["type"], event["module"]) == ("instance.added", "polled")
        assert in_vain.answer().told["items"] == []
        of_polled.ask(f"{API}/events?after={index}&wait=1m&module=polled")
        assert of_polled.answer().told["items"]


def test_more_than_may_wait_are_refused(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        few = running(tmp_path, http, database_url=database_url, bind=bind, workers="1", max_watchers="3")
        stack.enter_context(few)
        first, *others = connections(stack, bind, 3)
        first.ask(f"{API}/modules?index={cache.index()}")
        for other in others:
            other.ask(f"{API}/events", **STREAM)
        await_watchers(http, "stream", 2)
        await_watchers(http, "blocking", 1)
        for headers in ({}, STREAM):
            refused = http.get(f"{API}/events?after=999" + ("" if headers else "&wait=1m"), headers=headers)
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/too-many-watchers")
            assert refused.headers["Retry-After"]
        others[0].sock.close()
        await_watchers(http, "stream", 1)
        assert http.get(f"{API}/modules?index=999&wait=100ms").status_code == 200


def test_a_stream_resumes_where_it_broke_off(site: Site) -> None:
    """Every event exactly once, while others write and the connection breaks over and over."""
    cache, bind, _ = site
    begin, done = cache.index(), threading.Event()

    def write() -> None:
        for number in range(60):
            cache.announce(instance(f"m{number % 7}", number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    got: list[int] = []
    while not done.is_set() or got[-1:] != [cache.index()]:
        with Connection(bind) as stream, suppress(TimeoutError):
            headers = {"Last_Event_ID": str(got[-1])} if got else {}
            stream.ask(f"{API}/events?after={begin}", **STREAM, **headers)
            stream.head()
            # Long enough for what is there already; what comes later comes on the next connection.
            stream.sock.settimeout(2)
            for _ in range(random.randint(1, 40)):
                frame = stream.frame()
                assert frame is not None
                assert frame.data["index"] == frame.id
                got.append(frame.id)
    writer.join()
    assert got == list(range(begin + 1, cache.index() + 1))


def test_filters_of_a_stream(site: Site) -> None:
    cache, bind, http = site
    begin = cache.index()
    with Connection(bind) as stream:
        stream.ask(f"{API}/events?after={begin}&module=mailer&type=instance.added,instance.removed", **STREAM)
        assert stream.head().headers["content-type"] == "text/event-stream"
        await_watchers(http, "stream", 1)
        cache.announce(instance("financial", 1005), instance("mailer"))
        cache.remove(instance("mailer"))
        frames = [stream.frame(), stream.frame()]
        assert [frame and frame.type for frame in frames] == ["instance.added", "instance.removed"]
        assert [frame and frame.data["module"] for frame in frames] == ["mailer", "mailer"]


def test_who_does_not_read_is_dropped_and_may_resume(site: Site) -> None:
    cache, bind, http = site
    begin = cache.index()
    with Connection(bind) as deaf, Connection(bind) as slow:
        for client in (deaf, slow):
            client.ask(f"{API}/events", **STREAM)
        await_watchers(http, "stream", 2)
        got = begin
        meta = {f"k{number}": "x" * 500 for number in range(60)}
        # More than the kernel keeps for a client that does not read.
        for number in range(300):
            cache.announce(instance("large", number, meta=meta))
            frame = slow.frame()
            assert frame is not None
            got = frame.id
        await_watchers(http, "stream", 1)
        assert 'lictor_streams_dropped_total{reason="stalled"} 1.0' in http.get("/metrics").text
        # Whoever reads, however late, gets all.
        while got < cache.index():
            frame = slow.frame()
            assert frame is not None
            assert frame.id == got + 1
            got = frame.id
        last = begin
        while (frame := deaf.frame()) is not None:
            assert frame.id == last + 1
            last = frame.id
    assert last < cache.index()
    with Connection(bind) as again:
        again.ask(f"{API}/events", **STREAM, Last_Event_ID=str(last))
        while last < cache.index():
            frame = again.frame()
            assert frame is not None
            assert frame.id == last + 1
            last = frame.id


def test_many_events_at_once_drop_nobody(site: Site) -> None:
    cache, bind, _ = site
    begin = cache.index()
    with Connection(bind) as stream:
        stream.ask(f"{API}/events?after={begin}", **STREAM)
        cache.announce(*(instance(f"m{number % 50}", number) for number in range(5200)))
        got = [stream.frame() for _ in range(cache.index() - begin)]
    assert [frame and frame.id for frame in got] == list(range(begin + 1, cache.index() + 1))


def test_a_reload_answers_those_who_wait_and_ends_streams(
    cache: Cache, server: Gunicorn, bind: str, http: httpx.Client
) -> None:
    index = cache.index()
    with ExitStack() as stack:
        queries, streams = connections(stack, bind, 20), connections(stack, bind, 20)
        for query in queries:
            query.ask(f"{API}/modules?index={index}&wait=10m")
        for stream in streams:
            stream.ask(f"{API}/events", **STREAM)
        await_watchers(http, "blocking", 20)
        await_watchers(http, "stream", 20)
        server.process.send_signal(signal.SIGHUP)
        for query in queries:
            answer = query.answer()
            assert (answer.status, answer.index, answer.headers["connection"]) == (200, index, "close")
        for stream in streams:
            assert stream.is_closed()
    newest = cache.announce(instance("financial", 2))
    with Connection(bind) as again:
        again.ask(f"{API}/events", **STREAM, Last_Event_ID=str(index))
        frames = [again.frame() for _ in range(newest - index)]
    assert [frame and frame.id for frame in frames] == list(range(index + 1, newest + 1))


def test_a_worker_that_is_killed(cache: Cache, server: Gunicorn, bind: str, http: httpx.Client) -> None:
    index = cache.index()
    workers = re.findall(r"Booting worker with pid: (\d+)", server.log)
    with ExitStack() as stack:
        streams = connections(stack, bind, 40)
        for stream in streams:
            stream.ask(f"{API}/events", **STREAM)
        await_watchers(http, "stream", 40)
        os.kill(int(workers[0]), signal.SIGKILL)
        eventually(lambda: server.log.count("Booting worker") == len(workers) + 1)
        newest = cache.announce(instance("financial", 2))
        got = 0
        for stream in streams:
            ids = []
            while frame := stream.frame():
                ids.append(frame.id)
                if frame.id == newest:
                    break
            assert ids in ([], list(range(index + 1, newest + 1)))
            got += bool(ids)
        assert 0 < got < 40
    eventually(lambda: http.get(f"{API}/modules?index={index}&wait=1m").status_code == 200)
