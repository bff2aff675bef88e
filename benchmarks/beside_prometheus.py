"""A new service seen by Lictor and by Prometheus (consul_sd_configs), on the same Consul.

    .venv/bin/python -m benchmarks.beside_prometheus [--services 1000] [--rounds 10] [--refresh 1s,30s]

Prometheus is asked every 10 ms which targets it knows, Lictor by a blocking query. Beside the times:
how many connections each holds to Consul, and what each takes of a core when nothing changes.
scripts/get-prometheus finds or fetches Prometheus.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.freshness import NEW, Lictor, timed
from benchmarks.stage import (
    HOST,
    PATIENCE,
    Client,
    Consul,
    Modules,
    Platform,
    lictor,
    percentile,
    processes_under,
    processor_seconds,
    table,
    wait_for_instances,
)
from discovery.consul.dev_agent import free_ports

ROOT = Path(__file__).resolve().parent.parent
IDLE = 20.0


class Prometheus:
    """Which targets a Prometheus knows."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def seen(self, name: str) -> Callable[[], None]:
        def see() -> None:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if any(service == name for service in self.services()):
                    return
                # Prometheus has nothing to wait on; this adds 5 ms to seconds.
                time.sleep(0.01)

        return see

    def services(self) -> list[str]:
        targets = json.loads(self._client.done("GET", "/api/v1/targets"))["data"]["droppedTargets"]
        return [target["discoveredLabels"]["__meta_consul_service"] for target in targets]


@contextmanager
def prometheus(consul: Consul, folder: str, refresh: str) -> Iterator[tuple[Prometheus, int]]:
    (port,) = free_ports(1)
    # What it discovers is dropped: scraping is not what is measured.
    Path(folder, "prometheus.yml").write_text(
        "scrape_configs:\n"
        "  - job_name: modules\n"
        "    consul_sd_configs:\n"
        f"      - {{server: '{consul.address}', refresh_interval: {refresh}}}\n"
        "    relabel_configs:\n"
        "      - {source_labels: [__address__], regex: '.*', action: drop}\n"
    )
    binary = subprocess.run(
        [ROOT / "scripts" / "get-prometheus"], check=True, capture_output=True, text=True
    ).stdout.strip()
    process = subprocess.Popen(
        [
            binary,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=error",
        ],
        cwd=folder,
    )
    try:
        yield Prometheus(_when_ready(f"{HOST}:{port}")), process.pid
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _when_ready(address: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Client(address).ask("GET", "/-/ready")[0] == 200:
                return address
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("Prometheus did not become ready")


def measured(
    platform: Platform, waiting: Callable[[str, int], Callable[[], None]], rounds: int, first: int
) -> list[float]:
    found = []
    for turn in range(rounds):
        number = first + turn * 100
        name = f"fresh-{number}"
        wait = waiting(name, number)
        found.append(timed(wait, lambda: platform.register_named(name, number)))  # noqa: B023
        # Spread, so as not to fall into step with what looks now and then.
        time.sleep(0.3 + 0.7 * turn / rounds)
    return found


def row(who: str, sample: list[float], connections: int, idle: float) -> list[str]:
    return [
        who,
        *(f"{percentile(sample, share) * 1e3:,.0f} ms" for share in (50, 95)),
        str(connections),
        f"{idle * 100:.2f} %",
    ]


def idle_share(pids: list[int]) -> float:
    before = processor_seconds(*pids)
    # That nothing happens is what is measured.
    time.sleep(IDLE)
    return (processor_seconds(*pids) - before) / IDLE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--refresh", default="1s,30s", help="Prometheus' refresh_interval (a list)")
    arguments = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        consul = stack.enter_context(Consul())
        platform = Platform(consul, Modules().port)
        for number in range(arguments.services):
            platform.register_named(f"service-{number}", number)
        with lictor(consul.address, folder) as (address, process):
            wait_for_instances(address, arguments.services, with_digest=True)
            # What a start leaves to be done is over, and connections that were for it are closed.
            time.sleep(15)
            # One connection is the platform's own.
            connections = consul.connections() - 1
            # The synchronizer and the web server, with all that came from them.
            idle = idle_share(processes_under(process.pid))
            ours = measured(platform, Lictor(address).instance, arguments.rounds, NEW)
        rows.append(row("Lictor, with the manifest", ours, connections, idle))
        for turn, refresh in enumerate(arguments.refresh.split(",")):
            with prometheus(consul, folder, refresh) as (peer, pid):
                deadline = time.monotonic() + PATIENCE
                while len(set(peer.services())) < arguments.services and time.monotonic() < deadline:
                    time.sleep(0.5)
                # As above.
                time.sleep(5)
                connections = consul.connections() - 1
                idle = idle_share([pid])
                theirs = measured(
                    platform,
                    lambda name, _: peer.seen(name),
                    arguments.rounds,
                    NEW * (turn + 2),
                )
            rows.append(row(f"Prometheus, refresh {refresh}", theirs, connections, idle))
            print(
                f"refresh {refresh}: {percentile(theirs, 50) / percentile(ours, 50):.0f} times as late at p50"
            )
    table(
        f"A new service seen, among {arguments.services:,}; {arguments.rounds} rounds",
        ["who", "p50", "p95", "connections", "idle"],
        rows,
    )


if __name__ == "__main__":
    main()
