"""Settings of the cache: where it is kept, how manifests are fetched, when pushed instances expire."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainValidator, field_validator
from pydantic_settings import NoDecode

from discovery.http.address_policy import DEFAULT_ALLOW, Network, network
from discovery.settings import CommaSeparated, DiscoverySettings, Duration
from manifest_cache.fetch.manifest_url import path_problem

Networks = Annotated[tuple[Annotated[Network, PlainValidator(network)], ...], NoDecode, CommaSeparated]
"""Reads `10.0.0.0/8,fd00::/8`."""


class CacheSettings(DiscoverySettings):
    """Discovery's settings and those of the database, the fetches and the push registry."""

    database_url: str = Field(
        default="sqlite:///lictor.db",
        description="Where the cache is kept: `sqlite:///FILE` (four slashes for an absolute path) or "
        "`postgresql://USER:PASSWORD@HOST/NAME`.",
    )
    manifest_path: str = Field(
        default="/manifest",
        description="Where a module serves its manifest, unless its meta `manifest_path` says otherwise.",
    )
    fetch_allow: Networks = Field(
        default=DEFAULT_ALLOW,
        description="The networks that manifests may be fetched from, separated by commas. Link-local "
        "addresses and those of clouds' metadata services never are, unless one is named by itself "
        "(`169.254.1.7/32`).",
    )
    fetch_concurrency: int = Field(
        default=50, ge=1, le=1000, description="How many manifests are fetched at the same time."
    )
    fetch_deadline: Duration = Field(
        default=10.0,
        gt=0,
        le=300,
        description="How long one fetch may take in all, from connecting to the end.",
    )
    fetch_max_bytes: int = Field(
        default=1024 * 1024,
        ge=1024,
        le=64 * 1024 * 1024,
        description="How large a manifest may be, in bytes, also after decompression.",
    )
    fetch_retry_max: Duration = Field(
        default=300.0, gt=0, description="The longest pause between two tries of a fetch that fails."
    )
    revalidate: Duration = Field(
        default=300.0,
        gt=0,
        description="How often known manifests are asked for again (`If-None-Match`): of each module and "
        "version one healthy instance, in turn.",
    )
    event_retention: Duration = Field(
        default=90 * 86400.0,
        ge=1,
        description="How long events are kept. Manifests that neither an event nor a module or instance "
        "tells of any longer go with them.",
    )
    forget_after: Duration = Field(
        default=7 * 86400.0,
        ge=1,
        description="How long a module without instances is kept, as `unavailable` with its last manifest, "
        "and how long instances that are gone are remembered.",
    )
    heartbeat_interval: Duration = Field(
        default=30.0,
        ge=0.1,
        le=86400,
        description="How often a pushed instance must send a heartbeat, unless it registered with another "
        "interval. After three missed ones it is critical.",
    )
    deregister_after: Duration = Field(
        default=600.0,
        ge=1,
        description="How long a pushed instance may be critical for lack of heartbeats before it is removed, "
        "unless it registered with another time.",
    )

    webhooks: Path | None = Field(
        default=None,
        description="A TOML file that names who is told of events by HTTP (see [webhooks](webhooks.md)). It "
        "is read again when it changes. Without it, nobody is told.",
    )
    webhook_allow: Networks = Field(
        default=DEFAULT_ALLOW,
        description="The networks that webhooks may be sent to, as for `LICTOR_FETCH_ALLOW`.",
    )
    webhook_deadline: Duration = Field(
        default=15.0,
        gt=0,
        le=300,
        description="How long a receiver of webhooks may take to answer, from connecting on.",
    )
    webhook_retry_max: Duration = Field(
        default=300.0, gt=0, description="The longest pause between two tries to deliver a webhook."
    )

    @field_validator("fetch_allow", "webhook_allow")
    @classmethod
    def _not_nowhere(cls, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        if not networks:
            raise ValueError("must name a network at least, or not be set")
        return networks

    @field_validator("manifest_path")
    @classmethod
    def _a_path_on_instances(cls, path: str) -> str:
        if (problem := path_problem(path)) is not None:
            raise ValueError(problem)
        return path

    @field_validator("webhooks")
    @classmethod
    def _names_a_file(cls, path: Path | None) -> Path | None:
        if path == Path():
            raise ValueError("is empty: name a file, or leave it unset")
        return path

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        """Both spellings of PostgreSQL are taken; the driver is always psycopg 3."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in {"sqlite", "postgresql", "postgres", "postgresql+psycopg"}:
            raise ValueError("must begin with sqlite:/// or postgresql://")
        url = url if scheme == "sqlite" else f"postgresql+psycopg://{rest}"
        database = _database_of(url) or ""
        if scheme == "sqlite" and (database in ("", ":memory:") or database.startswith("file:")):
            raise ValueError("must name a file, such as sqlite:///lictor.db: several processes share it")
        return url


def _database_of(url: str) -> str | None:
    """What a URL of SQLAlchemy names on its server, or the file; raises ValueError with advice."""
    # Settings are read by some who open no database, and this takes as long to load as all else.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).database
    except (ArgumentError, ValueError):
        # What it says of itself may be the password.
        raise ValueError(
            "must be like postgresql://USER:PASSWORD@HOST:PORT/NAME, with a number for PORT, and with what "
            "is odd in the password percent-encoded"
        ) from None
