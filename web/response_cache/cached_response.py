"""Holds one finished response: plain, compressed and as 304."""

from __future__ import annotations

import functools
import gzip
import time
from collections.abc import Sequence
from dataclasses import replace

from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header, parse_etags, quote_etag, unquote_etag

from manifest_cache.storage.models import SourceRow, utc_now
from manifest_cache.storage.reader import Snapshot
from web.api.read import INDEX_HEADER, CacheInfo, at_index
from web.rendering.module_changes import Changes
from web.response_cache.raw_response import Headers, RawResponse
from web.schemas.freshness import CONTACT_HEADER, STALE_HEADER, contact, is_older, longest_unconfirmed

# Less than this fits into one packet, packed or not.
_WORTH_PACKING = 1024
# The first levels save most: with the highest a megabyte takes four times as long for some percent less.
_LEVEL = 4
_CONTACT_FOR = 1.0
_LAST_SEEN_FOR = 5.0
# Memory that an answer takes besides its bytes, roughly.
_OVERHEAD = 2000
_OF_BODY = ("Content-Type", "Content-Length")
_OF_ONE_STATE = ("Content-Length", "ETag", INDEX_HEADER, STALE_HEADER, CONTACT_HEADER)
_VARY = ("Vary", "Accept-Encoding")


class CachedResponse:
    """An answer with status 200 that may be given again as long as the index is the same.

    `expires` is when it grows old by itself, on the monotonic clock. It tells when its sources were
    last confirmed, and is to be told again when it `needs_refresh`.
    """

    def __init__(self, response: RawResponse, facts: CacheInfo, route: str) -> None:
        now = time.monotonic()
        self.index = facts.index
        self.route = route
        self.source_names = [source.name for source in facts.sources]
        self.expires = now + _LAST_SEEN_FOR if facts.tells_last_seen else float("inf")
        self._max_stale = facts.max_stale
        self._facts = facts
        self._body = response.body
        self._packed: bytes | None = None
        self._etag_line = next(value for name, value in response.headers if name == "ETag")
        self._headers = [line for line in response.headers if line[0] != CONTACT_HEADER]
        self._headers.append(_VARY)
        self.refresh(facts.sources, now)

    @property
    def size(self) -> int:
        return len(self._body) + len(self._packed or b"") + _OVERHEAD

    def made_again(self, snapshot: Snapshot) -> CachedResponse | None:
        """The answer to the same at another state, without the application; None where that has to make it.

        Raises Problem where there is none any more.
        """
        if self._facts.again is None:
            return None
        made = self._facts.again(snapshot)
        same = [line for line in self._headers if line != _VARY and line[0] not in _OF_ONE_STATE]
        return CachedResponse(
            RawResponse("200 OK", [*same, *made.headers], made.body), made.facts, self.route
        )

    def renewed(self, changes: Changes) -> CachedResponse | None:
        """The same answer at a later index, if nothing happened since that it would tell of."""
        about = self._facts.about
        if about is None or (index := changes.unchanged_until(self.index, (None, *about))) == self.index:
            return None
        body = at_index(self._body, self.index, index)
        other = {"Content-Length": str(len(body)), "ETag": quote_etag(str(index)), INDEX_HEADER: str(index)}
        headers = [(name, other.get(name, value)) for name, value in self._headers if (name, value) != _VARY]
        facts = replace(self._facts, index=index, sources=self._sources)
        answer = CachedResponse(RawResponse("200 OK", headers, body), facts, self.route)
        answer.expires, answer._refresh_at = self.expires, self._refresh_at
        return answer

    def needs_refresh(self, now: float) -> bool:
        return now >= self._refresh_at

    def refresh(self, sources: Sequence[SourceRow], now: float) -> None:
        """Takes over when its sources were last confirmed."""
        self._refresh_at = now + _CONTACT_FOR
        self._sources = sources
        self._oldest = longest_unconfirmed(sources)
        heard = contact(sources)
        headers = [*self._headers, (CONTACT_HEADER, heard)] if heard else self._headers
        self._plain = RawResponse("200 OK", headers, self._body)
        # Made when they are asked for.
        self._not_modified: RawResponse | None = None
        self._gzip_not_modified: RawResponse | None = None
        self._gzip = _packed(headers, self._packed) if self._packed else None

    def is_too_old(self, now: float) -> bool:
        """Whether it has grown old by itself, or is older than what was asked for bears."""
        if now >= self.expires:
            return True
        return self._max_stale is not None and is_older(self._oldest, self._max_stale, utc_now())

    def for_client(self, if_none_match: str | None, accept_encoding: str | None) -> RawResponse:
        """What a client gets that sent these headers."""
        return self.ready(if_none_match, accept_encoding) or self._pack()

    def ready(self, if_none_match: str | None, accept_encoding: str | None) -> RawResponse | None:
        """The same, but None if the body is still to be packed for it."""
        packs = accept_encoding and len(self._body) >= _WORTH_PACKING and _takes_gzip(accept_encoding)
        if if_none_match is not None and self._is_known(if_none_match):
            return self._known_packed() if packs else self._known()
        return self._gzip if packs else self._plain

    def _known(self) -> RawResponse:
        if self._not_modified is None:
            self._not_modified = _without_body(self._plain.headers)
        return self._not_modified

    def _known_packed(self) -> RawResponse:
        if self._gzip_not_modified is None:
            self._gzip_not_modified = _without_body(_weak(self._plain.headers))
        return self._gzip_not_modified

    def _is_known(self, if_none_match: str) -> bool:
        if if_none_match == self._etag_line:
            return True
        return parse_etags(if_none_match).contains_weak(unquote_etag(self._etag_line)[0] or "")

    def _pack(self) -> RawResponse:
        # Without a time in it, it is the same on every worker.
        self._packed = gzip.compress(self._body, _LEVEL, mtime=0)
        self._gzip = _packed(self._plain.headers, self._packed)
        return self._gzip


def _packed(headers: Headers, body: bytes) -> RawResponse:
    lines = [line for line in _weak(headers) if line[0] != "Content-Length"]
    return RawResponse(
        "200 OK", [*lines, ("Content-Length", str(len(body))), ("Content-Encoding", "gzip")], body
    )


def _weak(headers: Headers) -> Headers:
    """With a weak ETag, as other bytes must not have the same strong one."""
    return [(name, f"W/{value}" if name == "ETag" else value) for name, value in headers]


def _without_body(headers: Headers) -> RawResponse:
    return RawResponse("304 NOT MODIFIED", [line for line in headers if line[0] not in _OF_BODY], b"")


@functools.lru_cache(maxsize=256)
def _takes_gzip(accept_encoding: str) -> bool:
    accepted: Accept = parse_accept_header(accept_encoding)
    return accepted.quality("gzip") > 0
