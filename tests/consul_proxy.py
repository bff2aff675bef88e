"""Stands between a watch and a real Consul: requests in, what Consul or a test makes of each out."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from discovery.consul.config import ConsulConfig

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Asked:
    """What came in."""

    path: str
    query: Mapping[str, str]

    @property
    def blocks(self) -> bool:
        return "index" in self.query


@dataclass(frozen=True)
class Meddling:
    """What a test does to a request: answers it with `status`, lets it hang, or alters the real answer.

    Names of headers are in lower case.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hangs: bool = False


class ConsulProxy:
    """Forwards GET requests to `upstream`, but for what `meddle` wants otherwise; a context manager."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[Asked] = []
        self.meddle: Callable[[Asked], Meddling | None] = lambda asked: None
        self._upstream = upstream.removeprefix("http://")
        self._closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                proxy._handle(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def config(self, **changes: Any) -> ConsulConfig:
        return ConsulConfig(**{"host": HOST, "port": self._server.server_address[1], **changes})

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        asked = Asked(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)))
        self.requests.append(asked)
        meddling = self.meddle(asked) or Meddling()
        if meddling.hangs:
            self._closing.wait(60)
            handler.close_connection = True
            return
        try:
            real = self._forward(handler.path) if meddling.status is None else None
        except (OSError, http.client.HTTPException):
            handler.close_connection = True  # Consul ended, or broke the connection: so do we.
            return
        status, headers, body = real or (meddling.status or 0, {}, b"")
        self._send(handler, status, {**headers, **meddling.headers}, meddling.body or body)

    def _forward(self, target: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            told = ((name.lower(), value) for name, value in response.getheaders())
            headers = {name: value for name, value in told if name.startswith("x-consul")}
            return response.status, headers, response.read()
        finally:
            connection.close()

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes) -> None:
        try:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            handler.close_connection = True  # The watch ended, or gave the query up.

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
