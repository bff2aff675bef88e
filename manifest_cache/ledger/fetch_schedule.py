"""Decides when each instance's manifest is fetched next."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from discovery.base import ServiceInstance
from manifest_cache.ledger.module_summary import HEALTHY
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.models import InstanceRow
from manifest_cache.storage.raw_rows import ReadTransaction, one_of
from manifest_cache.storage.raw_statements import chunks

_FIRST_RETRY = 1.0
# How many deadlines followers wait for the one fetch that serves their digest.
_PATIENCE = 3.0
# Known manifests are asked for again at this many moments, spread over the interval.
_MOMENTS = 60


class FetchSchedule:
    """The fetches that one transaction makes due."""

    def __init__(self, reading: ReadTransaction, settings: CacheSettings, now: datetime) -> None:
        self._reading = reading
        self._settings = settings
        self._now = now
        self._planned: list[InstanceRow] = []

    @property
    def due(self) -> list[InstanceRow]:
        """The instances whose manifests are to be fetched now."""
        return [row for row in self._planned if row.fetch_at == self._now]

    def announced(self, instances: Iterable[ServiceInstance | InstanceRow]) -> dict[tuple[str, str], str]:
        """The versions of manifests that these instances announce by digest and that are known."""
        wanted = {
            (instance.module, digest)
            for instance in instances
            if (digest := instance.meta.get("manifest_digest"))
        }
        return {
            (module, digest): version
            for some in chunks(sorted({digest for _, digest in wanted}))
            for module, digest, version in self._reading.rows(
                f"SELECT module, digest, version FROM manifests WHERE digest {one_of(some)}", *some
            )
            if (module, digest) in wanted
        }

    def plan(self, row: InstanceRow, announced: Mapping[tuple[str, str], str]) -> None:
        """When the row's manifest is asked for next: now, unless it is known or the instance not well."""
        digest = row.meta.get("manifest_digest", "")
        version = announced.get((row.module, digest))
        row.fetch_failures = 0
        row.confirmed = False
        if not _is_asked(row):
            row.fetch_at = None
        elif version is None:
            self._set_due(row)
        else:
            row.digest, row.version, row.etag = digest, version, None
            row.error_type = row.error_detail = row.error_at = None
            self.known(row)

    def known(self, row: InstanceRow) -> None:
        """The row's manifest is known for sure: it is asked again when it is its turn."""
        row.fetch_failures = 0
        row.confirmed = True
        row.fetch_at = None

    def ask_now(self, rows: Iterable[InstanceRow]) -> int:
        """What is known of these rows is in question: they are asked now; returns how many can be."""
        asked = [row for row in rows if _is_asked(row)]
        for row in asked:
            row.confirmed = False
            self._set_due(row)
        return len(asked)

    def is_awaited(self, row: InstanceRow) -> bool:
        """Whether the row's manifest is still to come."""
        return _is_asked(row) and not row.confirmed

    def retry(self, row: InstanceRow) -> None:
        """A fetch of the row's manifest failed: the pauses grow with the failures in a row."""
        pause = min(self._settings.fetch_retry_max, _FIRST_RETRY * 2.0 ** min(row.fetch_failures, 30))
        row.fetch_failures += 1
        row.fetch_at = self._now + timedelta(seconds=pause * random.uniform(0.75, 1.25))

    def is_settled(self, row: InstanceRow) -> bool:
        """Whether the row's manifest is known for sure, and nothing is wrong with it."""
        return _is_asked(row) and row.confirmed and row.error_type is None

    def elect_fetchers(self, rows: Sequence[InstanceRow]) -> None:
        """Lets one instance of a module be asked for all that stand for the same.

        One fetch serves all that announce the same unknown digest: they are asked themselves only
        if it brings something else, or nothing for long. Of those that are known one of each version
        is asked in its turn whether it still is what it was.
        """
        awaiting: dict[str, list[InstanceRow]] = defaultdict(list)
        known: dict[str, list[InstanceRow]] = defaultdict(list)
        for row in rows:
            announced = row.meta.get("manifest_digest")
            if self.is_settled(row):
                known[row.version or ""].append(row)
            elif self.is_awaited(row) and row.error_type is None and announced not in (None, "", row.digest):
                awaiting[announced].append(row)
        for group in awaiting.values():
            self._ask_the_first(group)
        for group in known.values():
            self._take_turns(group)

    def _ask_the_first(self, rows: Sequence[InstanceRow]) -> None:
        first, *others = sorted(rows, key=lambda row: row.fetch_at or self._now)
        if first.fetch_at is None or first.fetch_at > self._now:
            self._set_due(first)
        for row in others:
            if row.fetch_at is None or row.fetch_at <= self._now:
                row.fetch_at = self._after(_PATIENCE * self._settings.fetch_deadline)

    def _take_turns(self, rows: Sequence[InstanceRow]) -> None:
        if all(row.fetch_at is None for row in rows):
            random.choice(rows).fetch_at = self._aligned(self._settings.revalidate)

    def _set_due(self, row: InstanceRow) -> None:
        row.fetch_at = self._now
        self._planned.append(row)

    def _after(self, seconds: float) -> datetime:
        # Spread, so that what was learnt together is not asked for together for ever.
        return self._now + timedelta(seconds=seconds * random.uniform(0.8, 1.2))

    def _aligned(self, seconds: float) -> datetime:
        """After that time, at one of a few moments at which those of other modules are asked as well."""
        # To wake for each alone, and to store each alone, takes ten times what the fetch does.
        apart = seconds / _MOMENTS
        return datetime.fromtimestamp(math.ceil(self._after(seconds).timestamp() / apart) * apart, UTC)


def _is_asked(row: InstanceRow) -> bool:
    """Whether an instance is asked for its manifest at all."""
    return row.health in HEALTHY and not row.manifest_pushed
