"""Finds a consul binary and runs a development agent with it."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import ConfigError, DiscoveryError, RegistryUnavailable

HOST = "127.0.0.1"
HTTP_PORT = 8500
DNS_PORT = 8600

# Below these ports, on Linux and macOS alike, none is given to an outgoing connection.
_FREE_PORTS = range(10_000, 32_000)
_TRIES = 5
_LOG_LINES = 15
# The time between looks at an agent that is starting; it returns early if the agent ends.
_LOOK_INTERVAL = 0.03


def find_consul(environ: Mapping[str, str], cwd: Path) -> Path:
    """The consul binary: CONSUL_BIN, else on PATH, else in the folder .tools of `cwd`.

    Raises ConfigError if there is none, saying every way to get one.
    """
    named = environ.get("CONSUL_BIN", "")
    if named:
        if not _is_program(Path(named)):
            raise ConfigError([f"CONSUL_BIN: {named} is not a program: name a consul binary, or unset it"])
        return Path(named)
    on_path = shutil.which("consul", path=environ.get("PATH", os.defpath))
    tools = cwd / ".tools" / "consul"
    inside = (tools / "usr" / "bin" / "consul", tools / "consul", tools)
    for path in (*([Path(on_path)] if on_path else []), *inside):
        if _is_program(path):
            return path
    raise ConfigError(
        [
            f"CONSUL_BIN: no consul binary is named by it, on PATH or in {tools.parent}: "
            "install Consul (developer.hashicorp.com/consul/install), name its binary in CONSUL_BIN, "
            f"put it into {tools.parent}, or in a checkout of Lictor run scripts/get-consul --binary"
        ]
    )


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


class DevAgent:
    """A development agent of Consul on 127.0.0.1: in memory, with its web page, forgetful.

    `start` returns once it has a leader; `http_port` and `dns_port` are then the ports in use, where
    0 asked for any free one. `hcl` is more of Consul's settings. Its log goes to `log_file`, or is
    discarded except for what `start` tells if it fails: RegistryUnavailable then, or ConfigError
    for a port in use or a binary that is none. As a context manager it starts, and stops at the end.

    The agent has a session of its own, so that Ctrl-C reaches only us and we decide when it ends.
    That it ends with us whatever ends us, even SIGKILL, sees a shell to that reads from a pipe which
    we alone hold open. (Linux' own signal for this, PR_SET_PDEATHSIG, is tied to the thread that
    started the agent, would need code between fork and exec, and is unknown elsewhere.)
    """

    def __init__(
        self,
        binary: Path,
        *,
        http_port: int = HTTP_PORT,
        dns_port: int = DNS_PORT,
        hcl: Sequence[str] = (),
        log_file: Path | None = None,
        start_limit: float = 20.0,
        stop_limit: float = 5.0,
    ) -> None:
        self.http_port = http_port
        self.dns_port = dns_port
        self._binary = binary
        self._hcl = tuple(hcl)
        self._log_file = log_file
        self._start_limit = start_limit
        self._stop_limit = stop_limit
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def http_addr(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    @property
    def config(self) -> ConsulConfig:
        return ConsulConfig(host=HOST, port=self.http_port)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("this Consul agent is not running")
        return self._process.pid

    def start(self) -> None:
        if self.running:
            raise RuntimeError("this Consul agent is running already")
        fixed = [*self._hcl, *_settings_of_version(self._binary)]
        for tries_left in reversed(range(_TRIES)):
            try:
                self._start_once(fixed)
                return
            except _PortTaken as error:
                # Somebody was faster on a port that we chose; if it was a given one, the check at
                # the next start says so.
                if not tries_left:
                    raise RegistryUnavailable(str(error)) from error

    def stop(self) -> None:
        """Ends the agent, by force if it does not end by itself; does nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the agent without giving it the time to say good-bye."""
        self._end(signal.SIGKILL)

    def log_tail(self) -> str:
        """The last lines that the agent wrote; nothing any more once it was stopped."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-_LOG_LINES:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _start_once(self, fixed: Sequence[str]) -> None:
        ports = self._choose_ports()
        self._log = self._open_log()
        try:
            self._launch(ports, fixed)
            self._await_leader(ports[0])
        except BaseException:
            self.kill()
            raise
        self.http_port, self.dns_port = ports[:2]

    def _choose_ports(self) -> list[int]:
        """The ports for http, dns, and three that nobody but the agent itself uses."""
        for name, port, kinds in (
            ("http", self.http_port, (socket.SOCK_STREAM,)),
            ("dns", self.dns_port, (socket.SOCK_STREAM, socket.SOCK_DGRAM)),
        ):
            if port and not _can_bind(port, kinds):
                raise ConfigError(
                    [
                        f"Consul's {name} port: {HOST}:{port} is in use: "
                        "end the program that uses it (another Consul agent?), or choose another port"
                    ]
                )
        given = [port for port in (self.http_port, self.dns_port) if port]
        free = iter(free_ports(5, besides=given))
        return [self.http_port or next(free), self.dns_port or next(free), *(next(free) for _ in range(3))]

    def _open_log(self) -> IO[bytes]:
        if self._log_file is None:
            return tempfile.TemporaryFile(prefix="lictor-consul-")
        try:
            return self._log_file.open("w+b")
        except OSError as error:
            raise ConfigError([f"log_file: cannot write {self._log_file}: {error.strerror}"]) from error

    def _launch(self, ports: Sequence[int], fixed: Sequence[str]) -> None:
        http, dns, server, serf_lan, serf_wan = ports
        command = [
            *(str(self._binary), "agent", "-dev", "-ui", f"-bind={HOST}", f"-client={HOST}"),
            *(f"-http-port={http}", f"-dns-port={dns}", f"-server-port={server}", "-grpc-port=-1"),
            *(f"-serf-lan-port={serf_lan}", f"-serf-wan-port={serf_wan}"),
            # A log that nobody keeps is a file that grows: only what tells of trouble goes there.
            f"-log-level={'info' if self._log_file else 'warn'}",
            "-hcl=disable_update_check = true",
            *(f"-hcl={text}" for text in fixed),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _END_WITH_PARENT, "sh", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_leader(self, http_port: int) -> None:
        deadline = time.monotonic() + self._start_limit
        reason = "it was not asked"
        with ConsulClient(ConsulConfig(host=HOST, port=http_port, timeout=1.0)) as client:
            while not self._has_ended():
                try:
                    if client.status_leader().data:
                        return
                    reason = "it has no leader"
                except DiscoveryError as error:
                    reason = str(error)
                if time.monotonic() > deadline:
                    raise RegistryUnavailable(
                        f"Consul was not ready after {self._start_limit:g} s: {reason}\n{self.log_tail()}"
                    )
        log = self.log_tail()
        if "address already in use" in log:
            raise _PortTaken(f"Consul found a port in use again and again:\n{log}")
        raise RegistryUnavailable(f"Consul ended as it started; its last lines:\n{log}")

    def _has_ended(self) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(_LOOK_INTERVAL)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(self._stop_limit)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        # Only now, and before its pipe is closed: it must not signal an id that is no longer ours.
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self._log is not None:
            self._log.close()
            self._log = None


class _PortTaken(Exception):
    """Another program took a port between our look at it and the agent's start."""


# `read` returns when the last process that could write to the pipe is gone.
_END_WITH_PARENT = """
read -r _
kill -TERM "$1" || exit
sleep 5
kill -KILL "$1"
"""


def free_ports(count: int, *, besides: Sequence[int] = ()) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens, by TCP or UDP; nobody else is kept off them."""
    found: list[int] = []
    for port in random.sample(_FREE_PORTS, 1000):
        if port not in besides and _can_bind(port, (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            found.append(port)
            if len(found) == count:
                return found
    raise RegistryUnavailable(
        f"no {count} free ports were found from {_FREE_PORTS.start} to {_FREE_PORTS.stop - 1}"
    )


def _can_bind(port: int, kinds: Sequence[socket.SocketKind]) -> bool:
    for kind in kinds:
        with socket.socket(type=kind) as probe:
            # Without it, connections that an earlier server left behind would count as a server. For
            # UDP it would do the opposite: let us bind what is in use.
            if kind is socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True


def _settings_of_version(binary: Path) -> list[str]:
    """What this very version of Consul must be told to keep to itself."""
    # From 1.14 on there is a second gRPC port, open by default; before, its name is an error.
    return ["ports { grpc_tls = -1 }"] if _version(binary) >= (1, 14) else []


def _version(binary: Path) -> tuple[int, int]:
    try:
        told = subprocess.run(
            [binary, "version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError([f"CONSUL_BIN: {binary} cannot be run: {error}"]) from error
    match = re.match(r"Consul v(\d+)\.(\d+)", told)
    if match is None:
        raise ConfigError([f"CONSUL_BIN: {binary} is not Consul: it does not answer to `consul version`"])
    return int(match[1]), int(match[2])
