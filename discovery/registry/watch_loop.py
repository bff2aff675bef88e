"""Follows a watcher for ever: its changes, and between them what went wrong and when the next try comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from discovery.base import Change, Lost, Watcher
from discovery.errors import DiscoveryError, RegistryUnavailable
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

# A watch that held this long, in seconds, was not part of the trouble that came after it.
_STEADY = 60.0


async def watch_with_retry(watcher: Watcher, backoff: Backoff | None = None) -> AsyncGenerator[Change | Lost]:
    """Everything that `watcher` tells, and a `Lost` each time that it fails; ends only when cancelled.

    A failed watch is begun again after a growing, jittered pause (default: 0.1 s to 30 s), so each
    recovery starts with a complete change. Whatever else than a DiscoveryError a watch fails with
    is logged with its traceback, and treated the same: no registry ends the program.
    """
    backoff = backoff or Backoff()
    told = ""
    while True:
        begun = time.monotonic()
        try:
            async with aclosing(watcher.watch()) as changes:
                async for change in changes:
                    if told:
                        logger.info("watch holds again source=%s", watcher.source)
                    told = ""
                    yield change
            reason = "the watch ended by itself"
            pause = backoff.next()
        except DiscoveryError as exc:
            reason = str(exc)
            pause = _pause(exc, backoff, held=time.monotonic() - begun)
            # The same trouble is told once: it may last for days.
            level = logging.DEBUG if reason == told else logging.WARNING
            logger.log(level, "watch failed source=%s retry_in=%.1fs: %s", watcher.source, pause, reason)
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"
            pause = _pause(exc, backoff, held=time.monotonic() - begun)
            logger.exception("watch failed unexpectedly source=%s retry_in=%.1fs", watcher.source, pause)
        told = reason
        yield Lost(source=watcher.source, reason=reason, retry_in=pause)
        await asyncio.sleep(pause)


def _pause(exc: Exception, backoff: Backoff, held: float) -> float:
    if held >= _STEADY:
        backoff.reset()
    asked = exc.retry_after if isinstance(exc, RegistryUnavailable) else None
    return max(backoff.next(), min(asked or 0.0, backoff.longest))
