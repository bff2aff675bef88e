"""Health checks of a module: an HTTPCheck, TCPCheck or TTLCheck, and the text form that the command takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from discovery.errors import ConfigError
from discovery.timing.durations import format_duration, parse_duration
from discovery.validation import address_fault, path_fault, port_fault

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

STATUSES = ("passing", "warning", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a module is asked for its health."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"{self.scheme}://{join_host_port(self.host, self.port)}"


def _told(duration: str | float) -> str:
    return format_duration(parse_duration(duration))


def join_host_port(host: str, port: int) -> str:
    """
    >>> join_host_port("::1", 80), join_host_port("db", 80)
    ('[::1]:80', 'db:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class HTTPCheck:
    """Healthy while a GET is answered 2xx; 429 is a warning, everything else critical.

    `path` is a path of the module itself or a whole URL. Durations are texts (`"5s"`) or seconds.
    `initial_status` holds until the first answer; Consul's own default is `critical`.
    """

    path: str = "/health"
    _: KW_ONLY
    interval: str | float = "10s"
    timeout: str | float = "5s"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    tls_skip_verify: bool = False
    success_before_passing: int = 0
    failures_before_critical: int = 0
    initial_status: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        return "HTTP"

    def url(self, target: Target) -> str:
        return self.path if _is_url(self.path) else target.url + self.path

    def faults(self) -> list[str]:
        faults = [f"path {fault}"] if (fault := _place_fault(self.path)) else []
        if not isinstance(self.method, str) or not self.method.isalpha():
            faults.append(f"method must be one of HTTP's (got {self.method!r})")
        return faults + _header_faults(self.headers) + _polling_faults(self)

    def notes(self, target: Target) -> str:
        """What Consul's pages tell an operator of it."""
        asked = f"Consul asks {self.method} {self.url(target)} every {_told(self.interval)}."
        return f"{asked} Critical: see the module's log, and ask the same from its node."

    def definition(self, target: Target) -> dict[str, Any]:
        """The part of Consul's check definition that is HTTP's."""
        special: dict[str, Any] = {"HTTP": self.url(target)}
        if self.method != "GET":
            special["Method"] = self.method
        if self.headers:
            special["Header"] = {key: [value] for key, value in self.headers.items()}
        if self.tls_skip_verify:
            special["TLSSkipVerify"] = True
        return special | _polling_definition(self)


@dataclass(frozen=True, slots=True)
class TCPCheck:
    """Healthy while a connection is accepted: at the module's own port, or at another `port` or `host`."""

    port: int | None = None
    _: KW_ONLY
    host: str = ""
    interval: str | float = "10s"
    timeout: str | float = "5s"
    success_before_passing: int = 0
    failures_before_critical: int = 0
    initial_status: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        return "TCP"

    def address(self, target: Target) -> tuple[str, int]:
        return self.host or target.host, self.port or target.port

    def faults(self) -> list[str]:
        faults = []
        if self.port is not None and (fault := port_fault(self.port)):
            faults.append(f"port {fault}")
        if self.host and (fault := address_fault(self.host)):
            faults.append(f"host {fault}")
        return faults + _polling_faults(self)

    def notes(self, target: Target) -> str:
        """What Consul's pages tell an operator of it."""
        asked = f"Consul connects to {join_host_port(*self.address(target))} every {_told(self.interval)}."
        return f"{asked} Critical: see whether the module runs, and listens there."

    def definition(self, target: Target) -> dict[str, Any]:
        """The part of Consul's check definition that is TCP's."""
        return {"TCP": join_host_port(*self.address(target))} | _polling_definition(self)


@dataclass(frozen=True, slots=True)
class TTLCheck:
    """Healthy while the module says so at least once in `ttl`; the library says it every third of that."""

    ttl: str | float = "30s"
    _: KW_ONLY
    name: str = ""

    @property
    def kind(self) -> str:
        return "TTL"

    @property
    def seconds(self) -> float:
        return parse_duration(self.ttl)

    def faults(self) -> list[str]:
        return [fault] if (fault := _duration_fault("ttl", self.ttl)) else []

    def notes(self, target: Target) -> str:
        """What Consul's pages tell an operator of it."""
        said = f"The module says itself how it is, at least every {_told(self.ttl)}."
        return f"{said} After a longer silence: see whether it runs, and reaches its Consul agent."

    def definition(self, target: Target) -> dict[str, Any]:
        """The part of Consul's check definition that is the TTL's."""
        return {"TTL": format_duration(self.seconds)}


Check = HTTPCheck | TCPCheck | TTLCheck
PolledCheck = HTTPCheck | TCPCheck


def parse_check(text: str) -> Check:
    """A check as the command line writes it: a kind, what it asks, and options behind commas.

    Raises ConfigError with every fault.

    >>> parse_check("http:/health,interval=5s,timeout=2s").path
    '/health'
    >>> parse_check("tcp:").port is None, parse_check("tcp:9000").port, parse_check("ttl:1m").seconds
    (True, 9000, 60.0)
    """
    kind, colon, rest = text.partition(":")
    what, *options = rest.split(",")
    if _is_url(text):
        what, *options = text.split(",")
    if kind not in _KINDS or not colon or (kind == "https" and not _is_url(text)):
        raise ConfigError(
            [
                f'{text!r} is no check: write "http:/health", "http://host:port/path", "tcp:", "tcp:PORT" or '
                '"ttl:30s", with options such as ",interval=5s,timeout=2s" behind it'
            ]
        )
    allowed = _TTL_OPTIONS if kind == "ttl" else _POLLING_OPTIONS | (_HTTP_OPTIONS if kind != "tcp" else {})
    values, faults = _options(options, allowed)
    try:
        check = _KINDS[kind](what, values)
    except ValueError as exc:
        raise ConfigError([*faults, f"{text!r}: {exc}"]) from exc
    faults += [f"{text!r}: {fault}" for fault in check.faults()]
    if faults:
        raise ConfigError(faults)
    return check


def _http(what: str, values: dict[str, Any]) -> Check:
    return HTTPCheck(what, **values) if what else HTTPCheck(**values)


def _tcp(what: str, values: dict[str, Any]) -> Check:
    host, _, port = what.rpartition(":")
    if what and not port.isdigit():
        raise ValueError(f"{what!r} is neither a port nor host:port")
    return TCPCheck(int(port) if port else None, host=host.strip("[]"), **values)


def _ttl(what: str, values: dict[str, Any]) -> Check:
    return TTLCheck(what, **values) if what else TTLCheck(**values)


_KINDS: dict[str, Callable[[str, dict[str, Any]], Check]] = {
    "http": _http,
    "https": _http,
    "tcp": _tcp,
    "ttl": _ttl,
}
_TTL_OPTIONS: dict[str, Callable[[str], Any]] = {"name": str}
_POLLING_OPTIONS: dict[str, Callable[[str], Any]] = {
    "interval": str,
    "timeout": str,
    "name": str,
    "initial_status": str,
    "success_before_passing": int,
    "failures_before_critical": int,
}
_HTTP_OPTIONS: dict[str, Callable[[str], Any]] = {
    "method": str,
    "tls_skip_verify": lambda text: {"true": True, "false": False}[text],
}


def _options(
    options: list[str], allowed: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    faults = []
    for option in options:
        key, _, value = option.partition("=")
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            faults.append(f"{option!r} is no option of this check: write key=value with one of {known}")
            continue
        try:
            values[key] = allowed[key](value)
        except (ValueError, KeyError):
            faults.append(f"{option!r}: {value!r} is no value of {key}")
    return values, faults


def _is_url(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://"))


def _place_fault(place: str) -> str | None:
    """Why this is neither a path nor a whole URL, or None."""
    if not _is_url(place):
        return f"{fault}, or a whole URL" if (fault := path_fault(place)) else None
    try:
        parts = urlsplit(place)
        # What no name server can be asked for fails in ways of its own.
        good = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        good = False
    if good and place.isascii() and place.isprintable() and " " not in place:
        return None
    return f'{place!r} is no URL: write "http://host:port/path"'


def _header_faults(headers: object) -> list[str]:
    """What of these no request can carry. The values are not quoted: one may be a secret."""
    if not isinstance(headers, Mapping):
        return [f"headers must be a mapping of texts to texts (got {type(headers).__name__})"]
    faults = []
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            faults.append(f"headers must be a mapping of texts to texts, which {name!r} is not")
        elif not _HEADER_NAME.fullmatch(name):
            faults.append(f"headers: {name!r} is no name of a header")
        elif not value.isprintable():
            faults.append(f"headers: the value of {name!r} holds a character that cannot be printed")
    return faults


def _polling_faults(check: PolledCheck) -> list[str]:
    faults = [_duration_fault("interval", check.interval), _duration_fault("timeout", check.timeout)]
    faults.append(_count_fault("success_before_passing", check.success_before_passing))
    faults.append(_count_fault("failures_before_critical", check.failures_before_critical))
    if check.initial_status and check.initial_status not in STATUSES:
        faults.append(f"initial_status must be one of {', '.join(STATUSES)} (got {check.initial_status!r})")
    return [fault for fault in faults if fault]


def _polling_definition(check: PolledCheck) -> dict[str, Any]:
    definition: dict[str, Any] = {
        "Interval": format_duration(parse_duration(check.interval)),
        "Timeout": format_duration(parse_duration(check.timeout)),
    }
    if check.success_before_passing:
        definition["SuccessBeforePassing"] = check.success_before_passing
    if check.failures_before_critical:
        definition["FailuresBeforeCritical"] = check.failures_before_critical
    if check.initial_status:
        definition["Status"] = check.initial_status
    return definition


def _count_fault(name: str, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return f"{name} must be a whole number, 0 or more (got {value!r})"
    return None


def _duration_fault(name: str, value: str | float) -> str | None:
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        return f"{name} {exc}"
    return None if seconds >= 0.001 else f"{name} must be longer than nothing (got {value!r})"
