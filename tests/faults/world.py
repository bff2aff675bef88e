"""One Lictor between real modules and a real Consul, and everything that a run may do to them."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.faults.asking import Asking
from tests.faults.copies import Copy
from tests.faults.disk import Disk, small_disk
from tests.faults.following import Following
from tests.faults.invariants import Invariants, Violation
from tests.faults.lictor import Processes
from tests.faults.proxy import Proxy
from tests.faults.push import Pusher
from tests.faults.registry import Registry, SingleAgent
from tests.faults.replay import Key
from tests.faults.servers import ThreeServers
from tests.faults.told import Told
from tests.postgres_server import PostgresServer


@dataclass(frozen=True)
class Scenery:
    """Which Consul and which database a run is played on, and how many synchronizers there are."""

    name: str
    consul: Literal["agent", "acl", "servers"] = "agent"
    database: Literal["sqlite", "postgres"] = "sqlite"
    synchronizers: int = 2

    @property
    def anti_entropy(self) -> float:
        """Seconds between two comparisons of all that is known with Consul.

        That a token may read again wakes no watch, so with ACLs only this finds what it brings back.
        Elsewhere the watches have to find all by themselves, and the comparison only proves it.
        """
        return 2.0 if self.consul == "acl" else 10.0


SCENERIES = {
    scenery.name: scenery
    for scenery in (
        Scenery("agent"),
        Scenery("acl", consul="acl", synchronizers=1),
        Scenery("postgres", database="postgres"),
        Scenery("servers", consul="servers"),
    )
}


class World:
    """All that a run plays with; a context manager. `chance` is its only source of chance.

    Which step comes next must follow from `chance` and from what steps did before, never from what
    Lictor or Consul answer: only then does a seed play the same steps again.
    """

    def __init__(self, scenery: Scenery, seed: int, folder: Path) -> None:
        self.scenery = scenery
        self.chance = random.Random(f"{scenery.name} {seed}")
        self.told = Told()
        self.copies: list[Copy] = []
        self.pushers: list[Pusher] = []
        self.maintained: set[str] = set()
        self.consul_answers = True
        self.done: Counter[str] = Counter()
        self.disk: Disk | None = None
        self.postgres: PostgresServer | None = None
        self._seed = seed
        self._folder = folder
        self._numbers = itertools.count(1)
        self._open = ExitStack()
        self._never = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _begin(self) -> None:
        self.registry = self._start_registry()
        self.catalog = self.registry.catalog()
        self._open.callback(self.catalog.close)
        self.node = self.catalog.own_node
        self.proxy = self._open.enter_context(Proxy(self.registry.upstream, seed=self._seed))
        self._open.callback(self._end_copies)
        settings = {
            "LICTOR_DATABASE_URL": self._start_database(),
            "CONSUL_HTTP_ADDR": f"http://{self.proxy.address}",
            "CONSUL_HTTP_TOKEN": self.registry.token,
            "LICTOR_ANTI_ENTROPY": f"{self.scenery.anti_entropy}s",
        }
        folder = self._folder / "lictor"
        folder.mkdir()
        self.processes = Processes(folder, settings, synchronizers=self.scenery.synchronizers)
        # What it follows ends before it does, so that it need not wait for another word.
        self.following = self._open.enter_context(Following(self.processes.lictor.url))
        self._open.callback(self.processes.close)
        self.processes.start()
        self.invariants = Invariants(self.processes, self.told)
        url, excuses = self.processes.lictor.url, self.processes.excuses
        asking = Asking(url, excuses, self.invariants.with_manifest, seed=self._seed)
        self.asking = self._open.enter_context(asking)

    def _start_registry(self) -> Registry:
        folder = self._folder / "consul"
        folder.mkdir()
        registry: Registry
        if self.scenery.consul == "servers":
            registry = ThreeServers(folder)
        else:
            registry = SingleAgent(folder, acl=self.scenery.consul == "acl")
        self._open.callback(registry.close)
        registry.start()
        return registry

    def _start_database(self) -> str:
        if self.scenery.database == "postgres":
            self.postgres = self._open.enter_context(PostgresServer(durable=True))
            return self.postgres.create_database()
        folder = self._folder / "disk"
        self.disk = self._open.enter_context(small_disk(folder))
        return f"sqlite:///{folder}/lictor.db"

    def _end_copies(self) -> None:
        for pusher in self.pushers:
            pusher.fall_silent()
        for copy in (*self.copies, *(pusher.copy for pusher in self.pushers)):
            copy.stop()

    # What happens

    def pass_time(self, seconds: float) -> None:
        """Lets a fault last."""
        self._never.wait(seconds)

    def check(self) -> None:
        """Raises Violation if anything does not hold now."""
        self.invariants.check()
        if self.asking.faults:
            raise Violation("\n".join(self.asking.faults[:10]))

    def next_number(self) -> int:
        return next(self._numbers)

    def key_of(self, copy: Copy) -> Key:
        return Key("consul", copy.module, copy.node or self.node, copy.id)

    def announce(self, copy: Copy) -> None:
        """Registers a copy in Consul, or again as it is now."""
        self._note(self.key_of(copy), copy)
        self.catalog.register(copy)
        if copy not in self.copies:
            self.copies.append(copy)

    def withdraw(self, copy: Copy) -> None:
        """Takes a copy out of Consul."""
        self.told.withdrawn.add(self.key_of(copy))
        self.catalog.deregister(copy)
        self.bury(copy)

    def turn(self, copy: Copy) -> None:
        self._note(self.key_of(copy), copy)
        self.catalog.turn(copy)

    def bury(self, copy: Copy) -> None:
        copy.stop()
        self.copies.remove(copy)
        self.maintained.discard(copy.id)

    def forget_consul(self) -> None:
        """Consul lost all that it was told."""
        self.told.all_withdrawn()
        for copy in list(self.copies):
            self.bury(copy)

    def push(self, copy: Copy) -> Pusher:
        """Has a copy register by push, and go on with it."""
        key = Key("push", copy.module, "", copy.id)
        pusher = Pusher(copy, self.processes.lictor.url, lambda: self._note(key, copy))
        # Its heartbeats may be late at any time.
        self.told.was(key, "critical")
        self._note(key, copy)
        self.pushers.append(pusher)
        return pusher.start()

    def note_pushed(self, copy: Copy) -> None:
        self._note(Key("push", copy.module, "", copy.id), copy)

    def served(self, copy: Copy) -> None:
        """A copy serves another manifest from now on."""
        self.told.served(copy.module, copy.digest)
        copy.publish()

    def _note(self, key: Key, copy: Copy) -> None:
        self.told.announced(
            key,
            {
                "address": "127.0.0.1",
                "port": copy.port,
                "scheme": "http",
                "tags": list(copy.tags),
                "meta": copy.meta,
            },
        )
        self.told.served(copy.module, copy.digest)
        self.told.was(key, copy.health)
        if self.scenery.consul == "servers":
            # The agent may seem to have failed when others do not hear of it in time.
            self.told.was(key, "critical")
