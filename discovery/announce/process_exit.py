"""Ends registrations with their process: on normal exit, SIGTERM and SIGINT; and sees to forked children."""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

logger = logging.getLogger(__name__)

END_LIMIT = 2.0
"""Seconds that the end of the process may be held up, however many registrations there are."""

_GRACE = 2.0
"""Seconds in which a forked child may end by itself after its parent died, as a server's workers do."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Running(Protocol):
    """Something that runs in this process and must not just be dropped at its end."""

    def ask_to_stop(self) -> None: ...
    def wait_ended(self, limit: float) -> bool: ...
    def become_inherited(self) -> None: ...


_running: dict[str, Running] = {}
_lock = threading.RLock()
"""Reentrant: a signal's handler may run in the thread that holds it."""
_hooked = False


def track(key: str, running: Running) -> Running | None:
    """Counts something in under a key; returns what was there under the same key."""
    with _lock:
        _hook()
        previous = _running.get(key)
        _running[key] = running
    return previous


def untrack(key: str, running: Running) -> None:
    with _lock:
        if _running.get(key) is running:
            del _running[key]
        if not _running and threading.current_thread() is threading.main_thread():
            _restore_signals()


def _hook() -> None:
    global _hooked
    if not _hooked:
        atexit.register(_on_exit)
        os.register_at_fork(after_in_child=_after_fork_in_child)
        _hooked = True
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # A program's own handler stays: it ends the program in its own way, and atexit follows.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _on_signal)


def _restore_signals() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)


def _end_all() -> None:
    with _lock:
        ending = list(_running.values())
    for running in ending:
        running.ask_to_stop()
    deadline = time.monotonic() + END_LIMIT
    for running in ending:
        running.wait_ended(deadline - time.monotonic())


def _on_exit() -> None:
    if _running and threading.current_thread() is threading.main_thread():
        # Whoever presses Ctrl-C once more gets what he wants anyway, END_LIMIT later at most.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_all()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Ends all, and then the process, by the very signal, so that its parent sees the cause."""
    _end_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for running in list(_running.values()):
        running.become_inherited()


def take_over_on_exit(owner: int, take_over: Callable[[], None]) -> None:
    """In a forked child: calls `take_over` when the process that owns a registration is gone.

    A child of multiprocessing never takes over: it works for its parent, and does not serve in its stead.
    """

    def wait() -> None:
        _wait_for_end(owner)
        time.sleep(_GRACE)
        if not _is_of_multiprocessing():
            take_over()

    threading.Thread(target=wait, name=f"stand by for process {owner}", daemon=True).start()


def _is_of_multiprocessing() -> bool:
    # It is not imported for this: a child of it has it.
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None


def _wait_for_end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        # Not Linux, or an old one.
        while _lives(pid):
            time.sleep(1.0)
        return
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)
        ended.poll()
    finally:
        os.close(process)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
