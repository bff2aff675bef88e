"""Builds the URL of an instance's manifest, which can lead nowhere but to the instance."""

from __future__ import annotations

import re

from discovery.base import ServiceInstance
from discovery.http.url import DEFAULT_PORT, LONGEST_PORT, HttpURL, is_host
from discovery.text import quoted
from discovery.validation import manifest_port_fault
from manifest_cache.errors import FetchFailed

_LONGEST_PATH = 2048
_VISIBLE_ASCII = re.compile(r"[!-~]+\Z")


def manifest_url(instance: ServiceInstance, default_path: str) -> HttpURL:
    """The instance's registered address, its port or the one that its meta names, and a path, no more.

    Raises `FetchFailed` where the registration does not add up to a URL.
    """
    path = _path(instance.meta.get("manifest_path") or default_path)
    if instance.scheme not in DEFAULT_PORT:
        raise FetchFailed("bad-scheme", f"the scheme must be http or https, not {quoted(instance.scheme)}")
    return HttpURL(instance.scheme, _host(instance.address), _port(instance), path)


def _port(instance: ServiceInstance) -> int:
    """Another port of the same address where the instance names one: a mesh may leave that out."""
    named = instance.meta.get("manifest_port")
    if named:
        if (fault := manifest_port_fault(named)) is not None:
            raise FetchFailed("bad-address", f"the meta manifest_port {fault}: mend it, or leave it out")
        return int(named)
    if instance.port == 0:
        raise FetchFailed("no-port", "the instance is registered without a port: register it with one")
    if not 0 < instance.port <= LONGEST_PORT:
        raise FetchFailed("bad-address", f"the port must be 1 to {LONGEST_PORT}, not {instance.port}")
    return instance.port


def _host(address: str) -> str:
    if not address:
        raise FetchFailed("no-address", "the instance is registered without an address")
    if is_host(address):
        return address
    raise FetchFailed(
        "bad-address", f"the address must be an IP address or a host name, not {quoted(address)}"
    )


def path_problem(path: str) -> str | None:
    """What is wrong with a path that is to lead nowhere but to the instance itself; None if nothing is."""
    if not path.startswith("/") or path.startswith("//"):
        return "must begin with one slash, for it is a path on the instance, not a URL"
    if len(path) > _LONGEST_PATH:
        return f"must have at most {_LONGEST_PATH} characters"
    if not _VISIBLE_ASCII.match(path):
        return "must not contain spaces, control characters or anything beyond ASCII: percent-encode them"
    if "\\" in path or "#" in path:
        return "must not contain a backslash or a fragment (#)"
    return None


def _path(path: str) -> str:
    if (problem := path_problem(path)) is not None:
        raise FetchFailed("bad-path", f"the manifest_path {quoted(path)} {problem}")
    return path
