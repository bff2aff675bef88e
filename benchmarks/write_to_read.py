"""How soon what one process writes is read over HTTP: from before the transaction to the answer.

This process writes as the synchronizer does; two processes of `lictor serve` answer. One client reads
over and over, as fast as it gets answers; another one holds a blocking query. Both are processes of
their own.

    .venv/bin/python -m benchmarks.write_to_read [--writes 500] [--modules 1000] [--database postgresql]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

from benchmarks.stage import PATIENCE, Client, database, lictor, percentile, table
from discovery.base import Change, Health, ServiceInstance
from manifest_cache.ingest.store import Store
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database

SPAWN = multiprocessing.get_context("spawn")
GOAL = 0.05


def follow(pipe: Connection, address: str, path: str, *, holds: bool) -> None:
    """Tells over the pipe each index that is read for the first time, and when that was."""
    client = Client(address)
    known = -1
    while True:
        asked = f"{path}&index={known}&wait=1m" if holds and known >= 0 else path
        status, headers, _ = client.ask("GET", asked)
        index = int(headers["X-Lictor-Index"])
        if status != 200 or index < known:
            raise SystemExit(f"answered {status} with the index {index} after {known}")
        if index > known:
            pipe.send((index, time.monotonic()))
        known = index


class Reader:
    """A client in a process of its own."""

    def __init__(self, address: str, path: str, *, holds: bool) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=follow, args=(theirs, address, path), kwargs={"holds": holds})
        self._process.start()
        self.seen(0)

    def seen(self, index: int) -> float:
        """When this index was read, or a newer one."""
        while self._pipe.poll(PATIENCE):
            found, moment = self._pipe.recv()
            if found >= index:
                return float(moment)
        raise SystemExit(f"the index {index} was not read")

    def end(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def reading(address: str, path: str, *, holds: bool) -> Iterator[Reader]:
    reader = Reader(address, path, holds=holds)
    try:
        yield reader
    finally:
        reader.end()


def modules(number: int) -> list[ServiceInstance]:
    return [
        ServiceInstance(module=f"module-{n:04}", id=f"module-{n:04}-1", address="10.0.0.1", port=8000)
        for n in range(number)
    ]


def measured(store: Store, reader: Reader, instances: list[ServiceInstance], writes: int) -> list[float]:
    found = []
    for _ in range(writes):
        number = random.randrange(len(instances))
        one = instances[number]
        flipped = Health.WARNING if one.health is Health.PASSING else Health.PASSING
        one = instances[number] = replace(one, health=flipped)
        begun = time.monotonic()
        index = store.apply([Change(source="consul", present=(one,))]).index
        found.append(reader.seen(index) - begun)
        # Not in step with anything that is done now and then.
        time.sleep(random.uniform(0.002, 0.02))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--writes", type=int, default=500, help="how many changes (default 500)")
    parser.add_argument("--modules", type=int, default=1000, help="how many modules there are (default 1000)")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        url = stack.enter_context(database(arguments.database, folder))
        base = Database(url)
        stack.callback(base.close)
        base.migrate()
        store = Store(base, CacheSettings(database_url=url))
        instances = modules(arguments.modules)
        store.apply([Change(source="consul", present=tuple(instances), complete=True)])
        address, _ = stack.enter_context(
            lictor("127.0.0.1:1", folder, "serve", LICTOR_DATABASE_URL=url, LICTOR_WORKERS="2")
        )
        rows = []
        for path in ("/api/v1/modules/module-0000?include=manifest", "/api/v1/modules?limit=1000"):
            for holds in (False, True):
                with reading(address, path, holds=holds) as reader:
                    sample = measured(store, reader, instances, arguments.writes)
                p50, p99 = (percentile(sample, share) for share in (50, 99))
                rows.append(
                    [
                        path.partition("?")[0].removeprefix("/api/v1"),
                        "a blocking query" if holds else "over and over",
                        f"{p50 * 1e3:.1f} ms",
                        f"{p99 * 1e3:.1f} ms",
                        "yes" if p99 <= GOAL else "no",
                    ]
                )
        head = ["read", "how", "p50", "p99", f"p99 within {GOAL * 1e3:.0f} ms"]
        table(f"From a write to its read, {arguments.database}, {arguments.writes} writes", head, rows)


if __name__ == "__main__":
    main()
