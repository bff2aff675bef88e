"""What every read of the cache has in common: its index, its ETag, how fresh it is, and 304."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from flask import Response
from werkzeug.datastructures import ETags
from werkzeug.http import quote_etag

from manifest_cache.storage import models
from manifest_cache.storage.models import utc_now
from manifest_cache.storage.reader import Snapshot
from web.problems import BadParameter, Problem, TooStale
from web.rendering.module_json import ModuleParts
from web.schemas.freshness import CONTACT_HEADER, STALE_HEADER, contact, is_older, longest_unconfirmed, stale
from web.schemas.types import LARGEST_INDEX

INDEX_HEADER = "X-Lictor-Index"
NOTHING = ETags()
"""What a client knows that was never here."""

Row = TypeVar("Row")
Place = TypeVar("Place", str, int)


class NotModified(Exception):
    """The client has this answer already."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cached answer depends on, besides the request: it is valid as long as this stays.

    `sources` feed it, `max_stale` is how many seconds ago each must have been confirmed at the
    most. An answer that `tells_last_seen` grows old by itself. `again` makes it from another state
    without the request; where that cannot be, it is None. Where `about` is given it tells of these
    modules alone, and stays but for its index while none of them changes.
    """

    index: int
    sources: Sequence[models.SourceRow]
    max_stale: float | None
    tells_last_seen: bool
    again: Renderer | None
    about: frozenset[str] | None


class Rerendered(NamedTuple):
    """An answer that was made again: those of its headers that are of one state alone, and its body."""

    headers: list[tuple[str, str]]
    body: bytes
    facts: CacheInfo


Renderer: TypeAlias = Callable[[Snapshot], Rerendered]
"""Raises Problem where there is no such answer any more."""


class Read:
    """One read: the state that it is answered from, what its client knows, and what its headers will say."""

    def __init__(
        self,
        snapshot: Snapshot,
        parts: ModuleParts,
        known: ETags,
        max_stale: float | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.parts = parts
        self.tells_last_seen = False
        self.about: frozenset[str] | None = None
        self._max_stale = max_stale
        self._known = known
        self._etag = str(snapshot.index)
        self._feeding: Sequence[models.SourceRow] = snapshot.sources

    def raise_if_not_modified(
        self, *, etag: str | None = None, modules: Sequence[models.ModuleRow] = ()
    ) -> None:
        """Raises NotModified if the client has this answer; to be called once it is known that there is one.

        `etag` stands in for the index, `modules` are those that the answer tells of: their sources
        feed it, and else all do.
        Raises TooStale where one of these was out of reach for longer than the client bears.
        """
        if etag is not None:
            self._etag = etag
        if modules:
            self._feeding = self._sources_of(modules)
        if self._max_stale is not None:
            oldest = longest_unconfirmed(self._feeding)
            if oldest is not None and is_older(oldest, self._max_stale, utc_now()):
                raise TooStale.of(oldest.name, self._max_stale, contact([oldest]))
        if self._known.contains_weak(self._etag):
            raise NotModified

    def _sources_of(self, modules: Sequence[models.ModuleRow]) -> Sequence[models.SourceRow]:
        """The sources that the instances of modules come from; all where one has none left."""
        if not all(module.registries for module in modules):
            return self._feeding
        registries = {name for module in modules for name in module.registries}
        feeding = [source for source in self._feeding if source.registry_name in registries]
        if len({source.registry_name for source in feeding}) < len(feeding):
            # One registry has several sources, and only the instances tell which of them it is.
            names = self.snapshot.sources_of([module.name for module in modules])
            feeding = [source for source in feeding if source.name in names]
        return feeding

    @property
    def lost(self) -> Sequence[models.SourceRow]:
        """The sources that feed the answer and are out of reach, or doubted."""
        return [source for source in self._feeding if not source.is_current]

    def finish(self, response: Response) -> Response:
        response.set_etag(self._etag)
        response.headers["Cache-Control"] = "no-cache"
        response.headers.extend(self.headers())
        return response

    def finish_again(self, body: bytes, again: Renderer) -> Rerendered:
        """The same for an answer that is made without a request."""
        headers = [
            ("Content-Length", str(len(body))),
            ("ETag", quote_etag(self._etag)),
            *self.headers().items(),
        ]
        return Rerendered(headers, body, self.facts(again))

    def facts(self, again: Renderer | None) -> CacheInfo:
        return CacheInfo(
            self.snapshot.index, self._feeding, self._max_stale, self.tells_last_seen, again, self.about
        )

    def headers(self) -> dict[str, str]:
        headers = {INDEX_HEADER: str(self.snapshot.index)}
        if lost := self.lost:
            headers[STALE_HEADER] = stale(lost)
        if heard := contact(self._feeding):
            headers[CONTACT_HEADER] = heard
        return headers

    def explain(self, problem: Problem) -> Problem:
        """The problem, with the state that it was found in: a stale cache may be why something is unknown."""
        problem.headers.update(self.headers())
        return problem


def list_of(items: bytes, index: int, **members: Any) -> bytes:
    """A list of texts, and what else its answer has."""
    others = json.dumps(members, separators=(",", ":")).encode()[1:-1]
    return b'{"items":[' + items + b"]," + others + b"," + _index_member(index)


def at_index(body: bytes, before: int, index: int) -> bytes:
    """What `list_of` made at one index, or a document without an index, as it is at another one."""
    member = _index_member(before)
    return body.removesuffix(member) + _index_member(index) if body.endswith(b"," + member) else body


def _index_member(index: int) -> bytes:
    return f'"index":{index}}}'.encode()


def page(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], Row | None]:
    """Of rows that were read with one more than the limit: the page, and its last row if more follow."""
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


def cursor_after(what: str, place: str | int) -> str:
    """An opaque cursor for the page of `what` that begins behind `place`."""
    packed = json.dumps([what, place], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def parse_cursor(what: str, cursor: str | None, kind: type[Place]) -> Place | None:
    """The place that `cursor_after` packed. Raises BadParameter if it is none, or one of another list."""
    if cursor is None:
        return None
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, place = json.loads(packed)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise broken_cursor() from None
    if found != what or type(place) is not kind or not _is_sound(place):
        raise broken_cursor()
    return place


def _is_sound(place: str | int) -> bool:
    if isinstance(place, int):
        return 0 <= place <= LARGEST_INDEX
    return place.isprintable() and place == place.encode(errors="replace").decode()


def broken_cursor() -> BadParameter:
    return BadParameter.of([("cursor", "is not one that this list gave out: leave it away to start again")])
