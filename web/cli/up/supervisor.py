"""Keeps programs running: restarts those that die, and ends all when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from discovery.timing.backoff import Backoff
from web.cli.up import exec_with_parent

WRONG_SETTINGS = 2
"""The exit status of a program that will never run as it is configured."""

# A program that ran this long, in seconds, was well: the pauses before its restarts are short again.
_STEADY = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program to keep running; `name` is what a person calls it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class Ended:
    """The program that ended for good, and with it all others."""

    program: Program
    status: int


class Supervisor:
    """Runs programs until a signal, or until one of them ends for good.

    A program that ends by itself at its first start, within `settling` seconds and with a status
    other than 0, will not do better the next time: its port is in use, say. So will one that ends
    with WRONG_SETTINGS, whenever it does. Any other end is an accident: after a pause it is started
    again.

    SIGTERM, SIGINT and SIGHUP end all programs: by SIGTERM, and whoever is left after `grace`
    seconds by SIGKILL; a second signal hurries. If this process itself is killed, they get SIGTERM
    (on Linux). `say` is given what an operator should know, a sentence at a time.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        grace: float = 5.0,
        settling: float = 30.0,
        backoff: Callable[[], Backoff] = lambda: Backoff(0.5, 30.0),
    ) -> None:
        self._say = say
        self._grace = grace
        self._settling = settling
        self._backoff = backoff
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended: Ended | None = None

    async def run(
        self, programs: Sequence[Program], beside: Sequence[Coroutine[Any, Any, None]] = ()
    ) -> Ended | None:
        """Runs them all; returns who ended for good, or None if a signal ended everything.

        `beside` is whatever else is to be done in this process while they run.
        """
        self._listen_to_signals()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (*beside, *map(self._keep, programs))]
            await self._ending.wait()
            for task in tasks:
                task.cancel()
        return self._ended

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup a hangup is ignored on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._ending.is_set():
            self._hurry.set()
        else:
            self._say("ending; a second Ctrl-C hurries")
            self._ending.set()

    async def _keep(self, program: Program) -> None:
        backoff = self._backoff()
        first = True
        while True:
            began = time.monotonic()
            status = await self._run_once(program)
            lasted = time.monotonic() - began
            hopeless = first and status > 0 and lasted < self._settling
            if hopeless or status == WRONG_SETTINGS:
                self._ended = self._ended or Ended(program, status)
                self._ending.set()
                return
            if lasted > _STEADY:
                backoff.reset()
            pause = backoff.next()
            self._say(
                f"{program.name} {_how_it_ended(status)} after {lasted:.1f} s; "
                f"it starts again in {pause:.1f} s"
            )
            await asyncio.sleep(pause)
            first = False

    async def _run_once(self, program: Program) -> int:
        # A group of its own, so that the terminal's Ctrl-C reaches this process alone, which then
        # ends the others in its own way.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", exec_with_parent.__file__, str(os.getpid())),
            *program.command,
            stdin=asyncio.subprocess.DEVNULL,
            env=dict(program.environment),
            process_group=0,
        )
        try:
            return await process.wait()
        except asyncio.CancelledError:
            await self._stop(program, process)
            raise
        finally:
            # A web server's workers outlive it for a while if it was killed, and hold its port.
            _kill_group(process)

    async def _stop(self, program: Program, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        over = asyncio.ensure_future(process.wait())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({over, hurry}, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not over.done():
            self._say(f"{program.name} has not ended yet: it is killed")
            _kill_group(process)
            await over


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
