"""What a manifest costs from the request to the tables, beside the bare fetch that it cannot go below.

    .venv/bin/python -m benchmarks.fetch [--modules 2000] [--runs 5]

Every way fetches one manifest of some 2 kB from each of so many modules, 50 in flight, over a
connection each:

- asyncio's streams alone, and the client that Lictor uses, alone: nothing is checked or bounded;
- aiohttp, alone, where it is installed: `.venv/bin/pip install aiohttp`;
- Lictor's fetcher: with bounds, the address judged, the manifest checked, its digest made;
- a whole synchronizer that finds the modules in its database and stores their manifests there.

The ways take turns; the figures are medians over the runs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.bare import IN_FLIGHT, Get, Taken, over_aiohttp, over_streams, timed
from benchmarks.farm import Farm
from benchmarks.filled import Filled, instance_of
from benchmarks.stage import table
from manifest_cache.fetch.fetched import Fetched
from manifest_cache.fetch.fetcher import FetchConfig, ManifestFetcher

_STREAMS, _AIOHTTP = "asyncio streams, alone", "aiohttp, alone"
_PEERS = (_STREAMS, _AIOHTTP)
_FETCHER, _WHOLE = "Lictor's fetcher", "the whole path, stored"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--modules", type=int, default=2000)
    options.add_argument("--runs", type=int, default=5)
    chosen = options.parse_args()
    with Farm() as farm:
        taken = asyncio.run(_measure(farm, chosen.modules, chosen.runs))
    _tell(taken, chosen.modules)


async def _measure(farm: Farm, modules: int, runs: int) -> dict[str, list[Taken]]:
    taken: dict[str, list[Taken]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        fetcher = await stack.enter_async_context(
            ManifestFetcher(FetchConfig(concurrency=IN_FLIGHT, per_host=IN_FLIGHT))
        )
        ways: dict[str, Get] = {
            _STREAMS: over_streams(farm.port),
            _AIOHTTP: await stack.enter_async_context(over_aiohttp(farm.port)),
        }
        # The first of each way pays for what is imported and set up.
        for run in range(-1, runs):
            # New names in each run: what was fetched before is known by sight.
            names = [f"module-{run}-{number}" for number in range(modules)]
            for way, get in ways.items():
                taken[way].append(await timed(get, names))
            taken[_FETCHER].append(await timed(_fetching(fetcher, farm.port), names))
            taken[_WHOLE].append(await _whole(farm.port, names))
    return {way: found[1:] for way, found in taken.items()}


def _fetching(fetcher: ManifestFetcher, port: int) -> Get:
    async def get(module: str) -> bytes:
        fetched = await fetcher.fetch(instance_of(module, 0, port))
        assert isinstance(fetched, Fetched)
        return fetched.parsed.canonical

    return get


async def _whole(port: int, names: Sequence[str]) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        filled = Filled(f"sqlite:///{folder}/lictor.db", [instance_of(name, 0, port) for name in names])
        return await filled.synchronize()


def _tell(taken: dict[str, list[Taken]], modules: int) -> None:
    rate = {way: modules / statistics.median(run.seconds for run in runs) for way, runs in taken.items()}
    processor = {
        way: statistics.median(run.processor for run in runs) / modules for way, runs in taken.items()
    }
    rows: list[Sequence[Any]] = [
        (
            way,
            f"{rate[way]:,.0f}",
            f"{processor[way] * 1000:.2f} ms",
            *(f"{rate[peer] / rate[way]:.2f}" for peer in _PEERS),
        )
        for way in taken
    ]
    head = ("way", "a second", "CPU each", "time / streams'", "time / aiohttp's")
    table(f"Fetching the manifests of {modules:,} modules", head, rows)


if __name__ == "__main__":
    main()
