"""Lictor under faults: fixed seeds, so that every run of the tests plays the same steps.

`make soak` plays as many others as one has time for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import Run

# Scenery, seed and steps.
RUNS = [("agent", 1, 60), ("acl", 1, 50), ("postgres", 1, 50), ("servers", 1, 50)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    scenery, seed, steps = (option(name, default=None) for name in ("scenery", "seed", "steps"))
    runs = [
        (name, seed if seed is not None else known_seed, steps or known_steps)
        for name, known_seed, known_steps in RUNS
        if scenery in (None, name)
    ]
    metafunc.parametrize(("scenery", "seed", "steps"), runs)


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_the_cache_recovers(scenery: str, seed: int, steps: int, tmp_path: Path) -> None:
    print(Run(scenery, seed, steps, tmp_path).play())
