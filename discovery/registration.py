"""Registers a module: what a module says of itself in, a Registration that keeps it registered out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from discovery.announce import process_exit
from discovery.announce.definition import (
    DEFAULT_DEREGISTER_AFTER,
    DEFAULT_MODULE_TAG,
    Announcement,
    announcement,
)
from discovery.announce.keepalive import STOP_LIMIT, Keeper, State
from discovery.announce.process_peers import Siblings
from discovery.announce.registrar import Announcer
from discovery.base import Health
from discovery.errors import ConfigError
from discovery.health.checks import Check, TTLCheck

if TYPE_CHECKING:
    from discovery.consul.config import ConsulConfig

logger = logging.getLogger(__name__)

Via = Literal["consul", "push"]
DEFAULT_LICTOR_URL = "http://127.0.0.1:8080"

_REPORTABLE = (Health.PASSING, Health.WARNING, Health.CRITICAL)
_NEAR_PAUSE = 2.0
_FAR_PAUSE = 15.0
"""The longest pauses between tries: a registry on this machine is asked more often than a shared one."""


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
    manifest: Mapping[str, Any] | None = None,
    manifest_path: str | None = None,
    version: str | None = None,
    module_tag: str | None = None,
    via: Via | None = None,
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
    From a `manifest`, the module's version and the manifest's digest are put into the meta; push
    sends it along.

    What is left out is taken from the environment: `module_tag` from LICTOR_MODULE_TAG, `via` from
    LICTOR_VIA (`consul` or `push`), `consul` from the consul command's own variables, `lictor_url`
    from LICTOR_URL, `token_file` from LICTOR_PUSH_TOKEN_FILE.

    Raises ConfigError with every fault of the arguments and of the environment.
    """
    environ = os.environ
    faults: list[str] = []
    announced: Announcement | None = None
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
            manifest=manifest,
            manifest_path=manifest_path,
            version=version,
            module_tag=module_tag or environ.get("LICTOR_MODULE_TAG") or DEFAULT_MODULE_TAG,
        )
    except ConfigError as exc:
        faults += exc.faults
    way = via or environ.get("LICTOR_VIA") or "consul"
    try:
        if way == "consul":
            road = _consul_road(consul, environ)
        elif way == "push":
            road = _push_road(lictor_url, token, token_file, environ)
        else:
            raise ConfigError([f"via (LICTOR_VIA): must be consul or push (got {way!r})"])
    except ConfigError as exc:
        raise ConfigError([*faults, *exc.faults]) from exc
    if announced is not None:
        faults += road.faults(announced)
    if faults or announced is None:
        raise ConfigError(faults)
    return Registration(announced, road)


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """One way to a registry: how it is named, what it cannot carry, and how an announcer for it is made.

    `connect` is called in the thread that keeps a registration; `scope` tells, with an instance's
    id, one registration from another.
    """

    name: str
    scope: Callable[[Announcement], str]
    faults: Callable[[Announcement], list[str]]
    connect: Callable[[Announcement], Announcer]
    longest_pause: float
    takes_reports: Callable[[Announcement], bool]


def _consul_road(given: ConsulConfig | None, environ: Mapping[str, str]) -> Road:
    # Imported here, like the other road, since a module that goes one way needs no library of the other.
    from discovery.announce import preload  # noqa: F401
    from discovery.consul import registrar as via_consul
    from discovery.consul.config import ConsulConfig

    config = given or ConsulConfig.from_env(environ)
    if config.scheme == "https":
        config.ssl_context()
    return Road(
        name=f"Consul at {config.address}",
        scope=lambda own: f"consul {config.address} {config.namespace} {own.id}",
        faults=via_consul.faults,
        connect=lambda own: via_consul.ConsulAnnouncer(own, config),
        longest_pause=_NEAR_PAUSE if config.is_local else _FAR_PAUSE,
        takes_reports=lambda own: any(isinstance(check, TTLCheck) for check in own.checks),
    )


def _push_road(
    given: str | None, token: str, token_file: str | Path | None, environ: Mapping[str, str]
) -> Road:
    from discovery.announce import preload  # noqa: F401
    from discovery.push import registrar as via_push

    url = given or environ.get("LICTOR_URL") or DEFAULT_LICTOR_URL
    named = token_file or (environ.get("LICTOR_PUSH_TOKEN_FILE") if not token else None)
    file = Path(named) if named else None
    faults = via_push.url_faults(url) + via_push.token_faults(token, file)
    if faults:
        raise ConfigError(faults)
    return Road(
        name=f"Lictor at {url}",
        scope=lambda own: f"push {url} {own.name} {own.id}",
        faults=via_push.faults,
        connect=lambda own: via_push.PushAnnouncer(own, url, token=token, token_file=file),
        longest_pause=_NEAR_PAUSE if via_push.is_local(url) else _FAR_PAUSE,
        takes_reports=lambda own: True,
    )


class Registration:
    """Keeps one instance of a module registered while it is started; a context manager.

    A daemon thread does the work, so nothing here waits for the registry but `wait_registered`
    and, for a bounded time, `stop`. A started registration ends with its process: on normal exit,
    on SIGTERM and SIGINT where the program has no handler of its own. Of two with the same id in
    one process, the one that was started last counts. The process that starts it keeps it; a child
    that it forks stands by and takes over if the process dies.
    """

    def __init__(self, announced: Announcement, road: Road) -> None:
        self.announcement = announced
        self._road = road
        self._scope = road.scope(announced)
        self._starting = threading.RLock()
        self._keeper: Keeper | None = None
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
        return self._keeper is not None and self._keeper.registered.is_set()

    @property
    def state(self) -> State:
        if self._keeper is not None:
            return self._keeper.state
        return State.INHERITED if self._owner else State.STOPPED

    @property
    def reason(self) -> str:
        """Why it is not registered; empty while it is."""
        return self._keeper.reason if self._keeper is not None else ""

    def start(self) -> Self:
        """Begins to keep the instance registered and returns at once; does nothing if it is started."""
        with self._starting:
            if self._keeper is None or not self._keeper.is_kept:
                self._start()
        return self

    def _start(self) -> None:
        previous = process_exit.enter(self._scope, self)
        predecessor = previous.replaced() if isinstance(previous, Registration) else None
        keeper = Keeper(
            f"{self.name} ({self.id}) at {self._road.name}",
            lambda: self._road.connect(self.announcement),
            Siblings(self._scope),
            longest_pause=self._road.longest_pause,
            predecessor=predecessor,
        )
        if self._said is not None:
            keeper.report(*self._said)
        self._keeper, self._owner = keeper, os.getpid()
        keeper.start()

    def stop(self, timeout: float = STOP_LIMIT) -> None:
        """Deregisters the instance; returns when that is done, or after `timeout` seconds without success.

        It is left registered if another process of this machine keeps it, or if another
        registration of this process has taken its place.
        """
        self._owner = 0
        keeper = self._keeper
        if keeper is not None:
            # A caller that waits less leaves the rest to the thread.
            keeper.ask_to_stop(withdraw=True, limit=max(timeout, STOP_LIMIT))
        # Until it has ended, the end of the process waits for it: here Ctrl-C may end the waiting.
        if keeper is None or keeper.wait_ended(timeout):
            process_exit.leave(self._scope, self)

    def wait_registered(self, timeout: float | None = None) -> bool:
        """Waits, `timeout` seconds at most, for the registry to confirm the instance; whether it has."""
        return self._keeper is not None and self._keeper.registered.wait(timeout)

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
        if self._keeper is not None:
            self._keeper.report(*self._said)

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

    def ask_to_stop(self) -> None:
        """Begins the end of it, with the process's."""
        if self._keeper is not None:
            self._keeper.ask_to_stop(withdraw=True, limit=process_exit.END_LIMIT)

    def wait_ended(self, limit: float) -> bool:
        return self._keeper is None or self._keeper.wait_ended(limit)

    def replaced(self) -> Keeper | None:
        """Ends it without deregistering, for another takes its place; returns who is to be waited for."""
        if self._keeper is not None:
            self._keeper.ask_to_stop(withdraw=False)
        return self._keeper

    def become_inherited(self) -> None:
        """In a forked child: the thread is not here, and its work is the owner's, while that lives."""
        # Whoever held it is not here.
        self._starting = threading.RLock()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.forget()
        if self._owner:
            process_exit.stand_by(self._owner, self._take_over)

    def _take_over(self) -> None:
        if self.state is State.INHERITED:
            logger.warning("process %d is gone: this one keeps %s registered now", self._owner, self.id)
            self.start()


def _report_faults(health: Health | str) -> list[str]:
    if health in _REPORTABLE:
        return []
    return [f"report: must be one of {', '.join(_REPORTABLE)} (got {health!r})"]
