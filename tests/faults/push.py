"""Copies that push: a copy and the address of Lictor in; registrations, then heartbeats, out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import httpx

from tests.faults.copies import Copy

INTERVAL = 1.0
DEREGISTER_AFTER = 2.0
_BEAT = 0.25


class Pusher:
    """Keeps one copy registered by push, from a thread of its own, as a module would.

    Whatever goes wrong is tried again at the next beat; an unknown instance registers again.
    """

    def __init__(self, copy: Copy, url: str, announced: Callable[[], None]) -> None:
        self.copy = copy
        self._url = url
        self._announced = announced
        self._ended = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"push {copy.id}", daemon=True)

    def start(self) -> Self:
        self._changed.set()
        self._thread.start()
        return self

    def register_anew(self) -> None:
        """Says again, at once, what the copy is."""
        self._changed.set()

    def fall_silent(self) -> None:
        """Dies without a word."""
        self._ended.set()
        self._thread.join()

    def leave(self) -> bool:
        """Deregisters; whether that was taken."""
        self.fall_silent()
        with suppress(httpx.TransportError), self._client() as client:
            path = f"/api/v1/modules/{self.copy.module}/instances/{self.copy.id}"
            return client.delete(path).status_code in (204, 404)
        return False

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, trust_env=False, timeout=5)

    def _run(self) -> None:
        while not self._ended.is_set():
            with suppress(httpx.TransportError), self._client() as client:
                self._beat(client)
            self._ended.wait(_BEAT)

    def _beat(self, client: httpx.Client) -> None:
        if not self._changed.is_set():
            said = {"id": self.copy.id, "health": self.copy.health}
            answer = client.post(f"/api/v1/modules/{self.copy.module}/heartbeat", json=said)
            if answer.status_code != 404:
                return
        self._changed.clear()
        self._announced()
        if client.post("/api/v1/modules/register", json=self._said()).status_code != 201:
            self._changed.set()

    def _said(self) -> dict[str, Any]:
        copy = self.copy
        said = {
            "name": copy.module,
            "id": copy.id,
            "address": "127.0.0.1",
            "port": copy.port,
            "tags": list(copy.tags),
            "meta": dict(copy.meta),
            "heartbeat_interval": INTERVAL,
            "deregister_after": DEREGISTER_AFTER,
        }
        # Those of even ports bring their manifest along, the others have it fetched.
        return said | ({"manifest": copy.manifest} if copy.port % 2 == 0 else {})
