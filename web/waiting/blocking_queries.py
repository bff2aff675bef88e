"""Holds requests that wait for a change, and gives those that ask alike the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence

from prometheus_client import Gauge

from web.rendering.module_changes import Changes
from web.response_cache.raw_response import RawResponse
from web.telemetry.metrics import WATCHERS
from web.waiting.event_tail import Line
from web.waiting.held_request import Answer, Question

_BLOCKING = WATCHERS.labels("blocking")
_POLL = WATCHERS.labels("poll")


class _Waiter:
    """A client that knows all up to `index`; None instead of an answer: no longer wait for one."""

    __slots__ = ("answered", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.answered: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    def give(self, answer: Answer | None) -> None:
        if not self.answered.done():
            self.answered.set_result(answer)

    def leave(self, _: asyncio.Future[None]) -> None:
        """Called when the client is gone."""
        self.give(None)


class _Group:
    """Those who wait for news of one question."""

    __slots__ = ("question", "waiters")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.waiters: set[_Waiter] = set()

    @property
    def gauge(self) -> Gauge:
        return _BLOCKING if self.question.events is None else _POLL

    async def answer(self) -> None:
        """Asks once for all, and gives the answer to those for whom it is news."""
        if not self.waiters:
            return
        try:
            answer = await self.question.ask()
        except Exception as exc:
            for waiter in self.waiters:
                if not waiter.answered.done():
                    waiter.answered.set_exception(exc)
            return
        for waiter in self.waiters:
            if self.question.is_answered_by(answer, waiter.index):
                waiter.give(answer)
            else:
                waiter.index = max(waiter.index, answer.index or 0)


class BlockingQueries:
    """All of it runs on the event loop."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group] = {}
        self._due: dict[_Group, None] = {}
        self._answering: asyncio.Task[None] | None = None
        self._seen = 0
        self._is_ending = False

    @property
    def follow_the_log(self) -> bool:
        """Whether one of them waits for events."""
        return any(group.question.events is not None for group in self._groups.values())

    @property
    def are_many(self) -> bool:
        """Whether some are answered after others."""
        return len(self._groups) > 1

    async def wait(
        self, question: Question, index: int, seconds: float, gone: asyncio.Future[None]
    ) -> RawResponse | None:
        """The response once there is news for a client that knows all up to `index`, or time is up.

        None if the client is `gone` before.
        """
        group = self._groups.setdefault(question.key, _Group(question))
        waiter = _Waiter(index)
        group.waiters.add(waiter)
        group.gauge.inc()
        # Not asyncio.wait, which costs as much as the rest of an answer.
        time_is_up = asyncio.get_running_loop().call_later(seconds, waiter.give, None)
        gone.add_done_callback(waiter.leave)
        try:
            if index < self._seen:
                # It came between the look at the answer and now.
                self._answer_soon(group)
            answer = await waiter.answered
        finally:
            gone.remove_done_callback(waiter.leave)
            time_is_up.cancel()
            group.gauge.dec()
            group.waiters.discard(waiter)
            if not group.waiters:
                self._groups.pop(question.key, None)
        if answer is None and not gone.done():
            answer = await question.ask()
        return None if answer is None else answer.response

    def look(self, index: int, lines: Sequence[Line] | None, changes: Changes) -> None:
        """Answers those for whom there is news; `lines` is what came to the log, None where nobody knows.

        Of many who ask differently those whose modules changed are answered before the others.
        """
        seen, self._seen = self._seen, index

        def is_unconcerned(group: _Group) -> bool:
            return changes.unchanged_until(seen, group.question.words) != seen

        behind = [group for group in self._groups.values() if _is_behind(group, index, lines)]
        late = self._due
        self._due = dict.fromkeys(sorted(behind, key=is_unconcerned))
        self._due.update(late)
        self._go_on()

    def end(self) -> None:
        """Everybody gets the answer as it is now."""
        for group in self._groups.values():
            for waiter in group.waiters:
                waiter.give(None)

    def _answer_soon(self, group: _Group) -> None:
        self._due[group] = None
        self._go_on()

    def _go_on(self) -> None:
        if self._due and self._answering is None:
            self._answering = asyncio.create_task(self._answer_due())

    async def _answer_due(self) -> None:
        """One after the other: an answer that all threads worked at would come no earlier."""
        try:
            while self._due:
                group = next(iter(self._due))
                del self._due[group]
                await group.answer()
        finally:
            self._answering = None


def _is_behind(group: _Group, index: int, lines: Sequence[Line] | None) -> bool:
    """Whether there is news for one of the group at this index."""
    wanted = group.question.events
    newest = index
    if wanted is not None and lines is not None:
        newest = max((line.index for line in lines if wanted.takes(line)), default=0)
    return any(waiter.index < newest for waiter in group.waiters)
