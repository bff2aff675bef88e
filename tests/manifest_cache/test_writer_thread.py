"""Calls run beside an event loop: their results come back to it, as long as it is there."""

from __future__ import annotations

import asyncio
import threading

import pytest

from manifest_cache.db_thread import WriterThread
from manifest_cache.storage.database import StoreUnavailable


@pytest.mark.anyio
async def test_calls_run_one_after_the_other_and_fail_as_they_do() -> None:
    thread, order = WriterThread("test"), []

    def fail() -> None:
        order.append(0)
        raise ValueError("odd")

    results = await asyncio.gather(
        thread.call(fail), *(thread.call(order.append, number) for number in (1, 2)), return_exceptions=True
    )
    assert order == [0, 1, 2]
    assert isinstance(results[0], ValueError)
    thread.close(20)


@pytest.mark.anyio
async def test_what_the_database_cannot_serve_is_tried_again() -> None:
    thread = WriterThread("test")
    tries: list[None] = []

    def serve() -> str:
        tries.append(None)
        if len(tries) < 3:
            raise StoreUnavailable("away")
        return "served"

    assert await thread.run_with_retry("serve", serve) == "served"
    thread.close(20)


class Closing(asyncio.SelectorEventLoop):
    """A loop that is closed each time that another thread has just found it open."""

    def is_closed(self) -> bool:
        return super().is_closed() and threading.current_thread() is threading.main_thread()


def test_a_call_may_end_as_the_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[object] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    begun, end = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        end.wait()

    thread, loop = WriterThread("test"), Closing()
    call = loop.create_task(thread.call(hang))
    loop.run_until_complete(asyncio.sleep(0))
    begun.wait()
    call.cancel()
    loop.run_until_complete(asyncio.wait({call}))
    loop.close()
    end.set()
    thread.close(20)
    assert faults == []
