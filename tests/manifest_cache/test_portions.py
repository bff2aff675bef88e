"""How a change with very many instances is divided over transactions."""

from __future__ import annotations

from itertools import groupby

from discovery.base import Change, InstanceKey, Lost, ServiceInstance
from manifest_cache.ingest.batches import batches
from manifest_cache.ingest.plausibility import Trusted, Update

GONE = (InstanceKey("old", "n", "1"),)


def instances(modules: int, each: int) -> tuple[ServiceInstance, ...]:
    return tuple(
        ServiceInstance(module=f"m{module}", id=str(number), address="127.0.0.1")
        for module in range(modules)
        for number in range(each)
    )


def test_what_is_told_together_is_stored_together() -> None:
    updates: list[Update] = [
        Change(source="a", present=instances(100, 10), gone=GONE),
        Trusted("a"),
        Lost(source="b", reason="away", retry_in=1),
    ]

    assert list(batches(updates)) == [updates]


def test_a_first_sight_is_stored_in_portions() -> None:
    told = Change(source="a", present=instances(351, 7), gone=GONE)
    lost = Lost(source="b", reason="away", retry_in=1)

    divided = list(batches([lost, told, Trusted("a")]))

    changes = [update for portion in divided for update in portion if isinstance(update, Change)]
    assert tuple(instance for change in changes for instance in change.present) == told.present
    assert [len(change.present) for change in changes] == [1001, 1001, 455]
    # Each module is in one of them, what is gone goes last, and all else keeps its place.
    modules = [name for change in changes for name, _ in groupby(one.module for one in change.present)]
    assert len(modules) == len(set(modules)) == 351
    assert [change.gone for change in changes] == [(), (), GONE]
    assert [len(portion) for portion in divided] == [2, 1, 2]
    assert (divided[0][0], divided[-1][-1]) == (lost, Trusted("a"))


def test_a_module_that_is_larger_than_a_portion() -> None:
    told = Change(source="a", present=(*instances(1, 2500), *instances(2, 1)[1:]))

    assert [len(change.present) for (change,) in batches([told]) if isinstance(change, Change)] == [2500, 1]


def test_what_is_complete_is_not_divided() -> None:
    told = Change(source="a", present=instances(300, 10), complete=True)

    assert list(batches([told])) == [[told]]
