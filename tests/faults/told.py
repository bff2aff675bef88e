"""What was ever true of the instances: all that a cache may show of them, whatever it went through."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from tests.faults.replay import Key

Json = dict[str, Any]

DEFINITION = ("address", "port", "scheme", "tags", "meta")


def definition_of(instance: Json) -> str:
    """What a registration says of an instance, so that it can be compared."""
    said = {name: instance[name] for name in DEFINITION}
    return json.dumps({**said, "tags": sorted(said["tags"])}, sort_keys=True)


class Told:
    """Everything that was announced so far, and what was taken back."""

    def __init__(self) -> None:
        self.definitions: dict[Key, set[str]] = defaultdict(set)
        self.healths: dict[Key, set[str]] = defaultdict(set)
        self.digests: dict[str, set[str]] = defaultdict(set)
        self.withdrawn: set[Key] = set()
        self.forgettable: set[str] = set()

    def announced(self, key: Key, instance: Json) -> None:
        self.definitions[key].add(definition_of(instance))

    def was(self, key: Key, health: str) -> None:
        self.healths[key].add(health)

    def served(self, module: str, digest: str) -> None:
        self.digests[module].add(digest)

    def all_were(self, health: str) -> None:
        """Something common to all of Consul's instances turned: their node, say."""
        for key in self.definitions:
            if key.registry == "consul":
                self.healths[key].add(health)

    def all_withdrawn(self) -> None:
        """Consul forgot, or no longer tells."""
        self.withdrawn.update(key for key in self.definitions if key.registry == "consul")
