"""A real TCP server whose every answer is scripted, byte for byte: a stand-in for modules that misbehave."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from discovery.base import ServiceInstance

_PATIENCE = 10.0


@dataclass(frozen=True)
class Request:
    """What a client asked; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


class Connection:
    """One client's connection, for a behaviour to write to."""

    def __init__(self, peer: socket.socket, stopping: threading.Event) -> None:
        self._peer = peer
        self._stopping = stopping
        self.sent = 0

    def send(self, data: bytes) -> None:
        self._peer.sendall(data)
        self.sent += len(data)

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond the end of the test; raises once the server stops."""
        if self._stopping.wait(seconds):
            raise ConnectionAbortedError("the server stops")

    def reset(self) -> None:
        """Ends the connection by a TCP reset."""
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._peer.close()


Behaviour = Callable[[Connection, Request], None]


def answer(
    body: bytes | str = b"",
    *,
    status: str = "200 OK",
    headers: Mapping[str, str] | None = None,
    content_length: int | None = None,
) -> Behaviour:
    """Answers with this body; `content_length` may lie."""
    content = body.encode() if isinstance(body, str) else body
    length = len(content) if content_length is None else content_length
    return raw(head(status, {"Content-Length": str(length), **(headers or {})}) + content)


def manifest(document: Mapping[str, Any]) -> Behaviour:
    """Serves a manifest as a good module does: with an ETag, and 304 to who has it."""
    body = json.dumps(document).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    def behave(connection: Connection, request: Request) -> None:
        known = request.headers.get("if-none-match") == etag
        full = answer(body, headers={"ETag": etag, "Content-Type": "application/json"})
        (answer(status="304 Not Modified", headers={"ETag": etag}) if known else full)(connection, request)

    return behave


def raw(data: bytes) -> Behaviour:
    """Sends these bytes, whatever they are, and ends the connection."""
    return lambda connection, request: connection.send(data)


def in_pieces(pieces: Iterable[bytes], pause: float = 0.0) -> Behaviour:
    """Sends piece after piece with a pause after each."""

    def behave(connection: Connection, request: Request) -> None:
        for piece in pieces:
            connection.send(piece)
            connection.pause(pause)

    return behave


def silence(connection: Connection, request: Request) -> None:
    """Never answers."""
    connection.pause(_PATIENCE)


def reset(connection: Connection, request: Request) -> None:
    """Breaks the connection in place of an answer."""
    connection.reset()


def head(status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    """The head of an answer, up to and with the empty line."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class ManifestServer:
    """Answers on a free port, a thread a connection; a context manager.

    `routes` says what to do by path, and may be changed while the server runs; other paths get 404.
    """

    def __init__(
        self,
        routes: Mapping[str, Behaviour] | None = None,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.routes = dict(routes or {})
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.open_now = 0
        self.most_open = 0
        self._tls = tls
        self._lock = threading.Lock()
        self._asked = threading.Condition()
        self._stopping = threading.Event()
        self._peers: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=256)
        self.host, self.port = self._listener.getsockname()[:2]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        # A blocked accept() ends by shutdown alone, not by close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for peer in self._peers:
                _shut(peer)
        for thread in list(self._threads):
            thread.join(_PATIENCE)

    def instance(self, module: str = "orders", **changes: Any) -> ServiceInstance:
        """An instance that is registered at this server."""
        scheme = "https" if self._tls else "http"
        known = {"module": module, "id": f"{module}-1", "address": self.host, "port": self.port}
        return ServiceInstance(**{**known, "scheme": scheme, **changes})

    def wait_for_requests(self, count: int) -> None:
        """Returns once so many requests came; blocks its thread."""
        with self._asked:
            if not self._asked.wait_for(lambda: len(self.requests) >= count, _PATIENCE):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came")

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        try:
            with self._secured(peer) as secured, self._counted(secured):
                self._converse(secured)
                # The client reads what was sent to its end before the connection goes.
                _shut(secured)
        except OSError:
            pass  # The client, or the test, went away: what it saw is the test's to judge.

    def _secured(self, peer: socket.socket) -> socket.socket:
        if self._tls is None:
            return peer
        peer.settimeout(_PATIENCE)
        return self._tls.wrap_socket(peer, server_side=True)

    @contextmanager
    def _counted(self, peer: socket.socket) -> Iterator[None]:
        with self._lock:
            self._peers.add(peer)
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        try:
            yield
        finally:
            with self._lock:
                self._peers.discard(peer)
                self.open_now -= 1

    def _converse(self, peer: socket.socket) -> None:
        request = _read_request(peer)
        if request is None:
            return
        connection = Connection(peer, self._stopping)
        with self._asked:
            self.requests.append(request)
            self.connections.append(connection)
            self._asked.notify_all()
        behave = self.routes.get(request.target.partition("?")[0], answer(status="404 Not Found"))
        behave(connection, request)


def _shut(peer: socket.socket) -> None:
    # It may be closed already.
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


def _read_request(peer: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        more = peer.recv(65536)
        if not more:
            return None
        received += more
    first, *lines = received.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    return Request(method, target, {name.lower(): value.strip() for name, _, value in pairs})
