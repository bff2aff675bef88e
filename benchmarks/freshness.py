"""How soon a change in Consul is in Lictor's API, beside the least that any program could take.

    .venv/bin/python -m benchmarks.freshness --kind flip       [--instances 100,1000,10000] [--churn 0,50]
    .venv/bin/python -m benchmarks.freshness --kind register   [--instances 100,1000,10000]

`flip`: a check turns critical, or passing again. The floor is a bare blocking query on
`health/state/critical` by a client that does nothing else. `register`: a new module, a new instance
of a module that is known, and new meta of an instance, each of a module and on a node that are chosen at
random among all. The floor is a bare blocking query on the one service, and a bare GET of its manifest.

Floor and Lictor are measured on the same Consul in the same run, the floor while no Lictor runs.
Lictor's side waits by a blocking query too, on the one module. With `--churn` so many other
instances flip each second all the while.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from benchmarks.stage import (
    HOST,
    Churn,
    Client,
    Consul,
    Modules,
    Platform,
    lictor,
    module_of,
    percentile,
    table,
    wait_for_instances,
)

# Each change comes by itself: what the one before it led to has come to its end.
QUIET = 0.2
# The numbers of instances that are not there at the start.
NEW = 1_000_000
_HEAD = (
    *("instances", "meanwhile", "change"),
    *("floor p50", "Lictor p50", "ratio", "floor p99", "Lictor p99", "ratio"),
    "connections",
)


class Seer(Protocol):
    """Waits for a change; each method is called before the change, what it returns waits for it."""

    def health(self, number: int, status: str) -> Callable[[], None]: ...

    def instance(self, module: str, number: int) -> Callable[[], None]: ...

    def meta(self, module: str, number: int, value: str) -> Callable[[], None]: ...


class Floor:
    """Asks Consul for the one thing that will change."""

    def __init__(self, platform: Platform) -> None:
        self._consul = Client(platform.consul.address)

    def health(self, number: int, status: str) -> Callable[[], None]:
        check = f"check-{number}"
        return self._waiting(
            "/v1/health/state/critical?",
            lambda checks: any(one["CheckID"] == check for one in checks) == (status == "critical"),
        )

    def instance(self, module: str, number: int) -> Callable[[], None]:
        return self._with_manifest(
            module, number, lambda entries: any(_is(entry, number) for entry in entries)
        )

    def meta(self, module: str, number: int, value: str) -> Callable[[], None]:
        return self._with_manifest(
            module,
            number,
            lambda entries: any(
                _is(entry, number) and entry["Service"]["Meta"].get("note") == value for entry in entries
            ),
        )

    def _with_manifest(self, module: str, number: int, enough: Callable[[Any], bool]) -> Callable[[], None]:
        found: list[Any] = []

        def noting(entries: Any) -> bool:
            found[:] = [entry["Service"] for entry in entries if _is(entry, number)]
            return enough(entries)

        wait = self._waiting(f"/v1/health/service/{module}?passing&", noting)

        def see() -> None:
            wait()
            (service,) = found
            client = Client(f"{service['Address']}:{service['Port']}")
            json.loads(client.done("GET", service["Meta"]["manifest_path"]))

        return see

    def _waiting(self, path: str, enough: Callable[[Any], bool]) -> Callable[[], None]:
        _, headers, body = self._consul.ask("GET", path)
        first = int(headers["X-Consul-Index"]), json.loads(body)

        def see() -> None:
            index, entries = first
            while not enough(entries):
                _, headers, body = self._consul.ask("GET", f"{path}index={index}&wait=30s")
                index, entries = int(headers["X-Consul-Index"]), json.loads(body)

        return see


class Lictor:
    """Asks Lictor's API for the one module."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def health(self, number: int, status: str) -> Callable[[], None]:
        return self._waiting(
            module_of(number), lambda module: _instance(module, number).get("health") == status
        )

    def instance(self, module: str, number: int) -> Callable[[], None]:
        # It is there when its manifest is.
        return self._waiting(module, lambda found: _instance(found, number).get("digest") is not None)

    def meta(self, module: str, number: int, value: str) -> Callable[[], None]:
        return self._waiting(
            module, lambda found: _instance(found, number).get("meta", {}).get("note") == value
        )

    def _waiting(self, name: str, enough: Callable[[Any], bool]) -> Callable[[], None]:
        # A module that is not there yet is no error in it.
        path = f"/api/v1/modules/lookup?name={name}&include=instances"
        first = json.loads(self._client.done("GET", path))["index"]

        def see() -> None:
            index = first
            module: Any = {}
            while not enough(module):
                answer = json.loads(self._client.done("GET", f"{path}&index={index}&wait=30s"))
                index = answer["index"]
                module = next(iter(answer["items"]), {})

        return see


def _is(entry: Any, number: int) -> bool:
    return bool(entry["Service"]["ID"] == f"instance-{number}")


def _instance(module: Any, number: int) -> Any:
    wanted = f"instance-{number}"
    return next((one for one in module.get("instances", ()) if one["id"] == wanted), {})


class Flips:
    """Checks that turn critical, and those that turn passing."""

    def __init__(self, platform: Platform, rounds: int) -> None:
        self.platform = platform
        # Away from those that the churn flips.
        self._numbers = [random.randrange(platform.instances // 2) for _ in range(rounds)]

    def measured(self, seer: Seer) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"critical": [], "passing": []}
        for number in self._numbers:
            for status in found:
                self.platform.set_health(number, "passing" if status == "critical" else "critical")
                time.sleep(QUIET)
                wait = seer.health(number, status)
                found[status].append(timed(wait, lambda: self.platform.set_health(number, status)))  # noqa: B023
                time.sleep(QUIET)
        return found


class Registrations:
    """New modules, new instances of one that is known, and new meta; where changes from round to round."""

    def __init__(self, platform: Platform, rounds: int) -> None:
        self.platform = platform
        self._rounds = rounds
        self._next = NEW

    def measured(self, seer: Seer) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"new module": [], "new instance": [], "meta only": []}
        platform = self.platform
        for _ in range(self._rounds):
            first, second = self._next, self._next + 1
            self._next += 2
            name, node = f"fresh-{first}", self._any_node()
            wait = seer.instance(name, first)
            found["new module"].append(
                timed(wait, lambda: platform.register_named(name, first, node=node))  # noqa: B023
            )
            time.sleep(QUIET)
            known, other_node = module_of(self._any_instance()), self._any_node()
            wait = seer.instance(known, second)
            found["new instance"].append(
                timed(wait, lambda: platform.register_named(known, second, node=other_node))  # noqa: B023
            )
            time.sleep(QUIET)
            one, note = self._any_instance(), {"note": f"{first}"}
            wait = seer.meta(module_of(one), one, note["note"])
            found["meta only"].append(timed(wait, lambda: platform.register(one, meta=note)))  # noqa: B023
            time.sleep(QUIET)
            platform.deregister(first, node)
            platform.deregister(second, other_node)
            time.sleep(QUIET)
        return found

    def _any_instance(self) -> int:
        """One that is well."""
        return random.choice([number for number in range(self.platform.instances) if number % 200 != 199])

    def _any_node(self) -> int:
        return self._any_instance() // Platform.PER_NODE


def timed(see: Callable[[], None], act: Callable[[], None]) -> float:
    """Seconds from the begin of `act` to the end of `see`, which waits beside it."""
    seen: list[float] = []
    ready = threading.Event()

    def watch() -> None:
        ready.set()
        see()
        seen.append(time.perf_counter())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.wait()
    time.sleep(0.02)
    begun = time.perf_counter()
    act()
    watcher.join()
    if not seen:
        raise SystemExit("the change was never seen")
    return seen[0] - begun


def run(kind: str, instances: int, churn: float, rounds: int) -> list[list[str]]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        consul = stack.enter_context(Consul())
        platform = Platform(consul, Modules().port)
        platform.fill(instances)
        changes = Flips(platform, rounds) if kind == "flip" else Registrations(platform, rounds)
        others = range(instances // 2, instances)
        with Churn(platform, others, churn):
            floor = changes.measured(Floor(platform))
        address, _ = stack.enter_context(lictor(consul.address, folder))
        wait_for_instances(address, instances, with_digest=True)
        time.sleep(5)
        with Churn(platform, others, churn):
            ours = changes.measured(Lictor(address))
        # Two are the benchmark's own.
        connections = consul.connections() - 2
    rows = []
    for what in floor:
        figures = [percentile(sample[what], share) for share in (50, 99) for sample in (floor, ours)]
        f50, o50, f99, o99 = figures
        rows.append(
            [
                f"{instances:,}",
                f"{churn:g}/s" if churn else "quiet",
                what,
                *(f"{figure * 1e3:.1f} ms" for figure in (f50, o50)),
                f"{o50 / f50:.1f}",
                *(f"{figure * 1e3:.1f} ms" for figure in (f99, o99)),
                f"{o99 / f99:.1f}",
                str(connections),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["flip", "register"], default="flip")
    parser.add_argument("--instances", default="100,1000,10000", help="how many are there (a list)")
    parser.add_argument("--churn", default="0", help="other flips a second meanwhile (a list)")
    parser.add_argument("--rounds", type=int, default=60, help="changes of each kind (default 60)")
    arguments = parser.parse_args()
    rows = []
    for churn in map(float, arguments.churn.split(",")):
        for instances in map(int, arguments.instances.split(",")):
            rows += run(arguments.kind, instances, churn, arguments.rounds)
    table(
        f"Freshness, {arguments.kind}, {arguments.rounds} rounds, on {HOST}",
        _HEAD,
        rows,
    )


if __name__ == "__main__":
    main()
