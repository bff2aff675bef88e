"""What must hold once trouble is over: the cache equals Consul and what was pushed, within a bounded time."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.faults.copies import Copy
from tests.faults.invariants import Violation
from tests.faults.replay import HEALTHY, Key
from tests.faults.told import DEFINITION
from tests.faults.world import World

Json = dict[str, Any]

LIMIT = 90.0
_PAUSE = 0.1


def settle(world: World) -> float:
    """Waits until the cache is as it should be; returns how many seconds it took. Raises Violation."""
    began = time.monotonic()
    while differences := _differences(world):
        if time.monotonic() - began > LIMIT:
            raise Violation(f"{LIMIT:g} s after the last trouble:\n" + "\n".join(differences))
        world.pass_time(_PAUSE)
    return time.monotonic() - began


def await_follower(world: World) -> None:
    """Waits until who follows the stream was told all of the log. Raises Violation if it was told else."""
    began, log = time.monotonic(), world.invariants.events
    while len(told := list(world.following.events)) < len(log) and time.monotonic() - began < LIMIT:
        world.pass_time(_PAUSE)
    wrong = [(one, other) for one, other in zip(told, log, strict=False) if one != other]
    if wrong:
        raise Violation(f"the stream told {wrong[0][0]}, where the log has {wrong[0][1]}")
    if len(told) < len(log):
        raise Violation(f"the stream ended with {told[-1:]}, the log goes on with {log[len(told)]}")


def _differences(world: World) -> list[str]:
    answer = world.processes.get("/api/v1/modules", include="instances", limit="1000")
    if answer.status_code != 200:
        return [f"status {answer.status_code}: {answer.text[:500]}"]
    found = (
        [f"X-Lictor-Stale: {answer.headers['X-Lictor-Stale']}"] if "X-Lictor-Stale" in answer.headers else []
    )
    modules = {module["name"]: module for module in answer.json()["items"]}
    cached = {
        Key(instance["registry"], name, instance["node"], instance["id"]): instance
        for name, module in modules.items()
        for instance in module["instances"]
    }
    try:
        true = world.catalog.instances()
    except httpx.HTTPError as exc:
        return [*found, f"Consul itself: {exc!r}"]
    found += _instances(cached, true | _pushed(world))
    return found + _manifests(world, modules, cached)


def _pushed(world: World) -> dict[Key, Json]:
    copies = [pusher.copy for pusher in world.pushers]
    return {
        Key("push", copy.module, "", copy.id): {
            "address": "127.0.0.1",
            "port": copy.port,
            "scheme": "http",
            "datacenter": "",
            "tags": list(copy.tags),
            "meta": copy.meta,
            "health": copy.health,
        }
        for copy in copies
    }


def _instances(cached: dict[Key, Json], true: dict[Key, Json]) -> list[str]:
    found = [f"{key} is missing" for key in true.keys() - cached.keys()]
    found += [f"{key} is in the cache only" for key in cached.keys() - true.keys()]
    for key in true.keys() & cached.keys():
        for name in (*DEFINITION, "datacenter", "health"):
            if cached[key][name] != true[key][name]:
                found.append(f"{key}: {name} is {true[key][name]!r}, the cache says {cached[key][name]!r}")
    return found


def _manifests(world: World, modules: dict[str, Json], cached: dict[Key, Json]) -> list[str]:
    """Of every instance that is well and serves one, the manifest must be known as it is now."""
    copies: dict[Key, Copy] = {world.key_of(copy): copy for copy in world.copies}
    copies |= {Key("push", one.copy.module, "", one.copy.id): one.copy for one in world.pushers}
    found = []
    for key, instance in cached.items():
        copy = copies.get(key)
        if copy is None or not copy.serves or instance["health"] not in HEALTHY:
            continue
        if instance["digest"] != copy.digest or instance["manifest_error"]:
            found.append(f"{key} serves {copy.digest}, the cache has {instance['digest']}: {instance}")
    for name, module in modules.items():
        passing = [one for one in module["instances"] if one["health"] == "passing" and one["version"]]
        highest = max((_ordered(one["version"]) for one in passing), default=None)
        current = [one["digest"] for one in passing if _ordered(one["version"]) == highest]
        if current and module["digest"] not in current:
            found.append(f"{name} has the manifest {module['digest']}, its best instances {current}")
    return found


def _ordered(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
