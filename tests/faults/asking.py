"""Applications that read all the time: an address in; every answer that was not as it should be out."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx

from tests.faults.lictor import Excuses

_PAUSE = 0.03
_LIMIT = 60.0

LISTS = (
    "/api/v1/modules",
    "/api/v1/modules?include=manifest,instances&limit=1000",
    "/api/v1/modules?status=available",
    "/api/v1/events?limit=20",
)
WAITING = "/api/v1/modules?wait=300ms&index="


class Asking:
    """Threads that ask for what applications ask for, until the block ends.

    An answer must have status 200 (304 where it is known), an index that is not below that of any
    answer which was complete when it was asked for, and an ETag that agrees with it. A connection
    that fails is excused where a process that serves was killed in that time. `known` says which
    modules have a manifest.
    """

    def __init__(
        self, url: str, excuses: Excuses, known: Callable[[], list[str]], *, seed: int, threads: int = 2
    ) -> None:
        self.faults: list[str] = []
        self.answered = 0
        self._url = url
        self._excuses = excuses
        self._known = known
        self._index = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + number),), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_LIMIT)

    def _run(self, chance: random.Random) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        etags: dict[str, str] = {}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=_LIMIT, limits=limits) as client:
            while not self._ended.wait(_PAUSE):
                path = self._choose(chance)
                known = etags.get(path, "") if chance.random() < 0.3 else ""
                if answer := self._ask(client, path, known):
                    etags[path] = _opaque(answer)

    def _choose(self, chance: random.Random) -> str:
        names = self._known()
        if chance.random() < 0.15:
            return f"{WAITING}{self._index}"
        if not names or chance.random() < 0.6:
            return chance.choice(LISTS)
        path = f"/api/v1/modules/{chance.choice(names)}"
        return chance.choice([path, f"{path}/manifest", f"{path}/instances"])

    def _ask(self, client: httpx.Client, path: str, known: str) -> httpx.Response | None:
        began, floor = time.monotonic(), self._index
        try:
            answer = client.get(path, headers={"If-None-Match": f'"{known}"'} if known else {})
        except httpx.TransportError as exc:
            if not self._excuses.cover(began, time.monotonic()):
                self._tell(path, f"no answer after {time.monotonic() - began:.1f} s: {exc!r}")
            return None
        if answer.status_code == 503 and self._excuses.cover(began, time.monotonic()):
            return None
        if fault := _fault(answer, known, floor):
            self._tell(path, fault)
            return None
        with self._lock:
            self.answered += 1
            self._index = max(self._index, int(answer.headers["X-Lictor-Index"]))
        return answer

    def _tell(self, path: str, fault: str) -> None:
        self.faults.append(f"GET {path}: {fault}")


def _fault(answer: httpx.Response, known: str, floor: int) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer.status_code == 304 and known:
        return "" if _opaque(answer) == known else f"304 with the ETag {_opaque(answer)}, {known} was sent"
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:500]}"
    index = int(answer.headers.get("X-Lictor-Index", "-1"))
    if index < floor:
        return f"index {index}, where {floor} was answered before it was asked for"
    etag = _opaque(answer)
    if answer.request.url.path.endswith("/manifest"):
        digest = hashlib.sha256(answer.content).hexdigest()
        return "" if etag == digest else f"the ETag is {etag}, the content's digest {digest}"
    if etag != str(index) or ("index" in answer.json() and answer.json()["index"] != index):
        said = answer.json().get("index")
        return f"X-Lictor-Index is {index}, but the ETag {etag} and the body says {said}"
    return ""


def _opaque(answer: httpx.Response) -> str:
    """The ETag, whether the answer was compressed (and the tag weak for that) or not."""
    return str(answer.headers.get("ETag", "")).removeprefix("W/").strip('"')
