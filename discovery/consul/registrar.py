"""Registers a module with a Consul agent and keeps its checks alive."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from discovery.announce.definition import ServiceDefinition
from discovery.announce.own_address import own_address_towards
from discovery.announce.registrar import MayRestore, first_of, fitting
from discovery.announce.road import FAR_PAUSE, NEAR_PAUSE, Road, RoadOptions
from discovery.base import Health
from discovery.consul.call import Call
from discovery.consul.client import AsyncConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import UnknownInstance
from discovery.health.checks import Target, TTLCheck
from discovery.timing.durations import format_duration
from discovery.validation import asking_fault

logger = logging.getLogger(__name__)

SHORTEST_DEREGISTER_AFTER = 60.0
"""Seconds; Consul silently takes any shorter time for this one."""

_ASK_EVERY = 60.0
"""Seconds that the agent may hold the question what it knows: a connection that died is noticed then."""
_ROTATED = "its token was replaced, and the agent would go on with the old one"
_SOON = 5.0
"""Seconds in which nobody is likely to have deregistered by hand what was just registered."""
_SEVERAL_AGENTS = (
    ", though it was just registered: where several agents are behind CONSUL_HTTP_ADDR, name one of them, on "
    "Kubernetes that of the node, or register by push"
)
_MAINTENANCE = "_service_maintenance:"
_FLOOR = 0.5
"""Seconds between two questions, for answers that come at once and say nothing new."""


class ConsulAnnouncer:
    """A Registrar: registers with the agent, and asks it, by blocking queries, whether it still knows."""

    def __init__(self, announcement: ServiceDefinition, config: ConsulConfig) -> None:
        self._announcement = announcement
        self._config = config
        self._client = AsyncConsulClient(config)
        self._definition: Mapping[str, Any] = {}
        self._token = ""
        self._registered_at = 0.0
        self._ttl_checks = ttl_check_ids(announcement)
        self._said = (Health.PASSING, "")
        self._news = asyncio.Event()

    async def register(self) -> None:
        self._definition = definition(self._announcement, await self._address(), self._said[0])
        self._token = self._client.token
        await self._client.register(self._definition, replace_existing_checks=False)
        self._registered_at = asyncio.get_running_loop().time()
        await self._remove_stale_checks()

    async def is_announced(self, may_restore: MayRestore) -> bool:
        try:
            service, _ = await self._client.agent_service(self._announcement.id)
        except UnknownInstance:
            return False
        return not (self._altered(service) and may_restore())

    async def keep_alive(self, may_restore: MayRestore) -> str:
        try:
            if self._ttl_checks:
                return await first_of(self._watch(may_restore), self._beat())
            return await self._watch(may_restore)
        except UnknownInstance as exc:
            soon = asyncio.get_running_loop().time() - self._registered_at < _SOON
            raise UnknownInstance(f"{exc}{_SEVERAL_AGENTS if soon else ''}") from exc

    async def deregister(self) -> None:
        try:
            await self._client.deregister(self._announcement.id)
        except UnknownInstance:
            logger.debug("the agent did not know %s any more", self._announcement.id)

    def report(self, health: Health, note: str) -> None:
        self._said = health, note
        self._news.set()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _address(self) -> str:
        """What the instance is registered under; without an address Consul takes that of the agent's node.

        An agent on another machine is another node, whose address is not the module's.
        """
        if self._announcement.address or self._config.is_local:
            return self._announcement.address
        own = await own_address_towards(self._config.host, self._config.port)
        # An agent that is reached by loopback is on this machine, whatever its address is called.
        return "" if ipaddress.ip_address(own).is_loopback else own

    async def _remove_stale_checks(self) -> None:
        """Removes the checks of an earlier registration, and only those.

        To let Consul replace all checks would end the maintenance that an operator may have set.
        """
        kept = {check["CheckID"] for check in self._definition["Checks"]}
        # By name, since Consul's filters have no way to write every id.
        filter = f'ServiceName == "{self._announcement.name}"'
        answer = await self._client.query("/v1/agent/checks", params={"filter": filter})
        for id, check in answer.data.items():
            ours = check.get("ServiceID") == self._announcement.id
            if ours and id not in kept and not id.startswith(_MAINTENANCE):
                with contextlib.suppress(UnknownInstance):
                    await self._client.send(_check_removal(id))

    async def _watch(self, may_restore: MayRestore) -> str:
        """Follows what the agent knows of the service, until that is no longer what was announced."""
        seen: str | None = None
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            try:
                service, content = await self._client.agent_service(
                    self._announcement.id, hash=seen, wait=_ASK_EVERY if seen else None
                )
            except UnknownInstance as exc:
                raise UnknownInstance("the agent does not know it any more") from exc
            if (altered := self._altered(service)) and may_restore():
                return f"somebody altered its {', '.join(altered)}"
            if self._client.token != self._token:
                return _ROTATED
            if content == seen:
                await asyncio.sleep(max(0.0, asked + _FLOOR - loop.time()))
            seen = content

    def _altered(self, service: Mapping[str, Any]) -> list[str]:
        """What of a service differs from the definition that was sent."""
        ours = self._definition
        return [
            told
            for told, theirs, own in (
                ("name", service.get("Service"), ours["Name"]),
                ("tags", list(service.get("Tags") or ()), ours["Tags"]),
                ("meta", dict(service.get("Meta") or {}), ours["Meta"]),
                ("port", service.get("Port"), ours["Port"]),
                ("address", service.get("Address") or "", ours.get("Address", "")),
            )
            if theirs != own
        ]

    async def _beat(self) -> str:
        """Says to each TTL check what the module says of itself, in time and whenever that is new.

        Raises UnknownInstance when the agent has no such check.
        """
        while True:
            if self._client.token != self._token:
                return _ROTATED
            self._news.clear()
            health, note = self._said
            for check_id in self._ttl_checks:
                await self._speaker(health)(check_id, fitting(note))
            try:
                async with asyncio.timeout(self._announcement.heartbeat):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _speaker(self, health: Health) -> Callable[[str, str], Awaitable[None]]:
        if health is Health.PASSING:
            return self._client.pass_check
        return self._client.warn_check if health is Health.WARNING else self._client.fail_check


def _check_removal(id: str) -> Call[None]:
    path = f"/v1/agent/check/deregister/{quote(id, safe='')}"
    return Call(method="PUT", path=path, parse=lambda reply: None, absent=UnknownInstance)


def faults(announcement: ServiceDefinition) -> list[str]:
    """What Consul would not take, or not as it is said, or not give back."""
    found = [f"id: {fault}"] if (fault := asking_fault(announcement.id)) else []
    after = announcement.deregister_after
    if after is not None and after < SHORTEST_DEREGISTER_AFTER:
        found.append(
            f"deregister_after: Consul waits for 1m at least, so {format_duration(after)} cannot be had; "
            "give 1m or more, or None for never"
        )
    return found


def check_ids(announcement: ServiceDefinition) -> list[str]:
    """The ids of the checks, as Consul itself would name them."""
    if len(announcement.checks) == 1:
        return [f"service:{announcement.id}"]
    return [f"service:{announcement.id}:{number}" for number in range(1, len(announcement.checks) + 1)]


def ttl_check_ids(announcement: ServiceDefinition) -> list[str]:
    pairs = zip(check_ids(announcement), announcement.checks, strict=True)
    return [id for id, check in pairs if isinstance(check, TTLCheck)]


def definition(
    announcement: ServiceDefinition, address: str, said: Health = Health.PASSING
) -> dict[str, Any]:
    """The body of /v1/agent/service/register. TTL checks begin with what the module says of itself."""
    # Where the node's address stands for the module's, the agent is on the module's own machine.
    target = Target(scheme=announcement.scheme, host=address or "127.0.0.1", port=announcement.port)
    body: dict[str, Any] = {
        "Name": announcement.name,
        "ID": announcement.id,
        "Port": announcement.port,
        "Tags": list(announcement.tags),
        "Meta": dict(announcement.meta),
        "Checks": [],
    }
    if address:
        body["Address"] = address
    for id, check in zip(check_ids(announcement), announcement.checks, strict=True):
        entry = {
            "CheckID": id,
            "Name": check.name or f"{announcement.name} {check.kind}",
            "Notes": check.notes(target),
        }
        if isinstance(check, TTLCheck):
            entry["Status"] = said.value
        if announcement.deregister_after is not None:
            entry["DeregisterCriticalServiceAfter"] = format_duration(announcement.deregister_after)
        body["Checks"].append(entry | check.definition(target))
    return body


def consul_road(options: RoadOptions) -> Road:
    """Registers with a Consul agent, by default that of the consul command's own variables."""
    from discovery.announce import preload  # noqa: F401

    config = options.consul or ConsulConfig.from_env(options.environ)
    if config.scheme == "https":
        config.ssl_context()
    return Road(
        name=f"Consul at {config.address}",
        scope=lambda own: f"consul {config.address} {config.namespace} {own.id}",
        faults=faults,
        connect=lambda own: ConsulAnnouncer(own, config),
        longest_pause=NEAR_PAUSE if config.is_local else FAR_PAUSE,
        takes_reports=lambda own: any(isinstance(check, TTLCheck) for check in own.checks),
    )
