"""How long it takes from an empty database until every instance and its manifest is served.

    .venv/bin/python -m benchmarks.coldstart [--instances 10000] [--runs 3]

Ten instances a module, in a Consul of their own. Without digests in their meta each instance is
asked for its manifest; with them one fetch serves all that announce the same. Beside it: bare
fetches of the same manifests, so many of them, by asyncio's streams alone, by Lictor's client alone
and, where it is installed (`.venv/bin/pip install aiohttp`), by aiohttp; nothing is checked or stored.
What a start takes in which there is nothing to find is shown apart: Python's own start, what is
imported, taking the lead, the first answers of an empty Consul.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.bare import Get, over_aiohttp, over_streams, timed
from benchmarks.farm import Farm, digest
from benchmarks.filled import wait_for_manifests, wait_for_source
from benchmarks.stage import Consul, Platform, lictor, module_of, processor_seconds, table
from manifest_cache.storage.database import Database

_STREAMS, _AIOHTTP = "asyncio streams", "aiohttp"
_LICTOR, _OF_NOTHING = "Lictor", "Lictor, nothing registered"


class Start(NamedTuple):
    """How long until all is served, how much of a core's time that took, and how many fetches."""

    seconds: float
    processor: float
    fetches: int


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--instances", type=int, default=10_000)
    options.add_argument("--runs", type=int, default=3)
    chosen = options.parse_args()
    rows = [
        row
        for announced in (False, True)
        for row in _rows(chosen.instances, chosen.runs, announced=announced)
    ]
    head = ("digests in meta", "way", "fetches", "seconds", "CPU seconds", "Lictor's ratio to it")
    table(f"{chosen.instances:,} instances of {_modules(chosen.instances):,} modules", head, rows)


def _rows(instances: int, runs: int, *, announced: bool) -> list[Sequence[str]]:
    starts: dict[str, list[Start]] = defaultdict(list)
    with Farm() as farm, Consul() as consul, Consul() as empty:
        _register(consul, farm, instances, announced=announced)
        asked = [module_of(number) for number in range(0, instances, Platform.PER_MODULE if announced else 1)]
        for _ in range(runs):
            for way, start in asyncio.run(_bare(farm, asked)).items():
                starts[way].append(start)
            starts[_OF_NOTHING].append(_start(empty, farm, 0))
            starts[_LICTOR].append(_start(consul, farm, instances))
    median = {way: statistics.median(start.seconds for start in found) for way, found in starts.items()}
    return [
        (
            "yes" if announced else "no",
            way,
            f"{statistics.median(start.fetches for start in found):,.0f}",
            f"{median[way]:.2f}",
            f"{statistics.median(start.processor for start in found):.2f}",
            "" if way in (_LICTOR, _OF_NOTHING) else f"{median[_LICTOR] / median[way]:.2f}",
        )
        for way, found in starts.items()
    ]


def _register(consul: Consul, farm: Farm, instances: int, *, announced: bool) -> None:
    platform = Platform(consul, farm.port)
    for number in range(instances):
        meta = {"manifest_digest": digest(module_of(number))} if announced else {}
        platform.register(number, meta=meta)
    platform.close()


async def _bare(farm: Farm, modules: Sequence[str]) -> dict[str, Start]:
    async with over_aiohttp(farm.port) as aiohttp_get:
        ways: dict[str, Get] = {_STREAMS: over_streams(farm.port), _AIOHTTP: aiohttp_get}
        return {way: Start(*await timed(get, modules), len(modules)) for way, get in ways.items()}


def _start(consul: Consul, farm: Farm, instances: int) -> Start:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        database = Database(f"sqlite:///{folder}/lictor.db")
        closing.callback(database.close)
        database.migrate()
        before, began = farm.requests(), time.perf_counter()
        with lictor(consul.address, folder, "sync", ready=False) as (_, process):
            wait_for_source(database)
            wait_for_manifests(database, instances)
            seconds, processor = time.perf_counter() - began, processor_seconds(process.pid)
        return Start(seconds, processor, farm.requests() - before)


def _modules(instances: int) -> int:
    return -(-instances // Platform.PER_MODULE)


if __name__ == "__main__":
    main()
