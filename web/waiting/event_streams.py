"""Sends each event stream what it has not got yet, as fast as its client reads.

A stream that has sent all up to the tail's end is live: what comes is sent to all of its kind at
once. One that has not is lagging, and goes on from the tail, or from the database where it is
further behind, whenever the client has taken what was sent before. So a slow client costs a chunk
of memory and loses nothing; only one that takes nothing at all is dropped.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from manifest_cache.storage.database import StoreError
from manifest_cache.storage.reader import Snapshot
from web.telemetry.metrics import STREAMS_DROPPED, WATCHERS
from web.waiting.connections import Connections, Held
from web.waiting.event_tail import EventFilter, Line, Tail, chunk_of

logger = logging.getLogger(__name__)

_STREAMS = WATCHERS.labels("stream")
_BEAT = 15.0
# A client that takes nothing is dropped after so many bytes that it did not take, or seconds.
_MOST_UNREAD = 1024 * 1024
_PATIENCE = 60.0
# What the kernel keeps for a client that does not read is bounded too.
_SEND_BUFFER = 128 * 1024
_PAGE = 200
# Further behind than this many, each stream reads the log for itself.
_MOST_LINES = 5000


class Stream(Held):
    """One client of the event log; it got, or is being sent, all that it wants up to `position`."""

    __slots__ = ("_streams", "is_lagging", "is_queued", "missed", "missed_from", "position", "wanted")

    def __init__(self, streams: Streams, sock: socket.socket, wanted: EventFilter, position: int) -> None:
        super().__init__(sock)
        self._streams = streams
        self.wanted = wanted
        self.position = position
        self.is_lagging = True
        self.is_queued = False
        self.missed = 0
        self.missed_from = 0.0

    def on_sent(self) -> None:
        self._streams.queue(self)

    def on_left(self) -> None:
        self._streams.forget(self)

    def on_alarm(self) -> None:
        self._streams.beat(self)


class Streams:
    """All of it runs on the thread of `connections`; `on_end` is told of each stream that ended."""

    def __init__(
        self,
        connections: Connections,
        snapshot: Callable[[], AbstractContextManager[Snapshot]],
        on_end: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._snapshot = snapshot
        self._on_end = on_end
        self._tail = Tail()
        self.follows = False
        self._live: defaultdict[EventFilter, set[Stream]] = defaultdict(set)
        self._lagging: set[Stream] = set()

    def __bool__(self) -> bool:
        return bool(self._lagging) or any(self._live.values())

    def admit(self, sock: socket.socket, wanted: EventFilter, position: int, preamble: bytes) -> None:
        stream = Stream(self, sock, wanted, position)
        self._connections.add(stream)
        _STREAMS.inc()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._lagging.add(stream)
        self._connections.set_alarm(stream, time.monotonic() + _BEAT)
        self._connections.send(stream, preamble)

    def follow(self, snapshot: Snapshot) -> Sequence[Line] | None:
        """Sends on what came to the log; returns that, or None if it is not known what came."""
        index, seen = snapshot.index, self._tail.end
        lines: list[Line] | None = None
        if self.follows and seen <= index <= seen + _MOST_LINES:
            lines = _lines(snapshot, seen)
            self._broadcast(lines)
            self._tail.extend(lines, index)
        else:
            self._fall_behind()
            self._tail.reset(index)
            self.follows = True
        for stream in self._lagging:
            self.queue(stream)
        return lines

    def rest(self) -> None:
        """Nobody wants to know what comes to the log for now."""
        self.follows = False

    def end(self) -> None:
        for stream in [*self._lagging, *(stream for group in self._live.values() for stream in group)]:
            self._close(stream)

    def queue(self, stream: Stream) -> None:
        """Has a lagging stream go on soon, if there is room for it to."""
        if stream.is_lagging and not stream.is_queued and not stream.has_unsent:
            stream.is_queued = True
            self._connections.soon(partial(self._go_on, stream))

    def forget(self, stream: Stream) -> None:
        self._lagging.discard(stream)
        self._live[stream.wanted].discard(stream)
        _STREAMS.dec()
        self._on_end()

    def beat(self, stream: Stream) -> None:
        """Shows that the stream lives: a comment, which clients leave out."""
        now = time.monotonic()
        self._connections.set_alarm(stream, now + _BEAT)
        if not stream.has_unsent:
            self._connections.send(stream, b":\n")
        elif now - stream.moved_at > _PATIENCE:
            self._drop(stream, "stalled")

    def _broadcast(self, lines: Sequence[Line]) -> None:
        self._live = defaultdict(set, {wanted: group for wanted, group in self._live.items() if group})
        chunks = {wanted: chunk_of(lines, wanted) for wanted in self._live}
        # First those whose client is slow: whoever gets slow now is not counted yet.
        for stream in tuple(self._lagging):
            self._count_missed(stream, lines)
        for wanted, (chunk, last) in chunks.items():
            for stream in tuple(self._live[wanted]):
                if stream.has_unsent or last is not None:
                    self._lag(stream)
                elif chunk:
                    self._connections.send(stream, chunk)

    def _count_missed(self, stream: Stream, lines: Sequence[Line]) -> None:
        if not stream.has_unsent:
            return
        if stream.missed_from != stream.moved_at:
            stream.missed, stream.missed_from = 0, stream.moved_at
        stream.missed += sum(len(line.frame) for line in lines if stream.wanted.takes(line))
        if stream.missed > _MOST_UNREAD:
            self._drop(stream, "unread")

    def _fall_behind(self) -> None:
        for group in tuple(self._live.values()):
            for stream in tuple(group):
                self._lag(stream)

    def _lag(self, stream: Stream) -> None:
        self._live[stream.wanted].discard(stream)
        stream.is_lagging = True
        stream.position = self._tail.end
        self._lagging.add(stream)

    def _catch_up(self, stream: Stream) -> None:
        self._lagging.discard(stream)
        stream.is_lagging = False
        self._live[stream.wanted].add(stream)

    def _go_on(self, stream: Stream) -> None:
        stream.is_queued = False
        if not (stream.is_open and stream.is_lagging and self.follows) or stream.has_unsent:
            return
        if stream.position == self._tail.end:
            self._catch_up(stream)
        elif stream.position < self._tail.start:
            self._send_page(stream)
        elif stream.position < self._tail.end:
            self._send_tail(stream)
        # Else it is ahead of what was looked at, and waits until that is there.

    def _send_tail(self, stream: Stream) -> None:
        chunk, last = chunk_of(self._tail.behind(stream.position), stream.wanted)
        if last is None:
            self._catch_up(stream)
        else:
            stream.position = last
        if chunk:
            self._connections.send(stream, chunk)

    def _send_page(self, stream: Stream) -> None:
        try:
            with self._snapshot() as snapshot:
                if 0 < stream.position < snapshot.retained_after:
                    # What comes next is deleted: whoever resumes is told so.
                    self._close(stream)
                    return
                wanted = stream.wanted
                rows = snapshot.events(
                    after=stream.position, limit=_PAGE, module=wanted.module, types=wanted.types
                )
                index = snapshot.index
        except StoreError as exc:
            # The next look at the database has it go on.
            logger.debug("a stream waits for the database: %s", exc)
            return
        lines = [Line.of(row) for row in rows]
        stream.position = lines[-1].index if len(lines) == _PAGE else max(index, stream.position)
        if lines:
            self._connections.send(stream, b"".join(line.frame for line in lines))
        else:
            self.queue(stream)

    def _drop(self, stream: Stream, reason: str) -> None:
        STREAMS_DROPPED.labels(reason).inc()
        logger.info("a stream was dropped: its client does not read (%s)", reason)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        self._connections.close(stream)
        self.forget(stream)


def _lines(snapshot: Snapshot, after: int) -> list[Line]:
    lines: list[Line] = []
    while rows := snapshot.events(after=lines[-1].index if lines else after, limit=_MOST_LINES):
        lines += map(Line.of, rows)
        if len(rows) < _MOST_LINES:
            break
    return lines
