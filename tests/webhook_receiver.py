"""A real HTTP server that gets webhooks: what came, verified by the standard's own library, out."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook

from tests.consul_server import eventually

PATH = "/hooks/lictor"


@dataclass(frozen=True)
class Delivery:
    """One request; `event` is what its body tells of."""

    id: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def message(self) -> Any:
        return json.loads(self.body)

    @property
    def event(self) -> Any:
        return self.message["data"]


@dataclass(frozen=True)
class Answer:
    """What the server does with a request: a status, headers and a body, after a while."""

    status: int = 204
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    after: float = 0.0


Script = Callable[[Delivery], Answer]


def new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


class WebhookReceiver:
    """Listens while it is a context; may be left and entered again, and keeps its port.

    `answers` decides what is done with each request; a request that is taken (2xx) is in `taken`,
    each request is in `tried`. Those that are not signed with `secret` fail the test.
    """

    def __init__(self, answers: Script | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.secret = new_secret()
        self.answers: Script = answers or (lambda delivery: Answer())
        self.tried: list[Delivery] = []
        self.taken: list[Delivery] = []
        self.forged: list[str] = []
        self._tls = tls
        self._stopping = threading.Event()
        self._port = 0

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def entry(self, name: str, **fields: Any) -> dict[str, Any]:
        """This server as a [[receiver]] of the file."""
        return {"name": name, "url": self.origin + PATH, "secret": self.secret, **fields}

    def indexes(self) -> list[int]:
        return [delivery.event["index"] for delivery in self.taken]

    def types(self) -> list[str]:
        return [delivery.event["type"] for delivery in self.taken]

    def wait_for(self, module: str, type_: str = "module.registered", *, limit: float = 20.0) -> None:
        """Until it has taken such an event."""

        def came() -> bool:
            return any((one.event["module"], one.event["type"]) == (module, type_) for one in self.taken)

        eventually(came, limit=limit)

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.forged

    def _take(self, delivery: Delivery) -> Answer:
        try:
            Webhook(self.secret).verify(delivery.body, dict(delivery.headers))
        except Exception as exc:
            self.forged.append(f"{delivery.id}: {exc!r}")
        self.tried.append(delivery)
        answer = self.answers(delivery)
        self._stopping.wait(answer.after)
        if 200 <= answer.status < 300:
            self.taken.append(delivery)
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                delivery = Delivery(headers["webhook-id"], headers, body, time.monotonic())
                answer = receiver._take(delivery)
                self.send_response(answer.status)
                for name, value in (answer.headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who sends may go away before it has an answer."""
