"""Gives gunicorn its settings, under gunicorn's names.

`gunicorn -c python:web.gunicorn_config` serves Lictor, as an ASGI application on uvicorn's worker.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from discovery import tracing
from discovery.errors import ConfigError
from web.server import ending
from web.settings import UNIX, Settings
from web.telemetry import multiprocess_metrics
from web.telemetry.logging_config import logging_config

logger = logging.getLogger(__name__)

_WRONG_SETTINGS = 2
_CANNOT_LISTEN = 1


def _load() -> Settings:
    try:
        tracing.check()
        return Settings.load()
    except ConfigError as exc:
        sys.stderr.write(
            "".join(f"{line}\n" for line in ("wrong settings:", *(f"  {fault}" for fault in exc.faults)))
        )
        sys.exit(_WRONG_SETTINGS)


def on_starting(server: Any) -> None:
    """Refuses at once what gunicorn would try five times, and what a shared port would let through.

    Another server that shares the port would answer some of the requests.
    """
    _check_address()
    _raise_file_limit()
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals)


def post_worker_init(worker: Any) -> None:
    for number in ending.SIGNALS:
        # uvicorn sends itself once more the signal on which it ended, and must not end of that.
        signal.signal(number, lambda *_: None)
    # Not earlier: the thread that sends spans would stay behind at the fork.
    worker.end_tracing = tracing.start("web server")
    # What is there now stays: looking through all of it takes a full collection of garbage some 70 ms,
    # in which nobody is answered.
    gc.freeze()


def _raise_file_limit() -> None:
    """Everyone who waits is an open file: as many as this user may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _hold_signals() -> None:
    """A worker that is told to end before it has its own handlers would not: it is told when it has."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ending.SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending.SIGNALS)


def worker_exit(server: Any, worker: Any) -> None:
    # A worker whose start failed has begun nothing.
    if end := getattr(worker, "end_tracing", None):
        end()


def child_exit(server: Any, worker: Any) -> None:
    multiprocess_metrics.worker_ended(worker.pid)


def when_ready(server: Any) -> None:
    # So that what the workers keep for good holds no garbage.
    gc.collect()
    url = _settings.url.replace("http:", "https:") if server.cfg.is_ssl else _settings.url
    logger.info("serving on %s: %d processes of %d threads", url, workers, _settings.threads)
    if "push" in _settings.registries and not _settings.is_loopback and _settings.push_token_file is None:
        logger.warning(
            "pushes are refused: %s is not loopback, and LICTOR_PUSH_TOKEN_FILE is not set", _settings.bind
        )


def _check_address() -> None:
    address = _settings.host_port
    try:
        if address is None:
            _check_unix_socket(Path(_settings.bind.removeprefix(UNIX)))
            return
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As a server would: ports of connections that ended recently are free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(tuple(address))
            probe.listen(1)
    except OSError as exc:
        _refuse(exc)


def _check_unix_socket(path: Path) -> None:
    """Raises OSError where a server listens, or where none could."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(f"no socket can be made in {path.parent}") from None
            return
        except ConnectionRefusedError:
            if not path.is_socket():
                raise FileExistsError("it is there, and no socket") from None
            # Left behind by a server that ended; gunicorn replaces it.
            return
        raise FileExistsError("another server listens on it")


def _refuse(exc: OSError) -> NoReturn:
    sys.stderr.write(
        f"LICTOR_BIND: cannot listen on {_settings.bind}: {exc.strerror or exc}. End what listens "
        "there, or choose another address.\n"
    )
    sys.exit(_CANNOT_LISTEN)


_settings = _load()
multiprocess_metrics.share()

wsgi_app = "web.asgi:app"
proc_name = "lictor"
# Wrong settings and faulty imports end the start once, not once per worker.
preload_app = True

bind = _settings.bind
backlog = 2048

worker_class = "web.server.worker.Worker"
workers = _settings.workers
# In memory where there is such a place: on a slow disk a heartbeat file can hold a worker up.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

timeout = 60
graceful_timeout = 10
# Longer than proxies keep theirs, so that it is not this side that ends a connection in use.
keepalive = 75

control_socket_disable = True
accesslog = None
loglevel = _settings.log_level
logconfig_dict = logging_config(_settings)
