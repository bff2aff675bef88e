"""What benchmarks run beside: a Consul with many instances, manifests, Lictor; and how figures are told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from discovery.consul.dev_agent import find_consul, free_ports

HOST = "127.0.0.1"
PATIENCE = 120.0


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
        content_read = response.read()
        if response.will_close:
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return response.status, response.headers, content_read

    def close(self) -> None:
        self._connection.close()

    def done(self, method: str, path: str, body: Any = None) -> bytes:
        status, _, answer = self.ask(method, path, body)
        if status != 200:
            raise SystemExit(f"{method} {path} was answered {status}: {answer.decode()[:200]}")
        return answer


class Consul:
    """A development agent on free ports of loopback, with room for as many connections as a peer may want."""

    def __init__(self) -> None:
        http, dns, server, lan, wan = free_ports(5)
        self.address = f"{HOST}:{http}"
        self._process = subprocess.Popen(
            [
                *(str(find_consul(os.environ, Path.cwd())), "agent", "-dev"),
                *(f"-bind={HOST}", f"-client={HOST}", f"-http-port={http}", f"-dns-port={dns}"),
                *(
                    f"-server-port={server}",
                    f"-serf-lan-port={lan}",
                    f"-serf-wan-port={wan}",
                    "-grpc-port=-1",
                ),
                *("-log-level=err", "-hcl=disable_update_check = true"),
                "-hcl=limits { http_max_conns_per_client = 10000 }",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Consul:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if Client(self.address).done("GET", "/v1/status/leader") != b'""':
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit("Consul did not start")

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def connections(self) -> int:
        """How many connections to its HTTP port are open, by everybody."""
        wanted = f":{int(self.address.rpartition(':')[2]):04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[1].endswith(wanted) and line.split()[3] == "01" for line in lines)


class Modules(ThreadingHTTPServer):
    """Serves the manifest of any module, some 2 kB: `/NAME` is where NAME's is."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__((HOST, 0), _ManifestHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _ManifestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        routes = [{"path": f"/{number}", "title": "A page of it"} for number in range(40)]
        body = json.dumps({"name": self.path[1:], "version": "1.0.0", "routes": routes}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Platform:
    """A Consul and what is registered there: instance `i` is the one of the module `module-{i // 10}`."""

    PER_MODULE = 10
    PER_NODE = 50

    def __init__(self, consul: Consul, port: int) -> None:
        self.consul = consul
        self.instances = 0
        self._client = Client(consul.address)
        self._port = port

    def close(self) -> None:
        self._client.close()

    def fill(self, instances: int, *, meta: dict[str, str] | None = None) -> None:
        """Registers so many instances, all passing but one of 200."""
        for number in range(self.instances, instances):
            status = "critical" if number % 200 == 199 else "passing"
            self.register(number, status=status, meta=meta or {})
        self.instances = instances

    def register(self, number: int, *, status: str = "passing", meta: dict[str, str] | None = None) -> None:
        self.register_named(module_of(number), number, status=status, meta=meta or {})

    def register_named(
        self,
        name: str,
        number: int,
        *,
        status: str = "passing",
        meta: dict[str, str] | None = None,
        node: int | None = None,
    ) -> None:
        """Registers an instance of a module; without `node` on the node of its number."""
        service = {
            "ID": f"instance-{number}",
            "Service": name,
            "Tags": ["module"],
            "Address": HOST,
            "Port": self._port,
            "Meta": {"manifest_path": f"/{name}", **(meta or {})},
        }
        body = {**_node(number, node), "Service": service, "Check": _check(number, status)}
        self._client.done("PUT", "/v1/catalog/register", body)

    def set_health(self, number: int, status: str) -> None:
        self._client.done("PUT", "/v1/catalog/register", {**_node(number), "Check": _check(number, status)})

    def deregister(self, number: int, node: int | None = None) -> None:
        body = {"Node": _node(number, node)["Node"], "ServiceID": f"instance-{number}"}
        self._client.done("PUT", "/v1/catalog/deregister", body)


def module_of(number: int) -> str:
    return f"module-{number // Platform.PER_MODULE}"


def _node(number: int, node: int | None = None) -> dict[str, Any]:
    is_known = node is not None or number % Platform.PER_NODE != 0
    node = number // Platform.PER_NODE if node is None else node
    return {"Node": f"node-{node}", "Address": HOST, "SkipNodeUpdate": is_known}


def _check(number: int, status: str) -> dict[str, Any]:
    return {
        "CheckID": f"check-{number}",
        "Name": "answers",
        "Status": status,
        "ServiceID": f"instance-{number}",
        "Output": "HTTP GET: 200 OK",
    }


class Churn:
    """Flips instances of a platform, so many a second, while the body runs."""

    def __init__(self, platform: Platform, instances: Sequence[int], a_second: float) -> None:
        self._platform = platform
        self._instances = instances
        self._pause = 1 / a_second if a_second else 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.flips = 0

    def _run(self) -> None:
        platform = Platform(self._platform.consul, 0)
        following = time.monotonic()
        while not self._ended.wait(max(0.0, following - time.monotonic())):
            number = self._instances[self.flips % len(self._instances)]
            turn = self.flips // len(self._instances)
            platform.set_health(number, "critical" if turn % 2 == 0 else "passing")
            self.flips += 1
            following += self._pause
        # All are left as they were found: a module without a healthy instance has no manifest to fetch.
        for number in self._instances[: self.flips]:
            platform.set_health(number, "passing")
        platform.close()

    def __enter__(self) -> Churn:
        if self._pause:
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        if self._pause:
            self._thread.join()


@contextmanager
def database(kind: str, folder: str) -> Iterator[str]:
    """The URL of an empty database: a file in this folder, or a PostgreSQL server of its own."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/lictor.db"
        return
    # What tests need is not there where only Lictor is installed.
    from tests.postgres_server import PostgresServer

    with PostgresServer() as server:
        yield server.create_database()


@contextmanager
def lictor(
    consul: str, folder: str, command: str = "up", *, ready: bool = True, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Lictor as `lictor up` runs it, or another command; yields the API's address and the process.

    With `ready` once the API answers, else at once.
    """
    bind, metrics = (f"{HOST}:{port}" for port in free_ports(2))
    environment = {
        **os.environ,
        "CONSUL_HTTP_ADDR": consul,
        "LICTOR_BIND": bind,
        "LICTOR_METRICS_BIND": metrics,
        "LICTOR_DATABASE_URL": f"sqlite:///{folder}/lictor.db",
        **settings,
    }
    with Path(folder, "lictor.log").open("ab") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("lictor")), command],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        if ready:
            wait_until_ready(bind, process)
        yield bind, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            status, headers, _ = Client(address).ask("GET", "/api/v1/modules?limit=1")
        except OSError:
            time.sleep(0.05)
            continue
        if status == 200 and int(headers["X-Lictor-Index"] or 0) > 0:
            return
        time.sleep(0.05)
    raise SystemExit("lictor did not become ready: its log says why")


def wait_for_instances(address: str, number: int, *, with_digest: bool = False) -> None:
    """Waits until Lictor serves so many instances, with their manifests if asked for."""
    client = Client(address)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if _served(client, with_digest=with_digest) >= number:
            return
        time.sleep(0.1)
    raise SystemExit(f"{number} instances were not served within {PATIENCE:g} s")


def _served(client: Client, *, with_digest: bool) -> int:
    served = 0
    cursor = ""
    while True:
        page: Any = json.loads(client.done("GET", f"/api/v1/modules?limit=1000{cursor}"))
        served += sum(
            int(module["instance_counts"]["total"])
            for module in page["items"]
            if module["digest"] or not with_digest
        )
        if page["next"] is None:
            return served
        cursor = f"&cursor={page['next']}"


def processes_under(pid: int) -> list[int]:
    """A process and all that came from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in processes_under(int(child)))]


def processor_seconds(*pids: int) -> float:
    """What processes have used of a core so far, in user and kernel mode."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """What a process holds for itself in memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no figure for the memory of {pid}")


def percentile(sample: Sequence[float], share: int) -> float:
    return statistics.quantiles(sample, n=100, method="inclusive")[share - 1]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table as Markdown, so that it can be put into docs/performance.md as it is."""
    print(f"\n{title}\n")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()
