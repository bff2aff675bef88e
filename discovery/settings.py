"""Defines the settings of discovery, and how every package reads its own from the environment."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from discovery.errors import ConfigError
from discovery.registries import REGISTRIES
from discovery.timing.durations import parse_duration

PREFIX = "LICTOR_"

Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds, written as a number or in Go's syntax (`30s`, `5m`, `7d`)."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = BeforeValidator(_split)
"""Reads `a,b` into a sequence."""

LOCAL, ALL = "local", "all"
"""Words for several datacenters of Consul, in place of their names."""


def _known(name: str) -> str:
    if name not in REGISTRIES:
        raise ValueError(f"{name!r} is no registry; there are {', '.join(REGISTRIES)}")
    return name


RegistryName = Annotated[str, AfterValidator(_known)]
"""The name of a registry that there is."""


class DiscoverySettings(BaseSettings):
    """Which registries are followed, and what makes a service a module.

    Each field is read from the environment variable `LICTOR_` plus its name in capitals.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    registries: Annotated[tuple[RegistryName, ...], NoDecode, CommaSeparated] = Field(
        default=("consul", "push"),
        min_length=1,
        description="The registries that are followed, separated by commas: "
        + ", ".join(f"`{name}`" for name in REGISTRIES)
        + ".",
    )
    module_tag: str = Field(
        default="module", min_length=1, description="The tag that makes a Consul service a module."
    )

    consul_datacenters: Annotated[tuple[str, ...], NoDecode, CommaSeparated] = Field(
        default=("local",),
        min_length=1,
        description="Which of Consul's datacenters are followed: `local` (the agent's own), a list "
        "`dc1,dc2`, or `all` that the agent knows, new ones as they appear.",
    )
    consul_max_staleness: Duration = Field(
        default=10.0,
        gt=0,
        description="How long ago a Consul server may have heard from its leader and still be believed; "
        "otherwise the leader is asked.",
    )
    anti_entropy: Duration = Field(
        default=300.0,
        gt=0,
        description="How often all that is known of Consul is compared with it, besides the watches.",
    )
    leader_key: str = Field(
        default="lictor/leader",
        pattern=r"^[\w.-]+(/[\w.-]+)*$",
        description="The key in Consul that the leading synchronizer locks: one for each cache.",
    )
    max_drop: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="What share of a registry's instances may go missing at once and be believed at once. "
        "Up to four always may.",
    )
    doubt: Duration = Field(
        default=120.0,
        ge=0,
        description="How long a registry must go on telling of far fewer instances before it is believed.",
    )

    @field_validator("consul_datacenters")
    @classmethod
    def _named_datacenters(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of datacenters, each once; a word for several stands alone."""
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"{name!r} is no name of a datacenter")
        if len(names) > 1 and {LOCAL, ALL}.intersection(names):
            raise ValueError(f"`{LOCAL}` and `{ALL}` stand alone: leave them away or name every datacenter")
        return tuple(dict.fromkeys(names))

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Settings from the environment, `overrides` winning.

        Raises ConfigError with every fault, each beginning with its variable's name.
        """
        try:
            return cls(**overrides)
        except ValidationError as exc:
            raise ConfigError([_fault(dict(error)) for error in exc.errors()]) from exc


def _fault(error: dict[str, Any]) -> str:
    name = PREFIX + str(error["loc"][0]).upper() if error["loc"] else "settings"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" + (f" (got {_without_password(error['input'])})" if error["loc"] else "")


def _without_password(said: Any) -> str:
    """What was said, as it may stand in a log: of an address, neither user nor password."""
    return re.sub(r"(?<=://).*@", "***@", repr(said))
