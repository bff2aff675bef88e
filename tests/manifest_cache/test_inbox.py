"""What registries tell while nothing can be stored goes in; what is to be believed comes out, merged."""

from __future__ import annotations

import pytest

from discovery.base import Change, Lost, ServiceInstance
from discovery.registry import Policy
from manifest_cache.ingest.inbox import Inbox
from manifest_cache.ingest.plausibility import Accept, PlausibilityFilter

PATIENCE = 120.0
LOST = Lost(source="consul", reason="away", retry_in=1)


def complete(count: int) -> Change:
    instances = [ServiceInstance(module="m", id=str(number), address="::1") for number in range(count)]
    return Change(source="consul", present=tuple(instances), complete=True)


@pytest.mark.anyio
async def test_what_is_told_meanwhile_is_merged_by_source() -> None:
    inbox = Inbox()
    later, gone = complete(1).present[0], complete(2).present[1].key
    inbox.put(complete(2))
    inbox.put(Accept("consul"))
    inbox.put(Change(source="push", present=(later,)))
    inbox.put(Change(source="consul", gone=(gone,)))
    inbox.put(LOST)
    of_consul = [complete(1), Accept("consul"), LOST]
    assert await inbox.take() == [*of_consul, Change(source="push", present=(later,))]


@pytest.mark.anyio
async def test_a_registry_that_was_lost_meanwhile_has_confirmed_nothing() -> None:
    inbox, plausibility = Inbox(), PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.apply(complete(10), 0)
    plausibility.apply(complete(0), 1)
    inbox.put(LOST)
    inbox.put(complete(0))
    told = await inbox.take()
    assert told == [LOST, complete(0)]
    for one in told:
        plausibility.apply(one, 2 + PATIENCE)
    assert plausibility.doubt_ends_at == 2 + 2 * PATIENCE
