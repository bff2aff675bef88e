"""The id of the request that this thread answers: set by who watches requests, read by who logs."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""None outside of any request."""
