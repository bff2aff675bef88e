"""An event loop for a daemon thread: resolves names in daemon threads, so that it never delays an exit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any


class BackgroundLoop(asyncio.SelectorEventLoop):
    """A loop whose getaddrinfo does without the pool of threads that the standard one uses.

    The interpreter waits for that pool's threads when it ends, however long a name server is
    silent, and the pool takes no work any more when exit handlers run, which is when a module
    has to be deregistered.
    """

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        answer: asyncio.Future[Any] = self.create_future()

        def resolve() -> None:
            try:
                found = socket.getaddrinfo(host, port, **options)
            except Exception as exc:
                # Whatever it is, and some odd names raise no OSError: somebody waits for it.
                self._tell(_set_exception, answer, exc)
            else:
                self._tell(_set_result, answer, found)

        try:
            threading.Thread(target=resolve, name=f"resolve {host}", daemon=True).start()
        except RuntimeError:
            # From Python 3.12 on no thread can be started while the interpreter ends.
            resolve()
        return await answer

    def _tell(self, settle: Any, answer: asyncio.Future[Any], outcome: Any) -> None:
        # A loop that has been closed takes nothing any more, and nobody waits for the answer.
        with contextlib.suppress(RuntimeError):
            self.call_soon_threadsafe(settle, answer, outcome)


def _set_result(answer: asyncio.Future[Any], found: Any) -> None:
    if not answer.done():
        answer.set_result(found)


def _set_exception(answer: asyncio.Future[Any], exc: BaseException) -> None:
    if not answer.done():
        answer.set_exception(exc)
