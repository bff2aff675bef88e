"""The client for applications, against a real Lictor: it is current, and answers while Lictor is away."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from discovery.base import Health
from discovery.client import AsyncCatalog, Catalog, Changed
from discovery.errors import ConfigError, NoInstance, RegistryUnavailable
from tests.cli.command import LICTOR, Lictor, Running
from tests.consul_server import eventually
from tests.web.filling import Cache, instance

PASSING, CRITICAL = Health.PASSING, Health.CRITICAL


@pytest.fixture
def filled(cache: Cache) -> Cache:
    cache.module("financial", PASSING, PASSING, CRITICAL, version="2.1.0", routes=[{"path": "/accounts"}])
    cache.module("weather")
    return cache


@pytest.fixture
def server(lictor: Lictor, filled: Cache) -> Running:
    return lictor.serve()


@pytest.fixture
def catalog(lictor: Lictor, server: Running) -> Iterator[Catalog]:
    with Catalog(lictor.url) as catalog:
        yield catalog


def version(catalog: Catalog | AsyncCatalog, name: str) -> str | None:
    module = catalog.module(name)
    return module.version if module else None


def test_it_answers_from_memory(lictor: Lictor, catalog: Catalog) -> None:
    assert [module.name for module in catalog.modules()] == ["financial", "weather"]
    financial = catalog.module("financial")
    assert financial is not None
    assert (financial.status, financial.version) == ("degraded", "2.1.0")
    assert financial.manifest is not None
    assert financial.manifest["routes"] == [{"path": "/accounts"}]
    assert [one.id for one in catalog.instances("financial")] == ["financial-1", "financial-2", "financial-3"]
    passing = catalog.instances("financial", passing=True)
    assert [one.url for one in passing] == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
    assert catalog.module("nobody") is None
    assert catalog.instances("nobody") == []
    assert catalog.index == int(lictor.get("/api/v1/modules").headers["X-Lictor-Index"])
    assert catalog.connected
    assert catalog.stale == ""
    assert catalog.age < 60


def test_it_picks_passing_instances(catalog: Catalog, cache: Cache) -> None:
    assert {catalog.pick("financial").id for _ in range(100)} == {"financial-1", "financial-2"}
    turns = Counter(catalog.pick("financial", how="round_robin").id for _ in range(20))
    assert turns == {"financial-1": 10, "financial-2": 10}
    with pytest.raises(NoInstance, match="there is no such module"):
        catalog.pick("nobody")
    cache.announce(instance("weather", health=CRITICAL))
    eventually(lambda: catalog.instances("weather", passing=True) == [])
    with pytest.raises(NoInstance, match="none of its instances passes"):
        catalog.pick("weather")


def test_it_is_kept_current(catalog: Catalog, cache: Cache, lictor: Lictor) -> None:
    cache.module("news")
    eventually(lambda: version(catalog, "news") == "1.0.0")
    cache.announce(instance("weather", health=CRITICAL))
    eventually(lambda: [one.health for one in catalog.instances("weather")] == [CRITICAL])
    cache.lose("consul", "gone")
    eventually(lambda: catalog.stale.startswith("consul; since="))
    cache.remove(instance("weather"))
    eventually(lambda: catalog.instances("weather") == [])
    assert lictor.run("forget", "weather").returncode == 0
    eventually(lambda: catalog.module("weather") is None)
    assert catalog.index == cache.index()


def test_it_tells_of_changes(catalog: Catalog, cache: Cache) -> None:
    told: list[Changed] = []
    begun = threading.Event()

    def follow() -> None:
        watch = catalog.watch(timeout=20)
        begun.set()
        for changed in watch:
            told.append(changed)
            if "last" in changed.modules:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    begun.wait()
    # A generator watches once it is asked for its first change.
    eventually(lambda: bool(told) or not cache.module(f"news-{len(told)}-{cache.index()}"))
    for number in range(20):
        cache.module(f"many-{number}")
    cache.module("last")
    thread.join(30)
    assert not thread.is_alive()
    names = {name for changed in told for name in changed.modules}
    assert {f"many-{number}" for number in range(20)} < names
    assert [changed.index for changed in told] == sorted({changed.index for changed in told})
    # Its manifest came after the module.
    eventually(lambda: catalog.index == cache.index())
    assert list(catalog.watch(timeout=0.05)) == []


def test_nothing_is_missed_over_a_restart(
    catalog: Catalog, cache: Cache, lictor: Lictor, server: Running
) -> None:
    assert server.end() == 0
    eventually(lambda: not catalog.connected)
    cache.module("weather", version="3.0.0")
    cache.announce(instance("weather", port=9000))
    cache.serve("weather", version="3.0.0")
    cache.module("news")
    assert version(catalog, "weather") == "1.0.0"
    lictor.serve()
    eventually(lambda: catalog.connected and version(catalog, "news") == "1.0.0")
    eventually(lambda: version(catalog, "weather") == "3.0.0")


def test_workers_that_are_killed_are_no_matter(catalog: Catalog, cache: Cache, server: Running) -> None:
    for turn in range(3):
        for pid in server.descendants():
            # One that was just starting may have ended by itself meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cache.module(f"news-{turn}")
        eventually(lambda: version(catalog, f"news-{turn}") == "1.0.0")  # noqa: B023


def test_events_that_are_not_kept_any_longer(
    catalog: Catalog, cache: Cache, lictor: Lictor, server: Running
) -> None:
    assert server.end() == 0
    eventually(lambda: not catalog.connected)
    for number in range(5):
        cache.module(f"news-{number}")
    cache.remove(instance("weather"))
    cache.drop_events()
    lictor.serve()
    eventually(lambda: version(catalog, "news-4") == "1.0.0")
    eventually(lambda: catalog.instances("weather") == [])


def test_a_database_that_was_put_back(
    catalog: Catalog, cache: Cache, lictor: Lictor, server: Running
) -> None:
    for number in range(5):
        cache.module(f"news-{number}")
    eventually(lambda: version(catalog, "news-4") == "1.0.0")
    assert server.end() == 0
    cache.database.close()
    for file in lictor.folder.glob("lictor.db*"):
        file.unlink()
    with Cache(f"sqlite:///{lictor.database}") as again:
        again.module("only")
        lictor.serve()
        eventually(lambda: [module.name for module in catalog.modules()] == ["only"])


def test_it_starts_from_its_copy_while_lictor_is_away(lictor: Lictor, filled: Cache) -> None:
    server = lictor.serve()
    copy = lictor.folder / "catalog.json"
    with Catalog(lictor.url, copy=copy) as catalog:
        index = catalog.index
    assert server.end() == 0
    with Catalog(lictor.url, copy=copy) as catalog:
        assert not catalog.connected
        assert version(catalog, "financial") == "2.1.0"
        assert catalog.pick("weather").url == "http://10.0.0.1:8000"
        assert catalog.index == index
        before = catalog.age
        eventually(lambda: catalog.age > before)
        filled.module("news")
        lictor.serve()
        eventually(lambda: catalog.connected and version(catalog, "news") == "1.0.0")
        assert catalog.age < before + 60
    kept = json.loads(copy.read_text())
    assert set(kept["modules"]) == {"financial", "news", "weather"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 99, "url": "x"}',
        "\x00",
        pytest.param("[" * 99_999, id="deep"),
    ],
)
def test_a_broken_copy_counts_as_none(lictor: Lictor, content: str) -> None:
    copy = lictor.folder / "catalog.json"
    copy.write_text(content)
    with Catalog(lictor.url, copy=copy) as catalog, pytest.raises(RegistryUnavailable):
        catalog.modules()


def test_a_copy_of_another_lictor_is_not_taken(lictor: Lictor, filled: Cache) -> None:
    copy = lictor.folder / "catalog.json"
    lictor.serve()
    with Catalog(lictor.url, copy=copy):
        pass
    with Catalog("http://127.0.0.1:1", copy=copy) as catalog, pytest.raises(RegistryUnavailable):
        catalog.modules()


def test_a_copy_that_cannot_be_written(
    lictor: Lictor, filled: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    lictor.serve()
    with Catalog(lictor.url, copy=lictor.folder / "nowhere" / "catalog.json") as catalog:
        assert version(catalog, "weather") == "1.0.0"
    assert "cannot keep a copy of the catalog" in caplog.text


def test_while_nothing_is_known(lictor: Lictor) -> None:
    with (
        Catalog(lictor.url) as catalog,
        pytest.raises(RegistryUnavailable, match=r"does not answer .*LICTOR_URL says where Lictor is"),
    ):
        catalog.modules()


def test_what_answers_is_not_lictor(lictor: Lictor, tmp_path: Path) -> None:
    shutil.copy(LICTOR, tmp_path / "index.html")
    address = lictor.settings["LICTOR_BIND"]
    host, _, port = address.partition(":")
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", host, port],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Catalog(lictor.url) as catalog:
            eventually(lambda: "answered 404" in _reason(catalog))
    finally:
        other.kill()
        other.wait()


def _reason(catalog: Catalog) -> str:
    try:
        catalog.modules()
    except RegistryUnavailable as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://a:b@c"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"url \(LICTOR_URL\): must be an address"):
        Catalog(url)


def test_the_address_comes_from_the_environment(
    lictor: Lictor, filled: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lictor.serve()
    monkeypatch.setenv("LICTOR_URL", lictor.url)
    with Catalog(manifests=False) as catalog:
        financial = catalog.module("financial")
        assert financial is not None
        assert financial.manifest is None


_FORKING = """
import os, sys
from discovery.client import Catalog
catalog = Catalog(sys.argv[1]).start()
assert catalog.module("weather"), "not known before the fork"
child = os.fork()
if child == 0:
    import time
    deadline = time.monotonic() + 30
    print("forked", flush=True)
    while catalog.module("news") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os._exit(0 if catalog.module("news") else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_follows_by_itself(lictor: Lictor, filled: Cache) -> None:
    lictor.serve()
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKING, lictor.url], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "forked\n"
        filled.module("news")
        assert process.wait(40) == 0


@pytest.mark.anyio
async def test_the_same_for_an_event_loop(lictor: Lictor, filled: Cache) -> None:
    await asyncio.to_thread(lictor.serve)
    copy = lictor.folder / "catalog.json"
    async with AsyncCatalog(lictor.url, copy=copy) as catalog:
        assert version(catalog, "financial") == "2.1.0"
        told: list[Changed] = []

        async def follow() -> None:
            async for changed in catalog.watch():
                told.append(changed)
                return

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await asyncio.to_thread(filled.module, "news")
        async with asyncio.timeout(30):
            await following
        assert "news" in told[0].modules
        assert catalog.module("news") is not None
    assert "news" in json.loads(copy.read_text())["modules"]
