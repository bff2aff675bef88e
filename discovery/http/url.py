"""The parts of an http or https URL, checked: what a connection and a request are made of."""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass

LONGEST_PORT = 65535
DEFAULT_PORT = {"http": 80, "https": 443}

_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?\Z")
# Numbers that are no IP address are not a name either, though the C library reads 127.1 as 127.0.0.1:
# of an address that is written in another way than ours we might judge one and connect to another.
_LIKE_IPV4 = re.compile(r"[\d.]+\Z")


@dataclass(frozen=True, slots=True)
class HttpURL:
    """Its parts, each of them checked: `host` is an IP address or a host name, `path` may have a query."""

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
        return host if self.port == DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@functools.lru_cache(maxsize=4096)
def is_host(text: str) -> bool:
    """Whether it is an IP address that means the same on every machine, or a host name."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.match(text)) and not _LIKE_IPV4.match(text)
    # A zone means something on one machine only.
    return isinstance(ip, ipaddress.IPv4Address) or ip.scope_id is None
