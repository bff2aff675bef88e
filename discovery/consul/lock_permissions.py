"""Tries what a lock in Consul needs of a token, and leaves everything as it was."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from discovery.consul.client import ConsulClient
from discovery.consul.lock import SERVICE_RIGHT, SESSION_RIGHT, key_right, registration
from discovery.errors import PermissionDenied

# No key ever is at this index, so the write is judged, and then not done.
_NEVER = 2**62


def missing_rights(client: ConsulClient, key: str) -> list[str]:
    """The rules that the token's policies lack. Raises DiscoveryError where Consul does not answer."""
    tries: dict[str, Callable[[], None]] = {
        SERVICE_RIGHT: lambda: _register(client),
        SESSION_RIGHT: lambda: _open_session(client),
        key_right(key): lambda: client.api.kv.put(key, None, cas=_NEVER),
    }
    return [right for right, attempt in tries.items() if not _may(attempt)]


def _may(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except PermissionDenied:
        return False
    return True


def _register(client: ConsulClient) -> None:
    definition = registration(f"try-{secrets.token_hex(4)}")
    client.register(definition)
    client.deregister(definition["ID"])


def _open_session(client: ConsulClient) -> None:
    # It ends by itself if this process does before.
    client.api.session.destroy(client.api.session.create(ttl=10))
