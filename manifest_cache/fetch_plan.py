"""Instances in, when to fetch their manifests out: now, after a pause, for revalidation or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import Connection
from sqlmodel import col, select

from discovery.base import ServiceInstance
from manifest_cache.models import Instance, Manifest
from manifest_cache.settings import CacheSettings
from manifest_cache.settling import HEALTHY
from manifest_cache.statements import chunks

_FIRST_RETRY = 1.0


class FetchPlan:
    """The fetches that one transaction makes due."""

    def __init__(self, connection: Connection, settings: CacheSettings, now: datetime) -> None:
        self._connection = connection
        self._settings = settings
        self._now = now
        self._planned: list[Instance] = []

    @property
    def due(self) -> list[Instance]:
        """The instances whose manifests are to be fetched now."""
        return [row for row in self._planned if row.fetch_at == self._now]

    def announced(self, instances: Iterable[ServiceInstance | Instance]) -> dict[tuple[str, str], str]:
        """The versions of manifests that these instances announce by digest and that are known."""
        wanted = {
            (instance.module, digest)
            for instance in instances
            if (digest := instance.meta.get("manifest_digest"))
        }
        return {
            (module, digest): version
            for some in chunks(sorted({digest for _, digest in wanted}))
            for module, digest, version in self._connection.execute(
                select(Manifest.module, Manifest.digest, Manifest.version).where(
                    col(Manifest.digest).in_(some)
                )
            )
            if (module, digest) in wanted
        }

    def plan(self, row: Instance, announced: Mapping[tuple[str, str], str]) -> None:
        """When the row's manifest is asked for next: now, unless it is known or the instance not well."""
        digest = row.meta.get("manifest_digest", "")
        version = announced.get((row.module, digest))
        row.fetch_failures = 0
        if row.health not in HEALTHY or row.manifest_pushed:
            row.fetch_at = None
        elif version is None:
            row.fetch_at = self._now
            self._planned.append(row)
        else:
            row.digest, row.version, row.etag = digest, version, None
            row.error_type = row.error_detail = row.error_at = None
            self.revalidate(row)

    def revalidate(self, row: Instance) -> None:
        """The row's manifest is known: it is asked for again after a while."""
        row.fetch_failures = 0
        # Spread, so that what was learnt together is not asked for together for ever.
        row.fetch_at = self._now + timedelta(seconds=self._settings.revalidate * random.uniform(0.8, 1.2))

    def retry(self, row: Instance) -> None:
        """A fetch of the row's manifest failed: the pauses grow with the failures in a row."""
        pause = min(self._settings.fetch_retry_max, _FIRST_RETRY * 2.0 ** min(row.fetch_failures, 30))
        row.fetch_failures += 1
        row.fetch_at = self._now + timedelta(seconds=pause * random.uniform(0.75, 1.25))
