"""Finds the folder in which the processes of one web server count together.

Each worker writes its figures into files of its own there, and whichever is asked adds them all up.

Source: https://prometheus.github.io/client_python/multiprocess/
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "lictor-metrics-"
_LOCK = ".in-use"


def share() -> None:
    """Makes the folder, unless the environment names one; to be called before prometheus_client is imported.

    The folder is removed when this process ends. What processes that were killed left is removed too.
    """
    if os.environ.get(VARIABLE):
        return
    place = _place()
    _remove_unused(place)
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    # Held, and inherited by the workers, until the last of them has ended.
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Not earlier under this name: who starts at the same time removes what nobody holds.
    folder = folder.rename(place / folder.name.removeprefix("."))
    os.environ[VARIABLE] = str(folder)
    atexit.register(_remove, folder, os.getpid())


def worker_ended(pid: int) -> None:
    """Takes the worker's gauges out of the sums; what it counted stays."""
    from prometheus_client import multiprocess

    with suppress(FileNotFoundError):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _place() -> Path:
    """In memory where there is such a place: the files are written with each request."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a name of its own there
    return shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())


def _remove_unused(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _remove(folder: Path, owner: int) -> None:
    # Workers inherit what is to be done at the end, too.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
