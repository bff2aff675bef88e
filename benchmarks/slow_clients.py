"""How well Lictor reads to others while many clients are slow, silent, deaf or speak no HTTP.

Each kind of such clients is held by a process of its own, which opens again what the server cuts off.
Beside them wrk reads one module from two processes of Lictor; alone it does so just before. Counted are
the ratio of the rates, and the 99th percentile of the latency beside them.

    .venv/bin/python -m benchmarks.slow_clients [--runs 3] [--seconds 4] [--kind "half a head"]

wrk is a package of Debian and of Homebrew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from benchmarks.stage import HOST, table
from benchmarks.watchers import Lictor, reads
from discovery.base import Change, ServiceInstance
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.ingest.store import Store
from manifest_cache.manifest import parse_manifest
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database

SPAWN = multiprocessing.get_context("spawn")
PUSH = b"POST /api/v1/modules/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LARGE = b"GET /api/v1/modules?include=manifest HTTP/1.1\r\nHost: x\r\n\r\n"


class Kind(NamedTuple):
    """What each client sends at first, and then once a second; `rate` more are opened each second."""

    name: str
    number: int
    first: bytes
    then: bytes = b""
    rate: int = 0


KINDS = (
    Kind("silent", 500, b""),
    Kind("half a head", 500, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", b"x"),
    Kind("a body bit by bit", 500, PUSH + b"Content-Length: 5000\r\n\r\n", b" "),
    Kind("an answer not taken", 500, LARGE),
    Kind("no HTTP", 500, b"\x16\x03\x01 nonsense\r\n\r\n"),
    Kind("32 that take nothing of 2.7 MB", 32, LARGE),
    Kind("40 that send chunks", 40, PUSH + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    Kind("40 of 900 kB, 33 at once", 40, PUSH + b"Content-Length: 900000\r\n\r\n" + b" " * 33_000, b" "),
    Kind(
        "300 a second: GET, chunked, no body",
        0,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        rate=300,
    ),
)


def be_slow(address: str, kind: Kind) -> None:
    """Holds clients of one kind until the process is ended."""
    asyncio.run(_be_slow(address, kind))


async def _be_slow(address: str, kind: Kind) -> None:
    await asyncio.gather(
        *(_client(address, kind, number) for number in range(kind.number)), _more(address, kind)
    )


async def _client(address: str, kind: Kind, number: int) -> None:
    # Spread as in life: not all in the same millisecond.
    await asyncio.sleep(number / 1000)
    while True:
        sock = await _connected(address)
        with sock, suppress(OSError):
            await _send(sock, kind)
        await asyncio.sleep(1)


async def _send(sock: socket.socket, kind: Kind) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, kind.first)
    if kind.first == LARGE:
        # The end of it is all that is noticed.
        await asyncio.sleep(30)
    while kind.then:
        await asyncio.sleep(1)
        await loop.sock_sendall(sock, kind.then)
    while await loop.sock_recv(sock, 1000):
        pass


async def _more(address: str, kind: Kind) -> None:
    opened: list[socket.socket] = []
    while kind.rate:
        began = time.monotonic()
        for _ in range(kind.rate // 10):
            sock = await _connected(address)
            await asyncio.get_running_loop().sock_sendall(sock, kind.first)
            opened.append(sock)
        for sock in opened[: -kind.rate * 20]:
            sock.close()
        del opened[: -kind.rate * 20]
        await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


async def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setblocking(False)
    # Little room for what is not read.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return sock


@contextmanager
def slow(address: str, kind: Kind) -> Iterator[None]:
    process = SPAWN.Process(target=be_slow, args=(address, kind))
    process.start()
    try:
        # Until all are there.
        time.sleep(3)
        yield
    finally:
        process.terminate()
        process.join()


def measured(server: Lictor, kind: Kind, runs: int, seconds: float) -> list[str]:
    ratios, latencies = [], []
    for _ in range(runs):
        alone = reads(server.address, seconds)
        with slow(server.address, kind):
            beside = reads(server.address, seconds)
        ratios.append(beside.rate / alone.rate)
        latencies.append(beside.p99)
    return [kind.name, f"{statistics.median(ratios):.2f}", f"{statistics.median(latencies):.1f} ms"]


def fill(url: str) -> None:
    """Manifests of 2.7 MB in all."""
    database = Database(url)
    database.migrate()
    store = Store(database, CacheSettings(database_url=url))
    instances = [
        ServiceInstance(module=f"large-{number}", id=f"large-{number}", address=HOST, port=1)
        for number in range(27)
    ]
    store.apply([Change(source="consul", present=tuple(instances))])
    jobs, _ = store.due_fetches(limit=1000)
    for job in jobs:
        name = job.instance.module
        manifest = parse_manifest(json.dumps({"name": name, "version": "1.0.0", "description": "x" * 99_000}))
        store.apply_fetches([(job, Fetched(manifest, None))])
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="how often each row is measured (default 3)")
    parser.add_argument("--seconds", type=float, default=4, help="how long wrk reads (default 4)")
    parser.add_argument("--kind", help="only rows whose name holds this")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url = f"sqlite:///{folder}/lictor.db"
        fill(url)
        server = Lictor(stack, url, folder)
        rows = [
            measured(server, kind, arguments.runs, arguments.seconds)
            for kind in KINDS
            if arguments.kind is None or arguments.kind in kind.name
        ]
        table("Reads beside slow clients, two processes, SQLite", ["beside", "rate", "p99"], rows)


if __name__ == "__main__":
    main()
