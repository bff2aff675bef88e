"""Reads secrets and certificates again when their files change: they are rotated while programs run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from discovery.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_EVERY = 1.0
"""Seconds between two looks at the files: calls may come by hundreds a second."""


class ReloadedFiles(Generic[T]):
    """What `make` makes of files, made again when one of them has changed.

    `files` names them. If what they hold after a change is of no use (half a file, a certificate whose
    key is still the old one), the log says so once, what was made before stays in use, and the files
    are tried again a second later. Raises the ConfigError of the first `make`.
    """

    def __init__(self, make: Callable[[], T], files: Callable[[], Iterable[Path]]) -> None:
        self._make = make
        self._files = files
        self._stamps = self._look()
        self._made = make()
        self._looked_at = time.monotonic()
        self._fault = ""

    def get(self) -> T:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at = now
            stamps = self._look()
            if stamps != self._stamps:
                self._make_again(stamps)
        return self._made

    def _make_again(self, stamps: object) -> None:
        try:
            self._made = self._make()
        except ConfigError as exc:
            if str(exc) != self._fault:
                logger.warning("%s: what was read before stays in use", exc)
            self._fault = str(exc)
            return
        self._stamps, self._fault = stamps, ""
        logger.info("read again, for they changed: %s", ", ".join(map(str, self._files())))

    def _look(self) -> object:
        return [(file, _stamp(file)) for file in self._files()]


def _stamp(file: Path) -> object:
    # Behind a symlink, for Kubernetes replaces the files of a Secret by changing where one leads.
    try:
        status = file.stat()
    except OSError as exc:
        return exc.errno
    return status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino
