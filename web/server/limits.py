"""How long clients may take, in seconds, and how much they may send, in bytes."""

from __future__ import annotations

CLOSE = {"Connection": "close"}
"""What is said to who goes beyond them: what comes next on the connection is not read."""

BODY_WITHIN = 10.0
"""A body that is not there by then is answered with 408."""

REQUEST_WITHIN = 12.0
"""A connection is closed whose next request is not whole by then."""

STALLED_AFTER = 20.0
"""How long a client may take nothing of an answer before its connection is closed, in seconds."""

IDLE_WHILE_ENDING = 1.0
"""How long idle connections stay open while the worker ends, in seconds: a request may be on its way."""

LONGEST_LINE = 8190
"""Of the path with its query, and of each header."""

LONGEST_HEAD = 32 * 1024
MOST_HEADERS = 100

SMALL_BODY = 64 * 1024
"""Any number of bodies up to this size are gathered at once, and `MOST_LARGE_BODIES` that are larger."""

MOST_LARGE_BODIES = 32
