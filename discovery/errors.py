"""The tree of what can go wrong between Lictor and a registry.

DiscoveryError
├── ConfigError             a setting or an argument is wrong: each fault, with its mend
├── NoInstance              no instance of a module can be called now
├── RegistryUnavailable     the registry does not answer, or not as it should: try again later
└── RegistryRejected        the registry understood and refused: trying again changes nothing
    ├── PermissionDenied    the token is wrong or lacks a right
    └── UnknownInstance     the registry does not know the instance: register it again

Foreign exceptions are translated into these at one border per registry; what reaches a caller
is always one of them, chained to what caused it.
"""

from __future__ import annotations

from collections.abc import Sequence


class DiscoveryError(Exception):
    """Anything that this package raises on purpose."""


class ConfigError(DiscoveryError):
    """One or more settings or arguments are wrong.

    `faults` holds one sentence per fault, each beginning with the name of what is faulty.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class NoInstance(DiscoveryError):
    """A module is unknown, or none of its instances passes: there is nothing to send a request to."""


class RegistryUnavailable(DiscoveryError):
    """The registry does not answer, or its answer is not usable: worth another try.

    `retry_after` is the pause in seconds that the registry asked for, or None; `status` the HTTP
    status that it answered with, None if it did not answer.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class RegistryRejected(DiscoveryError):
    """The registry understood the request and refused it; `status` is its HTTP status, or None."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class PermissionDenied(RegistryRejected):
    """The token is unknown to the registry or lacks a right for this."""


class UnknownInstance(RegistryRejected):
    """The registry does not know this instance, so it must be registered again."""
