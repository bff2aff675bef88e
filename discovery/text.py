"""Makes foreign text harmless for terminals, logs and databases."""

from __future__ import annotations

import json


def quoted(text: str, limit: int = 80) -> str:
    """`text` in quotes, cut at `limit` characters, with nothing in it that a terminal or database minds."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return json.dumps(short, ensure_ascii=not short.isprintable())


def counted(number: int, thing: str) -> str:
    """
    >>> counted(1, "fault"), counted(2, "fault")
    ('1 fault', '2 faults')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"


def shortened(text: str, limit: int = 80) -> str:
    """What somebody sent, in quotes and short enough to be repeated to them."""
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")
