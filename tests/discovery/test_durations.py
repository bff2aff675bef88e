"""Durations as Go and Consul write them."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.timing.durations import parse_duration


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "5 m",
        "-5s",
        "1e3",
        "nan",
        pytest.param("9" * 400, id="endless"),
        pytest.param(f"{'9' * 400}d", id="endless days"),
        pytest.param(10**400, id="more than a float holds"),
        "36601d",
        -1,
        float("inf"),
        float("nan"),
        True,
        None,
    ],
)
def test_what_is_no_duration_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is longer than a hundred years"):
        parse_duration(text)
