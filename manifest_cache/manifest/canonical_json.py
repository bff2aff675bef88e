"""Writes JSON in its canonical form (RFC 8785)."""

from __future__ import annotations

import json
import re
from typing import Any

import rfc8785

# The standard library's encoder writes what RFC 8785 asks for, seven times as fast as the
# library that is written in Python, but for two things: it orders keys by code point instead of
# UTF-16 unit, which differs only beyond the basic plane, and it has its own way to write floats.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_BEYOND_BASIC_PLANE = re.compile("[\U00010000-\U0010ffff]")
_FLOAT = re.compile(r"\.|e[+-]")


def canonical_json(value: Any) -> bytes:
    """The canonical form of a value that strict reading made (`strict_json.load`).

    Raises UnicodeEncodeError where a text holds half of a surrogate pair.

    >>> canonical_json({"b": 1.0, "a": ["é", None]}).decode()
    '{"a":["é",null],"b":1}'
    """
    text = _ENCODER.encode(value)
    # Half of a surrogate pair is met here, before the library words it in its own way.
    encoded = text.encode()
    if _FLOAT.search(_outside_strings(text)) or (not text.isascii() and _BEYOND_BASIC_PLANE.search(text)):
        return rfc8785.dumps(value)
    return encoded


def _outside_strings(text: str) -> str:
    if "\\" in text:
        text = text.replace(r"\\", "").replace(r"\"", "")
    return "".join(text.split('"')[::2])
