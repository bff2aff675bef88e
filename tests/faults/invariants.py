"""What must hold after every step: Lictor's answers in, a Violation that names what differs out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from tests.faults.lictor import Processes
from tests.faults.replay import HEALTHY, Key, Replay, UnfitEvent
from tests.faults.told import Told, definition_of

Json = dict[str, Any]

_OF_MODULE = ("status", "version", "digest", "first_seen", "versions", "drifting")
_OF_INSTANCE = (
    "address",
    "port",
    "scheme",
    "datacenter",
    "tags",
    "meta",
    "health",
    "version",
    "digest",
    "manifest_error",
    "first_seen",
    "last_changed",
)


class Violation(AssertionError):
    """Something that must always hold does not."""


class Invariants:
    """Checks one Lictor over a run; what was seen once is remembered and must not be lost."""

    def __init__(self, processes: Processes, told: Told) -> None:
        self.replay = Replay()
        self.events: list[Json] = []
        self._processes = processes
        self._told = told
        self.repairs_are_expected = False
        self._known_digests: dict[str, set[str]] = {}

    def check(self) -> None:
        """Raises Violation if anything does not hold."""
        answer = self._processes.get("/api/v1/modules", include="manifest,instances", limit="1000")
        if answer.status_code != 200:
            raise Violation(f"the modules: status {answer.status_code} {answer.text[:500]}")
        index = int(answer.headers["X-Lictor-Index"])
        modules = {module["name"]: module for module in answer.json()["items"]}
        self._catch_up(self.replay, index)
        self._tables_are_what_the_log_says(self.replay, modules, answer.headers.get("X-Lictor-Stale", ""))
        self._counts_add_up(modules)
        self._nothing_is_lost(modules)
        self._nothing_is_invented(modules)
        self._nothing_broke()

    def with_manifest(self) -> list[str]:
        """The modules of which a manifest was seen."""
        known = list(self._known_digests.items())
        return [name for name, digests in known if digests and name not in self._told.forgettable]

    def replay_anew(self) -> None:
        """The log as a whole, from its beginning, gives what its parts gave."""
        fresh = Replay()
        self._catch_up(fresh, self.replay.index)
        if fresh != self.replay:
            raise Violation("the log replayed from index 0 gives another state than it gave on the way")

    def histories_are_whole(self) -> None:
        """Every manifest that was ever current is still there, and is what its digest says."""
        for name, digests in self._known_digests.items():
            for digest in digests:
                answer = self._processes.get(f"/api/v1/modules/{name}/manifests/{digest}")
                if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != digest:
                    raise Violation(f"the manifest {digest} of {name} is lost: status {answer.status_code}")

    def _catch_up(self, replay: Replay, index: int) -> None:
        """Takes the events up to an index."""
        while replay.index < index:
            after = replay.index
            for event in self._processes.json("/api/v1/events", after=str(after), limit="1000")["items"]:
                if event["index"] > index:
                    break
                self._take(replay, event)
            if replay.index == after:
                raise Violation(f"there is no event {index}, but the modules' index says so")

    def _take(self, replay: Replay, event: Json) -> None:
        try:
            replay.take(event)
        except UnfitEvent as exc:
            raise Violation(f"{exc}\nthe event: {event}") from exc
        if replay is not self.replay:
            return
        self.events.append(event)
        if event["type"] == "module.forgotten":
            if event["module"] not in self._told.forgettable:
                raise Violation(f"nobody wanted {event['module']} forgotten\nthe event: {event}")
            self._known_digests.pop(event["module"], None)
        if event["type"] == "instance.removed" and event["registry"] == "consul":
            key = Key("consul", event["module"], event["data"]["node"], event["instance"])
            # What left before the last quiet is forgotten: whoever came back since must have left again.
            if key not in self._told.withdrawn:
                raise Violation(f"{key} was removed, but it never left Consul\nthe event: {event}")

    def _tables_are_what_the_log_says(self, replay: Replay, modules: Mapping[str, Json], stale: str) -> None:
        log = {name: module | replay.versions_of(name) for name, module in replay.modules.items()}
        differences = _differences("modules", log, modules, _OF_MODULE)
        tables = {
            Key(instance["registry"], name, instance["node"], instance["id"]): instance
            for name, module in modules.items()
            for instance in module["instances"]
        }
        differences += _differences("instances", replay.instances, tables, _OF_INSTANCE)
        if replay.stale != _stale(stale):
            differences.append(f"stale sources: the log says {replay.stale}, X-Lictor-Stale {stale!r}")
        if differences:
            raise Violation(f"log and tables differ at index {replay.index}:\n" + "\n".join(differences))

    def _counts_add_up(self, modules: Mapping[str, Json]) -> None:
        for name, module in modules.items():
            healths = [instance["health"] for instance in module["instances"]]
            counted = {
                health: healths.count(health) for health in module["instance_counts"] if health != "total"
            }
            counted["total"] = len(healths)
            if counted != module["instance_counts"]:
                raise Violation(f"{name} counts {module['instance_counts']}, its instances are {counted}")
            if _status(healths) != module["status"]:
                raise Violation(f"{name} is {module['status']} with instances that are {healths}")

    def _nothing_is_lost(self, modules: Mapping[str, Json]) -> None:
        for name, digests in self._known_digests.items():
            if name not in modules:
                raise Violation(f"the module {name} is lost")
            if digests and modules[name]["manifest"] is None:
                raise Violation(f"the module {name} lost its manifest; it had {sorted(digests)}")
        for name, module in modules.items():
            known = self._known_digests.setdefault(name, set())
            if module["digest"]:
                known.add(module["digest"])

    def _nothing_is_invented(self, modules: Mapping[str, Json]) -> None:
        for name, module in modules.items():
            for instance in module["instances"]:
                key = Key(instance["registry"], name, instance["node"], instance["id"])
                if definition_of(instance) not in self._told.definitions[key]:
                    raise Violation(f"nobody ever announced this: {instance}")
                if instance["health"] not in self._told.healths[key]:
                    raise Violation(f"{key} never was {instance['health']}")
                if instance["digest"] and instance["digest"] not in self._told.digests[name]:
                    raise Violation(f"nobody ever served this manifest: {instance}")

    def _nothing_broke(self) -> None:
        for name, said in self._processes.logs().items():
            if found := re.search(r"^Traceback[\s\S]*", said, re.MULTILINE):
                raise Violation(f"{name} says:\n{found[0][:5000]}")
            if not self.repairs_are_expected and (found := re.search(r"^.*the watches missed.*", said, re.M)):
                raise Violation(f"{name} says: {found[0]}")
        for running in self._processes.synchronizers:
            if running.process.poll() is not None:
                raise Violation(f"a synchronizer ended by itself:\n{running.text[-3000:]}")


def _status(healths: list[str]) -> str:
    if not any(health in HEALTHY for health in healths):
        return "unavailable"
    return "available" if set(healths) == {"passing"} else "degraded"


def _stale(header: str) -> dict[str, str]:
    parts = [part.strip().partition("; since=") for part in header.split(",") if part.strip()]
    return {name: since for name, _, since in parts}


def _differences(
    what: str, log: Mapping[Any, Json], tables: Mapping[Any, Json], fields: tuple[str, ...]
) -> list[str]:
    found = [f"{what}: {key} is in the log, not in the tables" for key in log.keys() - tables.keys()]
    found += [f"{what}: {key} is in the tables, not in the log" for key in tables.keys() - log.keys()]
    return found + [
        f"{what}: {key}: {name}: the log says {log[key][name]!r}, the tables {tables[key][name]!r}"
        for key in log.keys() & tables.keys()
        for name in fields
        if log[key][name] != tables[key][name]
    ]
