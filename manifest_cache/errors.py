"""The tree of what can be wrong with a manifest, from its address to its last field.

ManifestError           anything below; `type` is a stable word for programs, `detail` a sentence for people
├── FetchFailed         no document could be had from the instance
└── ManifestInvalid     a document came, and it is no manifest: `faults` says all that is wrong with it

Both are fit to be stored and shown: whatever a module said appears in them shortened and with its
control characters escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

FetchFailure = Literal[
    "no-address",  # the registry knows no address
    "bad-address",  # the address or the port cannot be part of a URL
    "no-port",  # the registry knows no port
    "bad-scheme",  # the scheme is neither http nor https
    "bad-path",  # the manifest's path leaves the instance, or is no path
    "not-allowed",  # the address is in no network of LICTOR_FETCH_ALLOW
    "unreachable",  # nobody listens there, the name is unknown, no route
    "tls",  # the TLS handshake failed: certificate, name or version
    "timeout",  # not connected, or not complete, in the time allowed
    "redirect",  # the answer sends elsewhere
    "http-status",  # the status is neither 200 nor a 304 that was asked for
    "empty",  # 200 or 204 without a document
    "too-large",  # more bytes than allowed, as sent or after decompression
    "bad-encoding",  # a Content-Encoding that was not asked for, or broken gzip
    "bad-response",  # not HTTP, or cut off before its announced end
]

# From the gravest on: an error with several faults bears the type of the gravest.
FaultType = Literal[
    "not-utf8",
    "not-json",
    "too-deep",
    "not-an-object",
    "duplicate-key",
    "number-out-of-range",
    "lone-surrogate",
    "wrong-module",
    "invalid",
]

_GRAVEST_FIRST: tuple[FaultType, ...] = get_args(FaultType)
_FAULTS_IN_DETAIL = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a document, and where.

    `path` is a JSON pointer ("" is the whole document, "/routes/0/path" a field; very long keys are
    shortened); `line` and `column` count from 1, and are None where there is no text to point into.
    """

    type: FaultType
    path: str
    message: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        path = f"{self.path}: " if self.path else ""
        return f"{place}{path}{self.message}"


class ManifestError(Exception):
    """Why there is no (new) manifest of an instance."""

    def __init__(self, type: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type
        self.detail = detail


class FetchFailed(ManifestError):
    """No document could be had.

    `url` is what was asked, or None where no address could be made of what the registry says;
    `status` is the answer's, or None where there was none.
    """

    def __init__(
        self, type: FetchFailure, reason: str, *, url: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(type, f"{url}: {reason}" if url else reason)
        self.url = url
        self.status = status


class ManifestInvalid(ManifestError):
    """The document is no manifest.

    `faults` are in the order in which they stand in the document; `source`, the address or file
    that it came from, heads the detail where it is known.
    """

    def __init__(self, faults: Iterable[Fault], *, source: str | None = None) -> None:
        self.faults = tuple(faults)
        self.source = source
        gravest = min((fault.type for fault in self.faults), key=_GRAVEST_FIRST.index)
        super().__init__(gravest, self._summary())

    def _summary(self) -> str:
        shown = "; ".join(str(fault) for fault in self.faults[:_FAULTS_IN_DETAIL])
        more = len(self.faults) - _FAULTS_IN_DETAIL
        head = f"{self.source}: " if self.source else ""
        return head + shown + (f"; and {more} more" if more > 0 else "")
