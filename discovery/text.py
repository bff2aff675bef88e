"""Text from outside, made harmless for terminals, logs and databases."""

from __future__ import annotations

import json


def quoted(text: str, limit: int = 80) -> str:
    """`text` in quotes, cut at `limit` characters, with nothing in it that a terminal or database minds."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return json.dumps(short, ensure_ascii=not short.isprintable())
