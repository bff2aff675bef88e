"""Decides from options and environment what `lictor up` runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from discovery.consul.registry import ConsulRegistry
from discovery.errors import ConfigError
from web.cli.terminal.settings import load_all, load_settings

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig
    from discovery.consul.dev_agent import DevAgent
    from web.settings import Settings

DEFAULT_CONSUL_PORT = 8500
DEFAULT_DNS_PORT = 8600
_AGENT_START_LIMIT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to run: the settings, the parts' environment, the Consul to follow and the agent to run."""

    settings: Settings
    environment: Mapping[str, str]
    consul: ConsulConfig | None
    agent: DevAgent | None = None


def planned(bind: str | None, mode: str | None, consul_port: int | None, dns_port: int | None) -> Plan:
    """Raises ConfigError with every fault, or UsageError where options do not go together."""
    if mode != "dev" and (consul_port or dns_port):
        raise click.UsageError("--consul-port and --dns-port are those of --consul dev: give that too")
    if mode == "dev":
        return _with_agent(bind, consul_port, dns_port or DEFAULT_DNS_PORT)
    if mode == "none":
        return _without_consul(bind)
    settings, registries = load_all(bind=bind)
    consul = next((each.config for each in registries if isinstance(each, ConsulRegistry)), None)
    return Plan(settings=settings, environment=_environment(settings, os.environ), consul=consul)


def _without_consul(bind: str | None) -> Plan:
    settings = load_settings(bind=bind)
    registries = tuple(name for name in settings.registries if name != "consul")
    if not registries:
        raise ConfigError(["LICTOR_REGISTRIES: names consul alone, which --consul none leaves out: add push"])
    settings = settings.model_copy(update={"registries": registries})
    return Plan(settings=settings, environment=_environment(settings, os.environ), consul=None)


def _with_agent(bind: str | None, consul_port: int | None, dns_port: int) -> Plan:
    from discovery.consul.dev_agent import DevAgent, find_consul

    settings = load_settings(bind=bind)
    if "consul" not in settings.registries:
        settings = settings.model_copy(update={"registries": ("consul", *settings.registries)})
    agent = DevAgent(
        find_consul(os.environ, Path.cwd()),
        http_port=consul_port or _local_consul_port(),
        dns_port=dns_port,
        start_limit=_AGENT_START_LIMIT,
    )
    # What these say is meant for another Consul than the one that is started here.
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
    environment = _environment(settings, others) | {"CONSUL_HTTP_ADDR": agent.http_addr}
    return Plan(settings=settings, environment=environment, consul=agent.config, agent=agent)


def _local_consul_port() -> int:
    """The port where modules on this machine look for Consul."""
    from discovery.consul.config import ConsulConfig

    config = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": os.environ.get("CONSUL_HTTP_ADDR", "")})
    return config.port if config.is_local and not config.unix_socket else DEFAULT_CONSUL_PORT


def _environment(settings: Settings, others: Mapping[str, str]) -> dict[str, str]:
    return {
        **others,
        "LICTOR_BIND": settings.bind,
        "LICTOR_REGISTRIES": ",".join(settings.registries),
    }
