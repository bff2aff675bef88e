"""A module on a free port whose health path answers with the status that it is told."""

from __future__ import annotations

from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self


class HealthServer:
    """`status` is what `/health` answers; every other path is 404. `requests` counts both.

    `headers` are those of the newest request.
    """

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.requests = 0
        self.headers = Message()
        module = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                module.requests += 1
                module.headers = self.headers
                self.send_response(module.status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
