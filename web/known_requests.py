"""Requests that came before, byte for byte: their heads in, kept answers as bytes for the wire out.

A client that keeps its connection sends the same head again and again. What was parsed once, and was
answered from what is kept, needs no parser, no thread and no environment the next time.
"""

from __future__ import annotations

import functools
import re
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from gunicorn import SERVER  # type: ignore[import-untyped]
from gunicorn.util import http_date  # type: ignore[import-untyped]

from web.response_cache.read_cache import Repeat
from web.response_cache.whole_answer import Headers, Sent
from web.telemetry.request_metrics import REQUEST_ID_HEADER, count, request_ids

LONGEST = 2048
"""How many bytes a head may have at the most, to be remembered."""

_MOST = 1024
_PLAIN = re.compile(rb"(?:GET|HEAD) [^\r\n]+ HTTP/1\.1\r\n")
_END_OF_HEAD = b"\r\n\r\n"
# What comes with a body or changes the connection, an id that the answer has to carry, and names
# that gunicorn takes from some peers only.
_OF_ITS_OWN = re.compile(
    rb"\r\n(?:content-length:|transfer-encoding:|expect:|upgrade:|x-request-id:|[^:\r\n]*_)", re.IGNORECASE
)


class Wire(NamedTuple):
    """A whole answer as it is sent."""

    head: bytes
    body: bytes


class KnownRequest:
    """One of them. It is counted like any other each time it is answered."""

    def __init__(self, repeat: Repeat) -> None:
        self._repeat = repeat
        self._headers: Headers | None = None
        self._begin = self._middle = b""

    @property
    def asked(self) -> Hashable:
        """The same for all that want the same answer, in whatever form."""
        return self._repeat.asked

    def index(self) -> int:
        """The newest index. Raises StoreError."""
        return self._repeat.cache.index()

    def current_or_none(self) -> int | None:
        """The newest index, None if that cannot be told without a wait."""
        return self._repeat.cache.current_or_none()

    def answer(self, index: int, begun: float) -> Wire | None:
        """The answer at this index to a request that came at `begun`; None if it has to be made."""
        found = self._repeat.at_hand(index)
        if found is None:
            return None
        sent, route = found
        # Not the answer itself is held on to here, for there is a bound for those.
        if sent.headers is not self._headers:
            self._prepare(sent)
        count(self._repeat.method, route, sent.status[:3], time.perf_counter() - begun)
        id_ = next(request_ids).encode()
        head = b"".join((self._begin, _date(int(time.time())), self._middle, id_, _END_OF_HEAD))
        return Wire(head, sent.body if self._repeat.method == "GET" else b"")

    def _prepare(self, sent: Sent) -> None:
        """All of the head but what is another one each time, in the order that it has on gunicorn's way."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.headers)
        self._begin = f"HTTP/1.1 {sent.status}\r\nServer: {SERVER}\r\nDate: ".encode("latin-1")
        self._middle = f"\r\nConnection: keep-alive\r\n{lines}{REQUEST_ID_HEADER}: ".encode("latin-1")
        self._headers = sent.headers


class KnownRequests:
    """Those of one worker; for one thread. There goes first what did not come for the longest time."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, KnownRequest] = OrderedDict()

    def learn(self, head: bytes, repeat: Repeat) -> None:
        """Takes over a request that was answered, if its bytes alone say what there is to know of it."""
        if len(head) > LONGEST or not _is_plain(head):
            return
        self._known[head] = KnownRequest(repeat)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def get(self, head: bytes) -> KnownRequest | None:
        known = self._known.get(head)
        if known is not None:
            self._known.move_to_end(head)
        return known


def _is_plain(head: bytes) -> bool:
    """Whether it is one whole request, and no more."""
    return (
        head.find(_END_OF_HEAD) == len(head) - len(_END_OF_HEAD)
        and _PLAIN.match(head) is not None
        and _OF_ITS_OWN.search(head) is None
    )


@functools.lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    date: str = http_date(second)
    return date.encode()
