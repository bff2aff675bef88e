"""Doubts a registry that suddenly reports far fewer instances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from discovery.base import Change, InstanceKey, Lost, ServiceInstance
from discovery.registries import registry_of
from discovery.registry import Policy

# Of a registry that is not followed any longer nothing comes that could be doubted.
_BELIEVED = Policy(max_drop=1.0, doubt=0.0)

AT_LEAST = 5
"""Minimum number missing before doubt applies; an empty answer is always doubted."""


@dataclass(frozen=True, slots=True)
class Doubted:
    """What a source tells is not believed; `reason` says why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a source tells is believed, all of it."""

    source: str


@dataclass(frozen=True, slots=True)
class Accept:
    """An operator believes what a source tells."""

    source: str


Update: TypeAlias = Change | Lost | Doubted | Trusted
"""What becomes known of a source, as far as it is believed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to believe of what a source told, and how it stands with the rest."""

    believed: Change
    standing: Doubted | Trusted


@dataclass(slots=True)
class SourceState:
    """What one source reports now, and what is believed of it.

    Presence is believed at once. Absence is doubted when more than the share `max_drop` of the
    believed instances (and at least five) are missing at once, or when a complete change tells of
    none at all; it is believed when that has been so for `patience` seconds, without the source
    being lost meanwhile, or when an operator says so: at once, or where the source tells nothing
    now, as soon as it does. While the source itself is not sure of what it tells, any absence is
    doubted; where it has been unsure for longer than `patience` (a token that may not read
    everything, say) that is its way, and it is judged like any other.

    Times are seconds of a monotonic clock.
    """

    source: str
    max_drop: float
    patience: float
    believed: set[InstanceKey] = field(default_factory=set)
    _told: set[InstanceKey] = field(default_factory=set)
    # What is believed and not told, kept along: looking for it would take as long as there is of both.
    _missing: set[InstanceKey] = field(default_factory=set)
    _complete: bool = False
    _has_reported: bool = False
    _is_accepted: bool = False
    _doubted_since: float | None = None
    _unsure: str | None = None
    _unsure_since: float = 0.0

    def apply(self, change: Change, now: float) -> Decision:
        """Takes a change that the source told."""
        if change.doubt is not None and self._unsure is None:
            self._unsure_since = now
        self._unsure = change.doubt
        self._has_reported = True
        self._take(change)
        if self._is_accepted and self._complete:
            return self._believe_all(change.present)
        # Once it is doubted, an empty registry stays so until it tells of something: that it goes on
        # answering is no deregistration.
        doubted = self._doubted_since is not None
        return self._judge(change.present, now, empty=not self._told and (change.complete or doubted))

    def _take(self, change: Change) -> None:
        present = {instance.key for instance in change.present}
        if change.complete:
            self._complete = True
            self._told = present
            self._missing = self.believed - present
            return
        self._told.difference_update(change.gone)
        self._told |= present
        self._missing |= self.believed.intersection(change.gone)
        self._missing -= present

    def recheck(self, now: float) -> Decision:
        """Judges again what the source reported last."""
        return self._judge((), now, empty=not self._told)

    def accept(self) -> Decision | None:
        """An operator believes what the source tells; None if that is to come yet."""
        self._is_accepted = True
        return self._believe_all(()) if self._has_reported and self._complete else None

    def lose(self) -> None:
        """The source was lost: what it confirms has to be confirmed from the beginning."""
        self._doubted_since = self._unsure = None
        self._has_reported = False

    @property
    def doubted_until(self) -> float | None:
        """When the doubt ends by itself, None where there is none."""
        return None if self._doubted_since is None else self._doubted_since + self.patience

    def _judge(self, present: tuple[ServiceInstance, ...], now: float, *, empty: bool) -> Decision:
        if not self._complete:
            # Nothing can be missing of what was not told in full yet.
            return Decision(Change(source=self.source, present=present), Trusted(self.source))
        missing = self._missing
        too_many = len(missing) >= AT_LEAST and len(missing) > self.max_drop * len(self.believed)
        unsure = self._unsure if now - self._unsure_since < self.patience else None
        if not missing or not (too_many or empty or unsure):
            return self._believe(present)
        if self._doubted_since is None:
            self._doubted_since = now
        if now - self._doubted_since >= self.patience:
            return self._believe(present)
        reason = f"{len(missing)} of {len(self.believed)} instances are missing"
        reason = f"{unsure}: {reason}" if unsure else f"{reason} at once"
        self.believed.update(instance.key for instance in present)
        return Decision(Change(source=self.source, present=present), Doubted(self.source, reason))

    def _believe_all(self, present: tuple[ServiceInstance, ...]) -> Decision:
        """As an operator said, for whom the source need not be sure of it either."""
        self._is_accepted = False
        self._unsure_since = -math.inf
        return self._believe(present)

    def _believe(self, present: tuple[ServiceInstance, ...]) -> Decision:
        gone = tuple(sorted(self._missing))
        # Whatever else was told is believed already.
        self.believed.update(instance.key for instance in present)
        self.believed -= self._missing
        self._missing.clear()
        self._doubted_since = None
        return Decision(Change(source=self.source, present=present, gone=gone), Trusted(self.source))


class PlausibilityFilter:
    """The states of all sources: what registries and operators say in, what to write down out."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        """Policies by the registry's name."""
        self._policies = policies
        self._states: dict[str, SourceState] = {}

    def start_from(self, believed: Mapping[str, Iterable[InstanceKey]]) -> None:
        """Takes what was believed of each source when the program last ended."""
        for source, keys in believed.items():
            self._state(source).believed = set(keys)

    def apply(self, said: Change | Lost | Accept, now: float) -> list[Update]:
        """What to believe of what was just said."""
        state = self._state(said.source)
        if isinstance(said, Lost):
            state.lose()
            return [said]
        decision = state.accept() if isinstance(said, Accept) else state.apply(said, now)
        return [decision.believed, decision.standing] if decision is not None else []

    def recheck(self, now: float) -> list[Update]:
        """What to believe without new word: of sources whose time of doubt is over."""
        over = [
            state
            for state in self._states.values()
            if state.doubted_until is not None and state.doubted_until <= now
        ]
        decisions = [state.recheck(now) for state in over]
        return [update for decision in decisions for update in (decision.believed, decision.standing)]

    @property
    def doubt_ends_at(self) -> float | None:
        """When a doubt next ends by itself, None where there is none."""
        ends = (state.doubted_until for state in self._states.values())
        return min((end for end in ends if end is not None), default=None)

    def _state(self, source: str) -> SourceState:
        if source not in self._states:
            policy = self._policies.get(registry_of(source), _BELIEVED)
            self._states[source] = SourceState(source, policy.max_drop, policy.doubt)
        return self._states[source]
