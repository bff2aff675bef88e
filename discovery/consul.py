"""Watches Consul: a handful of blocking queries in, changes out.

Three queries stay open whatever the number of services: `catalog/services` wakes on every change
of a registration, `health/state/critical` and `health/state/warning` on every change of health,
and these two are small even where the catalog is large. What a registration is made of is read
by `health/service/NAME`, over a few connections more; which names to read follows from the names
and tags that are other, from the checks that were written, and at last from looking at all.

Source: https://developer.hashicorp.com/consul/api-docs/features/blocking
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from discovery.backoff import Backoff
from discovery.base import Change, Health, InstanceKey, ServiceInstance
from discovery.consul_client import Answer, AsyncConsulClient
from discovery.consul_config import ConsulConfig
from discovery.errors import RegistryUnavailable

logger = logging.getLogger(__name__)

READERS = 3
"""How many services are read at the same time; with the three watches these are all connections."""

# Between two queries of one watch, in seconds: a burst of changes is answered together.
_FLOOR = 0.025
_SIGN_OF_LIFE = 5.0
# A watch that held this long was not part of the trouble that ended it.
_STEADY = 60.0
# What is known to have changed is read, told and stored before all else is looked through.
_SETTLE = 0.05
# Between two services that are read in passing.
_PACE = 0.02
# Changes that nobody takes are held up to this number; then the watch waits.
_QUEUE = 1000


class ConsulWatcher:
    """Follows the modules of one Consul datacenter: the services that carry `tag`.

    `datacenter` is asked through the agent that `config` names; None is the agent's own. `wait` is
    how long Consul holds a query without news, in seconds. Every instance's health is that of its
    checks and its node's, as Consul's own DNS sees it.
    """

    def __init__(
        self,
        config: ConsulConfig,
        *,
        tag: str = "module",
        datacenter: str | None = None,
        wait: float = 300.0,
    ) -> None:
        self._config = config
        self._tag = tag
        self._datacenter = datacenter
        self._wait = wait

    @property
    def source(self) -> str:
        return f"consul/{self._datacenter}" if self._datacenter else "consul"

    async def watch(self) -> AsyncGenerator[Change]:
        """See `discovery.base.Watcher`. Raises RegistryUnavailable or RegistryRejected."""
        backoff = Backoff()
        while True:
            begun = time.monotonic()
            try:
                async with aclosing(self._watch_once()) as changes:
                    async for change in changes:
                        yield change
            except _IndexWentBackError as exc:
                logger.info("index went back source=%s path=%s: starting over", self.source, exc)
            # A proxy that drops the index would else be asked without end.
            if time.monotonic() - begun >= _STEADY:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    async def _watch_once(self) -> AsyncGenerator[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue(_QUEUE)
        async with AsyncConsulClient(self._config, max_connections=3 + READERS) as client:
            session = _Session(client, self.source, self._tag, self._datacenter, self._wait, queue)
            running = asyncio.create_task(session.run(), name=f"watch {self.source}")
            try:
                while True:
                    taking = asyncio.create_task(queue.get(), name=f"changes of {self.source}")
                    try:
                        await asyncio.wait({running, taking}, return_when=asyncio.FIRST_COMPLETED)
                        if not taking.done():
                            break
                        yield taking.result()
                    finally:
                        taking.cancel()
            finally:
                running.cancel()
                await asyncio.wait({running})
            _raise_first(running.exception())


class _IndexWentBackError(Exception):
    """Consul forgot: what is known of it is worth nothing any longer."""


class _Session:
    """One uninterrupted watch, from the first answers on; it ends by an exception."""

    def __init__(
        self,
        client: AsyncConsulClient,
        source: str,
        tag: str,
        datacenter: str | None,
        wait: float,
        queue: asyncio.Queue[Change],
    ) -> None:
        self._client = client
        self._source = source
        self._tag = tag
        self._datacenter = datacenter
        self._wait = wait
        self._queue = queue
        self._mirror = Mirror(tag)
        self._to_read = _ToRead()
        self._moved = asyncio.Event()
        self._unnamed = False
        self._first_pass: set[str] | None = None
        self._told_all = False
        self._told_at = 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_state(Health.CRITICAL), name="watch critical")
            group.create_task(self._watch_state(Health.WARNING), name="watch warning")
            group.create_task(self._watch_catalog(), name="watch catalog")
            group.create_task(self._find_unnamed(), name="find unnamed changes")
            for number in range(READERS):
                group.create_task(self._read_services(), name=f"read services {number}")

    async def _watch_state(self, state: Health) -> None:
        async with aclosing(self._answers(f"/v1/health/state/{state}")) as answers:
            async for answer in answers:
                altered = self._mirror.checks_answered(state, answer.data, answer.index)
                await self._tell(altered)

    async def _watch_catalog(self) -> None:
        async with aclosing(self._answers("/v1/catalog/services")) as answers:
            async for answer in answers:
                renamed, gone = self._mirror.catalog_answered(answer.data)
                if self._first_pass is None:
                    self._first_pass = set(self._mirror.names)
                self._first_pass -= gone.keys()
                self._to_read.first(renamed)
                self._unnamed |= not (renamed or gone)
                self._moved.set()
                await self._tell((), [key for keys in gone.values() for key in keys])

    async def _find_unnamed(self) -> None:
        """Reads what else may be behind an index that moved.

        A registration that changed need not show in the names and their tags. Mostly its checks
        are rewritten with it, and one query over all checks names them. What even that does not
        name may be any service, so all are read again: at once if nothing at all was named, and in
        passing if something was, for that will mostly have been all.
        """
        while True:
            await self._moved.wait()
            self._moved.clear()
            unnamed, self._unnamed = self._unnamed, False
            if not unnamed:
                await asyncio.sleep(_SETTLE)
            answer = await self._client.query("/v1/health/state/any", dc=self._datacenter)
            rewritten = self._mirror.all_checks_answered(answer.data)
            self._to_read.first(rewritten)
            if unnamed and not rewritten:
                self._to_read.then(self._mirror.names)
            else:
                self._to_read.in_passing(self._mirror.names)

    async def _read_services(self) -> None:
        while True:
            name = await self._to_read.take()
            answer = await self._client.query(
                f"/v1/health/service/{quote(name, safe='')}", dc=self._datacenter
            )
            altered, gone = self._mirror.service_answered(name, answer.data, answer.index)
            if self._first_pass is not None:
                self._first_pass.discard(name)
            await self._tell(altered, gone)

    async def _answers(self, path: str) -> AsyncGenerator[Answer]:
        """The answers of a blocking query that hold something new, without end."""
        index = 0
        while True:
            # Jitter: watches that began together do not all come back together.
            wait = self._wait * random.uniform(0.9, 1.0)
            answer = await self._client.query(path, index=index or None, wait=wait, dc=self._datacenter)
            if answer.index < index:
                raise _IndexWentBackError(path)
            if answer.index != index or index == 0:
                yield answer
            else:
                await self._tell(())
            # An index of 0 would turn the next query into one that does not block.
            index = max(answer.index, 1)
            await asyncio.sleep(_FLOOR)

    async def _tell(self, altered: Iterable[ServiceInstance], gone: Iterable[InstanceKey] = ()) -> None:
        present, gone = tuple(altered), tuple(gone)
        if self._told_all:
            # Without news, a sign of life now and then is enough.
            if present or gone or time.monotonic() - self._told_at >= _SIGN_OF_LIFE:
                self._told_at = time.monotonic()
                await self._queue.put(Change(source=self._source, present=present, gone=gone))
        elif not self._first_pass and self._first_pass is not None and self._mirror.has_states:
            self._told_all = True
            everything = tuple(self._mirror.instances())
            await self._queue.put(Change(source=self._source, present=everything, complete=True))


class _ToRead:
    """Names of services that are to be read: each once, those likeliest to have changed first.

    What is to be read in passing only is given out slowly, so that it costs little however many
    changes come one after the other.
    """

    def __init__(self) -> None:
        self._first: dict[str, None] = {}
        self._then: dict[str, None] = {}
        self._in_passing: dict[str, None] = {}
        self._next_in_passing = 0.0
        self._filled = asyncio.Event()

    def first(self, names: Iterable[str]) -> None:
        self._first.update(dict.fromkeys(names))
        self._filled.set()

    def then(self, names: Iterable[str]) -> None:
        self._then.update(dict.fromkeys(names))
        self._filled.set()

    def in_passing(self, names: Iterable[str]) -> None:
        self._in_passing.update(dict.fromkeys(names))
        self._filled.set()

    async def take(self) -> str:
        while True:
            if names := self._first or self._then:
                return self._given(next(iter(names)))
            pause = self._next_in_passing - time.monotonic()
            if self._in_passing and pause <= 0:
                self._next_in_passing = time.monotonic() + _PACE
                return self._given(next(iter(self._in_passing)))
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self._in_passing else None):
                    await self._filled.wait()

    def _given(self, name: str) -> str:
        """It is read now, so whatever else it was to be read for is done with that."""
        for names in (self._first, self._then, self._in_passing):
            names.pop(name, None)
        return name


@dataclass(frozen=True, slots=True)
class _Known:
    """An instance as `health/service` told it, at an index, with the health that its checks had then."""

    instance: ServiceInstance
    index: int
    unwell: frozenset[Health]


class Mirror:
    """What is known of one datacenter, put together from answers that arrive in any order.

    An instance's health follows from the watches of unwell checks, unless the instance was read
    at a later index than theirs: then what was read with it holds, until the watch has caught up.
    """

    def __init__(self, tag: str) -> None:
        self.names: dict[str, tuple[str, ...]] = {}
        self._tag = tag
        self._known: dict[str, dict[InstanceKey, _Known]] = {}
        self._on_node: dict[str, set[InstanceKey]] = {}
        self._checks: dict[Health, dict[tuple[str, str], frozenset[str]]] = {}
        self._index: dict[Health, int] = {}
        self._told: dict[InstanceKey, ServiceInstance] = {}
        self._written: dict[tuple[str, str], tuple[int, str]] | None = None
        # Instances that were read at a later index than a watch's: their health may turn out
        # other when it catches up, without any check having been named.
        self._ahead: set[InstanceKey] = set()

    @property
    def has_states(self) -> bool:
        return len(self._index) == 2

    def instances(self) -> list[ServiceInstance]:
        return [self._as_known(known) for found in self._known.values() for known in found.values()]

    def catalog_answered(
        self, services: Mapping[str, Iterable[str]]
    ) -> tuple[list[str], dict[str, list[InstanceKey]]]:
        """Takes an answer of `catalog/services`.

        Returns the names of modules that are new or have other tags, and the instances of those
        that are no modules any longer, by name.
        """
        names = {
            name: tuple(sorted(tags or ())) for name, tags in services.items() if self._tag in (tags or ())
        }
        renamed = [name for name, tags in names.items() if self.names.get(name) != tags]
        gone = {name: self._forget(name) for name in self.names if name not in names}
        self.names = names
        return renamed, gone

    def all_checks_answered(self, checks: Iterable[Any]) -> list[str]:
        """Takes an answer of `health/state/any`.

        Returns the names of modules of which a check is new, was written since the last such
        answer, or is gone; none at the first answer.
        """
        before = self._written
        now = self._written = {
            (_text(check.get("Node")), _text(check.get("CheckID"))): (
                int(check.get("ModifyIndex") or 0),
                _text(check.get("ServiceName")),
            )
            for check in checks
            if check.get("ServiceName") in self.names
        }
        if before is None:
            return []
        differing = set(before.items()) ^ set(now.items())
        return sorted({name for _, (_, name) in differing if name in self.names})

    def service_answered(
        self, name: str, entries: Iterable[Any], index: int
    ) -> tuple[list[ServiceInstance], list[InstanceKey]]:
        """Takes an answer of `health/service/NAME`; returns the instances that are other, and those gone."""
        if name not in self.names:
            return [], []
        known = self._known.get(name, {})
        found: dict[InstanceKey, _Known] = {}
        for entry in entries:
            read = _read(entry, index)
            if read is not None and self._tag in read.instance.tags:
                found[read.instance.key] = read
        self._known[name] = found
        for key in found:
            self._on_node.setdefault(key.node, set()).add(key)
            self._ahead.add(key)
        gone = [key for key in known if key not in found]
        self._drop(gone)
        return self._altered(found), gone

    def checks_answered(self, state: Health, checks: Iterable[Any], index: int) -> list[ServiceInstance]:
        """Takes an answer of `health/state/STATE`; returns the instances whose health is other."""
        before = self._checks.get(state, {})
        grouped: dict[tuple[str, str], set[str]] = {}
        for check in checks:
            where = (_text(check.get("Node")), _text(check.get("ServiceID")))
            grouped.setdefault(where, set()).add(_text(check.get("CheckID")))
        now = {where: frozenset(ids) for where, ids in grouped.items()}
        self._checks[state], self._index[state] = now, index
        affected = set(self._ahead)
        for where in before.keys() | now.keys():
            if before.get(where) != now.get(where):
                affected |= self._at(*where)
        self._ahead = {key for key in self._ahead if self._is_ahead(key)}
        return self._altered(affected)

    def _at(self, node: str, service_id: str) -> set[InstanceKey]:
        """The instances that a check of this node and service belongs to: all of the node without one."""
        on_node = self._on_node.get(node, set())
        return {key for key in on_node if key.id == service_id} if service_id else on_node

    def _is_ahead(self, key: InstanceKey) -> bool:
        read_at = self._known[key.module][key].index
        return any(read_at > self._index.get(state, 0) for state in (Health.CRITICAL, Health.WARNING))

    def _as_known(self, known: _Known) -> ServiceInstance:
        instance = replace(known.instance, health=self._health(known))
        self._told[instance.key] = instance
        return instance

    def _altered(self, keys: Iterable[InstanceKey]) -> list[ServiceInstance]:
        """Those of the instances that are other than when they were last returned."""
        altered = []
        for key in keys:
            told = self._told.get(key)
            instance = self._as_known(self._known[key.module][key])
            if instance != told:
                altered.append(instance)
        return altered

    def _health(self, known: _Known) -> Health:
        unwell = {state for state in (Health.CRITICAL, Health.WARNING) if self._is_unwell(known, state)}
        if Health.CRITICAL not in unwell:
            return Health.WARNING if Health.WARNING in unwell else Health.PASSING
        return Health.MAINTENANCE if self._in_maintenance(known) else Health.CRITICAL

    def _is_unwell(self, known: _Known, state: Health) -> bool:
        if self._index.get(state, 0) < known.index:
            return state in known.unwell
        return bool(self._check_ids(known, state))

    def _in_maintenance(self, known: _Known) -> bool:
        if self._index.get(Health.CRITICAL, 0) < known.index:
            return Health.MAINTENANCE in known.unwell
        return any(_is_maintenance(check) for check in self._check_ids(known, Health.CRITICAL))

    def _check_ids(self, known: _Known, state: Health) -> frozenset[str]:
        checks = self._checks.get(state, {})
        key = known.instance.key
        return checks.get((key.node, key.id), frozenset()) | checks.get((key.node, ""), frozenset())

    def _forget(self, name: str) -> list[InstanceKey]:
        gone = list(self._known.pop(name, {}))
        self._drop(gone)
        return gone

    def _drop(self, keys: Iterable[InstanceKey]) -> None:
        for key in keys:
            self._told.pop(key, None)
            self._ahead.discard(key)
            self._on_node[key.node].discard(key)
            if not self._on_node[key.node]:
                del self._on_node[key.node]


def _read(entry: Any, index: int) -> _Known | None:
    """One entry of `health/service`; None for what is no instance of a module, a sidecar proxy say."""
    node, service = entry.get("Node") or {}, entry.get("Service") or {}
    if service.get("Kind"):
        return None
    meta = {_text(name): _text(value) for name, value in (service.get("Meta") or {}).items()}
    instance = ServiceInstance(
        module=_text(service.get("Service")),
        id=_text(service.get("ID")),
        address=_text(service.get("Address")) or _text(node.get("Address")),
        port=service.get("Port") or 0,
        scheme=meta.get("scheme", "http"),
        node=_text(node.get("Node")),
        datacenter=_text(node.get("Datacenter")),
        tags=tuple(_text(tag) for tag in service.get("Tags") or ()),
        meta=meta,
    )
    unwell = set()
    for check in entry.get("Checks") or ():
        if check.get("Status") in {Health.CRITICAL, Health.WARNING}:
            unwell.add(Health(check["Status"]))
        if check.get("Status") == Health.CRITICAL and _is_maintenance(_text(check.get("CheckID"))):
            unwell.add(Health.MAINTENANCE)
    return _Known(instance, index, frozenset(unwell))


def _is_maintenance(check_id: str) -> bool:
    return check_id == "_node_maintenance" or check_id.startswith("_service_maintenance:")


def _text(value: Any) -> str:
    """Text that every database takes: without NUL and without halves of surrogate pairs."""
    return str(value or "").replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _raise_first(exc: BaseException | None) -> None:
    """Raises what ended a watch, free of the group that it came in."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if exc is None:
        raise RegistryUnavailable("the watch ended by itself")
    raise exc
