"""What a worker of gunicorn can tell of its arbiter: whether its own end is the end of the module.

The arbiter replaces workers: on SIGHUP it ends them by SIGTERM as soon as it has started new ones, and
a worker that has had its `max_requests` ends by itself. Neither is the end of the module, though for
a moment no other process may keep it registered. An arbiter that ends closes its listening sockets
before it ends its workers. Linux tells of that; elsewhere each worker is taken for a process like any
other.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def listening_sockets() -> frozenset[str]:
    """Names of the sockets on which this process takes connections; none where it is not of gunicorn."""
    if "gunicorn.arbiter" not in sys.modules:
        return frozenset()
    return frozenset(name for descriptor, name in _open_files("self") if _listens(descriptor, name))


def arbiter_holds(sockets: frozenset[str]) -> bool:
    """Whether the parent of this process has one of these sockets open too."""
    return bool(sockets) and any(name in sockets for _, name in _open_files(str(os.getppid())))


def _open_files(process: str) -> Iterator[tuple[int, str]]:
    with suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            # It may be closed meanwhile.
            with suppress(OSError):
                yield int(file.name), str(file.readlink())


def _listens(descriptor: int, name: str) -> bool:
    if not name.startswith("socket:"):
        return False
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
