"""Runs any program as a registered module and returns its exit status."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from discovery.announce.process_exit import END_LIMIT, FIRST_PROCESS
from discovery.errors import ConfigError
from discovery.health.checks import Check, parse_check
from discovery.registration import Registration, register

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

NOT_EXECUTABLE = 126
NOT_FOUND = 127
KILLED = 128
"""Added to the number of the signal that ended the command; all three as shells have it."""

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_ENDS = (signal.SIGTERM, signal.SIGINT)
_AWAITED = (*_PASSED_ON, signal.SIGCHLD)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def run_registered(
    command: Sequence[str], registration: Registration, *, environ: Mapping[str, str] | None = None
) -> int:
    """Starts a command, keeps it registered while it lives, and returns its exit status as a shell would.

    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on, and nothing but the end of
    the command ends this. SIGTERM and SIGINT mean the end: the command is deregistered at once, also
    if it ignores them, and gets them when the registration's `drain` has passed, or with the next of
    them. The command shares terminal and process group, so that what the terminal sends (Ctrl-C)
    reaches it directly, and is not passed on a second time. On Linux it gets SIGTERM if this process
    is killed. It finds its id, name and port in LICTOR_SERVICE_ID, LICTOR_SERVICE_NAME and
    LICTOR_SERVICE_PORT. As the first process of a container this ends what orphans leave behind.

    It is to be called from the main thread, before other threads are started.
    """
    with _signals_held() as mask:
        try:
            # Before the registration's thread is there: between fork and exec there must be but one.
            child = subprocess.Popen(
                list(command),
                env={**(os.environ if environ is None else environ), **_service_variables(registration)},
                preexec_fn=_preparation(os.getpid(), mask),
            )
        except OSError as exc:
            logger.error("%s cannot be started: %s", command[0], exc.strerror or exc)
            return NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_EXECUTABLE
        with registration:
            return _accompany(child, registration)


def registration_for_command(
    *,
    checks: Sequence[str] = (),
    meta: Sequence[str] = (),
    manifest_file: Path | None = None,
    **options: Any,
) -> Registration:
    """What `discovery.register` makes of the texts of a command line, in addition to its own `options`.

    `checks` are such as `http:/health,interval=5s`, `tcp:` or `ttl:30s` (see `parse_check`), `meta`
    is `KEY=VALUE`, `manifest_file` holds a JSON object. Raises ConfigError with every fault.
    """
    faults: list[str] = []
    parsed = [_gathered(faults, "--check", parse_check, text) for text in checks]
    pairs = [_gathered(faults, "--meta", _pair, text) for text in meta]
    manifest = _gathered(faults, "--manifest", _manifest, manifest_file) if manifest_file else None
    found: list[Check] = [check for check in parsed if check is not None]
    try:
        registration = register(
            checks=found or None,
            meta=dict(pair for pair in pairs if pair is not None),
            manifest=manifest,
            **options,
        )
    except ConfigError as exc:
        raise ConfigError([*faults, *exc.faults]) from exc
    if faults:
        raise ConfigError(faults)
    return registration


def _gathered(faults: list[str], option: str, parse: Callable[[T], R], value: T) -> R | None:
    try:
        return parse(value)
    except ConfigError as exc:
        faults += [f"{option}: {fault}" for fault in exc.faults]
        return None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError([f"{text!r} is no pair: write KEY=VALUE"])
    return key, value


def _manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as exc:
        raise ConfigError([f"{file} cannot be read: {exc.strerror or exc}"]) from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError([f"{file} holds no JSON: {exc}"]) from exc
    if not isinstance(manifest, dict):
        raise ConfigError([f"{file} holds no JSON object but {type(manifest).__name__}"])
    return manifest


def _service_variables(registration: Registration) -> dict[str, str]:
    return {
        "LICTOR_SERVICE_ID": registration.id,
        "LICTOR_SERVICE_NAME": registration.name,
        "LICTOR_SERVICE_PORT": str(registration.announcement.port),
    }


@contextmanager
def _signals_held() -> Iterator[set[signal.Signals | int]]:
    """Keeps the signals for `_accompany` to take one by one, from before the command is started on."""
    # Where nobody handles it, some systems drop SIGCHLD instead of keeping it.
    before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    mask: set[signal.Signals | int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED))
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, before)


def _preparation(parent: int, mask: set[signal.Signals | int]) -> Callable[[], None]:
    """What the child does before it becomes the command: it wishes to end with its parent, and unblocks."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
            # The parent may have died before the wish was expressed.
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare


def _accompany(child: subprocess.Popen[bytes], registration: Registration) -> int:
    """Passes signals on until the command has ended."""
    departure: _Departure | None = None
    while (status := child.poll()) is None:
        number, from_terminal = _next_signal()
        has_it = from_terminal and _shares_group(child)
        if number == signal.SIGCHLD:
            _reap_orphans(child)
        elif number in _ENDS and departure is None:
            departure = _Departure(child, registration, None if has_it else number)
        elif not has_it:
            if departure is not None and number in _ENDS:
                departure.cut_short()
            _pass_on(child, number)
    return status if status >= 0 else KILLED - status


class _Departure:
    """Deregisters, and passes a signal on when the drain is over; a thread waits for both."""

    def __init__(
        self, child: subprocess.Popen[bytes], registration: Registration, number: int | None
    ) -> None:
        self._child = child
        self._registration = registration
        self._number = number
        self._cut_short = threading.Event()
        registration.ask_to_stop()
        if number is not None:
            threading.Thread(target=self._pass_on_later, name="deregister and drain", daemon=True).start()

    def cut_short(self) -> None:
        self._cut_short.set()

    def _pass_on_later(self) -> None:
        assert self._number is not None
        self._registration.wait_ended(END_LIMIT)
        if not self._cut_short.wait(self._registration.drain):
            _pass_on(self._child, self._number)


def _pass_on(child: subprocess.Popen[bytes], number: int) -> None:
    logger.info("passing %s on to process %d", signal.Signals(number).name, child.pid)
    child.send_signal(number)


def _reap_orphans(child: subprocess.Popen[bytes]) -> None:
    """As the first process of a container: buries what the kernel made its children, but for the command."""
    if os.getpid() != FIRST_PROCESS:
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == child.pid:
            return
        os.waitpid(ended.si_pid, 0)


def _next_signal() -> tuple[int, bool]:
    """Waits for a signal; its number, and whether the terminal sent it, so that all of its group have it."""
    if hasattr(signal, "sigwaitinfo"):
        told = signal.sigwaitinfo(_AWAITED)
        # Codes above 0 are the kernel's own, and it is the kernel that speaks for a terminal.
        return told.si_signo, told.si_code > 0 and told.si_signo in _FROM_TERMINAL
    number = signal.sigwait(_AWAITED)
    return number, number in _FROM_TERMINAL and _in_foreground()


def _in_foreground() -> bool:
    """Where nothing tells who sent a signal: whether a terminal would have sent it to this group."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _shares_group(child: subprocess.Popen[bytes]) -> bool:
    try:
        return os.getpgid(child.pid) == os.getpgrp()
    except ProcessLookupError:
        return True
