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
from typing import Any, Protocol

from discovery.announce import gunicorn_worker

logger = logging.getLogger(__name__)

END_LIMIT = 2.0
"""Seconds that the end of the process may be held up, however many registrations there are."""

_GRACE = 2.0
"""Seconds in which a forked child may end by itself after its parent died, as a server's workers do."""
FIRST_PROCESS = 1
"""The id of the first process of a container, or of a machine: `init`, or what stands in its place."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_EVENT_LOOPS = ("asyncio", "uvloop")

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Running(Protocol):
    """Something that runs in this process and must not just be dropped at its end.

    `drain` is how many seconds the process goes on after a signal told it to end.
    """

    @property
    def drain(self) -> float: ...
    def ask_to_stop(self, *, deregister: bool = True) -> None: ...
    def wait_ended(self, limit: float) -> bool: ...
    def become_inherited(self) -> None: ...


_running: dict[str, Running] = {}
_lock = threading.RLock()
"""Reentrant: a signal's handler may run in the thread that holds it."""
_hooked = False
_handlers: dict[int, _Handler] = {}
"""By signal what handled it before this did, and does so when the registrations have ended."""
_sockets: frozenset[str] = frozenset()
"""In a worker of gunicorn those that it shares with its arbiter."""
_ending = False


def track(key: str, running: Running) -> Running | None:
    """Counts something in under a key; returns what was there under the same key."""
    with _lock:
        previous = _running.get(key)
        _running[key] = running
        _hook()
    return previous


def untrack(key: str, running: Running) -> None:
    with _lock:
        if _running.get(key) is running:
            del _running[key]
        if not _running and not _ending and threading.current_thread() is threading.main_thread():
            _restore_signals()


def is_replaced() -> bool:
    """Whether the end of this process is not that of the module: it is a worker that gunicorn replaces."""
    return not _ending and gunicorn_worker.arbiter_holds(_sockets)


def _hook() -> None:
    global _hooked, _sockets
    # A worker closes its own before it ends.
    _sockets = _sockets or gunicorn_worker.listening_sockets()
    if not _hooked:
        atexit.register(_on_exit)
        # gunicorn's arbiter sets its handlers after it loaded an application for `--preload`.
        os.register_at_fork(before=_hook_signals, after_in_child=_after_fork_in_child)
        _hooked = True
    _hook_signals()


def _hook_signals() -> None:
    if not _running or _ending or threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is not _on_signal and _ends_the_program(number, handler):
            _handlers[number] = handler
            signal.signal(number, _on_signal)


def _ends_the_program(number: int, handler: _Handler) -> bool:
    """Whether a signal means the end, as far as its handler tells."""
    if number == signal.SIGQUIT and "gunicorn.arbiter" not in sys.modules:
        # Elsewhere it asks a program where it stands.
        return False
    if handler is signal.SIG_DFL:
        return True
    # Python's own for Ctrl-C may interrupt a cell of a notebook; and if it ends the program, atexit follows.
    return callable(handler) and handler is not signal.default_int_handler


def _restore_signals() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, _handlers[number])


def _end_all(*, deregister: bool = True) -> None:
    with _lock:
        ending = list(_running.values())
    for running in ending:
        running.ask_to_stop(deregister=deregister)
    deadline = time.monotonic() + END_LIMIT
    for running in ending:
        running.wait_ended(deadline - time.monotonic())


def _on_exit() -> None:
    if _running and threading.current_thread() is threading.main_thread():
        # Whoever presses Ctrl-C once more gets what he wants anyway, END_LIMIT later at most.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_all(deregister=not is_replaced())


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Deregisters all, lets the drain pass and hands the signal on; a second signal is handed on at once."""
    global _ending
    # Those that gunicorn replaces get SIGTERM and no other.
    if _ending or (number == signal.SIGTERM and is_replaced()):
        _hand_on(number, frame)
        return
    _ending = True
    # The program goes on serving meanwhile.
    waiting = threading.Thread(
        target=_end_and_drain, args=(number,), name="deregister and drain", daemon=True
    )
    try:
        waiting.start()
    except RuntimeError:
        # The interpreter ends, and starts no threads any more: there is nothing left to serve either.
        _end_all()
        _hand_on(number, frame)


def _end_and_drain(number: int) -> None:
    with _lock:
        drain = max((running.drain for running in _running.values()), default=0.0)
    _end_all()
    # How gunicorn ends workers that must be quick.
    if number != signal.SIGQUIT:
        time.sleep(drain)
    if not _is_told_by_event_loop(_handlers.get(number)):
        os.kill(os.getpid(), number)


def _is_told_by_event_loop(handler: _Handler) -> bool:
    """Whether an event loop has told the program of the signal by itself, beside its handler."""
    return (getattr(handler, "__module__", None) or "").partition(".")[0] in _EVENT_LOOPS


def _hand_on(number: int, frame: FrameType | None) -> None:
    handler = _handlers.get(number, signal.SIG_DFL)
    signal.signal(number, handler)
    if callable(handler):
        handler(number, frame)
        return
    # By the very signal, so that the parent sees the cause.
    os.kill(os.getpid(), number)
    if os.getpid() == FIRST_PROCESS:
        # The kernel ends the first process of a container by no signal that it does not handle itself.
        os._exit(128 + number)


def _after_fork_in_child() -> None:
    global _lock, _sockets, _ending
    _lock = threading.RLock()
    _sockets, _ending = frozenset(), False
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
