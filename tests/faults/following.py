"""A client of the event stream that comes back after every break: an address in, the events told out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

Json = dict[str, Any]

# Longer than the stream keeps silent; a process that is stopped is given up sooner than by its readers.
_SILENCE = 20.0
_PAUSE = 0.1


class Following:
    """Follows the log from its beginning in a thread of its own, until the block ends.

    `events` must be the log: without a gap, in order, and without repetition, whatever broke.
    """

    def __init__(self, url: str) -> None:
        self.events: list[Json] = []
        self.breaks = 0
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # It notices when the stream next says something.
        self._thread.join(2 * _SILENCE)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=_SILENCE) as client:
            while not self._ended.is_set():
                with suppress(httpx.TransportError):
                    self._follow(client)
                self.breaks += 1
                self._ended.wait(_PAUSE)

    def _follow(self, client: httpx.Client) -> None:
        last = self.events[-1]["index"] if self.events else 0
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        with client.stream("GET", "/api/v1/events", headers=headers) as answer:
            if answer.status_code == 200:
                self._take(answer.iter_lines())

    def _take(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._ended.is_set():
                return
            if line.startswith("data:"):
                self.events.append(json.loads(line.removeprefix("data:")))
