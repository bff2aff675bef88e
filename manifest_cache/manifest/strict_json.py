"""Reads JSON strictly, and reports every fault with its place in the text.

Strict is RFC 8259 in UTF-8 as far as RFC 8785 can give it one canonical form: no key twice in an
object, no NaN, no number that a double would alter, no half of a surrogate pair, and a limit on
nesting that holds before anything recurses. `load` is quick and says only that something is wrong;
`examine` reads again, slowly, and finds all that is wrong and where. (Of the libraries that map
JSON pointers to places in the text none is kept any longer.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import rfc8785

from discovery.text import quoted
from manifest_cache.errors import Fault, FaultType, ManifestInvalid

MAX_DEPTH = 64
MAX_FAULTS = 100
_LARGEST_EXACT = 2**53 - 1
_LONGEST_KEY_SHOWN = 60

_BRACKETS_AND_QUOTES = b'[]{}"'
_ALL_ELSE = bytes(set(range(256)) - set(_BRACKETS_AND_QUOTES))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_STRING = r'"(?:[^"\\]|\\.)*+"'
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
_TOKEN = re.compile(rf'{_STRING}|[\[\]{{}}]|[^\s\[\]{{}}:,"]++', re.DOTALL)

Path = Sequence[str | int]


class NotStrict(ValueError):
    """Something is wrong with the document; `examine` tells what."""


def load(raw: bytes) -> Any:
    """The value of a document with which nothing is wrong; raises `NotStrict` otherwise.

    Half surrogates pass: whoever encodes the value as UTF-8 meets them.
    """
    if _depth(raw) > MAX_DEPTH:
        raise NotStrict("nested too deep")
    try:
        return _STRICT.decode(raw.decode())
    except ValueError as error:
        raise NotStrict(str(error)) from error


def _depth(raw: bytes) -> int:
    """How deep the document nests; never less than a parser would get before its first error."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return 0
    if b"\\" in raw:
        raw = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    # With escapes gone, every second piece between quotes lies outside of strings.
    brackets = b"".join(raw.translate(None, _ALL_ELSE).split(b'"')[::2])
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotStrict("a key stands twice")
    return members


def _whole(literal: str) -> int | float:
    """A number without fraction, if a double holds exactly what is written.

    RFC 8785 knows doubles only. It writes those up to 1e21 in full, so what it wrote must be read
    back as the same double, while any other number beyond 2**53 would change its value silently.
    """
    if len(literal) < len(str(_LARGEST_EXACT)):
        return int(literal)
    number = float(literal)
    if abs(number) <= _LARGEST_EXACT:
        return int(literal)
    if math.isinf(number) or rfc8785.dumps(number).decode() != literal:
        raise NotStrict("a double cannot hold it exactly")
    return number


def _fractional(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise NotStrict("too large for a double")
    return number


def _constant(literal: str) -> None:
    raise NotStrict(f"{literal} is not JSON")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_fractional, parse_constant=_constant
)
# Stands in for numbers that are faults themselves, so that the rest can still be checked.
_LENIENT = json.JSONDecoder(
    parse_int=lambda literal: int(literal) if len(literal) < len(str(_LARGEST_EXACT)) else 0,
    parse_constant=lambda literal: None,
)


@dataclass(slots=True)
class _Node:
    """A value's place in the text; `key` is what the next member of an object is called.

    `first` is the place of the first member of that name, where an object has several.
    """

    name: str | int
    start: int
    first: int
    is_object: bool = False
    key: str | None = None
    children: dict[str | int, _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examined:
    """A document that can be read at least leniently: its value, what is wrong, and where things stand.

    Where the same key stands twice `value` holds the last, and null or 0 in place of bad numbers.
    """

    text: str
    value: Any
    faults: tuple[Fault, ...]
    root: _Node

    def fault(self, type: FaultType, path: Path, message: str) -> Fault:
        """A fault of the value at `path`, or of the nearest one around it where there is none."""
        node = self.root
        for name in path:
            if name not in node.children:
                break
            node = node.children[name]
        return _fault(self.text, type, path, message, node.start)


def examine(raw: bytes) -> Examined:
    """Everything that is wrong with a document; raises `ManifestInvalid` if it cannot be read at all."""
    text = _decode(raw)
    if _depth(raw) > MAX_DEPTH:
        raise ManifestInvalid([_too_deep(text)])
    try:
        value = _LENIENT.decode(text)
    except json.JSONDecodeError as error:
        raise ManifestInvalid([_not_json(text, error)]) from error
    scanner = _Scanner(text)
    return Examined(text, value, tuple(scanner.faults), scanner.root)


def pointer(path: Path) -> str:
    """A JSON pointer (RFC 6901), with long keys shortened and control characters escaped."""
    return "".join("/" + _pointer_token(name) for name in path)


def _pointer_token(name: str | int) -> str:
    if isinstance(name, int):
        return str(name)
    return quoted(name.replace("~", "~0").replace("/", "~1"), _LONGEST_KEY_SHOWN)[1:-1]


def _fault(text: str, type: FaultType, path: Path, message: str, start: int) -> Fault:
    line = text.count("\n", 0, start) + 1
    return Fault(type, pointer(path), message, line, start - text.rfind("\n", 0, start))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        good = raw[: error.start].decode()
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            message = "the document is UTF-16: a manifest is JSON in UTF-8"
        else:
            message = f"the document is not UTF-8: byte 0x{raw[error.start]:02x} ({error.reason})"
        raise ManifestInvalid([_fault(good, "not-utf8", (), message, len(good))]) from error


def _not_json(text: str, error: json.JSONDecodeError) -> Fault:
    stripped = text.strip()
    start = min(error.pos, len(text))
    if not stripped:
        message = "the document is empty: a manifest is a JSON object"
    elif text.startswith("\ufeff"):
        message = "the document begins with a byte order mark: send UTF-8 without one"
    elif stripped.startswith("<"):
        message = "the document is HTML or XML, not JSON: does another page answer under this address?"
    elif error.msg == "Extra data":
        message = "the document is not JSON: something follows after its end"
    elif start >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        message = "the document is not JSON: it ends too early"
    else:
        message = f"the document is not JSON: {error.msg[0].lower()}{error.msg[1:]}"
    return _fault(text, "not-json", (), message, start)


def _too_deep(text: str) -> Fault:
    depth = start = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += _STEP.get(ord(match[0][0]), 0)
        if depth > MAX_DEPTH:
            start = match.start()
            break
    return _fault(text, "too-deep", (), f"the document is nested deeper than {MAX_DEPTH} levels", start)


class _Scanner:
    """Walks the tokens of a text that is known to parse; without recursion."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.faults: list[Fault] = []
        document = _Node("", 0, 0)
        self._stack = [document]
        for match in _TOKEN.finditer(text):
            self._token(match[0], match.start())
        self.root = document.children[0]

    def _token(self, token: str, start: int) -> None:
        parent = self._stack[-1]
        if token in ("]", "}"):
            self._stack.pop()
        elif parent.is_object and parent.key is None:
            self._name(parent, json.loads(token), start)
        else:
            name = len(parent.children) if parent.key is None else parent.key
            parent.key = None
            twin = parent.children.get(name)
            first = start if twin is None else twin.first
            node = parent.children[name] = _Node(name, start, first, is_object=token.startswith("{"))
            self._stack.append(node)
            self._scalar(token, start)
            if token not in ("[", "{"):
                self._stack.pop()

    def _name(self, parent: _Node, name: str, start: int) -> None:
        self._check_surrogates(name, "the key", start)
        # To find a line takes as long as the text before it: that is done only for what is told.
        if name in parent.children and not self._is_full:
            first = self.text.count("\n", 0, parent.children[name].first) + 1
            message = f"the key {quoted(name)} stands twice in one object, first on line {first}"
            self._add("duplicate-key", message, start, name)
        parent.key = name

    def _scalar(self, token: str, start: int) -> None:
        if token[0] == '"':
            self._check_surrogates(json.loads(token), "the text", start)
        elif token.lstrip("-") in ("NaN", "Infinity"):
            self._add("not-json", f"{token} is not JSON: leave the field out, or say null", start)
        elif token[0] in "-0123456789":
            self._check_number(token, start)

    def _check_surrogates(self, text: str, what: str, start: int) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            message = f"{what} {quoted(text)} holds half of a surrogate pair, which is no character"
            self._add("lone-surrogate", message, start)

    def _check_number(self, token: str, start: int) -> None:
        try:
            _STRICT.decode(token)
        except NotStrict as error:
            number = token if len(token) <= 30 else token[:29] + "…"
            message = f"the number {number} is out of range ({error}): send it as a string"
            self._add("number-out-of-range", message, start)

    @property
    def _is_full(self) -> bool:
        return len(self.faults) >= MAX_FAULTS

    def _add(self, type: FaultType, message: str, start: int, *names: str) -> None:
        if not self._is_full:
            path = [node.name for node in self._stack[2:]] + list(names)
            self.faults.append(_fault(self.text, type, path, message, start))
