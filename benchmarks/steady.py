"""What keeping up costs: processor and memory of the synchronizer, and of Consul on its account.

    .venv/bin/python -m benchmarks.steady [--instances 1000,10000,50000] [--churn 0,10,100] [--seconds 30]
        [--settling 300]

Consul's share is what its processor does with the synchronizer running, less what it does under the
same changes without. Memory is what the synchronizer holds beyond one that follows an empty Consul,
for each instance. Known manifests are asked for again from the fourth minute on: with `--settling 300`
what that takes is among the figures.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.stage import (
    PATIENCE,
    Churn,
    Consul,
    Modules,
    Platform,
    memory_bytes,
    processor_seconds,
    table,
)
from manifest_cache.storage.database import Database
from manifest_cache.storage.reader import Reader

_HEAD = (
    *("instances", "changes", "synchronizer", "a change", "Consul for it"),
    *("memory", "an instance", "connections"),
)


@contextmanager
def synchronizer(consul: Consul, folder: str) -> Iterator[int]:
    """`lictor sync` over a database of its own; yields its process id."""
    environment = {
        **os.environ,
        "CONSUL_HTTP_ADDR": consul.address,
        "LICTOR_DATABASE_URL": f"sqlite:///{folder}/lictor.db",
        "LICTOR_METRICS_BIND": "",
        "LICTOR_LOG_LEVEL": "error",
    }
    lictor = str(Path(sys.executable).with_name("lictor"))
    subprocess.run([lictor, "migrate"], env=environment, check=True, capture_output=True)
    process = subprocess.Popen([lictor, "sync"], env=environment)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def wait_until_stored(folder: str, instances: int) -> None:
    database = Database(f"sqlite:///{folder}/lictor.db")
    deadline = time.monotonic() + 5 * PATIENCE
    try:
        while time.monotonic() < deadline:
            with Reader(database).snapshot() as snapshot:
                if sum(source.instances for source in snapshot.sources) >= instances:
                    return
            time.sleep(0.5)
    finally:
        database.close()
    raise SystemExit(f"{instances} instances were not stored in time")


def share(seconds: float, *pids: int) -> float:
    """How much of a core each of the processes used over a time, in all."""
    before, begun = processor_seconds(*pids), time.monotonic()
    time.sleep(seconds)
    return (processor_seconds(*pids) - before) / (time.monotonic() - begun)


def under_churn(platform: Platform, churn: float, seconds: float, *pids: int) -> tuple[list[float], float]:
    """The share of a core of each process, and the flips a second that there were."""
    with Churn(platform, range(platform.instances // 2, platform.instances), churn) as flips:
        time.sleep(2)
        before, begun, flipped = [processor_seconds(pid) for pid in pids], time.monotonic(), flips.flips
        time.sleep(seconds)
        lasted = time.monotonic() - begun
        shares = [(processor_seconds(pid) - was) / lasted for pid, was in zip(pids, before, strict=True)]
        return shares, (flips.flips - flipped) / lasted


def run(instances: int, rates: list[float], seconds: float, settling: float, empty: int) -> list[list[str]]:
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        consul = stack.enter_context(Consul())
        platform = Platform(consul, Modules().port)
        # All instances of a module announce one manifest, so that fetches do not take the time.
        platform.fill(instances)
        alone = [under_churn(platform, rate, seconds, consul.pid)[0][0] for rate in rates]
        pid = stack.enter_context(synchronizer(consul, folder))
        wait_until_stored(folder, instances)
        # What follows the first sight (fetches, passes over all services) comes to its end.
        time.sleep(settling + instances / 500)
        for rate, without in zip(rates, alone, strict=True):
            (ours, beside), flips = under_churn(platform, rate, seconds, pid, consul.pid)
            held = memory_bytes(pid)
            rows.append(
                [
                    f"{instances:,}",
                    f"{flips:.0f}/s" if rate else "idle",
                    f"{ours * 100:.1f} %",
                    f"{ours / flips * 1e3:.1f} ms" if rate else "",
                    f"{max(0.0, beside - without) * 100:.1f} %",
                    f"{held / 2**20:.0f} MiB",
                    f"{(held - empty) / instances / 1000:.1f} kB",
                    str(consul.connections() - 1),
                ]
            )
    return rows


def memory_of_nothing() -> int:
    """What a synchronizer holds that follows an empty Consul."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        pid = stack.enter_context(synchronizer(stack.enter_context(Consul()), folder))
        time.sleep(5)
        return memory_bytes(pid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", default="1000,10000,50000", help="how many are there (a list)")
    parser.add_argument("--churn", default="0,10,100", help="flips a second (a list)")
    parser.add_argument("--seconds", type=float, default=30, help="how long each is looked at (default 30)")
    parser.add_argument("--settling", type=float, default=20, help="how long it is left alone before (20)")
    arguments = parser.parse_args()
    empty = memory_of_nothing()
    rates = [float(rate) for rate in arguments.churn.split(",")]
    rows = []
    for instances in map(int, arguments.instances.split(",")):
        rows += run(instances, rates, arguments.seconds, arguments.settling, empty)
    table(
        f"Steady, {arguments.seconds:g} s each; a synchronizer of nothing holds {empty / 2**20:.0f} MiB",
        [
            "instances",
            "changes",
            "synchronizer",
            "a change",
            "Consul for it",
            "memory",
            "an instance",
            "connections",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
