"""Answers an application's questions about modules from a copy in memory that is kept current.

catalog = Catalog("http://127.0.0.1:8080", copy="catalog.json")
catalog.module("financial").version
catalog.instances("financial", passing=True)
catalog.pick("financial").url
for changed in catalog.watch():
    print(changed.modules)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from discovery.announce.background_loop import BackgroundLoop
from discovery.base import Health
from discovery.client.disk_cache import CatalogCopy
from discovery.client.feed import CatalogFeed
from discovery.client.snapshot import Instance, Module, View
from discovery.errors import ConfigError, NoInstance, RegistryUnavailable
from discovery.http.lictor_url import DEFAULT_LICTOR_URL
from discovery.push.registrar import url_faults

__all__ = ["AsyncCatalog", "Catalog", "Changed", "Instance", "Module"]

# Shortest time between two writes of the copy on disk, and its longest age, in seconds.
_COPY_PAUSE = 5.0
_COPY_AGE = 60.0
_CLOSING = 2.0


@dataclass(frozen=True, slots=True)
class Changed:
    """Word that modules changed, came or went; several changes may be told as one."""

    index: int
    modules: frozenset[str]


class _Watch:
    """What one watcher has not taken yet: the names that changed, so that it never grows beyond them."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._wake = wake
        self._index = 0
        self._names: frozenset[str] = frozenset()

    def tell(self, index: int, names: frozenset[str]) -> None:
        with self._lock:
            self._index, self._names = index, self._names | names
        self._wake()

    def take(self) -> Changed | None:
        with self._lock:
            names, self._names = self._names, frozenset()
            return Changed(self._index, names) if names else None


class _Follower:
    """Follows Lictor in an event loop, and holds what is known for callers in any thread."""

    def __init__(self, url: str, copy: Path | None, *, manifests: bool) -> None:
        self.url = url
        self.view: View | None = None
        self.reason = "it was not asked yet"
        self.connected = False
        self._copy = CatalogCopy(copy, url) if copy else None
        self._manifests = manifests
        self._watches: set[_Watch] = set()
        self._saved: View | None = None

    def prepare(self) -> None:
        """Takes what the copy on disk holds."""
        if self._copy is not None and self.view is None:
            self.view = self._saved = self._copy.load()

    async def run(self, settled: Callable[[], None]) -> None:
        """Runs until it is cancelled; `settled` is called when Lictor answered or did not."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def publish(view: View, names: frozenset[str]) -> None:
            before, self.view, self.connected = self.view, view, True
            settled()
            # What is read again need not be other than before.
            differing = frozenset(name for name in names if not _is_same(name, before, view))
            if differing:
                for watch in tuple(self._watches):
                    watch.tell(view.index, differing)
            changed.set()

        def lost(reason: str) -> None:
            self.connected, self.reason = False, reason
            settled()

        feed = CatalogFeed(self.url, self.view, publish, lost, manifests=self._manifests)
        keeping = loop.create_task(self._keep_copy(changed), name="keep a copy of the catalog")
        try:
            await feed.run()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            self._save()

    async def _keep_copy(self, changed: asyncio.Event) -> None:
        while self._copy is not None:
            await changed.wait()
            changed.clear()
            if self._is_worth_saving():
                await asyncio.to_thread(self._save)
                await asyncio.sleep(_COPY_PAUSE)

    def _is_worth_saving(self) -> bool:
        saved, view = self._saved, self.view
        if saved is None or view is None:
            return view is not None
        return saved.modules is not view.modules or view.confirmed_at - saved.confirmed_at > _COPY_AGE

    def _save(self) -> None:
        view = self.view
        if self._copy is not None and view is not None and view is not self._saved:
            self._copy.save(view)
            self._saved = view

    @contextlib.contextmanager
    def watched(self, wake: Callable[[], None]) -> Iterator[_Watch]:
        watch = _Watch(wake)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)


def _is_same(name: str, before: View | None, now: View) -> bool:
    return before is not None and before.modules.get(name) == now.modules.get(name)


class _Reads:
    """What both catalogs answer, from memory."""

    def __init__(self, url: str | None, copy: str | Path | None, manifests: bool, timeout: float) -> None:
        url = (url or os.environ.get("LICTOR_URL") or DEFAULT_LICTOR_URL).rstrip("/")
        if faults := url_faults(url):
            raise ConfigError([fault.replace("lictor_url", "url", 1) for fault in faults])
        self._follower = _Follower(url, Path(copy) if copy else None, manifests=manifests)
        self._timeout = timeout
        self._turns: dict[str, itertools.count[int]] = {}

    def _view(self) -> View:
        view = self._follower.view
        if view is None:
            raise RegistryUnavailable(
                f"nothing is known of any module: Lictor at {self._follower.url} does not answer "
                f"({self._follower.reason}), and there is no copy on disk. LICTOR_URL says where Lictor is"
            )
        return view

    def module(self, name: str) -> Module | None:
        """The module of this name, with its instances; None if there is none.

        This and every other read raises RegistryUnavailable only while nothing is known at all:
        Lictor was never reached, and there is no copy.
        """
        return self._view().modules.get(name)

    def modules(self) -> list[Module]:
        """All modules, in the order of their names."""
        return [module for _, module in sorted(self._view().modules.items())]

    def instances(self, name: str, *, passing: bool = False) -> list[Instance]:
        """The instances of a module, only those to send traffic to if `passing`; empty if it is unknown."""
        module = self.module(name)
        found = module.instances if module else ()
        return [one for one in found if not passing or one.health is Health.PASSING]

    def pick(self, name: str, *, how: Literal["random", "round_robin"] = "random") -> Instance:
        """One passing instance to send a request to. Raises NoInstance where there is none."""
        passing = self.instances(name, passing=True)
        if not passing:
            why = "there is no such module" if self.module(name) is None else "none of its instances passes"
            raise NoInstance(f"no instance of {name!r} can be called: {why}")
        if how == "random":
            return random.choice(passing)
        # Ordered, so that a view that is read again does not begin its rounds elsewhere.
        passing.sort(key=lambda one: (one.id, one.address, one.port))
        return passing[next(self._turns.setdefault(name, itertools.count())) % len(passing)]

    @property
    def index(self) -> int:
        """The index that the answers are true for."""
        return self._view().index

    @property
    def age(self) -> float:
        """Seconds since Lictor last said that the answers hold: a few, or the time that it is away."""
        return max(0.0, time.time() - self._view().confirmed_at)

    @property
    def stale(self) -> str:
        """The registries that Lictor itself cannot reach, as X-Lictor-Stale names them; empty for none."""
        return self._view().stale

    @property
    def connected(self) -> bool:
        """Whether Lictor answered last time."""
        return self._follower.connected


class Catalog(_Reads):
    """All modules and their instances, in memory, for threads; kept current by Lictor's event stream.

    `url` is Lictor's address, default LICTOR_URL or http://127.0.0.1:8080. `copy` names a file that
    keeps what is known, from which a program starts while Lictor is away. Without `manifests` they are
    neither read nor kept. The first read waits up to `timeout` seconds for Lictor; no other one waits.

    A daemon thread follows Lictor from the first use on, in a forked child one of its own; `close`
    or leaving the context ends it. Raises ConfigError if `url` is no address.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        copy: str | Path | None = None,
        manifests: bool = True,
        timeout: float = 5.0,
    ) -> None:
        super().__init__(url, copy, manifests, timeout)
        self._lock = threading.Lock()
        self._owner = 0
        self._waited = False
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._end: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        _catalogs.add(self)

    def start(self) -> Self:
        """Begins to follow Lictor, and waits until it answered, failed to, or `timeout` is over."""
        if self._owner != os.getpid():
            with self._lock:
                if self._owner != os.getpid():
                    self._begin()
        self._settled.wait(self._timeout)
        self._waited = True
        return self

    def close(self) -> None:
        """Ends following; what is known stays readable, and is kept in the copy."""
        with self._lock:
            if self._thread is not None and self._owner == os.getpid():
                self._closing.set()
                self._end()
                self._thread.join(_CLOSING)
            self._thread = None

    def watch(self, timeout: float | None = None) -> Iterator[Changed]:
        """Changes from now on, as they come; ends when `timeout` seconds pass without any."""
        self.start()
        woken = threading.Event()
        with self._follower.watched(woken.set) as watch:
            while woken.wait(timeout):
                woken.clear()
                if changed := watch.take():
                    yield changed

    def _view(self) -> View:
        if self._owner != os.getpid() or not self._waited:
            self.start()
        return super()._view()

    def _become_inherited(self) -> None:
        """In a forked child: the thread is not here, nor is whoever held the lock."""
        self._lock = threading.Lock()

    def _begin(self) -> None:
        self._settled, self._closing, self._waited = threading.Event(), threading.Event(), False
        self._follower.prepare()
        self._thread = threading.Thread(target=self._run, name="lictor catalog", daemon=True)
        self._thread.start()
        self._owner = os.getpid()

    def _run(self) -> None:
        settled, closing = self._settled, self._closing
        with asyncio.Runner(loop_factory=BackgroundLoop) as runner:
            loop = runner.get_loop()
            following = loop.create_task(self._follower.run(settled.set), name="follow Lictor")

            def end() -> None:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(following.cancel)

            self._end = end
            # Whoever closed it before there was an end to call has said so.
            if closing.is_set():
                end()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(following)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_catalogs: weakref.WeakSet[Catalog] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for catalog in list(_catalogs):
        catalog._become_inherited()


os.register_at_fork(after_in_child=_after_fork_in_child)


class AsyncCatalog(_Reads):
    """A Catalog for one event loop: an async context manager; its reads never wait, and need no await.

    See Catalog for the arguments. Entering waits until Lictor answered, failed to, or `timeout` is over.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        copy: str | Path | None = None,
        manifests: bool = True,
        timeout: float = 5.0,
    ) -> None:
        super().__init__(url, copy, manifests, timeout)
        self._following: asyncio.Task[None] | None = None

    async def watch(self) -> AsyncIterator[Changed]:
        """Changes from now on, as they come."""
        woken = asyncio.Event()
        with self._follower.watched(woken.set) as watch:
            while True:
                await woken.wait()
                woken.clear()
                if changed := watch.take():
                    yield changed

    async def __aenter__(self) -> Self:
        settled = asyncio.Event()
        await asyncio.to_thread(self._follower.prepare)
        self._following = asyncio.create_task(self._follower.run(settled.set), name="follow Lictor")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await settled.wait()
        except BaseException:
            # A context that was not entered is not left either.
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
