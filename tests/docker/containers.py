"""Containers of Lictor's image, as restricted as a cluster runs them, in one network of their own.

They share the network of a Consul that has none but loopback: nothing is published, and nothing leaves it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 60.0
# What the Pod Security standard `restricted` asks for, and a root file system that cannot be written to.
RESTRICTED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp:mode=1777", "--tmpfs", "/data:uid=65532"),
)


def docker(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert not check or done.returncode == 0, f"docker {arguments}: {done.stdout}{done.stderr}"
    return done


class Container:
    """One that was started; it is removed when the block that started it ends."""

    def __init__(self, identity: str) -> None:
        self.id = identity

    @property
    def log(self) -> str:
        done = docker("logs", self.id)
        return done.stdout + done.stderr

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(docker("inspect", "-f", "{{json .State}}", self.id).stdout)
        return state

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.id, *command, check=False)

    def get(self, url: str) -> Any:
        """The JSON or the text at a URL, asked for from within the network; None without a good answer."""
        done = self.run("python", "-c", _GET, url)
        if done.returncode != 0:
            return None
        try:
            return json.loads(done.stdout)
        except ValueError:
            return done.stdout

    def eventually(self, found: Callable[[], Any]) -> Any:
        """What is found, once that is true; fails with the log when it does not become so."""
        deadline = time.monotonic() + LIMIT
        while not (value := found()):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)
        return value

    def stop(self, seconds: int) -> int:
        """The exit status after SIGTERM; 137 where the engine had to kill it after so many seconds."""
        docker("stop", "--time", str(seconds), self.id)
        return int(self.state["ExitCode"])


_GET = (
    "import sys, urllib.request as r; "
    "sys.stdout.write(r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=3).read().decode())"
)


@contextmanager
def started(image: str, *command: str, options: Sequence[str] = ()) -> Iterator[Container]:
    container = Container(docker("run", "--detach", *options, image, *command).stdout.strip())
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container.id)
