"""Keeps one instance registered from a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum

from discovery.announce.background_loop import BackgroundLoop
from discovery.announce.process_peers import PeerLock
from discovery.announce.registrar import Registrar
from discovery.base import Health
from discovery.errors import RegistryRejected, RegistryUnavailable, UnknownInstance
from discovery.timing.backoff import Backoff

logger = logging.getLogger(__name__)

STOP_LIMIT = 2.0
"""Seconds that deregistering may take: a hung agent must not hold up the end of a program."""

_HELD = 1.0
"""Seconds that a registration has to last before a failure counts as the first one."""
_CALM = 30.0
"""Seconds that a registration has to last before its next renewal is done without a pause."""
_LONGEST_ADVISED_PAUSE = 300.0


_THREAD = "register "


def _of_other_threads(record: logging.LogRecord) -> bool:
    """Keeps each heartbeat's request out of the module's log, where httpx would log it at INFO."""
    return record.levelno > logging.INFO or not (record.threadName or "").startswith(_THREAD)


class State(StrEnum):
    """How a registration stands, as far as this process knows."""

    STOPPED = "stopped"
    PENDING = "pending"
    REGISTERED = "registered"
    UNAVAILABLE = "unavailable"
    REJECTED = "rejected"
    INHERITED = "inherited"


class KeepAlive:
    """Registers, renews and at last deregisters one instance, in a daemon thread with its own loop.

    `connect` makes the registrar, within that loop. `longest_pause` bounds the pause between tries
    while the registry is away. A `predecessor` is waited for, so that of two keepers of one id the
    later one has the last word.
    """

    def __init__(
        self,
        instance: str,
        connect: Callable[[], Registrar],
        peers: PeerLock,
        *,
        longest_pause: float,
        predecessor: KeepAlive | None = None,
    ) -> None:
        self.state = State.PENDING
        self.reason = ""
        self.registered = threading.Event()
        self._instance = instance
        self._connect = connect
        self._peers = peers
        self._predecessor = predecessor
        self._pauses = Backoff(0.1, longest_pause)
        self._refusals = Backoff(2.0, 60.0)
        self._renewals = Backoff(0.1, 30.0)
        self._attempted = False
        self._known = False
        self._said: tuple[Health, str] | None = None
        self._registrar: Registrar | None = None
        self._deregister = True
        self._stop_limit = STOP_LIMIT
        # No Event: a signal's handler that stops it as well would wait for that one's lock.
        self._is_stopping = False
        self._end = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"{_THREAD}{instance}", daemon=True)

    def start(self) -> None:
        # Adding the same filter again changes nothing.
        logging.getLogger("httpx").addFilter(_of_other_threads)
        self._thread.start()

    def ask_to_stop(self, *, deregister: bool, limit: float = STOP_LIMIT) -> None:
        """Begins the end; with `deregister` the instance is deregistered unless others stand for it."""
        if not self._is_stopping:
            self._deregister, self._stop_limit = deregister, limit
            self._is_stopping = True
            self._in_loop(self._end.set)

    @property
    def is_kept(self) -> bool:
        """Whether it goes on until somebody asks it to stop."""
        return self._thread.is_alive() and not self._is_stopping

    def wait_ended(self, limit: float) -> bool:
        self._thread.join(max(0.0, limit))
        return not self._thread.is_alive()

    def report(self, health: Health, note: str) -> None:
        self._said = health, note
        self._in_loop(self._pass_on_report)

    def forget(self) -> None:
        """For a forked child: the thread is its parent's, and so is the lock."""
        self._peers.forget()

    def _pass_on_report(self) -> None:
        if self._registrar is not None and self._said is not None:
            self._registrar.report(*self._said)

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Does something in the loop; before there is one, `_live` looks at what was asked for."""
        if self._loop is not None:
            # A loop that is closed belongs to a keeper that has ended.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(action)

    def _run(self) -> None:
        if self._predecessor is not None:
            self._predecessor.wait_ended(STOP_LIMIT)
            self._predecessor = None
        try:
            with asyncio.Runner(loop_factory=BackgroundLoop) as runner:
                runner.run(self._live())
        except Exception:
            logger.exception("%s is not kept registered any more, because of an error", self._instance)
        finally:
            self.registered.clear()
            self.state = State.STOPPED

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._is_stopping:
            return
        registrar = self._registrar = self._connect()
        self._pass_on_report()
        keeping = asyncio.create_task(self._keep(registrar), name=f"keep {self._instance} registered")
        try:
            await self._end.wait()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._depart(registrar)
        finally:
            self._peers.leave()
            await registrar.aclose()

    async def _keep(self, registrar: Registrar) -> None:
        await self._peers.join()
        while True:
            try:
                await self._keep_once(registrar)
                continue
            except RegistryUnavailable as exc:
                pause = max(self._pauses.next(), min(exc.retry_after or 0.0, _LONGEST_ADVISED_PAUSE))
                self._failed(State.UNAVAILABLE, str(exc), pause)
            except RegistryRejected as exc:
                # Not given up: somebody may mend the token, or whatever else was refused.
                pause = self._refusals.next()
                self._failed(State.REJECTED, str(exc), pause)
            except Exception as exc:
                logger.exception("registering %s failed; it is tried again", self._instance)
                pause = self._refusals.next()
                self._failed(State.UNAVAILABLE, repr(exc), pause)
            await asyncio.sleep(pause)

    async def _keep_once(self, registrar: Registrar) -> None:
        """Registers, unless the registry still knows it, and keeps it alive until it must register again."""
        if self._known and not await registrar.is_announced(self._peers.is_newest):
            await self._renew("the registry was away, and does not know it any more")
        if not self._known:
            self._attempted = True
            await registrar.register()
            self._known = True
        self._succeeded()
        since = time.monotonic()
        try:
            reason = await registrar.keep_alive(self._peers.is_newest)
        except UnknownInstance as exc:
            reason = str(exc)
        finally:
            lasted = time.monotonic() - since
            # A registry that takes the registration and then fails at once is not well again.
            if lasted > _HELD:
                self._pauses.reset()
            if lasted > _CALM:
                self._renewals.reset()
        await self._renew(reason)

    async def _renew(self, reason: str) -> None:
        """The first renewal in a calm time is done at once; those that follow it soon are not."""
        pause = self._renewals.next() if self._renewals.tries else 0.0
        self._renewals.tries = max(1, self._renewals.tries)
        self._known = False
        self.registered.clear()
        self.state, self.reason = State.PENDING, reason
        logger.warning("registering %s again in %.1f s: %s", self._instance, pause, reason)
        await asyncio.sleep(pause)

    def _succeeded(self) -> None:
        if self.state is not State.REGISTERED:
            logger.info("registered %s", self._instance)
        self._refusals.reset()
        self.state, self.reason = State.REGISTERED, ""
        self.registered.set()

    def _failed(self, state: State, reason: str, pause: float) -> None:
        blip = self.state is State.REGISTERED and state is State.UNAVAILABLE and self._pauses.tries == 1
        if blip or (state, reason) == (self.state, self.reason):
            logger.debug("%s is %s, next try in %.1f s: %s", self._instance, state, pause, reason)
        else:
            logger.warning("%s is not registered, next try in %.1f s: %s", self._instance, pause, reason)
        if not blip:
            self.registered.clear()
            self.state, self.reason = state, reason

    async def _depart(self, registrar: Registrar) -> None:
        if not (self._deregister and self._attempted):
            return
        if not self._peers.is_last():
            logger.info("%s stays registered: another process on this machine keeps it", self._instance)
            return
        try:
            # A little less than the caller waits, so that the outcome is logged in time.
            async with asyncio.timeout(self._stop_limit * 0.9):
                await registrar.deregister()
        except (TimeoutError, RegistryUnavailable, RegistryRejected) as exc:
            why = str(exc) or f"no answer within {self._stop_limit:g} s"
            logger.warning("%s could not be deregistered: %s", self._instance, why)
        else:
            logger.info("deregistered %s", self._instance)
