"""Hosts in network namespaces of their own, on one cable that can be pulled; root on Linux may have them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_SWITCH = "switch"


class NoNamespaces(Exception):
    """This machine lets us make no network namespaces; the message says why."""


@dataclass(frozen=True)
class Host:
    """One host: `namespace` is the kernel's name of it, `address` its IP address."""

    name: str
    namespace: str
    address: str

    def start(
        self, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Starts a program on this host; its file system is everybody's."""
        with log.open("ab") as output:
            # `ip` turns into the program, so the process is the program's.
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


class Lan:
    """Hosts on one switch, without a way to any other network."""

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        self._prefix = prefix
        self.hosts = {
            name: Host(name, f"{prefix}-{name}", f"10.231.0.{number}") for number, name in enumerate(names, 1)
        }

    def cut(self, name: str) -> None:
        """Pulls a host's cable: what it sends and what it is sent is lost without a word."""
        _ip("-n", f"{self._prefix}-{_SWITCH}", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        _ip("-n", f"{self._prefix}-{_SWITCH}", "link", "set", name, "up")

    def build(self) -> None:
        switch = f"{self._prefix}-{_SWITCH}"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in self.hosts.values():
            _ip("netns", "add", host.namespace)
            ends = ("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", switch, *ends)
            _ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Removes every namespace, and with them all links."""
        for namespace in (*(host.namespace for host in self.hosts.values()), f"{self._prefix}-{_SWITCH}"):
            with suppress(NoNamespaces):
                _ip("netns", "delete", namespace)


@contextmanager
def lan(names: Sequence[str]) -> Iterator[Lan]:
    """A network of hosts of these names. Raises NoNamespaces."""
    with ExitStack() as open_:
        # Two runs of the tests may be under way at once.
        network = Lan(f"lictor{os.getpid()}", names)
        open_.callback(network.remove)
        network.build()
        yield network


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as exc:
        raise NoNamespaces("there is no command `ip` (Debian's package iproute2)") from exc
    if done.returncode != 0:
        raise NoNamespaces(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
