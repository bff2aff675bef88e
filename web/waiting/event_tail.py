"""Keeps the newest lines of the event log, encoded once for all streams."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from manifest_cache.storage import models
from web.schemas.responses import Event

_MOST_BYTES = 4 * 1024 * 1024
# Larger than what a socket takes at once, smaller than what is worth to keep for each of many.
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted: of one module, or of all; of these types, or of any."""

    module: str | None = None
    types: frozenset[str] = frozenset()

    def takes(self, line: Line) -> bool:
        return (self.module is None or line.module == self.module) and (
            not self.types or line.type in self.types
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One event as every stream sends it: a frame of `text/event-stream`."""

    index: int
    type: str
    module: str | None
    frame: bytes

    @classmethod
    def of(cls, row: models.EventRow) -> Line:
        event = Event.of(row)
        # JSON without indentation holds no line break, which would end the frame.
        data = event.model_dump_json(exclude_unset=True)
        frame = f"id: {event.index}\nevent: {event.type}\ndata: {data}\n\n".encode()
        return cls(event.index, event.type, event.module, frame)


class Tail:
    """All lines behind the index `start` up to the index `end`; bounded in bytes."""

    def __init__(self, end: int = 0) -> None:
        self.reset(end)

    def reset(self, end: int) -> None:
        self.start = self.end = end
        self._lines: list[Line] = []
        self._bytes = 0

    def extend(self, lines: Sequence[Line], end: int) -> None:
        self._lines += lines
        self._bytes += sum(len(line.frame) for line in lines)
        self.end = end
        self._shorten()

    def behind(self, index: int) -> Sequence[Line]:
        """The lines behind an index that is not before `start`."""
        return self._lines[bisect_right(self._lines, index, key=attrgetter("index")) :]

    def _shorten(self) -> None:
        if self._bytes <= _MOST_BYTES:
            return
        # Down to the half, for it costs a copy of the list.
        dropped = 0
        while self._bytes > _MOST_BYTES // 2:
            self._bytes -= len(self._lines[dropped].frame)
            dropped += 1
        self.start = self._lines[dropped - 1].index
        del self._lines[:dropped]


def chunk_of(lines: Iterable[Line], wanted: EventFilter) -> tuple[bytes, int | None]:
    """As many of the lines that are wanted as make a chunk, and the last index in it.

    None for the index: all of the lines were looked at.
    """
    frames: list[bytes] = []
    size = 0
    for line in lines:
        if wanted.takes(line):
            frames.append(line.frame)
            size += len(line.frame)
            if size >= CHUNK:
                return b"".join(frames), line.index
    return b"".join(frames), None
