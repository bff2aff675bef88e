"""`lictor up`: runs everything on one machine."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from discovery import __version__, tracing
from discovery.errors import DiscoveryError
from discovery.timing.backoff import Backoff
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import plain
from web.cli.terminal.settings import refuse_faulty_webhooks
from web.cli.up.plan import DEFAULT_CONSUL_PORT, DEFAULT_DNS_PORT, Plan, planned

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig
    from discovery.consul.dev_agent import DevAgent
    from web.cli.up.supervisor import Ended
    from web.settings import Settings

# A Consul that is there answers within that, in seconds; the synchronizer goes on asking anyway.
_ANSWER_LIMIT = 2.0
_LOOK_INTERVAL = 0.2


@click.command(
    epilog=epilog(
        "lictor up --consul dev",
        "CONSUL_HTTP_ADDR=10.0.0.5:8500 lictor up --bind 0.0.0.0:8080",
        status="0 it was ended by a signal, 1 the database or the development agent cannot be used or the "
        "address is in use, 2 wrong use or wrong settings.",
    )
)
@click.option("--bind", metavar="HOST:PORT", help="Where the web server listens; wins over LICTOR_BIND.")
@click.option(
    "--consul",
    "mode",
    type=click.Choice(["dev", "none"]),
    help="dev: run a development agent of Consul too, in memory. none: run without Consul. "
    "Default: use the Consul that CONSUL_HTTP_ADDR names, if LICTOR_REGISTRIES does.",
)
@click.option(
    "--consul-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help=f"HTTP port of the development agent; default that of CONSUL_HTTP_ADDR, else {DEFAULT_CONSUL_PORT}.",
)
@click.option(
    "--dns-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help=f"DNS port of the development agent; default {DEFAULT_DNS_PORT}.",
)
@click.pass_context
def up(
    ctx: click.Context, bind: str | None, mode: str | None, consul_port: int | None, dns_port: int | None
) -> None:
    """Run everything on this machine.

    That is the synchronizer and the web server, and with --consul dev a Consul agent too. The
    database is migrated first. A part that dies is started again. Ctrl-C, SIGTERM and SIGHUP
    end all parts within seconds; once more hurries. Without any Consul it runs with the push
    registry alone, says so, and goes on trying.
    """
    began = time.monotonic()
    plan = planned(bind, mode, consul_port, dns_port)
    refuse_faulty_webhooks(plan.settings)
    tracing.check()
    schema = _migrated(plan.settings)
    try:
        if plan.agent is not None:
            plan.agent.start()
        problem = None if plan.consul is None else _why_not_reachable(plan.consul)
        _tell_what_runs(plan, schema, problem)
        ended = asyncio.run(_run(plan, began, tell_of_consul=problem is not None))
    finally:
        # After the others, who would complain if it went first.
        if plan.agent is not None:
            plan.agent.stop()
    if ended is not None:
        _say(f"{ended.program.name} cannot run (status {ended.status}), so all has ended")
        ctx.exit(ended.status)
    _say("all has ended")


def _migrated(settings: Settings) -> str:
    from manifest_cache.storage.database import Database

    database = Database(settings.database_url)
    try:
        before, after = database.migrate()
        migrated = "" if before == after else f", migrated from {before or 'nothing'}"
        return f"{database.url_safe} (schema {after}{migrated})"
    finally:
        database.close()


def _why_not_reachable(consul: ConsulConfig) -> str | None:
    """Why Consul cannot be followed right now, or None if it can."""
    from discovery.consul.client import ConsulClient

    with ConsulClient(replace(consul, timeout=_ANSWER_LIMIT)) as client:
        try:
            return None if client.status_leader().data else "it has no leader"
        except DiscoveryError as exc:
            return str(exc)


def _tell_what_runs(plan: Plan, database: str, problem: str | None) -> None:
    settings = plan.settings
    lines = {
        "page": f"{settings.url}/",
        "API": f"{settings.url}/api/v1/modules",
        "database": database,
        "registries": ", ".join(settings.registries),
        **_consul_lines(plan, problem),
    }
    click.echo(f"Lictor {__version__} starts; Ctrl-C ends all of it.")
    for name, value in lines.items():
        click.echo(f"  {name:<11} {plain(value)}")
    sys.stdout.flush()


def _consul_lines(plan: Plan, problem: str | None) -> dict[str, str]:
    if plan.consul is None:
        return {"Consul": "none: modules register by push"}
    if plan.agent is not None:
        return _agent_lines(plan.agent)
    if problem is None:
        return {"Consul": plan.consul.address}
    without = "with the push registry alone" if "push" in plan.settings.registries else "without any registry"
    return {"Consul": f"is not there. Lictor runs {without}, and goes on trying. ({problem})"}


def _agent_lines(agent: DevAgent) -> dict[str, str]:
    lines = {
        "Consul": f"{agent.http_addr}/ui/ (a development agent, which forgets all when it ends)",
        "DNS": f"dig @{agent.config.host} -p {agent.dns_port} NAME.service.consul SRV",
    }
    # Where a module that is started from the same shell would look.
    elsewhere = os.environ.get("CONSUL_HTTP_ADDR") or f"127.0.0.1:{DEFAULT_CONSUL_PORT}"
    if elsewhere.removeprefix("http://") != agent.http_addr.removeprefix("http://"):
        lines["modules"] = f"find this Consul by CONSUL_HTTP_ADDR={agent.http_addr}"
    return lines


async def _run(plan: Plan, began: float, *, tell_of_consul: bool) -> Ended | None:
    from web.cli.up.supervisor import Program, Supervisor

    beside = [_tell_when_ready(plan.settings, began)]
    if plan.agent is not None:
        beside.append(_keep_running(plan.agent))
    if tell_of_consul:
        beside.append(_tell_when_consul_is_followed(plan.settings))
    # -P: what lies in the working directory must not be taken for Lictor's own modules.
    lictor = (sys.executable, "-P", "-m", "web.cli")
    return await Supervisor(_say).run(
        [
            Program(name="the synchronizer", command=(*lictor, "sync"), environment=plan.environment),
            Program(name="the web server", command=(*lictor, "serve"), environment=plan.environment),
        ],
        beside,
    )


def _say(text: str) -> None:
    # The terminal may be gone: what remains to be done is done without it.
    with suppress(OSError):
        click.echo(f"lictor: {text}")
        sys.stdout.flush()


async def _tell_when_ready(settings: Settings, began: float) -> None:
    while not await _is_ready(settings):  # noqa: ASYNC110 - it happens in another process
        await asyncio.sleep(_LOOK_INTERVAL)
    _say(f"ready after {time.monotonic() - began:.1f} s")


async def _is_ready(settings: Settings) -> bool:
    from web.settings import UNIX

    try:
        async with asyncio.timeout(_ANSWER_LIMIT):
            if settings.host_port is None:
                reader, writer = await asyncio.open_unix_connection(settings.bind.removeprefix(UNIX))
            else:
                host = urlsplit(settings.url).hostname
                reader, writer = await asyncio.open_connection(host, settings.host_port.port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _keep_running(agent: DevAgent) -> None:
    backoff = Backoff(0.5, 30.0)
    while True:
        await asyncio.sleep(_LOOK_INTERVAL)
        if agent.running:
            continue
        _say("the Consul agent has ended and starts again; modules register there again by themselves")
        # What is left of the one that ended.
        agent.kill()
        try:
            await asyncio.to_thread(agent.start)
        except DiscoveryError as exc:
            pause = backoff.next()
            _say(f"the Consul agent does not start, it is tried again in {pause:.1f} s: {exc}")
            await asyncio.sleep(pause)


async def _tell_when_consul_is_followed(settings: Settings) -> None:
    from manifest_cache.storage.database import Database, StoreError
    from manifest_cache.storage.reader import Reader

    database = Database(settings.database_url)

    def is_followed() -> bool:
        try:
            with Reader(database).snapshot() as snapshot:
                return any(
                    source.registry_name == "consul" and source.connected for source in snapshot.sources
                )
        except StoreError:
            return False

    try:
        while not await asyncio.to_thread(is_followed):  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_INTERVAL)
        _say("Consul is there now, and its modules are followed")
    finally:
        database.close()
