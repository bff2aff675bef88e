"""Combines Consul's answers, in whatever order they arrive, into the state of one datacenter."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from discovery.base import Health, InstanceKey, ServiceInstance
from discovery.consul.watch.known_instance import (
    KnownInstance,
    addresses_of,
    by_place,
    first_of,
    has_unwell_checks,
    is_maintenance,
    is_same,
    read_instance,
    text_of,
)
from discovery.validation import asking_fault

logger = logging.getLogger(__name__)

# Characters of a module's name, a node's and an id together: more fit into no index of SQL.
_LONGEST_KEY = 600
# What is left out is told once each, up to this number.
_MOST_TOLD = 1000


_SEVERITY = {Health.PASSING: 0, Health.WARNING: 1, Health.CRITICAL: 2, Health.MAINTENANCE: 2}


class CatalogState:
    """What is known of one datacenter, put together from answers that arrive in any order.

    An instance's health follows from the watches of unwell checks, and an inherited address from
    that of the nodes, unless the instance was read at a later index than theirs: then what was
    read with it holds, until the watch has caught up.
    """

    def __init__(self, tag: str) -> None:
        self.names: dict[str, tuple[str, ...]] = {}
        self._tag = tag
        self._known: dict[str, dict[InstanceKey, KnownInstance]] = {}
        # By nodes in lower case, as checks are: to Consul a node that is written otherwise is the same.
        self._on_node: dict[str, set[InstanceKey]] = {}
        self._checks: dict[Health, dict[tuple[str, str], frozenset[str]]] = {}
        self._index: dict[Health, int] = {}
        self._addresses: dict[str, str] = {}
        self._addresses_index = 0
        self._last_emitted: dict[InstanceKey, ServiceInstance] = {}
        self._written: dict[tuple[str, str], tuple[int, str]] | None = None
        # Instances that were read at a later index than a watch's: their health may turn out
        # other when it catches up, without any check having been named.
        self._read_ahead: set[InstanceKey] = set()
        # Whatever is told of checks is at least as new as this index, even if Consul's own is lower:
        # that moves with the checks alone.
        self._surveyed_at = 0
        self._left_out: set[str] = set()

    @property
    def has_states(self) -> bool:
        return len(self._index) == 2

    @property
    def nodes(self) -> set[str]:
        """All nodes, and whichever else instances are known on.

        None before `catalog/nodes` was answered, and none where Consul cannot be asked for one of them.
        """
        known = {next(iter(keys)).node for keys in self._on_node.values()}
        nodes = self._addresses.keys() | known if self._addresses else set()
        return set() if any(map(asking_fault, nodes)) else nodes

    @property
    def instance_count(self) -> int:
        return sum(map(len, self._known.values()))

    def instances(self) -> list[ServiceInstance]:
        return [self._as_known(key) for found in self._known.values() for key in found]

    def apply_catalog(
        self, services: Mapping[str, Iterable[str]]
    ) -> tuple[list[str], dict[str, list[InstanceKey]]]:
        """Takes an answer of `catalog/services`.

        Returns the names of modules that are new or have other tags, and the instances of those
        that are no modules any longer, by name.
        """
        names = self._modules(services)
        for name in services.keys() - names.keys():
            if self._tag in (services[name] or ()):
                self._leave_out(f"service {asking_fault(name)}")
        renamed = [name for name, tags in names.items() if self.names.get(name) != tags]
        gone = {name: self._forget(name) for name in self.names if name not in names}
        self.names = names
        return renamed, gone

    @property
    def unread(self) -> set[str]:
        """The modules of which no instance is known."""
        return {name for name in self.names if not self._known.get(name)}

    def is_smaller_by_node(self, services: Mapping[str, Iterable[str]], nodes: Sequence[Any]) -> bool:
        """Whether `catalog/nodes` names fewer nodes, and can be asked for each, than there are modules."""
        fewer = 0 < len(nodes) < len(self._modules(services))
        return fewer and not any(map(asking_fault, addresses_of(nodes)))

    def apply_node(self, data: Mapping[str, Any], index: int) -> None:
        """Takes an answer of `catalog/node/NODE` at first sight: the checks are taken after all of these."""
        self._surveyed_at = max(self._surveyed_at, index)
        for service in (data.get("Services") or {}).values():
            written = int(service.get("ModifyIndex") or 0)
            siblings = self._known.get(text_of(service.get("Service")), {})
            known = read_instance({"Node": data.get("Node"), "Service": service}, written, first_of(siblings))
            if known and self._is_taken(known) and known.instance.module in self.names:
                key = known.instance.key
                self._known.setdefault(key.module, {})[key] = known
                self._on_node.setdefault(key.node.lower(), set()).add(key)

    def apply_all_checks(self, checks: Iterable[Any], index: int) -> tuple[list[str], list[str]]:
        """Takes an answer of `health/state/any`.

        Returns the names of modules of which a check was written at this index, and of others of
        which a check is new, was written since the last such answer, or is gone.
        """
        before = self._written
        now = self._written = {
            (text_of(check.get("Node")), text_of(check.get("CheckID"))): (
                int(check.get("ModifyIndex") or 0),
                text_of(check.get("ServiceName")),
            )
            for check in checks
            if check.get("ServiceName") in self.names
        }
        written = {name for at, name in now.values() if at == index}
        differing = set(now.items() if before is None else before.items()) ^ set(now.items())
        others = {name for _, (_, name) in differing if name in self.names}
        return sorted(written), sorted(others - written)

    def apply_service(
        self, name: str, entries: Iterable[Any], index: int
    ) -> tuple[list[ServiceInstance], list[InstanceKey]]:
        """Takes an answer of `health/service/NAME`; returns the instances that are other, and those gone."""
        if name not in self.names:
            return [], []
        known = self._known.get(name, {})
        found = self._known[name] = self._instances_of(name, entries, index)
        for key in found:
            self._on_node.setdefault(key.node.lower(), set()).add(key)
            self._read_ahead.add(key)
        gone = [key for key in known if key not in found]
        self._drop(gone)
        return self._altered(found), gone

    def contradicted(self, name: str, entries: Iterable[Any], index: int) -> set[Health]:
        """The states that an answer of `health/service/NAME` tells of, and newer watches do not."""
        # Mostly there is none, and reading an answer takes longer than looking for them.
        unwell = [entry for entry in entries if has_unwell_checks(entry)]
        return {
            state
            for known in self._instances_of(name, unwell, index).values()
            for state in known.unwell & {Health.CRITICAL, Health.WARNING}
            if not self._is_unwell(known, state)
        }

    def apply_checks(
        self, state: Health, checks: Iterable[Any], index: int
    ) -> tuple[list[ServiceInstance], list[str]]:
        """Takes an answer of `health/state/STATE`.

        Returns the instances that are worse, and the names of modules to be read because one of
        their instances seems to be better: a check that left this state may have gone over to the
        other one, or be gone with its instance, and the answers that tell of it may be yet to come.
        """
        before, now = self._checks.get(state, {}), by_place(checks)
        self._checks[state], self._index[state] = now, max(index, self._surveyed_at)
        affected = set(self._read_ahead)
        for where in before.keys() | now.keys():
            if before.get(where) != now.get(where):
                affected |= self._at(*where)
        self._read_ahead = {key for key in self._read_ahead if self._is_read_ahead(key)}
        better = {key for key in affected if self._looks_recovered(key)}
        return self._altered(affected - better), sorted({key.module for key in better})

    def apply_nodes(self, nodes: Iterable[Any], index: int) -> list[ServiceInstance]:
        """Takes an answer of `catalog/nodes`; returns the instances whose address is another."""
        self._addresses = addresses_of(nodes)
        self._addresses_index = index
        return self._altered(
            key
            for found in self._known.values()
            for key, known in found.items()
            if known.inherits
            and ((told := self._last_emitted.get(key)) is None or told.address != self._address(known))
        )

    # What an answer says that is not known, without taking it

    def differs_in_names(self, services: Mapping[str, Iterable[str]]) -> bool:
        """Whether an answer of `catalog/services` says anything else of modules than the last one taken."""
        return self._modules(services) != self.names

    def differs_in_checks(self, state: Health, checks: Iterable[Any]) -> bool:
        """The same of an answer of `health/state/STATE`."""
        return by_place(checks) != self._checks.get(state)

    def differs_in_addresses(self, nodes: Iterable[Any]) -> bool:
        """The same of an answer of `catalog/nodes`."""
        return addresses_of(nodes) != self._addresses

    def differing(self, name: str, entries: Iterable[Any]) -> list[InstanceKey]:
        """The instances that an answer of `health/service/NAME` tells of otherwise, but for their health."""
        known, found = self._known.get(name, {}), self._instances_of(name, entries, 0)
        return [key for key in known.keys() | found.keys() if not is_same(known.get(key), found.get(key))]

    def differing_on_node(self, node: str, services: Iterable[Any]) -> set[str]:
        """The modules of which an answer of `catalog/node/NODE` tells that a service was written, or went."""
        on_node = self._on_node.get(node.lower(), ())
        known = {(key.module, key.id, self._known[key.module][key].written) for key in on_node}
        told = {
            (
                text_of(service.get("Service")),
                text_of(service.get("ID")),
                int(service.get("ModifyIndex") or 0),
            )
            for service in services
            if self._tag in (service.get("Tags") or ()) and not service.get("Kind")
        }
        return {name for name, _, _ in known ^ told if name in self.names}

    def is_behind(self, name: str, index: int) -> bool:
        """Whether an answer of `health/service/NAME` at this index is older than what is known of it."""
        return any(known.index > index for known in self._known.get(name, {}).values())

    def written_last(self, name: str) -> tuple[int, str]:
        """The index at which an instance of a module was registered last, and the node; (0, "") for none."""
        found = self._known.get(name, {}).items()
        return max(((known.written, key.node) for key, known in found), default=(0, ""))

    def reading(self, name: str) -> object:
        """What the last answer of `health/service/NAME` made known: another object after each."""
        return self._known.get(name)

    def _modules(self, services: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(sorted(tags or ()))
            for name, tags in services.items()
            if self._tag in (tags or ()) and (name in self.names or not asking_fault(name))
        }

    def _instances_of(
        self, name: str, entries: Iterable[Any], index: int
    ) -> dict[InstanceKey, KnownInstance]:
        found: dict[InstanceKey, KnownInstance] = {}
        for entry in entries:
            known = read_instance(entry, index, first_of(found))
            # To Consul, names are the same that differ by case only: it answers with the instances of all.
            if known and self._is_taken(known) and known.instance.module == name:
                found[known.instance.key] = known
        return found

    def _is_taken(self, known: KnownInstance) -> bool:
        """Whether it is a module's instance, and one that can be kept."""
        key = known.instance.key
        if self._tag not in known.instance.tags:
            return False
        if sum(map(len, key)) > _LONGEST_KEY:
            cut = "/".join(key)[:_LONGEST_KEY]
            self._leave_out(f"instance {cut!r}… is longer than {_LONGEST_KEY} characters: shorten its id")
            return False
        return True

    def _leave_out(self, fault: str) -> None:
        if fault not in self._left_out and len(self._left_out) < _MOST_TOLD:
            self._left_out.add(fault)
            logger.warning("left out of what Consul has: %s", fault)

    def _at(self, node: str, service_id: str) -> set[InstanceKey]:
        """The instances that a check of this node and service belongs to: all of the node without one."""
        on_node = self._on_node.get(node, set())
        return {key for key in on_node if key.id == service_id} if service_id else on_node

    def _is_read_ahead(self, key: InstanceKey) -> bool:
        read_at = self._known[key.module][key].index
        return any(read_at > self._index.get(state, 0) for state in (Health.CRITICAL, Health.WARNING))

    def _as_known(self, key: InstanceKey) -> ServiceInstance:
        known = self._known[key.module][key]
        health, address = self._health(known), self._address(known)
        instance = known.instance
        # Most are as they were read, and need not be kept twice.
        if (health, address) != (instance.health, instance.address):
            instance = replace(instance, health=health, address=address)
        self._last_emitted[key] = instance
        return instance

    def _altered(self, keys: Iterable[InstanceKey]) -> list[ServiceInstance]:
        """Those of the instances that are other than when they were last returned."""
        altered = []
        for key in keys:
            told = self._last_emitted.get(key)
            instance = self._as_known(key)
            if instance != told:
                altered.append(instance)
        return altered

    def _looks_recovered(self, key: InstanceKey) -> bool:
        told = self._last_emitted.get(key)
        return (
            told is not None
            and _SEVERITY[self._health(self._known[key.module][key])] < _SEVERITY[told.health]
        )

    def _address(self, known: KnownInstance) -> str:
        if not known.inherits or self._addresses_index < known.index:
            return known.instance.address
        return self._addresses.get(known.instance.node) or known.instance.address

    def _health(self, known: KnownInstance) -> Health:
        unwell = {state for state in (Health.CRITICAL, Health.WARNING) if self._is_unwell(known, state)}
        if Health.CRITICAL not in unwell:
            return Health.WARNING if Health.WARNING in unwell else Health.PASSING
        return Health.MAINTENANCE if self._in_maintenance(known) else Health.CRITICAL

    def _is_unwell(self, known: KnownInstance, state: Health) -> bool:
        if self._index.get(state, 0) < known.index:
            return state in known.unwell
        return bool(self._check_ids(known, state))

    def _in_maintenance(self, known: KnownInstance) -> bool:
        if self._index.get(Health.CRITICAL, 0) < known.index:
            return Health.MAINTENANCE in known.unwell
        return any(is_maintenance(check) for check in self._check_ids(known, Health.CRITICAL))

    def _check_ids(self, known: KnownInstance, state: Health) -> frozenset[str]:
        checks = self._checks.get(state, {})
        key = known.instance.key
        node = key.node.lower()
        return checks.get((node, key.id), frozenset()) | checks.get((node, ""), frozenset())

    def _forget(self, name: str) -> list[InstanceKey]:
        gone = list(self._known.pop(name, {}))
        self._drop(gone)
        return gone

    def _drop(self, keys: Iterable[InstanceKey]) -> None:
        for key in keys:
            self._last_emitted.pop(key, None)
            self._read_ahead.discard(key)
            node = key.node.lower()
            self._on_node[node].discard(key)
            if not self._on_node[node]:
                del self._on_node[node]
