"""Splits reported changes into batches, each stored in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from discovery.base import Change, ServiceInstance
from manifest_cache.ingest.plausibility import Update

# Instances in one transaction: it takes a tenth of a second, and a few MB.
_MOST = 1000


def batches(updates: Sequence[Update]) -> Iterator[list[Update]]:
    """The updates in their order, nearly always in one portion.

    Of a change with very many instances, as the first sight of a registry is, the first are served,
    and asked for their manifests, before the last are stored, and other writers have their turn. A
    module's instances stay together, and what is gone goes last.
    """
    portion: list[Update] = []
    for update in updates:
        if isinstance(update, Change) and not update.complete:
            *begun, rest = _parts(update.present)
            for part in begun:
                yield [*portion, replace(update, present=part, gone=())]
                portion = []
            update = replace(update, present=rest)
        portion.append(update)
    yield portion


def _parts(instances: tuple[ServiceInstance, ...]) -> Iterator[tuple[ServiceInstance, ...]]:
    start = 0
    for end in range(_MOST, len(instances)):
        if end - start >= _MOST and instances[end].module != instances[end - 1].module:
            yield instances[start:end]
            start = end
    yield instances[start:]
