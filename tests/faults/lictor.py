"""Lictor's own processes: `lictor serve` and `lictor sync`, to be killed, stopped and started at will."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor, Running, wait_until_gone
from tests.consul_server import eventually

WORKERS = 2
DOUBT = 2.0

# Short times, so that a run meets what happens at the end of them.
SETTINGS = {
    "LICTOR_WORKERS": str(WORKERS),
    "LICTOR_DOUBT": f"{DOUBT}s",
    "LICTOR_REVALIDATE": "1s",
    "LICTOR_FETCH_RETRY_MAX": "1s",
    "LICTOR_FETCH_DEADLINE": "2s",
    "LICTOR_LOG_LEVEL": "info",
}


class Excuses:
    """When it was our own doing that a read could not be answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[float, float]] = []

    @contextmanager
    def excused(self) -> Iterator[None]:
        began = time.monotonic()
        with self._lock:
            self._spans.append((began, float("inf")))
        try:
            yield
        finally:
            with self._lock:
                self._spans.remove((began, float("inf")))
                self._spans.append((began, time.monotonic()))

    def cover(self, began: float, ended: float) -> bool:
        with self._lock:
            return any(start <= ended and began <= end for start, end in self._spans)


class Processes:
    """A web server with several workers and `count` synchronizers, on a database that is migrated."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, synchronizers: int) -> None:
        (port,) = free_ports(1)
        self.lictor = Lictor(folder, **{**SETTINGS, "LICTOR_BIND": f"127.0.0.1:{port}", **settings})
        self.excuses = Excuses()
        self.count = synchronizers
        self.synchronizers: list[Running] = []
        self.paused: list[int] = []
        self._every_synchronizer: list[Running] = []
        self._server: Running | None = None
        # A connection that is kept may be that of a worker which was killed since.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(base_url=self.lictor.url, trust_env=False, timeout=60, limits=limits)

    def start(self) -> None:
        done = self.lictor.run("migrate")
        assert done.returncode == 0, done.stderr
        self.start_serving()
        self.fill_up()

    def close(self) -> None:
        self.resume_all()
        self._client.close()
        self.lictor.close()

    # The synchronizers

    def fill_up(self) -> None:
        """Starts as many synchronizers as are missing."""
        while len(self.synchronizers) < self.count:
            running = self.lictor.start("sync")
            self.synchronizers.append(running)
            self._every_synchronizer.append(running)

    def end_synchronizer(self, number: int, how: signal.Signals) -> None:
        running = self.synchronizers.pop(number)
        self._resume(running.process.pid)
        running.end(how)

    def pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.paused.append(pid)

    def resume_all(self) -> None:
        while self.paused:
            self._resume(self.paused[-1])

    def _resume(self, pid: int) -> None:
        if pid in self.paused:
            self.paused.remove(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # The web server

    @property
    def server(self) -> Running:
        assert self._server is not None
        return self._server

    def workers(self) -> list[int]:
        return sorted(self.server.descendants())

    def start_serving(self) -> None:
        self._server = self.lictor.serve()
        eventually(lambda: len(self.workers()) == WORKERS, limit=60)

    def await_ready(self) -> None:
        eventually(self.lictor.is_ready, limit=60)

    def kill_worker(self, pid: int) -> None:
        with self.excuses.excused():
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid, limit=60)
            eventually(lambda: len(self.workers()) == WORKERS and self.lictor.is_ready(), limit=60)

    def kill_server(self) -> None:
        with self.excuses.excused():
            family = [self.server.process.pid, *self.workers()]
            self.server.end(signal.SIGKILL)
            # Without their parent the workers end by themselves.
            wait_until_gone(*family, limit=60)
            self.start_serving()

    def get(self, path: str, **params: str) -> httpx.Response:
        return self._client.get(path, params=params)

    def json(self, path: str, **params: str) -> Any:
        answer = self.get(path, **params)
        assert answer.status_code == 200, f"{answer.request.url}: {answer.status_code} {answer.text}"
        return answer.json()

    # What they say

    def logs(self) -> dict[str, str]:
        said = {"serve": self.server.text}
        return said | {
            f"sync {running.process.pid}": running.text for running in self._every_synchronizer[-4:]
        }
