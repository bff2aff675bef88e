"""Waits for an event or a deadline, a few seconds at most."""

from __future__ import annotations

import asyncio
from datetime import datetime

from manifest_cache.storage.models import utc_now

# Another process's commit whose signal is lost, and a schedule that nothing wakes, wait no longer.
LONGEST = 5.0


async def wait_for(event: asyncio.Event, until: datetime | None = None) -> None:
    """Waits for the event, until a moment, and never for long."""
    seconds = LONGEST if until is None else (until - utc_now()).total_seconds()
    try:
        async with asyncio.timeout(max(0.0, min(seconds, LONGEST))):
            await event.wait()
    except TimeoutError:
        pass
