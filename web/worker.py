"""gunicorn's worker with threads, from which requests that wait take their connection away.

Names of gunicorn's that are no public interface and are relied on: `TConn.sock` and `nr_conns`,
`method_queue` and its `defer`, and that `finish_request` gets what `handle` returned. A test with a real
gunicorn tells if they go.
"""

from __future__ import annotations

import socket
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.workers.gthread import PollableMethodQueue  # type: ignore[import-untyped]

from web.quick_worker import QuickWorker
from web.waiting.hub import Hub
from web.waiting.middleware import DETACHES, Detached


class WaitingWorker(QuickWorker):
    """Connections that wait are not its own: they count as closed until they come back."""

    _hub: Hub | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method_queue = _LastingQueue()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app = self.wsgi

        def detaching(environ: dict[str, Any], start_response: Any) -> Any:
            environ[DETACHES] = _can_detach(environ)
            return app(environ, start_response)

        self.wsgi = detaching

    def handle(self, conn: Any) -> Any:
        """Runs in a thread; what it returns is the result of the future that `finish_request` gets."""
        try:
            return super().handle(conn)
        except Detached as detached:
            return detached

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        result = None if fs.cancelled() or fs.exception() else fs.result()
        if isinstance(result, Detached):
            self.nr_conns -= 1
            result.hold(conn.sock, partial(self._give_back, conn))
            # Not before it holds the first: a hub that is told to end with nobody waiting takes nobody.
            self._hub = result.hub
        else:
            super().finish_request(conn, fs)

    def _give_back(self, conn: Any) -> None:
        """Called on the hub's thread."""
        if self.alive:
            self.method_queue.defer(self._take_back, conn)
        else:
            # The loop takes nothing more.
            conn.close()

    def _take_back(self, conn: Any) -> None:
        self.nr_conns += 1
        self.keep(conn)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._hub is not None:
            self._hub.begin_end()

    def run(self) -> None:
        super().run()
        if self._hub is not None:
            self._hub.end()


class _LastingQueue(PollableMethodQueue):  # type: ignore[misc]
    """What threads tell the loop, by a pipe that stays open as long as the process.

    The loop ends before a thread whose client is slow, and before those who wait have their answers. A
    thread would write to the number of the closed pipe, which by then may be that of the database's file.
    """

    def close(self) -> None:
        """Called by gunicorn when the loop has ended."""


def _can_detach(environ: dict[str, Any]) -> bool:
    """TLS and HTTP/2 have more of a connection than its socket."""
    return type(environ.get("gunicorn.socket")) is socket.socket and environ.get("HTTP_VERSION") != "2"
