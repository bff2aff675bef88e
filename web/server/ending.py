"""How the parts of a worker know that it is to end. Imports nothing, for gunicorn's parent needs it first."""

from __future__ import annotations

import signal

ENDING = "ending"
"""In the state of the lifespan: an `asyncio.Event` that is set when the worker begins to end."""

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
"""Blocked in a worker until it can end in good order."""
