"""Holds requests that wait for a change, and gives those that ask alike the same answer."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import Gauge

from web.rendering.module_changes import Changes
from web.telemetry.metrics import WATCHERS
from web.waiting.answer import Answer, Protocol
from web.waiting.connections import Connections, Held
from web.waiting.event_tail import Line
from web.waiting.held_request import Question

logger = logging.getLogger(__name__)

_BLOCKING = WATCHERS.labels("blocking")
_POLL = WATCHERS.labels("poll")
# How long, in seconds, an answer may stay untaken.
_PATIENCE = 60.0


class Waiter(Held):
    """A connection whose client knows all up to `index`, and waits until `deadline` for more.

    `give_back` takes the connection afterwards; where it is None, the connection is closed.
    """

    __slots__ = ("_owner", "_version", "asked", "deadline", "give_back", "index", "is_answered")

    def __init__(
        self,
        sock: socket.socket,
        *,
        index: int,
        deadline: float,
        protocol: Protocol,
        give_back: Callable[[], None] | None,
    ) -> None:
        super().__init__(sock)
        self.index = index
        self.deadline = deadline
        self.give_back = give_back if protocol.keeps_alive else None
        self.is_answered = False
        self.asked: _Asked
        self._owner: Waiters
        self._version = protocol.version

    def belong(self, owner: Waiters, asked: _Asked) -> None:
        self._owner, self.asked = owner, asked

    def wire(self, answer: Answer) -> bytes:
        return answer.wire(Protocol(self._version, self.give_back is not None))

    def on_sent(self) -> None:
        self._owner.finish(self)

    def on_left(self) -> None:
        self._owner.forget(self)

    def on_alarm(self) -> None:
        self._owner.run_out(self)


@dataclass(slots=True, eq=False)
class _Asked:
    """A question, those who wait for news of it, and those whom the next answer goes to."""

    question: Question
    waiting: set[Waiter] = field(default_factory=set)
    woken: list[Waiter] = field(default_factory=list)

    @property
    def gauge(self) -> Gauge:
        return _BLOCKING if self.question.events is None else _POLL


class Waiters:
    """All of it runs on the thread of `connections`; `on_end` is told when somebody waits no more."""

    def __init__(self, connections: Connections, on_end: Callable[[], None]) -> None:
        self._connections = connections
        self._on_end = on_end
        self._asked: dict[Hashable, _Asked] = {}
        self._sent: list[Waiter] = []
        self._is_giving = False
        self._seen = 0

    @property
    def follow_the_log(self) -> bool:
        """Whether one of them waits for events."""
        return any(asked.question.events is not None for asked in self._asked.values())

    def admit(self, waiter: Waiter, question: Question) -> None:
        asked = self._asked.setdefault(question.key, _Asked(question))
        waiter.belong(self, asked)
        asked.gauge.inc()
        self._connections.add(waiter)
        self._connections.set_alarm(waiter, waiter.deadline)
        asked.waiting.add(waiter)
        if waiter.index < self._seen:
            # It came between the look at the answer and now.
            self._wake(asked, [waiter])

    @property
    def are_many(self) -> bool:
        """Whether some are answered after others."""
        return len(self._asked) > 1

    def look(self, index: int, lines: Sequence[Line] | None, changes: Changes) -> None:
        """Wakes those for whom there is news; `lines` is what came to the log, None where nobody knows.

        Of many who ask differently those whose modules changed are answered before the others.
        """
        seen, self._seen = self._seen, index

        def is_unconcerned(asked: _Asked) -> bool:
            return changes.same_until(seen, asked.question.words) != seen

        for asked in sorted(self._asked.values(), key=is_unconcerned):
            wanted = asked.question.events
            if wanted is None or lines is None:
                newest = index
            else:
                newest = max((line.index for line in lines if wanted.takes(line)), default=0)
            self._wake(asked, [waiter for waiter in asked.waiting if waiter.index < newest])

    def end(self) -> None:
        """Everybody gets the answer as it is now, and is to come back on another connection."""
        for asked in tuple(self._asked.values()):
            for waiter in (*asked.waiting, *asked.woken):
                waiter.deadline, waiter.give_back = 0.0, None
            self._wake(asked, list(asked.waiting))

    def run_out(self, waiter: Waiter) -> None:
        """Its time has come: it waited long enough, or did not take its answer."""
        if waiter.is_answered:
            waiter.give_back = None
            self.finish(waiter)
        elif waiter in waiter.asked.waiting:
            self._wake(waiter.asked, [waiter])

    def finish(self, waiter: Waiter) -> None:
        """It was answered: on with the connection, but not before all others that were woken have theirs."""
        if self._is_giving:
            self._sent.append(waiter)
            return
        if waiter.give_back is None:
            self._connections.close(waiter)
        else:
            self._connections.release(waiter)
            waiter.give_back()
        waiter.asked.gauge.dec()
        self._on_end()

    def forget(self, waiter: Waiter) -> None:
        asked = waiter.asked
        asked.waiting.discard(waiter)
        asked.gauge.dec()
        self._tidy(asked)
        self._on_end()

    def _wake(self, asked: _Asked, waiters: Iterable[Waiter]) -> None:
        is_queued = bool(asked.woken)
        asked.woken += waiters
        asked.waiting.difference_update(asked.woken)
        if asked.woken and not is_queued:
            self._connections.soon(partial(self._answer, asked))

    def _answer(self, asked: _Asked) -> None:
        woken, asked.woken = [waiter for waiter in asked.woken if waiter.is_open], []
        if woken:
            try:
                answer = asked.question.ask()
            except Exception:
                logger.exception("a request that waited cannot be answered; its connections are closed")
                for waiter in woken:
                    waiter.give_back = None
                    self.finish(waiter)
            else:
                self._give(asked, answer, woken)
        self._tidy(asked)

    def _give(self, asked: _Asked, answer: Answer, woken: Sequence[Waiter]) -> None:
        now = time.monotonic()
        # Before anybody is sent something: who turns out to have left could be the last who waits.
        answered = self._put_back_others(asked, answer, woken, now)
        self._is_giving = True
        try:
            for waiter in answered:
                waiter.is_answered = True
                self._connections.send(waiter, waiter.wire(answer))
                if waiter.has_unsent:
                    self._connections.set_alarm(waiter, now + _PATIENCE)
        finally:
            self._is_giving = False
        sent, self._sent = self._sent, []
        for waiter in sent:
            self.finish(waiter)

    def _put_back_others(
        self, asked: _Asked, answer: Answer, woken: Sequence[Waiter], now: float
    ) -> list[Waiter]:
        """Has those wait on to whom the answer is no news; returns the others."""
        answered: list[Waiter] = []
        for waiter in woken:
            if now >= waiter.deadline or asked.question.is_answered_by(answer, waiter.index):
                answered.append(waiter)
            else:
                waiter.index = max(waiter.index, answer.index or 0)
                asked.waiting.add(waiter)
        return answered

    def _tidy(self, asked: _Asked) -> None:
        if not asked.waiting and not asked.woken:
            self._asked.pop(asked.question.key, None)
