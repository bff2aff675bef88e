"""Defines the settings of the web server, with defaults that fit this machine."""

from __future__ import annotations

import os
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from discovery.validation import address_fault
from manifest_cache.settings import CacheSettings

UNIX = "unix:"
_FEWEST_WORKERS = 2
_MOST_WORKERS = 8
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class HostPort(NamedTuple):
    """Where a TCP server listens; an IPv6 address stands without brackets."""

    host: str
    port: int


class Settings(CacheSettings):
    """All settings of Lictor: those of discovery, of the cache, and of the web server."""

    bind: str = Field(
        default="127.0.0.1:8080",
        description="Where the web server listens: `HOST:PORT`, `[IPv6]:PORT`, `:PORT` (all IPv4 addresses) "
        "or `unix:/PATH`.",
    )
    push_token_file: Path | None = Field(
        default=None,
        description="A file with the bearer token that whoever registers by push must send. It is read again "
        "when it changes. Without it, pushing is taken only while the server listens on loopback.",
    )
    workers: int = Field(
        default_factory=lambda: default_workers(),
        ge=1,
        le=256,
        description="How many processes serve.",
    )
    threads: int = Field(
        default=8, ge=1, le=256, description="How many requests each process serves at once."
    )
    read_cache_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=0,
        le=16 * 1024**3,
        description="How many bytes of finished answers each process keeps; 0 keeps none.",
    )
    max_watchers: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="How many requests of each process may wait for a change at once: blocking queries, long "
        "polls and event streams. More are refused with 503.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="From which gravity on messages are logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description="How messages are logged: `text`, lines for people; `json`, one object per line; `auto`, "
        "text on a terminal and JSON elsewhere.",
    )
    metrics_bind: str = Field(
        default="127.0.0.1:8081",
        description="Where the synchronizer serves its own `/metrics`: `HOST:PORT`, `[IPv6]:PORT` or `:PORT` "
        "(all IPv4 addresses); empty for nowhere. The web server serves its metrics beside the API.",
    )

    @field_validator("bind")
    @classmethod
    def _somewhere_to_listen(cls, bind: str) -> str:
        if bind.startswith(UNIX):
            if not bind.removeprefix(UNIX).startswith("/"):
                raise ValueError("must name an absolute path after `unix:`")
            return bind
        _check(_split(bind))
        return bind

    @field_validator("metrics_bind")
    @classmethod
    def _somewhere_to_be_read(cls, bind: str) -> str:
        if bind:
            try:
                _check(_split(bind))
            except ValueError as exc:
                # A socket's path is no address to Prometheus.
                raise ValueError(str(exc).replace(" or unix:/PATH", ", or empty")) from None
        return bind

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_whatever_case(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level

    @field_validator("push_token_file")
    @classmethod
    def _push_is_used(cls, path: Path | None, others: ValidationInfo) -> Path | None:
        if path is not None and path == Path():
            raise ValueError("is empty: name a file, or leave it unset")
        if path is not None and "push" not in others.data.get("registries", ("push",)):
            raise ValueError("is set, but LICTOR_REGISTRIES does not name `push`")
        return path

    @property
    def host_port(self) -> HostPort | None:
        """The address that `bind` names, None for a Unix socket."""
        if self.bind.startswith(UNIX):
            return None
        return _listening(self.bind)

    @property
    def metrics_host_port(self) -> HostPort | None:
        """The address that `metrics_bind` names, None for nowhere."""
        return _listening(self.metrics_bind) if self.metrics_bind else None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server over TCP."""
        return self.host_port is not None and is_loopback(self.host_port.host)

    @property
    def url(self) -> str:
        """The address to open on this machine, or the Unix socket's."""
        if self.host_port is None:
            return self.bind
        host, port = self.host_port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether this name or address is the machine's own.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "localhost.example", "10.0.0.1")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def default_workers() -> int:
    """One process per core that this process may use, at least two and at most eight.

    Two, so that a reload or a crash of one leaves one that answers; eight, as each has its own
    connections to the database, and a read costs well under a millisecond of processor.
    """
    return max(_FEWEST_WORKERS, min(_MOST_WORKERS, usable_cores()))


def usable_cores() -> int:
    """The cores that this process may use: a container is often allowed fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def _split(bind: str) -> HostPort:
    host, separator, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
        raise ValueError("must be HOST:PORT, [IPv6]:PORT, :PORT or unix:/PATH")
    return HostPort(host.strip("[]"), int(port))


def _listening(bind: str) -> HostPort:
    host, port = _split(bind)
    return HostPort(host or "0.0.0.0", port)  # noqa: S104 - asked for by ":PORT"


def _check(place: HostPort) -> None:
    if place.host and (fault := address_fault(place.host)) and not _is_unspecified(place.host):
        raise ValueError(fault)
    if not 1 <= place.port <= 65535:
        raise ValueError("must end in a port from 1 to 65535")


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
