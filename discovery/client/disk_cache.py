"""Keeps a snapshot on disk, so that a program can start while Lictor is away."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from discovery.client.snapshot import Module, View

logger = logging.getLogger(__name__)

_FORMAT = 1


class CatalogCopy:
    """A file that holds the newest view of one Lictor; what is broken or another's counts as none."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url
        self._failing = False

    def load(self) -> View | None:
        try:
            said = json.loads(self._path.read_bytes())
            if (said["format"], said["url"]) != (_FORMAT, self._url):
                return None
            modules = {name: Module.of(module) for name, module in said["modules"].items()}
            return View(said["index"], modules, said["confirmed_at"], said["stale"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            logger.warning("the copy of the catalog is of no use path=%s: %r", self._path, exc)
            return None

    def save(self, view: View) -> None:
        """Replaces the file at once, so that no reader finds half of it; a full disk is logged once."""
        said = {
            "format": _FORMAT,
            "url": self._url,
            "index": view.index,
            "confirmed_at": view.confirmed_at,
            "stale": view.stale,
            "modules": {name: dict(module.said) for name, module in view.modules.items()},
        }
        try:
            self._replace(said)
        except OSError as exc:
            if not self._failing:
                logger.warning("cannot keep a copy of the catalog path=%s: %s", self._path, exc)
            self._failing = True
        else:
            self._failing = False

    def _replace(self, said: dict[str, Any]) -> None:
        number, name = tempfile.mkstemp(prefix=f".{self._path.name}-", dir=self._path.parent)
        try:
            with os.fdopen(number, "w") as file:
                json.dump(said, file, separators=(",", ":"))
            Path(name).replace(self._path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
