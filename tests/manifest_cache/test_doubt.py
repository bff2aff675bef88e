"""What a source tells, and how much of it is believed when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from discovery.base import Change, InstanceKey, Lost, ServiceInstance
from discovery.registry import Policy
from manifest_cache.ingest.plausibility import Accept, Doubted, PlausibilityFilter, Trusted, Update

PATIENCE = 120.0


def instances(count: int, first: int = 0) -> tuple[ServiceInstance, ...]:
    return tuple(
        ServiceInstance(module="m", id=str(number), node="n", address="127.0.0.1")
        for number in range(first, first + count)
    )


def complete(count: int, first: int = 0) -> Change:
    return Change(source="consul", present=instances(count, first), complete=True)


def gone(*numbers: int) -> Change:
    return Change(source="consul", gone=tuple(InstanceKey("m", "n", str(number)) for number in numbers))


def removed(updates: Sequence[Update]) -> int:
    return sum(len(update.gone) for update in updates if isinstance(update, Change))


def doubted(updates: Sequence[Update]) -> bool:
    (standing,) = [update for update in updates if isinstance(update, Doubted | Trusted)]
    return isinstance(standing, Doubted)


@pytest.fixture
def plausibility() -> PlausibilityFilter:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    assert not doubted(plausibility.apply(complete(100), 0))
    return plausibility


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        pytest.param(complete(70), False, id="30 % less"),
        pytest.param(complete(69), True, id="31 % less"),
        pytest.param(complete(0), True, id="none left"),
        pytest.param(complete(100, first=100), True, id="all others"),
        pytest.param(complete(200), False, id="more"),
        pytest.param(gone(*range(31)), True, id="31 % deregistered at once"),
        pytest.param(gone(*range(10)), False, id="10 % deregistered at once"),
    ],
)
def test_how_much_may_go_at_once(plausibility: PlausibilityFilter, change: Change, doubt: bool) -> None:
    updates = plausibility.apply(change, 1)
    assert doubted(updates) == doubt
    if doubt:
        assert removed(updates) == 0
        assert plausibility.doubt_ends_at == 1 + PATIENCE


def test_one_by_one_is_believed_at_once(plausibility: PlausibilityFilter) -> None:
    for number in range(100):
        updates = plausibility.apply(gone(number), number)
        assert not doubted(updates)
        assert removed(updates) == 1


def test_up_to_four_may_always_go() -> None:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.apply(complete(5), 0)
    assert removed(plausibility.apply(gone(0, 1, 2, 3), 1)) == 4


def test_an_empty_registry_is_doubted_however_little_was_known() -> None:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.apply(complete(1), 0)
    assert doubted(plausibility.apply(complete(0), 1))


def test_a_sign_of_life_confirms_nothing_by_itself() -> None:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.apply(complete(1), 0)
    plausibility.apply(complete(0), 1)
    updates = plausibility.apply(Change(source="consul"), 6)
    assert doubted(updates)
    assert removed(updates) == 0
    assert removed(plausibility.recheck(1 + PATIENCE)) == 1


def test_an_empty_registry_at_first_sight_is_no_cause_for_doubt() -> None:
    assert not doubted(PlausibilityFilter({"consul": Policy(0.3, PATIENCE)}).apply(complete(0), 0))


def test_what_is_there_is_believed_amid_doubt(plausibility: PlausibilityFilter) -> None:
    updates = plausibility.apply(complete(10, first=95), 1)
    assert doubted(updates)
    (change,) = [update for update in updates if isinstance(update, Change)]
    assert len(change.present) == 10
    assert not change.complete


def test_a_doubt_that_is_confirmed_long_enough_ends(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(complete(10), 1)
    assert plausibility.recheck(PATIENCE) == []
    assert doubted(plausibility.apply(Change(source="consul"), 60))
    updates = plausibility.recheck(1 + PATIENCE)
    assert not doubted(updates)
    assert removed(updates) == 90
    assert plausibility.doubt_ends_at is None


def test_a_registry_that_recovers_is_believed(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(complete(10), 1)
    updates = plausibility.apply(complete(98), 2)
    assert not doubted(updates)
    assert removed(updates) == 2


def test_an_operator_ends_a_doubt(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(complete(10), 1)
    updates = plausibility.apply(Accept("consul"), 2)
    assert not doubted(updates)
    assert removed(updates) == 90


def test_a_lost_registry_has_confirmed_nothing(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(complete(10), 1)
    plausibility.apply(Lost(source="consul", reason="away", retry_in=1), 100)
    assert plausibility.doubt_ends_at is None
    plausibility.apply(complete(10), 130)
    assert plausibility.doubt_ends_at == 130 + PATIENCE


def unsure(change: Change, reason: str | None = "filtered") -> Change:
    return replace(change, doubt=reason)


def test_while_the_source_is_unsure_no_absence_is_believed(plausibility: PlausibilityFilter) -> None:
    for change in (gone(1), complete(99)):
        updates = plausibility.apply(unsure(change), 1)
        assert removed(updates) == 0
        assert updates[-1] == Doubted("consul", "filtered: 1 of 100 instances are missing")


def test_while_the_source_is_unsure_presence_is_believed(plausibility: PlausibilityFilter) -> None:
    updates = plausibility.apply(unsure(complete(120)), 1)
    assert not doubted(updates)
    (change,) = [update for update in updates if isinstance(update, Change)]
    assert len(change.present) == 120


def test_a_source_that_is_sure_again_is_believed(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(unsure(gone(1, 2)), 1)
    back = Change(source="consul", present=instances(1, first=1))
    assert removed(plausibility.apply(unsure(back, None), 2)) == 1


def test_what_an_unsure_source_confirms_long_enough_is_believed(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(unsure(gone(1)), 1)
    assert removed(plausibility.apply(unsure(Change(source="consul")), PATIENCE)) == 0
    assert removed(plausibility.recheck(1 + PATIENCE)) == 1


def test_a_source_that_is_never_sure_is_judged_like_any_other(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(unsure(Change(source="consul")), 1)
    assert removed(plausibility.apply(unsure(gone(1)), 2 + PATIENCE)) == 1
    assert doubted(plausibility.apply(unsure(complete(10)), 3 + PATIENCE))


def test_an_operator_ends_an_unsure_sources_doubt(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(unsure(gone(1)), 1)
    assert removed(plausibility.apply(Accept("consul"), 2)) == 1
    assert removed(plausibility.apply(unsure(gone(2)), 3)) == 1


def test_a_source_that_comes_back_unsure_has_confirmed_nothing(plausibility: PlausibilityFilter) -> None:
    plausibility.apply(unsure(complete(100)), 1)
    plausibility.apply(Lost(source="consul", reason="away", retry_in=1), 100)
    assert removed(plausibility.apply(unsure(complete(99)), 2 + PATIENCE)) == 0


def test_a_restart_forgets_nothing() -> None:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.start_from({"consul": [instance.key for instance in instances(100)]})
    assert doubted(plausibility.apply(complete(0), 0))
    assert removed(plausibility.apply(complete(99), 1)) == 1


def test_an_acceptance_before_anything_was_told_is_of_what_is_told_first() -> None:
    plausibility = PlausibilityFilter({"consul": Policy(0.3, PATIENCE)})
    plausibility.start_from({"consul": [instance.key for instance in instances(100)]})
    assert plausibility.apply(Accept("consul"), 0) == [], "nothing is known of it, not even that it is there"
    updates = plausibility.apply(complete(10), 1)
    assert not doubted(updates)
    assert removed(updates) == 90
    assert doubted(plausibility.apply(complete(0), 2)), "it was accepted once"


def test_an_acceptance_while_a_source_is_lost_is_of_what_it_tells_when_it_is_back(
    plausibility: PlausibilityFilter,
) -> None:
    plausibility.apply(complete(10), 1)
    plausibility.apply(Lost(source="consul", reason="away", retry_in=1), 2)
    assert plausibility.apply(Accept("consul"), 3) == [], "that it is lost still stands"
    updates = plausibility.apply(complete(20), 4)
    assert not doubted(updates)
    assert removed(updates) == 80


def test_sources_are_doubted_apart(plausibility: PlausibilityFilter) -> None:
    other = Change(source="consul/dc2", present=instances(100), complete=True)
    plausibility.apply(other, 0)
    assert doubted(plausibility.apply(complete(0), 1))
    assert not doubted(plausibility.apply(Change(source="consul/dc2"), 1))
