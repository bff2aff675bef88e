"""Imports what httpx and anyio would import at their first request; imported for that effect alone.

The first request is made in a thread of its own. If the program forked in the middle of an import
there (`gunicorn --preload` forks right after its application is imported), the child would wait for
ever for the lock that this thread holds on the half-imported module.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

for _name in (
    "encodings.idna",
    "httpcore",
    "httpcore._backends.anyio",
    "sniffio",
    "anyio.abc",
    "anyio.lowlevel",
    "anyio.streams.tls",
    "anyio.to_thread",
    "anyio._backends._asyncio",
):
    # Where a version has it elsewhere, the import is just done later.
    with suppress(ImportError):
        import_module(_name)
