"""Running copies of modules: each serves its manifest from a server of its own, and may change it or die."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from tests.manifest_server import Behaviour, ManifestServer, manifest

MODULE_TAG = "module"


@dataclass
class Copy:
    """One running copy: what it announces of itself, and the manifest that it serves.

    `node` is empty but where it is announced for a node without an agent.
    """

    module: str
    id: str
    node: str = ""
    version: str = "1.0.0"
    title: str = "as it began"
    tags: tuple[str, ...] = (MODULE_TAG,)
    meta: dict[str, str] = field(default_factory=dict)
    health: str = "passing"
    has_check: bool = True
    port: int = 0
    _is_spoilt: bool = field(default=False, repr=False)
    _running: ExitStack = field(default_factory=ExitStack, repr=False)
    _server: ManifestServer | None = field(default=None, repr=False)

    @property
    def runs(self) -> bool:
        return self._server is not None

    @property
    def serves(self) -> bool:
        """Whether it serves a good manifest."""
        return self._server is not None and not self._is_spoilt

    @property
    def manifest(self) -> dict[str, Any]:
        return {"name": self.module, "version": self.version, "title": self.title}

    @property
    def digest(self) -> str:
        return hashlib.sha256(rfc8785.dumps(self.manifest)).hexdigest()

    def start(self) -> None:
        """Begins to serve, on a port that it had not before."""
        self._server = self._running.enter_context(ManifestServer())
        self.port = self._server.port
        self.publish()

    def publish(self) -> None:
        """Serves the manifest as it now is."""
        if self._server is not None:
            self._is_spoilt = False
            self._server.routes = {"/manifest": manifest(self.manifest)}

    def spoil(self, behaviour: Behaviour) -> None:
        """Serves no manifest, but this, until it is published or started again."""
        if self._server is not None:
            self._is_spoilt = True
            self._server.routes = {"/manifest": behaviour}

    def stop(self) -> None:
        self._running.close()
        self._server = None
