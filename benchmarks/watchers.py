"""How soon thousands who wait hear of a change, beside a server that does nothing else.

Event streams and blocking queries are held open at two processes of `lictor serve`, and a change is
committed by a third. Counted is the time from before the commit to the last of them that was told,
seen by one client that holds all connections, and the memory of the server for each of them. The
floor is a minimal asyncio server of one process that keeps connections in a list, and sends the
same bytes to all when it is told to; the same client looks at both, in the same run. Then wrk reads
from Lictor with and without those who wait.

    .venv/bin/python -m benchmarks.watchers [--watchers 1000,5000] [--rounds 9] [--database postgresql]

wrk is a package of Debian and of Homebrew; without it the reads are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import re
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks.stage import HOST, PATIENCE, database, lictor, table
from discovery.base import Change, Health, ServiceInstance
from discovery.consul.dev_agent import free_ports
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database

SPAWN = multiprocessing.get_context("spawn")
EVENTS = "/api/v1/events"
MODULE = "/api/v1/modules/financial"
QUIET = 0.3


class Kind(NamedTuple):
    """A way to wait: what is asked, with the index that is known, and how one sees that it was told."""

    name: str
    request: str
    told: bytes
    asks_again: bool


STREAMS = Kind(
    "streams",
    f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
    told=b"event: ",
    asks_again=False,
)
QUERIES = Kind(
    "queries",
    f"GET {MODULE}?index={{index}}&wait=10m HTTP/1.1\r\nHost: x\r\n\r\n",
    told=b"HTTP/1.1 200",
    asks_again=True,
)


# The client


def hold(pipe: Connection, address: str, kind: Kind, number: int, index: int) -> None:
    """Opens the connections, and tells over the pipe when the last of them was told of a change."""
    host, _, port = address.partition(":")
    selector = selectors.EpollSelector()
    request = kind.request.format(index=index).encode()
    for _ in range(number):
        sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
        sock.sendall(request)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    pipe.send("open")
    told: list[socket.socket] = []
    moments: list[float] = []
    while True:
        for key, _ in selector.select():
            sock = key.fileobj  # type: ignore[assignment]
            data = sock.recv(65536)
            if not data:
                raise SystemExit("the server closed a connection")
            if kind.told in data:
                told.append(sock)
                moments.append(time.monotonic())
                if kind.asks_again and len(told) == 1:
                    found = re.search(rb"(?i)X-Lictor-Index: (\d+)", data)
                    request = kind.request.format(index=int(found[1]) if found else 0).encode()
        if len(told) >= number:
            pipe.send((moments[number // 2], moments[number - 1]))
            if kind.asks_again:
                for sock in told:
                    sock.sendall(request)
            told, moments = [], []


@contextmanager
def crowd(address: str, kind: Kind, number: int, index: int) -> Iterator[Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(theirs, address, kind, number, index))
    process.start()
    try:
        if not ours.poll(PATIENCE) or ours.recv() != "open":
            raise SystemExit("the connections could not be opened")
        yield ours
    finally:
        process.kill()
        process.join()


# The floor


def minimal_server(port: int, frame: bytes, answer: bytes) -> None:
    waiting: dict[bytes, list[asyncio.StreamWriter]] = {b"stream": [], b"query": []}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    for one in waiting[b"stream"]:
                        one.write(frame)
                    told, waiting[b"query"] = waiting[b"query"], []
                    for one in told:
                        one.write(answer)
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                elif b"text/event-stream" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                    waiting[b"stream"].append(writer)
                else:
                    waiting[b"query"].append(writer)

    async def run() -> None:
        server = await asyncio.start_server(serve, HOST, port, backlog=4096)
        await server.serve_forever()

    asyncio.run(run())


class Floor:
    """The minimal server, in a process of its own."""

    def __init__(self, stack: ExitStack, frame: bytes, answer: bytes) -> None:
        (port,) = free_ports(1)
        self.address = f"{HOST}:{port}"
        process = SPAWN.Process(target=minimal_server, args=(port, frame, answer))
        process.start()
        stack.callback(process.join)
        stack.callback(process.kill)
        self.pids = [process.pid or 0]
        wait_until(lambda: is_listening(self.address))

    def index(self) -> int:
        return 0

    def change(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        connection.request("POST", "/")
        connection.getresponse().read()
        connection.close()

    def wait_for(self, kind: Kind, number: int) -> None:
        time.sleep(1 + number / 2000)


class Lictor:
    """Two processes of `lictor serve`, and the one that commits, which is this one."""

    def __init__(self, stack: ExitStack, url: str, folder: str) -> None:
        self._database = Database(url)
        stack.callback(self._database.close)
        self._database.migrate()
        self._store = Store(self._database, CacheSettings(database_url=url))
        self._instance = ServiceInstance(module="financial", id="financial-1", address="10.0.0.1", port=8000)
        self.change()
        self.address, process = stack.enter_context(
            lictor("127.0.0.1:1", folder, "serve", LICTOR_DATABASE_URL=url, LICTOR_WORKERS="2")
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 2)
        self.pids = [int(pid) for pid in children.read_text().split()]

    def index(self) -> int:
        return self._store.apply([]).index

    def change(self) -> None:
        flipped = Health.WARNING if self._instance.health is Health.PASSING else Health.PASSING
        self._instance = replace(self._instance, health=flipped)
        self._store.apply([Change(source="consul", present=(self._instance,))])

    def wait_for(self, kind: Kind, number: int) -> None:
        name = "stream" if kind is STREAMS else "blocking"

        def there() -> int:
            text = get(self.address, "/metrics").decode()
            found = re.search(rf'^lictor_watchers{{kind="{name}"}} (\S+)$', text, re.MULTILINE)
            return int(float(found[1])) if found else 0

        wait_until(lambda: there() == number)
        time.sleep(QUIET)


# What is measured


class Seen(NamedTuple):
    """Of the rounds: seconds until half of all, and until the last one was told; bytes for each."""

    half: float
    last: float
    memory: float


def measured(server: Floor | Lictor, kind: Kind, number: int, rounds: int) -> Seen:
    halves, lasts = [], []
    before = memory(server.pids)
    with crowd(server.address, kind, number, server.index()) as pipe:
        server.wait_for(kind, number)
        for _ in range(rounds):
            begun = time.monotonic()
            server.change()
            if not pipe.poll(PATIENCE):
                raise SystemExit(f"not all of {number} {kind.name} were told")
            half, last = pipe.recv()
            halves.append(half - begun)
            lasts.append(last - begun)
            # Those that ask again wait once more.
            server.wait_for(kind, number)
        each = (memory(server.pids) - before) / number
    return Seen(statistics.median(halves), statistics.median(lasts), each)


def memory(pids: list[int]) -> int:
    """What these processes have for themselves, in bytes."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(
        int(size) * 1024
        for text in texts
        for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE)
    )


class Reads(NamedTuple):
    """What wrk saw: requests a second, and milliseconds until 99 % and until all were answered."""

    rate: float
    p99: float
    longest: float


def reads(address: str, seconds: float) -> Reads:
    command = ["wrk", "-t1", "-c16", f"-d{seconds:g}s", "--latency", f"http://{address}{MODULE}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(said)
    (rate,) = re.findall(r"Requests/sec:\s+([0-9.]+)", said)
    (p99,) = re.findall(r"99%\s+([0-9.]+\w+)", said)
    (longest,) = re.findall(r"Latency\s+[0-9.]+\w+\s+[0-9.]+\w+\s+([0-9.]+\w+)", said)
    return Reads(float(rate), _milliseconds(p99), _milliseconds(longest))


def _milliseconds(text: str) -> float:
    ((number, unit),) = re.findall(r"([0-9.]+)(us|ms|s)", text)
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def reads_beside(server: Lictor, kind: Kind, number: int, rounds: int) -> list[list[str]]:
    """Reads without those who wait, with them, and while each second all of them are told."""
    found: dict[str, list[Reads]] = {
        "nobody waits": [],
        f"{number:,} {kind.name} wait": [],
        "and one change/s": [],
    }
    alone, beside, told = found.values()
    for _ in range(rounds):
        alone.append(reads(server.address, 3))
        with crowd(server.address, kind, number, server.index()) as pipe:
            server.wait_for(kind, number)
            beside.append(reads(server.address, 3))
            end = threading.Event()
            changing = threading.Thread(target=change_until, args=(server, pipe, end))
            changing.start()
            told.append(reads(server.address, 3))
            end.set()
            changing.join()
        server.wait_for(kind, 0)
    floor = statistics.median(one.rate for one in alone)
    return [
        [
            name,
            f"{statistics.median(one.rate for one in of_name):,.0f}",
            f"{statistics.median(one.rate for one in of_name) / floor:.2f}",
            f"{statistics.median(one.p99 for one in of_name):.1f} ms",
            f"{statistics.median(one.longest for one in of_name):.1f} ms",
        ]
        for name, of_name in found.items()
    ]


def change_until(server: Lictor, pipe: Connection, end: threading.Event) -> None:
    while not end.wait(1.0):
        server.change()
        pipe.poll(PATIENCE)
        pipe.recv()


# What is needed for that


def get(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def is_listening(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        if time.monotonic() > deadline:
            raise SystemExit("what was awaited did not come")
        time.sleep(0.1)


def same_bytes(server: Lictor) -> tuple[bytes, bytes]:
    """What Lictor tells of one change: on a stream, and as an answer."""
    before = server.index()
    server.change()
    events = json.loads(get(server.address, f"{EVENTS}?after={before}"))["items"]
    frames = [f"id: {one['index']}\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
    body = get(server.address, MODULE)
    return "".join(frames).encode(), b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--watchers", default="1000,5000", help="how many wait (a list)")
    parser.add_argument("--rounds", type=int, default=9, help="changes for each row (default 9)")
    parser.add_argument("--reads", type=int, default=3, help="how often reads are measured (default 3)")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    numbers = [int(number) for number in arguments.watchers.split(",")]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        url = stack.enter_context(database(arguments.database, folder))
        server = Lictor(stack, url, folder)
        # What the first requests cost in memory is not theirs.
        for kind in (STREAMS, QUERIES):
            measured(server, kind, 500, 3)
            server.wait_for(kind, 0)
        frame, answer = same_bytes(server)
        rows = []
        for kind in (STREAMS, QUERIES):
            for number in numbers:
                with ExitStack() as of_floor:
                    floor = measured(Floor(of_floor, frame, answer), kind, number, arguments.rounds)
                ours = measured(server, kind, number, arguments.rounds)
                server.wait_for(kind, 0)
                rows.append(
                    [
                        f"{number:,} {kind.name}",
                        f"{floor.last * 1e3:.0f} ms",
                        f"{ours.half * 1e3:.0f} ms",
                        f"{ours.last * 1e3:.0f} ms",
                        f"{ours.last / floor.last:.1f}",
                        f"{floor.memory / 1e3:.1f} kB",
                        f"{ours.memory / 1e3:.1f} kB",
                    ]
                )
        head = ["who waits", "floor: last", "half", "last", "ratio", "floor: each", "each"]
        table(f"Watchers, {arguments.database}, {arguments.rounds} changes, 2 processes", head, rows)
        if shutil.which("wrk"):
            head = ["", "reads/s", "ratio", "p99", "longest"]
            for number in numbers:
                table("Reads beside them", head, reads_beside(server, STREAMS, number, arguments.reads))


if __name__ == "__main__":
    main()
