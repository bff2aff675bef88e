"""Reads and checks the TOML file that names the receivers of webhooks.

Secrets appear in no fault and in no representation, nor do the paths of addresses: those of some
chat services are secrets too.
"""

from __future__ import annotations

import base64
import binascii
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from discovery.errors import ConfigError
from discovery.http.url import DEFAULT_PORT, LONGEST_PORT, HttpURL, is_host
from discovery.text import quoted
from manifest_cache.ledger.event_types import EVENT_TYPES

_LARGEST_FILE = 1024 * 1024
_MOST_RECEIVERS = 100
_SECRET = "whsec_"  # noqa: S105 - how secrets begin, by the Standard Webhooks specification
_KEY_LENGTHS = range(24, 65)
_SECRET_ADVICE = (
    f'must be "{_SECRET}" and the base64 of {_KEY_LENGTHS[0]} to {_KEY_LENGTHS[-1]} random bytes: make one '
    f'with echo "{_SECRET}$(openssl rand -base64 32)"'
)


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who gets which events, and the keys that sign them, the newest first.

    `events` and `modules` are patterns in which `*` stands for anything.
    """

    name: str
    url: HttpURL = field(repr=False)
    events: tuple[str, ...]
    modules: tuple[str, ...]
    keys: tuple[bytes, ...] = field(repr=False)

    def wants(self, type_: str, module: str | None) -> bool:
        """Whether it gets an event of this type; one that is about no module has the name "" here."""
        return _matches(type_, self.events) and _matches(module or "", self.modules)

    @property
    def origin(self) -> str:
        """Its address without the path."""
        return f"{self.url.scheme}://{self.url.authority}"


class WebhookFile:
    """The file of the receivers, and the files of their secrets; `changed` once it may say something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamps: dict[Path, object] = {}

    def read(self) -> tuple[Receiver, ...]:
        """The receivers in the order of the file. Raises ConfigError with every fault."""
        self._stamps = {}
        try:
            told = tomllib.loads(self._content(self.path))
        except (ValueError, OSError, RecursionError) as exc:
            raise self._error([_said(exc)]) from exc
        entries = told.pop("receiver", None)
        faults = [f"{quoted(name)} is unknown: there are only [[receiver]] tables" for name in told]
        if not isinstance(entries, list) or not entries:
            faults.append("has no [[receiver]] table: each receiver needs one")
            raise self._error(faults)
        if len(entries) > _MOST_RECEIVERS:
            faults.append(f"has {len(entries)} receivers: {_MOST_RECEIVERS} are allowed")
            raise self._error(faults)
        receivers = []
        for number, entry in enumerate(entries, 1):
            try:
                receivers.append(self._receiver(entry))
            except ConfigError as exc:
                faults += [f"{_called(entry, number)}: {fault}" for fault in exc.faults]
        faults += _repeated(entries)
        if faults:
            raise self._error(faults)
        return tuple(receivers)

    @property
    def changed(self) -> bool:
        """Whether any of the files is another than when it was read."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())

    def _receiver(self, entry: object) -> Receiver:
        try:
            checked = _Entry.model_validate(entry)
        except ValidationError as exc:
            raise ConfigError([_fault(dict(error)) for error in exc.errors()]) from exc
        if checked.secret_file is None:
            keys = _keys("secret", checked.secret)
        else:
            keys = self._keys_of_file(self.path.parent / checked.secret_file)
        return Receiver(checked.name, checked.url, checked.events, checked.modules, keys)

    def _keys_of_file(self, path: Path) -> tuple[bytes, ...]:
        try:
            lines = self._content(path).split()
        except (ValueError, OSError) as exc:
            raise ConfigError([f"secret_file: {path} {_said(exc)}"]) from exc
        if not lines:
            raise ConfigError([f"secret_file: {path} is empty: put a secret in each line"])
        return _keys(f"secret_file: {path}", lines)

    def _content(self, path: Path) -> str:
        # Taken first: what is written meanwhile is noticed at the next look.
        self._stamps[path] = _stamp(path)
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError(f"is larger than {_LARGEST_FILE} bytes")
        return content.decode()

    def _error(self, faults: Sequence[str]) -> ConfigError:
        return ConfigError([f"LICTOR_WEBHOOKS: {self.path}: {fault}" for fault in faults])


def _patterns(said: object) -> tuple[str, ...]:
    if not isinstance(said, list) or not said or not all(isinstance(one, str) and one for one in said):
        raise ValueError('must be a list of patterns, such as ["module.*"]')
    return tuple(said)


def _secrets(said: object) -> tuple[str, ...]:
    secrets = said if isinstance(said, list) else [said]
    if not secrets or not all(isinstance(one, str) for one in secrets):
        raise ValueError("must be a secret, or a list of them of which the first is the newest")
    return tuple(secrets)


def _url(said: object) -> HttpURL:
    if not isinstance(said, str) or not said.isascii() or not said.isprintable() or " " in said:
        raise ValueError("must be an address such as https://hooks.example/lictor, percent-encoded")
    try:
        parts = urlsplit(said)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"must end its host in a port from 1 to {LONGEST_PORT}, or in none") from exc
    if parts.scheme not in DEFAULT_PORT:
        raise ValueError("must begin with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name and no password: the signature says who sends")
    if not parts.hostname or not is_host(parts.hostname):
        raise ValueError("must name a host by its name or IP address")
    if port == 0:
        raise ValueError(f"must have a port from 1 to {LONGEST_PORT}")
    if parts.fragment:
        raise ValueError("must have no fragment (#)")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpURL(parts.scheme, parts.hostname, port or DEFAULT_PORT[parts.scheme], target)


class _Entry(BaseModel):
    """A [[receiver]] table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    url: Annotated[HttpURL, PlainValidator(_url)]
    events: Annotated[tuple[str, ...], PlainValidator(_patterns)] = ("*",)
    modules: Annotated[tuple[str, ...], PlainValidator(_patterns)] = ("*",)
    secret: Annotated[tuple[str, ...], PlainValidator(_secrets)] = Field(default=(), repr=False)
    secret_file: str | None = Field(default=None, min_length=1)

    @field_validator("events")
    @classmethod
    def _of_known_types(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """A pattern that can never match is a slip of the pen."""
        idle = [one for one in patterns if not any(fnmatchcase(known, one) for known in EVENT_TYPES)]
        if idle:
            named = ", ".join(map(quoted, idle))
            raise ValueError(f"no event is of type {named}: the types are {', '.join(EVENT_TYPES)}")
        return patterns

    @model_validator(mode="after")
    def _one_source_of_secrets(self) -> Self:
        if bool(self.secret) == (self.secret_file is not None):
            raise ValueError("needs either a secret or a secret_file")
        return self


def _keys(where: str, secrets: Sequence[str]) -> tuple[bytes, ...]:
    keys = tuple(map(_key, secrets))
    if None in keys:
        raise ConfigError([f"{where}: {_SECRET_ADVICE}"])
    return tuple(key for key in keys if key is not None)


def _key(secret: str) -> bytes | None:
    if not secret.startswith(_SECRET):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) in _KEY_LENGTHS else None


_PLAIN_WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is unknown: there are name, url, events, modules, secret and secret_file",
    "string_pattern_mismatch": "must have 1 to 64 letters, digits, dots, hyphens and underscores, and begin "
    "with a letter or a digit",
    "model_type": "must be a table: write [[receiver]]",
    "string_too_short": "is empty",
    "string_type": "must be a text in quotes",
}


def _fault(error: Mapping[str, Any]) -> str:
    """One fault of a table; never with the value, which may be a secret."""
    said = str(error["msg"]).removeprefix("Value error, ")
    told = _PLAIN_WORDS.get(str(error["type"]), said)
    return f"{error['loc'][0]}: {told}" if error["loc"] else told


def _called(entry: object, number: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"receiver {quoted(name)}" if isinstance(name, str) and name else f"receiver {number}"


def _repeated(entries: Sequence[object]) -> Iterator[str]:
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    for name in dict.fromkeys(name for name in names if isinstance(name, str) and names.count(name) > 1):
        yield f"receiver {quoted(name)}: name: is that of two receivers: give each its own"


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _said(exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"cannot be read: {exc.strerror or exc}"
    if isinstance(exc, UnicodeDecodeError):
        return "is not UTF-8"
    if isinstance(exc, RecursionError):
        return "is nested too deep"
    return f"is not TOML: {exc}" if isinstance(exc, tomllib.TOMLDecodeError) else str(exc)


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as exc:
        return exc.errno
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
