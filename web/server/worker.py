"""gunicorn's worker: uvicorn's, with a protocol that has deadlines.

Source: https://github.com/Kludex/uvicorn-worker (CONFIG_KWARGS)
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from web.server.protocol import DeadlineProtocol


class Worker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "auto",
        "http": DeadlineProtocol,
        "ws": "none",
        "lifespan": "on",
        "server_header": False,
        # Who stands before the server is nobody's business here: no answer depends on it.
        "proxy_headers": False,
        "timeout_graceful_shutdown": 8,
        # How often `callback_notify` is called, in seconds.
        "timeout_notify": 1,
    }

    async def callback_notify(self) -> None:
        """Tells gunicorn that the worker lives; ends it where gunicorn does not live any more."""
        await super().callback_notify()
        if os.getppid() != self.ppid:
            signal.raise_signal(signal.SIGTERM)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGQUIT, on which uvicorn's worker would go on."""
        signal.raise_signal(signal.SIGTERM)
