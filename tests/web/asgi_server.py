"""The ASGI application under uvicorn on a thread of the test, as gunicorn's worker runs it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import httpx
import uvicorn
from flask import Flask

from tests.consul_server import eventually
from tests.web.gunicorn_server import free_port
from web.server.front import Front
from web.server.worker import Worker


class AsgiServer:
    """Serves from `with` to its end, or until it is told to `end`."""

    def __init__(self, app: Flask) -> None:
        self.bind = f"127.0.0.1:{free_port()}"
        config = uvicorn.Config(
            Front(app),
            port=int(self.bind.rpartition(":")[2]),
            log_config=None,
            timeout_keep_alive=75,
            **Worker.CONFIG_KWARGS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self.http = httpx.Client(base_url=f"http://{self.bind}", trust_env=False, timeout=30)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def end(self) -> None:
        """Tells it to end, and does not wait for that."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self._server.started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.close()
        self.end()
        self._thread.join(20)
        assert not self._thread.is_alive()
