"""Follows Lictor's event stream and makes a new snapshot for each change.

All modules are read once; then the event stream tells which of them changed, and those are read
again. The stream resumes behind the last event that is known, so that nothing is missed after a
break. The stream's lines are taken apart here: its comments, which parsers for it keep to
themselves, are what confirms that nothing changed.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from discovery.client.snapshot import Module, View
from discovery.errors import RegistryUnavailable
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

_API = "/api/v1"
_TIMEOUT = 5.0
# The stream says something every 15 seconds.
_SILENCE = 40.0
# Events that come together are read together.
_GATHER = 0.01
# If more modules than these changed at once, all are read again.
_MANY = 200
_NAMES_A_REQUEST = 50
# Characters: Lictor's web server takes lines of 8,190, and others on the way may take fewer.
_LONGEST_QUERY = 4000
# Seconds; what goes wrong after a longer time is no part of the trouble before it.
_STEADY = 10.0
_PAGE = 1000


class _Gone(Exception):
    """The events behind the position are not kept any longer, or were never those of this database."""


class CatalogFeed:
    """Follows one Lictor; `publish` is called with each new view and the names of what changed in it.

    `run` ends only when cancelled. `view` is what it begins with, None for nothing. `lost` is called
    with the reason whenever Lictor turns out to be out of reach, and goes on being tried.
    """

    def __init__(
        self,
        url: str,
        view: View | None,
        publish: Callable[[View, frozenset[str]], None],
        lost: Callable[[str], None],
        *,
        manifests: bool,
    ) -> None:
        self._url = url
        self._view = view
        self._publish = publish
        self._lost = lost
        self._include = "instances,manifest" if manifests else "instances"
        self._dirty: set[str] = set()
        self._position = 0
        self._woken = asyncio.Event()

    async def run(self) -> None:
        backoff = Backoff(shortest=0.1, longest=15.0)
        # Lictor is there: the pauses that its absence made long are no reason to wait now.
        rereads = Backoff(shortest=0.1, longest=15.0)
        async with self._client() as client:
            while True:
                begun = time.monotonic()
                pauses = backoff
                try:
                    if self._view is None:
                        await self._read_all(client)
                    await self._follow(client)
                except _Gone as exc:
                    logger.info("reading the catalog again url=%s: %s", self._url, exc)
                    # Who was told of it keeps it until all is read.
                    self._view = None
                    pauses = rereads
                except (RegistryUnavailable, httpx.HTTPError) as exc:
                    self._lost(str(exc) or type(exc).__name__)
                except (KeyError, TypeError, ValueError, RecursionError) as exc:
                    why = f"{type(exc).__name__}: {exc}"
                    self._lost(f"its answers make no sense, is it Lictor? ({why})")
                if time.monotonic() - begun >= _STEADY:
                    backoff.reset()
                    rereads.reset()
                await asyncio.sleep(pauses.next())

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._url,
            timeout=_TIMEOUT,
            trust_env=False,
            verify=ssl.create_default_context(),
            headers={"Accept": "application/json"},
        )

    async def _read_all(self, client: httpx.AsyncClient) -> None:
        modules: dict[str, Module] = {}
        cursor, index, stale = "", None, ""
        while True:
            path = f"{_API}/modules?limit={_PAGE}&include={self._include}{cursor}"
            answer, headers = await self._get(client, path)
            modules.update((module["name"], Module.of(module)) for module in answer["items"])
            # What changes while the pages are read is told by the events behind the first.
            index = answer["index"] if index is None else index
            stale = headers.get("X-Lictor-Stale", "")
            if answer["next"] is None:
                break
            cursor = f"&cursor={quote(answer['next'])}"
        self._view = View(index, modules, time.time(), stale)
        self._publish(self._view, frozenset(modules))

    async def _follow(self, client: httpx.AsyncClient) -> None:
        """Listens and reads what changed, until one of both fails."""
        if self._view is not None:
            self._position = self._view.index
        # What was told and not read is told again.
        self._dirty.clear()
        tasks = {
            asyncio.create_task(self._listen(client), name="listen to events"),
            asyncio.create_task(self._refresh_dirty(client), name="read what changed"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, client: httpx.AsyncClient) -> None:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._position)}
        timeout = httpx.Timeout(_TIMEOUT, read=_SILENCE)
        async with client.stream("GET", f"{_API}/events", headers=headers, timeout=timeout) as response:
            self._check_stream(response)
            async for id_, data in _events(response.aiter_lines(), self._confirm):
                self._take(id_, data)
        raise RegistryUnavailable(f"{self._url}: the event stream ended")

    def _check_stream(self, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.GONE:
            raise _Gone("the events behind the last known are not kept any longer")
        _check(response, self._url)
        if int(response.headers.get("X-Lictor-Index", self._position)) < self._position:
            raise _Gone("its database is another one")

    def _take(self, id_: str, data: str) -> None:
        if not data:
            return
        event = json.loads(data)
        self._position = int(id_)
        if event["module"] is not None:
            self._dirty.add(event["module"])
        self._woken.set()

    def _confirm(self) -> None:
        """Something came: Lictor is there, and whatever changed is on its way."""
        if self._view is not None and self._view.index >= self._position:
            self._view = self._view.confirmed(time.time())
            self._publish(self._view, frozenset())

    async def _refresh_dirty(self, client: httpx.AsyncClient) -> None:
        while True:
            await self._woken.wait()
            await asyncio.sleep(_GATHER)
            self._woken.clear()
            names, position = sorted(self._dirty), self._position
            self._dirty.clear()
            await self._refresh(client, names, position)

    async def _refresh(self, client: httpx.AsyncClient, names: Sequence[str], position: int) -> None:
        if len(names) > _MANY or self._view is None:
            await self._read_all(client)
            return
        # Without names it is a registry that changed, and the header of any answer says how.
        lookups = [f"{_API}/modules/lookup?{asked}&include={self._include}" for asked in _portions(names)]
        paths = lookups or [f"{_API}/modules?limit=1"]
        found: list[Module] = []
        gone: list[str] = []
        stale = ""
        for path in paths:
            answer, headers = await self._get(client, path)
            stale = headers.get("X-Lictor-Stale", "")
            if names:
                found += map(Module.of, answer["items"])
                gone += answer["unknown"]
        self._view = self._view.with_modules(
            found, gone, index=position, confirmed_at=time.time(), stale=stale
        )
        self._publish(self._view, frozenset(names))

    async def _get(self, client: httpx.AsyncClient, path: str) -> tuple[Any, httpx.Headers]:
        response = await client.get(path)
        _check(response, self._url)
        return response.json(), response.headers


def _check(response: httpx.Response, url: str) -> None:
    if response.status_code != httpx.codes.OK:
        raise RegistryUnavailable(
            f"{url} answered {response.status_code} to {response.request.url.path}",
            status=response.status_code,
        )


async def _events(lines: AsyncIterator[str], heard: Callable[[], None]) -> AsyncIterator[tuple[str, str]]:
    """The ids and data of the events; `heard` is called for whatever comes."""
    id_, data = "", []
    async for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            id_ = value
        elif name == "data":
            data.append(value)
        elif not line:
            yield id_, "\n".join(data)
            data = []
        heard()


def _portions(names: Iterable[str]) -> Iterator[str]:
    """What asks for these names, in parts that fit into a request each."""
    part: list[str] = []
    for name in names:
        asked = f"name={quote(name, safe='')}"
        full = len(part) == _NAMES_A_REQUEST or len("&".join([*part, asked])) > _LONGEST_QUERY
        if part and full:
            yield "&".join(part)
            part = []
        part.append(asked)
    if part:
        yield "&".join(part)
