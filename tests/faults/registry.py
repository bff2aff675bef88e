"""The Consul of a run, as the run starts, ends and spoils it; here: one agent that forgets."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from tests.consul_server import ConsulServer, consul_binary
from tests.faults.catalog import Catalog


class Registry(ABC):
    """A Consul of one's own. `token` is what Lictor is given, `management_token` has all rights."""

    token = ""
    management_token = ""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it speaks HTTP, as a URL."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @property
    def upstream(self) -> tuple[str, int]:
        parts = urlsplit(self.address)
        return parts.hostname or "", parts.port or 0

    def catalog(self) -> Catalog:
        return Catalog(lambda: self.address, self.management_token)


RULES = (
    'agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } '
    'service_prefix "" { policy = "write" } session_prefix "" { policy = "write" } '
    'key_prefix "lictor/" { policy = "write" }'
)
NO_SERVICES = 'agent_prefix "" { policy = "read" }'


class SingleAgent(Registry):
    """One development agent: whatever ends it makes it forget everything but, with ACLs, Lictor's token."""

    def __init__(self, folder: Path, *, acl: bool = False) -> None:
        self.server = ConsulServer(consul_binary(), folder, acl=acl)
        self.has_acl = acl
        if acl:
            self.token = str(uuid.uuid4())
            self.management_token = self.server.management_token
        self._policy = ""

    @property
    def address(self) -> str:
        return self.server.plain_http_addr

    def start(self) -> None:
        self.server.start()
        if self.has_acl:
            with closing(self.catalog()) as catalog:
                said = {"Name": "lictor", "Rules": RULES}
                self._policy = catalog.put("/v1/acl/policy", said)["ID"]
            self.give_back()

    def close(self) -> None:
        self.server.kill()

    def allow(self, rules: str) -> None:
        """Gives Lictor's token these rights, and no others."""
        with closing(self.catalog()) as catalog:
            said = {"ID": self._policy, "Name": "lictor", "Rules": rules}
            catalog.put(f"/v1/acl/policy/{self._policy}", said)

    def revoke(self) -> None:
        """Makes Lictor's token one that Consul does not know."""
        with closing(self.catalog()) as catalog:
            catalog.delete(f"/v1/acl/token/{self.token}")

    def give_back(self) -> None:
        """Makes it known again, with the rights that it had."""
        with closing(self.catalog()) as catalog:
            # The same number as both its name and its secret: nobody else can ask here.
            said = {"AccessorID": self.token, "SecretID": self.token, "Policies": [{"ID": self._policy}]}
            catalog.put("/v1/acl/token", said)
