"""Runs coroutines beside a test that is not one: a watch, or a whole synchronizer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from discovery.base import Change, InstanceKey, Lost, ServiceInstance, Watcher
from discovery.registry.watch_loop import watch_with_retry


class Beside:
    """Runs a coroutine in a thread of its own until the block ends; what it fails with fails the test."""

    def __init__(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._coroutine = coroutine
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beside the test")

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._begun.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._coroutine(), name="beside the test")
        self._begun.set()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (failure := self._task.exception()):
            raise failure

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait()
        return self

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Watching(Beside):
    """Follows a watcher, and keeps what it told: the instances as they stand, and every update."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(self._follow)
        self._watcher = watcher
        self.updates: list[Change | Lost] = []
        self.instances: dict[InstanceKey, ServiceInstance] = {}

    async def _follow(self) -> None:
        async for update in watch_with_retry(self._watcher):
            if isinstance(update, Change):
                self.instances = self._after(update)
            self.updates.append(update)

    def _after(self, change: Change) -> dict[InstanceKey, ServiceInstance]:
        instances = {} if change.complete else dict(self.instances)
        for key in change.gone:
            instances.pop(key, None)
        return instances | {instance.key: instance for instance in change.present}

    def of(self, module: str) -> dict[str, ServiceInstance]:
        """The instances of a module, by id."""
        return {key.id: instance for key, instance in self.instances.items() if key.module == module}

    def told_of(self, module: str) -> list[ServiceInstance]:
        """Every word that was told of a module's instances."""
        changes = [update for update in self.updates if isinstance(update, Change)]
        return [instance for change in changes for instance in change.present if instance.module == module]
