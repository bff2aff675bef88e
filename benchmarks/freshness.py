"""How soon a change in Consul is in Lictor's API, beside the least that any program could take.

The floor is a bare blocking query on the one service, and one bare GET of its manifest: no store,
no checks, no other services. It is measured on the same agent in the same run, while no Lictor
runs. Lictor is asked over and over, as no blocking query is needed to see how soon it knows.

    .venv/bin/python benchmarks/freshness.py [--rounds 60] [--services 0]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from discovery.consul_agent import DevAgent, find_consul

HOST = "127.0.0.1"
PATIENCE = 30.0
# Each change comes by itself: what the one before it led to has come to its end.
QUIET = 0.3


class Modules(ThreadingHTTPServer):
    """Serves the manifest of any module: `/NAME` is where NAME's is."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__((HOST, 0), _ManifestHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _ManifestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        routes = [{"path": f"/{number}"} for number in range(40)]
        body = json.dumps({"name": self.path[1:], "version": "1.0.0", "routes": routes}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Client:
    """One connection that is kept, as thin as the standard library has it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bytes]:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, body=content)
        response = self._connection.getresponse()
        return response.status, response.headers, response.read()


class Platform:
    """A Consul agent and the modules that register there."""

    def __init__(self, agent: DevAgent, modules: Modules) -> None:
        self.consul = agent.http_addr.removeprefix("http://")
        self._client = Client(self.consul)
        self._port = modules.server_address[1]

    def register(self, name: str, *, status: str = "passing") -> None:
        meta = {"manifest_path": f"/{name}"}
        check = {"CheckID": name, "TTL": "1h", "Status": status}
        place = {"Address": HOST, "Port": self._port}
        body = {"Name": name, "Tags": ["module"], "Meta": meta, "Check": check, **place}
        self._done(self._client.ask("PUT", "/v1/agent/service/register", body))

    def fail(self, name: str) -> None:
        self._done(self._client.ask("PUT", f"/v1/agent/check/fail/{name}"))

    def deregister(self, name: str) -> None:
        self._done(self._client.ask("PUT", f"/v1/agent/service/deregister/{name}"))

    @staticmethod
    def _done(answer: tuple[int, Any, bytes]) -> None:
        if answer[0] != 200:
            raise SystemExit(f"Consul refused: {answer[2].decode()}")


class Floor:
    """Sees a change by a blocking query on the one service that is known to change."""

    def __init__(self, platform: Platform, modules: Modules) -> None:
        self._consul = Client(platform.consul)
        self._modules = modules

    def registration(self, name: str) -> Callable[[], None]:
        path = f"/v1/health/service/{name}?passing"
        index = self._index(path)

        def see() -> None:
            (entry,) = self._wait(path, index, lambda entries: len(entries) == 1)
            service = entry["Service"]
            module = Client(f"{service['Address']}:{service['Port']}")
            json.loads(module.ask("GET", service["Meta"]["manifest_path"])[2])

        return see

    def critical(self, name: str) -> Callable[[], None]:
        path = f"/v1/health/service/{name}?passing"
        index = self._index(path)
        return lambda: self._wait(path, index, lambda entries: not entries) and None

    def _index(self, path: str) -> int:
        return int(self._consul.ask("GET", path)[1]["X-Consul-Index"])

    def _wait(self, path: str, index: int, enough: Callable[[Any], bool]) -> Any:
        while True:
            _, headers, body = self._consul.ask("GET", f"{path}&index={index}&wait=30s")
            index, entries = int(headers["X-Consul-Index"]), json.loads(body)
            if enough(entries):
                return entries


class Lictor:
    """Sees a change in Lictor's API."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def registration(self, name: str) -> Callable[[], None]:
        return lambda: self._until(f"/api/v1/modules/{name}/manifest", lambda status, _: status == 200)

    def critical(self, name: str) -> Callable[[], None]:
        return lambda: self._until(
            f"/api/v1/modules/{name}", lambda _, body: json.loads(body)["status"] == "unavailable"
        )

    def _until(self, path: str, seen: Callable[[int, bytes], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status, _, body = self._client.ask("GET", path)
            if seen(status, body):
                return
            # A client that asks without a pause would measure itself.
            time.sleep(0.002)
        raise SystemExit(f"{path} did not come within {PATIENCE:g} s")


def measure(
    seer: Floor | Lictor, platform: Platform, prefix: str, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds from the call to the agent until the change is seen: of registrations, of failing checks."""
    registrations, flips = [], []
    for number in range(rounds):
        name = f"{prefix}-{number}"
        registrations.append(timed(seer.registration(name), lambda name=name: platform.register(name)))
        time.sleep(QUIET)
        flips.append(timed(seer.critical(name), lambda name=name: platform.fail(name)))
        platform.deregister(name)
        time.sleep(QUIET)
    return registrations, flips


def timed(see: Callable[[], None], act: Callable[[], None]) -> float:
    """Seconds from the begin of `act` to the end of `see`, which waits beside it."""
    seen: list[float] = []
    ready = threading.Event()

    def watch() -> None:
        ready.set()
        see()
        seen.append(time.perf_counter())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.wait()
    time.sleep(0.01)
    begun = time.perf_counter()
    act()
    watcher.join()
    if not seen:
        raise SystemExit("the change was never seen")
    return seen[0] - begun


@contextmanager
def lictor(consul: str, folder: str) -> Iterator[str]:
    """The synchronizer and the web server, as `lictor up` runs them; yields the API's address."""
    with socket.create_server((HOST, 0)) as taken:
        bind = f"{HOST}:{taken.getsockname()[1]}"
    environment = {
        **os.environ,
        "CONSUL_HTTP_ADDR": consul,
        "LICTOR_BIND": bind,
        "LICTOR_DATABASE_URL": f"sqlite:///{folder}/lictor.db",
    }
    command = [str(Path(sys.executable).with_name("lictor")), "up"]
    with Path(folder, "lictor.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until_ready(bind, process)
        yield bind
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _, headers, _ = Client(address).ask("GET", "/api/v1/modules")
        except OSError:
            time.sleep(0.05)
            continue
        if int(headers["X-Lictor-Index"] or 0) > 0:
            return
        time.sleep(0.05)
    raise SystemExit("lictor up did not become ready")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="registrations to measure (default 60)")
    parser.add_argument(
        "--services", type=int, default=0, help="other modules that are there already (default 0)"
    )
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lictor-benchmark-"))
        agent = stack.enter_context(DevAgent(find_consul(os.environ, Path.cwd()), http_port=0, dns_port=0))
        modules = Modules()
        platform = Platform(agent, modules)
        for number in range(arguments.services):
            platform.register(f"other-{number}")
        floor = measure(Floor(platform, modules), platform, "floor", arguments.rounds)
        address = stack.enter_context(lictor(platform.consul, folder))
        if arguments.services:
            Lictor(address).registration(f"other-{arguments.services - 1}")()
        ours = measure(Lictor(address), platform, "lictor", arguments.rounds)
    report("a registration, with its manifest", floor[0], ours[0])
    report("a check that turns critical", floor[1], ours[1])


def report(what: str, floor: list[float], ours: list[float]) -> None:
    print(f"{what} ({len(ours)} rounds)")
    print(f"{'':12}{'p50':>10}{'p95':>10}")
    for name, sample in (("floor", floor), ("Lictor", ours)):
        print(f"{name:12}{percentile(sample, 50) * 1e3:7.1f} ms{percentile(sample, 95) * 1e3:7.1f} ms")
    ratios = (percentile(ours, share) / percentile(floor, share) for share in (50, 95))
    print(f"{'ratio':12}" + "".join(f"{ratio:10.2f}" for ratio in ratios) + "\n")


def percentile(sample: list[float], share: int) -> float:
    return statistics.quantiles(sample, n=100, method="inclusive")[share - 1]


if __name__ == "__main__":
    main()
