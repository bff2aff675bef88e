"""Replays the event log: events as the API tells them in, the state that they add up to out.

Written from docs/events.md alone, and not from the code that writes events: it is the second
opinion on what the tables hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]

HEALTHY = ("passing", "warning")


class Key(NamedTuple):
    """What tells one instance from all others."""

    registry: str
    module: str
    node: str
    id: str


class UnfitEvent(AssertionError):
    """An event that cannot follow the ones before it."""


@dataclass
class Replay:
    """The state that the events taken so far add up to."""

    index: int = 0
    modules: dict[str, Json] = field(default_factory=dict)
    instances: dict[Key, Json] = field(default_factory=dict)
    sources: dict[str, Json] = field(default_factory=dict)
    digests: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def take(self, event: Json) -> None:
        """Takes the next event."""
        if event["index"] <= self.index:
            raise UnfitEvent(f"event {event['index']} comes after event {self.index}")
        self.index = event["index"]
        subject, _, what = event["type"].partition(".")
        if subject == "instance" or what == "manifest_rejected":
            self._take_instance(event, what)
        elif subject == "module":
            self._take_module(event, what)
        else:
            self._take_source(event)

    @property
    def stale(self) -> dict[str, str]:
        """Since when which sources are not current."""
        return {
            name: source["since"]
            for name, source in self.sources.items()
            if not source["connected"] or source["doubt"] is not None
        }

    def instances_of(self, module: str) -> list[Json]:
        return [instance for key, instance in self.instances.items() if key.module == module]

    # Instances

    def _take_instance(self, event: Json, what: str) -> None:
        data = event["data"]
        key = Key(event["registry"], event["module"], data["node"], event["instance"])
        if what == "added":
            if key in self.instances:
                raise UnfitEvent(f"{key} is added by event {event['index']}, and was there already")
            times = {"first_seen": event["at"], "last_changed": event["at"]}
            self.instances[key] = {**data["is"], **times}
        elif what == "removed":
            _expect(event, self._instance(event, key), data["was"])
            del self.instances[key]
        else:
            instance = self._instance(event, key)
            _expect(event, instance, data["was"])
            instance |= {**data["is"], "last_changed": event["at"]}
        self._note_digest(event["module"], (data["is"] or {}).get("digest"))

    def _instance(self, event: Json, key: Key) -> Json:
        if key not in self.instances:
            raise UnfitEvent(f"event {event['index']} ({event['type']}) tells of {key}, which is not there")
        return self.instances[key]

    # Modules

    def _take_module(self, event: Json, what: str) -> None:
        name, data = event["module"], event["data"]
        if what == "registered":
            if name in self.modules:
                raise UnfitEvent(f"{name} is registered by event {event['index']}, and was there already")
            self.modules[name] = {
                "status": None,
                "version": None,
                "digest": None,
                "first_seen": event["at"],
            }
            return
        if name not in self.modules:
            raise UnfitEvent(f"event {event['index']} ({event['type']}) tells of {name}, which is not there")
        module = self.modules[name]
        if what == "forgotten":
            del self.modules[name]
            self.digests.pop(name, None)
            return
        if what in ("version_skew", "drift"):
            _expect(event, self.versions_of(name), data["is"])
            return
        _expect(event, module, data["was"])
        module |= data["is"]
        self._note_digest(name, data["is"].get("digest"))

    def versions_of(self, module: str) -> Json:
        """The versions that a module's healthy instances serve, and those with several manifests."""
        digests: dict[str, set[str]] = defaultdict(set)
        for instance in self.instances_of(module):
            if instance["health"] in HEALTHY and instance["version"] and instance["digest"]:
                digests[instance["version"]].add(instance["digest"])
        versions = sorted(digests, key=lambda version: [int(part) for part in version.split(".")])
        return {"versions": versions, "drifting": [one for one in versions if len(digests[one]) > 1]}

    def _note_digest(self, module: str, digest: str | None) -> None:
        if digest:
            self.digests[module].add(digest)

    # Sources

    def _take_source(self, event: Json) -> None:
        data = event["data"]
        name = data["source"]
        now = {"connected": data["is"]["connected"], "doubt": data["is"]["doubt"]}
        was = self.sources.get(name)
        turned = was is None or (was["connected"], was["doubt"] is None) != (
            now["connected"],
            now["doubt"] is None,
        )
        since = event["at"] if turned or was is None else was["since"]
        self.sources[name] = {**now, "since": since}


def _expect(event: Json, known: Mapping[str, Any], said: Mapping[str, Any] | None) -> None:
    """What an event says was must be what the events before it made of it."""
    wrong = {
        name: (known.get(name), value) for name, value in (said or {}).items() if known.get(name) != value
    }
    if wrong:
        raise UnfitEvent(f"event {event['index']} ({event['type']}) says what was not: {wrong}")
