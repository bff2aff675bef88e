"""Holds many sockets on one thread: bytes in, sent as fast as each client takes them; who left is told."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from web.waiting.timers import Timers

logger = logging.getLogger(__name__)

# How often it is seen whether the thread still runs, in seconds, by whoever waits for it.
_A_MOMENT = 0.1
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Held:
    """One connection, as the thread that holds it sees it; what it waits for is its subclass's."""

    __slots__ = ("_alarm", "_interest", "_unsent", "is_open", "moved_at", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_open = False
        # When bytes were last taken from us, by the monotonic clock.
        self.moved_at = 0.0
        self._unsent: deque[memoryview] = deque()
        self._interest = 0
        self._alarm: int | None = None

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def on_left(self) -> None:
        """The connection is lost, or the client has left; the socket is closed already."""

    def on_sent(self) -> None:
        """All that was to be sent is sent."""

    def on_alarm(self) -> None:
        """The moment that was set has come."""


class _Watched:
    """A file of somebody else's. Once it says no its number may be another file's, and is left alone."""

    def __init__(self, selector: selectors.BaseSelector, file: int, on_readable: Callable[[], bool]) -> None:
        self._selector = selector
        self._file = file
        self._on_readable = on_readable
        self._is_watched = False

    def begin(self) -> None:
        self._selector.register(self._file, _READ, self._ready)
        self._is_watched = True

    def end(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._selector.unregister(self._file)

    def _ready(self) -> None:
        if not self._on_readable():
            self.end()


class Connections:
    """The thread. All but `start`, `call`, `watching` and `stop` are for what runs on it alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._selector.register(self._wakened, _READ, self._empty_waker)
        self._calls: deque[Callable[[], None]] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._alarms: Timers[Held] = Timers()
        self._held: set[Held] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __len__(self) -> int:
        return len(self._held)

    def start(self) -> None:
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Has the thread run this soon; from any thread, and from a signal's handler."""
        self._calls.append(function)
        if threading.get_ident() == self._thread.ident:
            # It looks at what is called before it waits again.
            return
        # Where it is full, the thread wakes anyway; where it is closed, nothing waits any more.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    @contextlib.contextmanager
    def watching(self, file: int, on_readable: Callable[[], bool]) -> Iterator[None]:
        """Has the thread run this whenever the file is readable, until it says no; from any other thread."""
        watched = _Watched(self._selector, file, on_readable)
        self._call_and_wait(watched.begin)
        try:
            yield
        finally:
            self._call_and_wait(watched.end)

    def _call_and_wait(self, function: Callable[[], object]) -> None:
        """Returns when the thread has run this, or runs no more."""
        is_done = threading.Event()

        def run() -> None:
            try:
                function()
            finally:
                is_done.set()

        self.call(run)
        while not is_done.wait(_A_MOMENT) and self._thread.is_alive():
            pass

    def stop(self, timeout: float) -> None:
        """Ends the thread and closes what it holds."""
        self.call(self._stop)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def add(self, held: Held) -> None:
        held.sock.setblocking(False)
        held.is_open = True
        held.moved_at = time.monotonic()
        self._held.add(held)
        # Readable: the client has left, or (seldom) sends on before it was answered.
        self._watch(held, _READ)

    def release(self, held: Held) -> None:
        """Lets go of the connection, which stays open."""
        self._watch(held, 0)
        self.set_alarm(held, None)
        held.is_open = False
        self._held.discard(held)

    def close(self, held: Held) -> None:
        if not held.is_open:
            return
        self.release(held)
        held._unsent.clear()
        # The other end may have been quicker.
        with held.sock, contextlib.suppress(OSError):
            held.sock.shutdown(socket.SHUT_RDWR)

    def send(self, held: Held, data: bytes) -> None:
        """Sends now what the client takes now, and the rest as it takes it."""
        if held._unsent:
            held._unsent.append(memoryview(data))
            return
        sent = self._sent(held, memoryview(data))
        if not held.is_open:
            return
        if sent < len(data):
            held._unsent.append(memoryview(data)[sent:])
            self._watch(held, held._interest | _WRITE)
        else:
            held.on_sent()

    def set_alarm(self, held: Held, moment: float | None) -> None:
        """Sets the one moment at which `on_alarm` is told."""
        if held._alarm is not None:
            self._alarms.remove(held._alarm, held)
        held._alarm = None if moment is None else self._alarms.add(moment, held)

    def soon(self, job: Callable[[], None]) -> None:
        """Queues what takes longer: one job runs, then all sockets have their turn."""
        self._jobs.append(job)

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, mask in self._selector.select(self._patience()):
                    if isinstance(key.data, Held):
                        self._guarded(partial(self._ready, key.data, mask))
                    else:
                        self._guarded(key.data)
                self._run_calls()
                for held in self._alarms.due(time.monotonic()):
                    held._alarm = None
                    self._guarded(held.on_alarm)
                if self._jobs:
                    self._guarded(self._jobs.popleft())
        finally:
            for held in tuple(self._held):
                self.close(held)
            self._selector.close()
            self._waker.close()
            self._wakened.close()

    def _patience(self) -> float | None:
        if self._jobs or self._calls:
            return 0
        moment = self._alarms.next()
        return None if moment is None else max(0.0, moment - time.monotonic())

    def _empty_waker(self) -> None:
        while True:
            try:
                if len(self._wakened.recv(4096)) < 4096:
                    return
            except BlockingIOError:
                return

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):
            self._guarded(self._calls.popleft())

    def _guarded(self, function: Callable[[], None]) -> None:
        """One client's fault must not end the thread that holds them all."""
        try:
            function()
        except Exception:
            logger.exception("%s: a step failed; the next is taken", self._name)

    def _stop(self) -> None:
        self._stopping = True

    def _ready(self, held: Held, mask: int) -> None:
        if mask & _WRITE and held.is_open:
            self._send_on(held)
        if mask & _READ and held.is_open:
            self._look_at(held)

    def _look_at(self, held: Held) -> None:
        try:
            left = not held.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            left = True
        if left:
            self._leave(held)
        else:
            # The bytes stay where they are: whoever serves the connection next reads them.
            self._watch(held, held._interest & ~_READ)

    def _leave(self, held: Held) -> None:
        self.close(held)
        held.on_left()

    def _send_on(self, held: Held) -> None:
        unsent = held._unsent
        while unsent:
            sent = self._sent(held, unsent[0])
            if not held.is_open:
                return
            if sent < len(unsent[0]):
                unsent[0] = unsent[0][sent:]
                return
            unsent.popleft()
        self._watch(held, held._interest & ~_WRITE)
        held.on_sent()

    def _sent(self, held: Held, data: memoryview) -> int:
        try:
            sent = held.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._leave(held)
            return 0
        if sent:
            held.moved_at = time.monotonic()
        return sent

    def _watch(self, held: Held, interest: int) -> None:
        was, held._interest = held._interest, interest
        if was == interest:
            return
        if not was:
            self._selector.register(held.sock, interest, held)
        elif interest:
            self._selector.modify(held.sock, interest, held)
        else:
            self._selector.unregister(held.sock)
