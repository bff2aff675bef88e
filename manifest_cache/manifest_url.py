"""Where an instance's manifest lies: a registration in, a URL that leads nowhere but to the instance out."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from discovery.base import ServiceInstance
from manifest_cache.errors import FetchFailed, quoted

_LONGEST_PATH = 2048
_LONGEST_PORT = 65535
_DEFAULT_PORT = {"http": 80, "https": 443}

_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?\Z")
# Four numbers that are no IP address are not a name either, whatever a resolver makes of them.
_LIKE_IPV4 = re.compile(r"\d+(?:\.\d+){3}\Z")
_VISIBLE_ASCII = re.compile(r"[!-~]+\Z")


@dataclass(frozen=True, slots=True)
class ManifestURL:
    """Its parts, each of them checked: `host` is an IP address or a host name, as it was registered."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address, so that there is nothing to resolve."""
        return ":" in self.host or bool(_LIKE_IPV4.match(self.host))

    @property
    def authority(self) -> str:
        """What the Host header names."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def manifest_url(instance: ServiceInstance, default_path: str) -> ManifestURL:
    """The instance's registered address and port, and a path, no more.

    Raises `FetchFailed` where the registration does not add up to a URL.
    """
    path = _path(instance.meta.get("manifest_path") or default_path)
    if instance.scheme not in _DEFAULT_PORT:
        raise FetchFailed("bad-scheme", f"the scheme must be http or https, not {quoted(instance.scheme)}")
    host = _host(instance.address)
    if instance.port == 0:
        raise FetchFailed("no-port", "the instance is registered without a port: register it with one")
    if not 0 < instance.port <= _LONGEST_PORT:
        raise FetchFailed("bad-address", f"the port must be 1 to {_LONGEST_PORT}, not {instance.port}")
    return ManifestURL(instance.scheme, host, instance.port, path)


def _host(address: str) -> str:
    if not address:
        raise FetchFailed("no-address", "the instance is registered without an address")
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        if _HOST_NAME.match(address) and not _LIKE_IPV4.match(address):
            return address
    else:
        # A zone means something on one machine only.
        if isinstance(ip, ipaddress.IPv4Address) or ip.scope_id is None:
            return address
    raise FetchFailed(
        "bad-address", f"the address must be an IP address or a host name, not {quoted(address)}"
    )


def _path(path: str) -> str:
    """The path, if it can lead nowhere but to the instance itself."""
    if not path.startswith("/") or path.startswith("//"):
        problem = "must begin with one slash, for it is a path on the instance, not a URL"
    elif len(path) > _LONGEST_PATH:
        problem = f"must have at most {_LONGEST_PATH} characters"
    elif not _VISIBLE_ASCII.match(path):
        problem = "must not contain spaces, control characters or anything beyond ASCII: percent-encode them"
    elif "\\" in path or "#" in path:
        problem = "must not contain a backslash or a fragment (#)"
    else:
        return path
    raise FetchFailed("bad-path", f"the manifest_path {quoted(path)} {problem}")
