"""A real gunicorn with Lictor: settings in, processes that answer, or a clear refusal, out."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    """A free port below those that the kernel gives to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port was found between 20000 and 32000")


class Gunicorn:
    """A running gunicorn, and what it logged."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        settings = {"log_format": "text", **settings}
        environment |= {f"LICTOR_{name.upper()}": value for name, value in settings.items()}
        self._log = folder / "gunicorn.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:web.gunicorn_config", *arguments],
                cwd=folder,
                env=environment | {"HOME": "/nonexistent", "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def workers(self) -> list[int]:
        """The ids of the processes that serve now."""
        parent = self.process.pid
        return [int(id_) for id_ in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    def end(self) -> int:
        """Ends it as an init system would; returns its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def running(
    folder: Path, client: httpx.Client, *arguments: str, unix: Path | None = None, **settings: str
) -> Iterator[Gunicorn]:
    server = Gunicorn(folder, *arguments, **settings)
    try:
        deadline = time.monotonic() + 30
        # httpx leaves a socket open when there is no other end.
        while (unix is not None and not listens(unix)) or not answers(client):
            assert server.process.poll() is None, server.log
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
