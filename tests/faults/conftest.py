"""The options that play a run again: `pytest tests/faults --scenery NAME --seed N --steps N`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--scenery", help="play this scenery only")
    group.addoption("--seed", type=int, help="play this seed instead of the fixed ones")
    group.addoption("--steps", type=int, help="play so many steps")
