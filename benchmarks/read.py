"""Measures how many reads Lictor answers a second, as ratios to what else could answer them.

The floor is a bare Flask view that returns constant bytes of the same size, under gunicorn's worker
with threads, as many workers and threads. Beside it stand Consul's own endpoints, and the crawl that
an application would do without Lictor: the catalog, the health of each service, the manifest of each
module. Every row is measured in turns, several times, by wrk; medians count.

    .venv/bin/python benchmarks/read.py [--database postgresql] [--runs 5] [--seconds 5] [--modules 1000]

wrk is a package of Debian and of Homebrew.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from discovery.base import Change, Health, ServiceInstance
from discovery.consul.dev_agent import DevAgent, find_consul
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.ingest.store import Store
from manifest_cache.manifest import parse_manifest
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
API = "/api/v1"
CONNECTIONS = 32
PATIENCE = 60.0
LICTOR = ("-c", "python:web.gunicorn_config")
FLOOR = ("-k", "gthread", "-w", "2", "--threads", "8", "--keep-alive", "75", "constant_app:app")


class Speed(NamedTuple):
    """What wrk saw: requests a second, and how long the slowest in a hundred took, in milliseconds."""

    rate: float
    p99: float


class Target(NamedTuple):
    """What wrk asks for."""

    address: str
    path: str
    headers: tuple[str, ...] = ()


class Row(NamedTuple):
    """One line of the table: what is asked of Lictor, and what that is compared with."""

    name: str
    lictor: Target
    other: Target


def wrk(target: Target, seconds: float) -> Speed:
    headers = [part for line in target.headers for part in ("-H", line)]
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "--timeout", "30s", *headers]
    done = subprocess.run(
        [*command, f"http://{target.address}{target.path}"], capture_output=True, text=True, check=True
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"{target.path} was not answered as it should be:\n{done.stdout}")
    (rate,) = re.findall(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    ((number, unit),) = re.findall(r"99%\s+([0-9.]+)(us|ms|s)", done.stdout)
    return Speed(float(rate), float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit])


def get(target: Target) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(target.address, timeout=PATIENCE)
    connection.request("GET", target.path, headers=dict(line.split(": ") for line in target.headers))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, response.headers["ETag"] or ""


class Modules:
    """The modules in the cache, each with a manifest of 2 kB and one instance, and the changes of them."""

    def __init__(self, url: str, number: int) -> None:
        self.database = Database(url)
        self.database.migrate()
        self._store = Store(self.database, CacheSettings(database_url=url))
        self._instances = [
            ServiceInstance(
                module=f"module-{n:04}", id=f"module-{n:04}-1", address=f"10.0.{n // 250}.{n % 250 + 1}",
                port=8000, node=f"node-{n % 50}", datacenter="dc1", tags=("module", "team-a"),
            )
            for n in range(number)
        ]  # fmt: skip
        self._store.apply([Change(source="consul", present=tuple(self._instances), complete=True)])
        jobs, _ = self._store.due_fetches(limit=number)
        self._store.apply_fetches(
            [(job, Fetched(parse_manifest(manifest(job.instance.module)), None)) for job in jobs]
        )

    @contextmanager
    def changing(self, per_second: int) -> Iterator[None]:
        """Flips the health of one instance after the other, so many times a second."""
        end = threading.Event()

        def change() -> None:
            flips = 0
            due = time.monotonic()
            while not end.wait(max(0.0, due - time.monotonic())):
                due += 1 / per_second
                number = flips % len(self._instances)
                health = Health.CRITICAL if flips // len(self._instances) % 2 == 0 else Health.PASSING
                one = self._instances[number]
                self._store.apply([Change(source="consul", present=(replace(one, health=health),))])
                flips += 1

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def manifest(name: str) -> bytes:
    routes = [{"path": f"/{number}", "methods": ["GET"]} for number in range(50)]
    return json.dumps({"name": name, "version": "1.0.0", "title": name.title(), "routes": routes}).encode()


@contextmanager
def gunicorn(folder: str, database_url: str, *arguments: str) -> Iterator[str]:
    """gunicorn with two workers; yields its address. Without arguments it serves Lictor."""
    with socket.create_server((HOST, 0)) as taken:
        bind = f"{HOST}:{taken.getsockname()[1]}"
    environment = {
        **os.environ,
        "LICTOR_BIND": bind,
        "LICTOR_WORKERS": "2",
        "LICTOR_DATABASE_URL": database_url,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", bind, *(arguments or LICTOR)],
            env=environment, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        try:
            wait_for(lambda: get(Target(bind, "/healthz"))[0] == 200)
            yield bind
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def wait_for(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if ask():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("a server did not become ready")


def rows_beside_the_floor(lictor: str, floor: str) -> Iterator[Row]:
    reads = {
        "all modules": "/modules?limit=1000",
        "all modules with instances and manifests": "/modules?limit=1000&include=manifest,instances",
        "one module": "/modules/module-0007",
        "one manifest": "/modules/module-0007/manifest",
    }
    for name, path in reads.items():
        asked = Target(lictor, API + path)
        yield Row(name, asked, Target(floor, f"/bytes/{len(get(asked)[1])}"))
    etag = get(Target(lictor, f"{API}/modules?limit=1000"))[2]
    known = Target(lictor, f"{API}/modules?limit=1000", (f"If-None-Match: {etag}",))
    yield Row("all modules, 304", known, Target(floor, "/bytes/2000"))


def rows_beside_consul(lictor: str, consul: str) -> Iterator[Row]:
    everything = Target(lictor, f"{API}/modules?limit=1000")
    # Consul's answer tells of each service its name and its tags, no more.
    no_more = Target(lictor, f"{API}/modules?limit=1000&fields=name,tags")
    one = Target(lictor, f"{API}/modules/module-0007")
    cached = Target(consul, "/v1/health/service/module-0007?cached")
    catalog = Target(consul, "/v1/catalog/services")
    yield Row("all modules : /v1/catalog/services", everything, catalog)
    yield Row("names and tags of all modules, as it tells : /v1/catalog/services", no_more, catalog)
    yield Row("one module : /v1/health/service/X?cached", one, cached)


def measure(rows: list[Row], runs: int, seconds: float) -> None:
    for row in rows:
        ours, others = [], []
        for _ in range(runs):
            ours.append(wrk(row.lictor, seconds))
            others.append(wrk(row.other, seconds))
        report(row.name, ours, others)


def report(name: str, ours: list[Speed], others: list[Speed]) -> None:
    rate, p99 = (statistics.median(one[i] for one in ours) for i in (0, 1))
    other_rate, other_p99 = (statistics.median(one[i] for one in others) for i in (0, 1))
    ratio = statistics.median(one.rate / other.rate for one, other in zip(ours, others, strict=True))
    print(
        f"| {name} | {rate:,.0f}/s | {p99:.1f} ms | {other_rate:,.0f}/s | {other_p99:.1f} ms | {ratio:.2f} |",
        flush=True,
    )


def heading(title: str, other: str) -> None:
    print(f"\n{title}\n\n| | Lictor | p99 | {other} | p99 | ratio |\n| --- | --- | --- | --- | --- | --- |")


def register_services(consul: str, number: int) -> None:
    connection = http.client.HTTPConnection(consul, timeout=PATIENCE)
    for n in range(number):
        name = f"module-{n:04}"
        check = {"CheckID": name, "TTL": "1h", "Status": "passing"}
        body = {"Name": name, "Tags": ["module"], "Address": HOST, "Port": 8000, "Check": check}
        connection.request("PUT", "/v1/agent/service/register", json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"Consul refused with {answer.status}")
    wait_for(lambda: len(json.loads(get(Target(consul, "/v1/catalog/services"))[1])) >= number)


def crawl(consul: str, module: Target) -> None:
    """What an application does without Lictor; each module is another server, so another connection."""
    connection = http.client.HTTPConnection(consul, timeout=PATIENCE)

    def ask(path: str) -> object:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    services = ask("/v1/catalog/services")
    for name in services if isinstance(services, dict) else ():
        ask(f"/v1/health/service/{name}?passing")
        json.loads(get(module)[1])
    connection.close()


def read_all(lictor: http.client.HTTPConnection, decode: Callable[[bytes], object]) -> None:
    lictor.request("GET", f"{API}/modules?limit=1000&include=manifest,instances")
    decode(lictor.getresponse().read())


def took(act: Callable[[], None]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def compare_with_a_crawl(lictor: str, consul: str, module: Target, runs: int) -> None:
    connection = http.client.HTTPConnection(lictor, timeout=PATIENCE)
    one_by_one = statistics.median(took(lambda: crawl(consul, module)) for _ in range(runs))
    print("\nOne client reads all modules with instances and manifests:")
    for what, decode in (("as bytes", len), ("decoded", json.loads)):
        at_once = statistics.median(took(lambda: read_all(connection, decode)) for _ in range(10 * runs))  # noqa: B023
        print(
            f"{what}: {at_once * 1e3:.1f} ms from Lictor, {one_by_one * 1e3:.0f} ms by a crawl, "
            f"ratio {one_by_one / at_once:.0f}"
        )
    connection.close()


@contextmanager
def database(kind: str, folder: str) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/lictor.db"
        return
    sys.path.insert(0, str(ROOT))
    from tests.postgres_server import PostgresServer

    with PostgresServer() as server:
        yield server.create_database()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--runs", type=int, default=5, help="how often each row is measured (default 5)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each run takes (default 5)")
    parser.add_argument("--modules", type=int, default=1000, help="how many modules there are (default 1000)")
    parser.add_argument("--without-consul", action="store_true", help="measure the floor alone")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt install wrk")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        url = stack.enter_context(database(arguments.database, folder))
        modules = Modules(url, arguments.modules)
        stack.callback(modules.database.close)
        lictor = stack.enter_context(gunicorn(folder, url))
        floor = stack.enter_context(gunicorn(folder, url, *FLOOR))
        rows = list(rows_beside_the_floor(lictor, floor))
        heading(f"Nothing changes, {arguments.database}", "floor")
        measure(rows, arguments.runs, arguments.seconds)
        heading(f"Ten changes a second, {arguments.database}", "floor")
        with modules.changing(10):
            measure(rows[:-1], arguments.runs, arguments.seconds)
        if arguments.without_consul:
            return
        agent = stack.enter_context(DevAgent(find_consul(os.environ, Path.cwd()), http_port=0, dns_port=0))
        consul = agent.http_addr.removeprefix("http://")
        register_services(consul, arguments.modules)
        heading(f"Beside Consul, {arguments.database}", "Consul")
        measure(list(rows_beside_consul(lictor, consul)), arguments.runs, arguments.seconds)
        compare_with_a_crawl(lictor, consul, Target(floor, "/bytes/2000"), arguments.runs)


if __name__ == "__main__":
    main()
