"""Keeps an ASGI application registered while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread

from discovery.registration import Registration, register

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def lifespan(inner: Lifespan | None = None, **arguments: Any) -> Lifespan:
    """A lifespan for FastAPI and Starlette: `FastAPI(lifespan=lifespan(name="financial", port=8001))`.

    The arguments are those of `discovery.register`, or `registration=` alone with what it returned;
    they are checked at once. With an `inner` lifespan, the module is registered after that has
    started up and deregistered before it shuts down; its state is the application's.
    """
    registration = _registration(arguments)

    @asynccontextmanager
    async def registered(app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        if inner is None:
            async with _kept(registration):
                yield None
            return
        async with inner(app) as state, _kept(registration):
            yield state

    return registered


def _registration(arguments: dict[str, Any]) -> Registration:
    given = arguments.pop("registration", None)
    if given is None:
        return register(**arguments)
    if arguments:
        raise TypeError(f"a registration is already made: {', '.join(arguments)} would be without effect")
    if not isinstance(given, Registration):
        raise TypeError(f"registration must be what discovery.register returned (got {given!r})")
    return given


@asynccontextmanager
async def _kept(registration: Registration) -> AsyncIterator[None]:
    registration.start()
    try:
        yield
    finally:
        # Deregistering takes a moment, which the event loop has better use for; a cancelled server
        # must do it all the same.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(registration.stop_with_process)
