"""Checks Consul and the rights of its token for `lictor doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from discovery.consul.call import Call, ConsulReply
from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.consul.lock import missing_rights
from discovery.errors import DiscoveryError, PermissionDenied
from discovery.registry.check_result import CheckResult, clock, fail, ok, warn
from discovery.settings import ALL, LOCAL
from discovery.text import counted

if TYPE_CHECKING:
    from discovery.settings import DiscoverySettings

_LIMIT = 3.0
_TRIES = 4
# The synchronizer's connections, and as many for the modules of this machine and their libraries.
_CONNECTIONS = 20
# The header Date has whole seconds.
_DATE_RESOLUTION = 1.0

# A token is told to end soon as the alert tells it: by the share of its life, and the seconds, that are left.
_LITTLE, _FORTNIGHT = 0.2, 14 * 86400
_ACLS_ARE_OFF = 401
_POLICY = 'consul/policies/lictor-read.hcl: service_prefix "" and node_prefix "" with policy = "read"'


def check_consul(config: ConsulConfig, settings: DiscoverySettings) -> Iterator[CheckResult]:
    with ConsulClient(replace(config, timeout=_LIMIT)) as client:
        try:
            leader = client.status_leader().data
        except DiscoveryError as exc:
            yield fail(
                "consul",
                str(exc),
                "start a Consul agent (`lictor up --consul dev` has one), or mend the setting",
            )
            return
        if not isinstance(leader, str):
            told = f"what answers at {config.address} is no Consul: it names {leader!r:.80} as its leader"
            yield fail("consul", told, "let CONSUL_HTTP_ADDR name a Consul agent")
            return
        agent = _agent(client)
        yield _state(config, leader, agent)
        yield from _answering(config, agent)
        yield _token(client)
        yield _rights(client)
        if settings.consul_datacenters != (LOCAL,):
            yield _datacenters(client, settings.consul_datacenters)
        yield _leading(client, settings.leader_key)
        yield _connections(agent)
        yield _clock(client)


def _agent(client: ConsulClient) -> dict[str, Any]:
    """What the agent says of itself; nothing where the token may not ask."""
    try:
        told = client.agent_self().data
    except DiscoveryError:
        return {}
    return told if isinstance(told, dict) else {}


def _state(config: ConsulConfig, leader: str, agent: dict[str, Any]) -> CheckResult:
    own = agent.get("Config", {})
    version = f"Consul {own['Version']} in {own['Datacenter']}" if "Version" in own else "Consul"
    if not leader:
        mend = "let a majority of Consul's servers run: `consul operator raft list-peers` shows them"
        return fail("consul", f"{version} at {config.address} has no leader", mend)
    return ok("consul", f"{version} at {config.address} has a leader, {leader}")


def _answering(config: ConsulConfig, agent: dict[str, Any]) -> Iterator[CheckResult]:
    """Whether it is always the same agent, and one at which modules may register."""
    names = {agent.get("Config", {}).get("NodeName")}
    for _ in range(_TRIES):
        # Each has a connection of its own: what stands before several agents chooses anew.
        with ConsulClient(replace(config, timeout=_LIMIT)) as client:
            names.add(_agent(client).get("Config", {}).get("NodeName"))
    told = sorted(filter(None, names))
    if len(told) > 1:
        yield warn(
            "consul agent",
            f"{' and '.join(told)} answer by turns at {config.address}, and each knows its own services only",
            "name one agent, on Kubernetes that of the node; modules without one register by push",
        )
    elif told and agent["Config"].get("Server") and not config.is_local:
        yield ok(
            "consul agent",
            f"{told[0]} is one of Consul's servers: it may be asked, but modules register with the agent of "
            "their node, or by push",
        )


def _token(client: ConsulClient) -> CheckResult:
    try:
        told = client.acl_self().data
    except PermissionDenied as exc:
        if exc.status == _ACLS_ARE_OFF:
            return ok("consul token", "none is needed: Consul's ACLs are off")
        if not client.config.token:
            return ok("consul token", "none is set, so the rights are those of Consul's anonymous token")
        mend = "put a token that exists into CONSUL_HTTP_TOKEN or the file that CONSUL_HTTP_TOKEN_FILE names"
        return fail("consul token", "Consul does not know the token", mend)
    except DiscoveryError as exc:
        return warn(
            "consul token", f"Consul does not say what it may do: {exc}", "see the check of the rights"
        )
    policies = [policy.get("Name", "?") for policy in (told.get("Policies") or [])]
    detail = f"has the policies {', '.join(policies)}" if policies else "has no policies"
    end = told.get("ExpirationTime")
    if not end:
        return ok("consul token", detail)
    detail = f"{detail}, and ends at {end}"
    if _ends_soon(str(told.get("CreateTime")), str(end)):
        mend = "put a new token in its place: a file is read again, CONSUL_HTTP_TOKEN when Lictor starts"
        return warn("consul token", detail, mend)
    return ok("consul token", detail)


def _ends_soon(created: str, end: str) -> bool:
    try:
        begins, ends = (datetime.fromisoformat(text).timestamp() for text in (created, end))
    except ValueError:
        return False
    return ends - time.time() < min(_FORTNIGHT, _LITTLE * (ends - begins))


def _rights(client: ConsulClient) -> CheckResult:
    """Without rights Consul answers 200 and an empty list, so it is asked for what is always there."""
    mend = f"give the token the policy {_POLICY}"
    try:
        nodes, services = client.catalog_nodes(), client.catalog_services()
    except DiscoveryError as exc:
        return fail("consul rights", str(exc), mend)
    if not nodes.data:
        return fail("consul rights", "no node can be read, though each Consul has one", mend)
    if not services.data:
        return fail("consul rights", "no service can be read, not even Consul's own", mend)
    if "consul" not in services.data or nodes.filtered_by_acls or services.filtered_by_acls:
        told = f"only {len(services.data)} of the services can be read: modules among the others are not seen"
        return warn("consul rights", told, mend)
    told = f"{counted(len(services.data), 'service')} on {counted(len(nodes.data), 'node')} can be read"
    return ok("consul rights", told)


def _datacenters(client: ConsulClient, wanted: Sequence[str]) -> CheckResult:
    """Whether those that are followed besides the agent's own are known to it, and answer."""
    check, mend = "datacenters", "join Consul's servers over the wide area: `consul members -wan` shows them"
    try:
        known = client.catalog_datacenters().data
    except DiscoveryError as exc:
        return fail(check, str(exc), mend)
    if unknown := sorted(set(wanted).difference(known, {ALL})):
        told = f"the agent knows no {', '.join(unknown)}, only {', '.join(sorted(known))}"
        return fail(check, told, f"mend LICTOR_CONSUL_DATACENTERS, or {mend}")
    followed = sorted(known if tuple(wanted) == (ALL,) else wanted)
    silent = [why for why in (_why_silent(client, name) for name in followed) if why]
    if silent:
        return fail(check, "; ".join(silent), mend)
    return ok(check, f"{', '.join(followed)} can be read")


def _why_silent(client: ConsulClient, datacenter: str) -> str | None:
    try:
        nodes = client.catalog_nodes(dc=datacenter).data
    except DiscoveryError as exc:
        return f"{datacenter} cannot be read: {exc}"
    return None if nodes else f"no node of {datacenter} can be read, though each Consul has one"


def _leading(client: ConsulClient, key: str) -> CheckResult:
    """Synchronizers get along without the lock, but one that hangs is noticed later then."""
    try:
        missing = missing_rights(client, key)
    except DiscoveryError as exc:
        return warn("consul lock", str(exc), "see that Consul's servers have a leader")
    if missing:
        mend = f"give the token the policy consul/policies/lictor-read.hcl, or its own: {' '.join(missing)}"
        return warn("consul lock", f"synchronizers may not choose their leader by the key {key}", mend)
    return ok("consul lock", f"synchronizers may choose their leader by the key {key}")


def _connections(agent: dict[str, Any]) -> CheckResult:
    limit = agent.get("DebugConfig", {}).get("HTTPMaxConnsPerClient")
    if not isinstance(limit, int):
        return ok("consul limits", "are not told to this token")
    if 0 < limit < _CONNECTIONS:
        mend = f"set limits {{ http_max_conns_per_client }} of the agent to {_CONNECTIONS} or more"
        return warn("consul limits", f"the agent takes {limit} connections from one address", mend)
    return ok("consul limits", f"the agent takes {limit} connections from one address" if limit else "none")


def _clock(client: ConsulClient) -> CheckResult:
    before = time.time()
    try:
        date = client.send(Call(method="GET", path="/v1/status/leader", parse=_date))
        theirs = parsedate_to_datetime(date).timestamp()
    except (DiscoveryError, ValueError):
        return warn(
            "consul clock", "Consul does not tell the time", "see that no proxy takes the header Date"
        )
    ours = (before + time.time()) / 2
    # It was cut to the second, so on the average the moment was half a second later.
    return clock("consul clock", "Consul's", theirs + _DATE_RESOLUTION / 2 - ours, _DATE_RESOLUTION)


def _date(reply: ConsulReply) -> str:
    return str(reply.headers.get("Date", ""))
