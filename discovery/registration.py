"""Registers a module and keeps it registered."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from discovery.announce import process_exit
from discovery.announce.definition import (
    DEFAULT_DEREGISTER_AFTER,
    DEFAULT_MODULE_TAG,
    ServiceDefinition,
    announcement,
)
from discovery.announce.keepalive import STOP_LIMIT, KeepAlive, State
from discovery.announce.process_peers import PeerLock
from discovery.announce.road import Road, RoadOptions
from discovery.base import Health
from discovery.errors import ConfigError
from discovery.health.checks import Check
from discovery.registries import REGISTRIES, ROADS

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig

logger = logging.getLogger(__name__)

DEFAULT_VIA = "consul"


_REPORTABLE = (Health.PASSING, Health.WARNING, Health.CRITICAL)


def register(
    *,
    name: str,
    port: int,
    id: str | None = None,
    address: str = "",
    scheme: str = "http",
    tags: Iterable[str] = (),
    meta: Mapping[str, str] | None = None,
    check: Check | None = None,
    checks: Sequence[Check] | None = None,
    deregister_after: str | float | None = DEFAULT_DEREGISTER_AFTER,
    drain: str | float = 0,
    manifest: Mapping[str, Any] | None = None,
    manifest_path: str | None = None,
    manifest_port: int | None = None,
    version: str | None = None,
    module_tag: str | None = None,
    via: str | None = None,
    consul: ConsulConfig | None = None,
    lictor_url: str | None = None,
    token: str = "",
    token_file: str | Path | None = None,
) -> Registration:
    """Prepares the registration of one instance of a module; nothing is sent before it is started.

    `name` is a DNS label. `id` is by default name, host and port, hence the same after a restart.
    `address` is where others reach the module; left out, Consul takes that of the agent's node (of
    this machine, if the agent is on another), and push that of this machine. Without `check` and
    `checks` the library says every ten seconds that the process lives (`TTLCheck("30s")`); with
    `checks=[]` nobody looks. After `deregister_after` in a critical state the instance is removed.
    On a signal that ends the program it is deregistered at once, and the program is told `drain`
    (seconds, or a duration such as "5s") later: requests that are still on their way are answered.
    The manifest is asked for at `manifest_port` of the same address where that is given. From a
    `manifest`, the module's version and the manifest's digest are put into the meta; push
    sends it along.

    What is left out is taken from the environment: `module_tag` from LICTOR_MODULE_TAG, `via` from
    LICTOR_VIA (`consul`, the
    default, or `push`), `consul` from the consul command's own variables, `lictor_url`
    from LICTOR_URL, `token_file` from LICTOR_PUSH_TOKEN_FILE.

    Raises ConfigError with every fault of the arguments and of the environment.
    """
    environ = os.environ
    faults: list[str] = []
    announced: ServiceDefinition | None = None
    try:
        announced = announcement(
            name=name,
            port=port,
            id=id,
            address=address,
            scheme=scheme,
            tags=tags,
            meta=meta,
            check=check,
            checks=checks,
            deregister_after=deregister_after,
            drain=drain,
            manifest=manifest,
            manifest_path=manifest_path,
            manifest_port=manifest_port,
            version=version,
            module_tag=module_tag or environ.get("LICTOR_MODULE_TAG") or DEFAULT_MODULE_TAG,
        )
    except ConfigError as exc:
        faults += exc.faults
    way = via or environ.get("LICTOR_VIA") or DEFAULT_VIA
    options = RoadOptions(
        environ=environ, consul=consul, lictor_url=lictor_url, token=token, token_file=token_file
    )
    try:
        road = _road(way, options)
    except ConfigError as exc:
        raise ConfigError([*faults, *exc.faults]) from exc
    if announced is not None:
        faults += road.faults(announced)
    if faults or announced is None:
        raise ConfigError(faults)
    return Registration(announced, road)


def _road(way: str, options: RoadOptions) -> Road:
    registry = REGISTRIES.get(way)
    road = registry.road(options) if registry else None
    if road is None:
        raise ConfigError([f"via (LICTOR_VIA): must be {' or '.join(ROADS)} (got {way!r})"])
    return road


class Registration:
    """Keeps one instance of a module registered while it is started; a context manager.

    A daemon thread does the work, so nothing here waits for the registry but `wait_registered`
    and, for a bounded time, `stop`. A started registration ends with its process: on normal exit,
    and on SIGTERM and SIGINT, where it is deregistered at once and the signal reaches the program's
    own handler when `drain` has passed. Of two with the same id in one process, the one that was
    started last counts. The process that starts it keeps it; a child that it forks stands by and
    takes over if the process dies.
    """

    def __init__(self, announced: ServiceDefinition, road: Road) -> None:
        self.announcement = announced
        self._road = road
        self._scope = road.scope(announced)
        self._starting = threading.RLock()
        self._keep_alive: KeepAlive | None = None
        self._owner = 0
        self._said: tuple[Health, str] | None = None

    @property
    def id(self) -> str:
        return self.announcement.id

    @property
    def name(self) -> str:
        return self.announcement.name

    @property
    def registered(self) -> bool:
        """Whether the registry has confirmed the instance, and is not known to have lost it since."""
        return self._keep_alive is not None and self._keep_alive.registered.is_set()

    @property
    def state(self) -> State:
        if self._keep_alive is not None:
            return self._keep_alive.state
        return State.INHERITED if self._owner else State.STOPPED

    @property
    def reason(self) -> str:
        """Why it is not registered; empty while it is."""
        return self._keep_alive.reason if self._keep_alive is not None else ""

    def start(self) -> Self:
        """Begins to keep the instance registered and returns at once; does nothing if it is started."""
        with self._starting:
            if self._keep_alive is None or not self._keep_alive.is_kept:
                self._start()
        return self

    def _start(self) -> None:
        previous = process_exit.track(self._scope, self)
        predecessor = previous.replaced() if isinstance(previous, Registration) else None
        keeper = KeepAlive(
            f"{self.name} ({self.id}) at {self._road.name}",
            lambda: self._road.connect(self.announcement),
            PeerLock(self._scope),
            longest_pause=self._road.longest_pause,
            predecessor=predecessor,
        )
        if self._said is not None:
            keeper.report(*self._said)
        self._keep_alive, self._owner = keeper, os.getpid()
        keeper.start()

    def stop(self, timeout: float = STOP_LIMIT) -> None:
        """Deregisters the instance; returns when that is done, or after `timeout` seconds without success.

        It is left registered if another process of this machine keeps it, or if another
        registration of this process has taken its place.
        """
        self._end(deregister=True, timeout=timeout)

    def stop_with_process(self) -> None:
        """`stop`, but for a worker that gunicorn is about to replace: its instance stays registered."""
        self._end(deregister=not process_exit.is_replaced(), timeout=STOP_LIMIT)

    def _end(self, *, deregister: bool, timeout: float) -> None:
        self._owner = 0
        keeper = self._keep_alive
        if keeper is not None:
            # A caller that waits less leaves the rest to the thread.
            keeper.ask_to_stop(deregister=deregister, limit=max(timeout, STOP_LIMIT))
        # Until it has ended, the end of the process waits for it: here Ctrl-C may end the waiting.
        if keeper is None or keeper.wait_ended(timeout):
            process_exit.untrack(self._scope, self)

    def wait_registered(self, timeout: float | None = None) -> bool:
        """Waits, `timeout` seconds at most, for the registry to confirm the instance; whether it has."""
        return self._keep_alive is not None and self._keep_alive.registered.wait(timeout)

    def report(self, health: Health | str, note: str = "") -> None:
        """Says how the module is, from now on: passing, warning or critical, and why.

        Via Consul it takes a TTLCheck; via push the worst of this and of the checks counts.
        """
        faults = _report_faults(health)
        if not self._road.takes_reports(self.announcement):
            faults.append("report: Consul takes it through a TTLCheck only; add one to the checks")
        if faults:
            raise ConfigError(faults)
        if self.state is State.INHERITED:
            raise RuntimeError(
                f"process {self._owner} keeps {self.id} registered, and this is a child of it: report there, "
                "or call start() here first"
            )
        self._said = Health(health), note
        if self._keep_alive is not None:
            self._keep_alive.report(*self._said)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Registration({self.name!r}, id={self.id!r}, state={self.state.value!r})"

    @property
    def drain(self) -> float:
        """Seconds between its end and the process's; none where another process keeps it."""
        return self.announcement.drain if self._keep_alive is not None else 0.0

    def ask_to_stop(self, *, deregister: bool = True) -> None:
        """Begins the end of it, with the process's."""
        if self._keep_alive is not None:
            self._keep_alive.ask_to_stop(deregister=deregister, limit=process_exit.END_LIMIT)

    def wait_ended(self, limit: float) -> bool:
        return self._keep_alive is None or self._keep_alive.wait_ended(limit)

    def replaced(self) -> KeepAlive | None:
        """Ends it without deregistering, for another takes its place; returns who is to be waited for."""
        if self._keep_alive is not None:
            self._keep_alive.ask_to_stop(deregister=False)
        return self._keep_alive

    def become_inherited(self) -> None:
        """In a forked child: the thread is not here, and its work is the owner's, while that lives."""
        # Whoever held it is not here.
        self._starting = threading.RLock()
        keeper, self._keep_alive = self._keep_alive, None
        if keeper is not None:
            keeper.forget()
        if self._owner:
            process_exit.take_over_on_exit(self._owner, self._take_over)

    def _take_over(self) -> None:
        if self.state is State.INHERITED:
            logger.warning("process %d is gone: this one keeps %s registered now", self._owner, self.id)
            self.start()


def _report_faults(health: Health | str) -> list[str]:
    if health in _REPORTABLE:
        return []
    return [f"report: must be one of {', '.join(_REPORTABLE)} (got {health!r})"]
