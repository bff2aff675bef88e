"""Holds a lock in Consul that frees itself soon after its holder is gone.

The lock is a key that a session holds. The session is bound to the health of the agent's node and
to a TTL check of a service that the process registers of itself: when the process dies, hangs or is
paused, the check lapses, and Consul takes the key from the session at once. A session's own TTL
would do that only after twice its time, which is at least ten seconds. There is no lock delay, so
two processes may for a moment both think that they hold the lock: what it protects must be fenced.

Sources: https://developer.hashicorp.com/consul/docs/automate/session,
https://developer.hashicorp.com/consul/docs/automate/application-leader-election
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from discovery.consul.call import Call
from discovery.consul.client import AsyncConsulClient, ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import DiscoveryError, PermissionDenied, UnknownInstance
from discovery.timing.backoff import Backoff
from discovery.timing.durations import format_duration

logger = logging.getLogger(__name__)

SERVICE = "lictor"
"""What the process registers itself as; without the module tag, so that it is no module."""

CHECK_TTL = 8.0
"""Seconds without a sign of life after which Consul takes the lock away."""

_BEAT = 2.0
# Two calls may time out between two beats, and the check still holds.
_CALL_TIMEOUT = 2.0
# Who is dead is removed from the catalog then; Consul takes no shorter time.
_DEREGISTER_AFTER = 60.0
# When Consul comes back it may have forgotten who held the lock: that one gets it back.
_HEAD_START = 3.0
_REFUSED_PAUSE = 60.0
_LEAVING = 0.7


SERVICE_RIGHT = f'service "{SERVICE}" {{ policy = "write" }}'
SESSION_RIGHT = 'session_prefix "" { policy = "write" }'


def key_right(key: str) -> str:
    """The rule that lets a token lock this key."""
    return f'key "{key}" {{ policy = "write" }}'


def registration(holder: str) -> dict[str, Any]:
    """As what the holder of a lock registers itself with the agent."""
    id = f"{SERVICE}-{holder}"
    return {
        "Name": SERVICE,
        "ID": id,
        "Check": {
            "CheckID": f"service:{id}",
            "Name": "The synchronizer gives signs of life",
            "TTL": format_duration(CHECK_TTL),
            "Status": "passing",
            "DeregisterCriticalServiceAfter": format_duration(_DEREGISTER_AFTER),
        },
    }


class ConsulLock:
    """Holds the lock of `key` while it is sought and free; `run` does the work, until it is cancelled.

    It serves one event loop. While Consul is out of reach `held` is False, though nobody else need
    have the lock then. `changed` is set when the lock was got or lost. `holder` tells processes apart.
    """

    registry = "consul"

    def __init__(self, config: ConsulConfig, *, key: str, holder: str) -> None:
        self._config = replace(config, timeout=min(config.timeout, _CALL_TIMEOUT))
        self._key = key
        self._holder = holder
        self._id = registration(holder)["ID"]
        self._sought = False
        self._had_it = False
        self._asked_anew = asyncio.Event()
        self._session = ""
        self._registered = False
        self._index = 0
        self._not_before = 0.0
        # Which right the call needs that is being made.
        self._right = ""
        self._refusal = ""
        self._beat_at = 0.0
        self._held_until = 0.0
        self.changed = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether it is held for sure: it was so at the last look, and the check cannot have lapsed since."""
        return time.monotonic() < self._held_until

    def request(self, *, had_it: bool) -> None:
        """Takes the lock as soon as it is free.

        When Consul was away, one who `had_it` before takes it at once, others leave him some time.
        """
        self._ask(True, had_it)

    def release(self) -> None:
        """Frees the lock, and takes it no more."""
        self._held_until = 0.0
        self._ask(False, False)

    def _ask(self, sought: bool, had_it: bool) -> None:
        if (sought, had_it) != (self._sought, self._had_it):
            self._sought, self._had_it = sought, had_it
            self._asked_anew.set()

    async def run(self) -> NoReturn:
        """Keeps the process registered and the lock as it is wished for; frees both when it is cancelled."""
        backoff = Backoff(0.1, _BEAT)
        async with AsyncConsulClient(self._config, max_connections=1) as client:
            try:
                while True:
                    try:
                        await self._round(client)
                        self._well()
                        backoff.reset()
                    except PermissionDenied as exc:
                        self._refused(exc)
                        await asyncio.sleep(_REFUSED_PAUSE)
                    except DiscoveryError as exc:
                        logger.debug("the lock %s cannot be seen to: %s", self._key, exc)
                        self._out_of_reach()
                        await asyncio.sleep(backoff.next())
            finally:
                await self._leave(client)

    async def _round(self, client: AsyncConsulClient) -> None:
        """A sign of life, a look at the key until it changes or the next sign is due, and what follows."""
        await self._beat(client)
        self._right = key_right(self._key)
        owner = await self._owner(client)
        is_ours = bool(owner) and owner == self._session
        self._set_held(is_ours and self._sought)
        if is_ours and not self._sought:
            await client.api.kv.put(self._key, None, release=self._session)
        elif not owner and self._sought and time.monotonic() >= self._not_before:
            await self._acquire(client)

    async def _beat(self, client: AsyncConsulClient) -> None:
        self._right = SERVICE_RIGHT
        self._beat_at = time.monotonic()
        if self._registered:
            try:
                await client.pass_check(f"service:{self._id}")
                return
            except UnknownInstance:
                logger.info("Consul has forgotten this process, which registers again as %s", self._id)
                self._registered = False
        await client.register(registration(self._holder))
        self._registered = True

    async def _owner(self, client: AsyncConsulClient) -> str:
        """The session that holds the key, or "" if none does."""
        looking = asyncio.create_task(self._entry(client), name="look at the lock")
        asked = asyncio.create_task(self._asked_anew.wait(), name="asked again")
        try:
            done, _ = await asyncio.wait({looking, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looking.cancel()
            asked.cancel()
            await asyncio.gather(looking, asked, return_exceptions=True)
        if asked in done:
            # What is asked for now may be possible at once, with the key as it was.
            self._asked_anew.clear()
            self._index = 0
        entry = looking.result() if looking in done else await self._entry(client)
        return str((entry or {}).get("Session", ""))

    async def _entry(self, client: AsyncConsulClient) -> dict[str, Any] | None:
        wait = format_duration(_BEAT)
        text, entry = await client.api.kv.get(self._key, index=self._index or None, wait=wait)
        index = int(text) if str(text).isdigit() else 0
        # An index that goes back, or is none, means that all may be different.
        self._index = index if index >= self._index else 0
        return entry if isinstance(entry, dict) else None

    async def _acquire(self, client: AsyncConsulClient) -> None:
        session = await self._living_session(client)
        self._right = key_right(self._key)
        since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        value = json.dumps({"holder": self._holder, "since": since})
        self._set_held(bool(await client.api.kv.put(self._key, value, acquire=session)))

    async def _living_session(self, client: AsyncConsulClient) -> str:
        """The session, which is made again only if Consul has ended it: another could hold the key for us."""
        self._right = SESSION_RIGHT
        if not self._session or (await client.api.session.info(self._session))[1] is None:
            self._session = await client.send(self._session_call())
        return self._session

    def _session_call(self) -> Call[str]:
        # python-consul2 would say `Checks`, which Consul has deprecated since 1.7.
        definition = {
            "Name": f"the lock {self._key} of {SERVICE}",
            "NodeChecks": ["serfHealth"],
            "ServiceChecks": [{"ID": f"service:{self._id}"}],
            "LockDelay": "0s",
        }
        return Call(
            method="PUT",
            path="/v1/session/create",
            content=json.dumps(definition).encode(),
            parse=lambda reply: str(json.loads(reply.body)["ID"]),
        )

    def _set_held(self, held: bool) -> None:
        if held != self.held:
            self.changed.set()
            logger.debug("the lock %s is %s", self._key, "held" if held else "not held")
        self._held_until = self._beat_at + CHECK_TTL if held else 0.0

    def _well(self) -> None:
        if self._refusal:
            logger.info("the token has the rights for the lock %s now", self._key)
        self._refusal = ""

    def _refused(self, exc: PermissionDenied) -> None:
        self._set_held(False)
        if self._right != self._refusal:
            logger.warning(
                "the lock %s in Consul is not used, as the token lacks a right: give it the policy %s (%s)",
                self._key,
                self._right,
                exc,
            )
        self._refusal = self._right

    def _out_of_reach(self) -> None:
        self._set_held(False)
        self._index = 0
        self._not_before = 0.0 if self._had_it else time.monotonic() + _HEAD_START

    async def _leave(self, client: AsyncConsulClient) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING):
                if self._session:
                    with suppress(DiscoveryError):
                        await client.api.session.destroy(self._session)
                if self._registered:
                    with suppress(DiscoveryError):
                        await client.deregister(self._id)


# ------------------------------------------------------------------ what it needs of a token

# No key ever is at this index, so the write is judged, and then not done.
_NEVER = 2**62


def missing_rights(client: ConsulClient, key: str) -> list[str]:
    """The rules that the token's policies lack, found by trying; all is left as it was.

    Raises DiscoveryError where Consul does not answer.
    """
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
