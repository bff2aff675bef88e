"""What modules and operators do in the course of a day, a class each: a world in, a deed out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tests.faults.copies import MODULE_TAG, Copy
from tests.faults.world import World
from tests.manifest_server import answer, reset, silence

MODULES = tuple(f"module-{letter}" for letter in "abcde")
PUSHING = tuple(f"pushing-{letter}" for letter in "ab")
MOST_COPIES = 14
MOST_PUSHING = 4
ELSEWHERE = ("node-x", "node-y")
SPOILT = (
    answer("{"),
    answer('{"name": "somebody-else", "version": "1.0.0"}'),
    answer(status="500 Internal Server Error"),
    silence,
    reset,
)


class Step(ABC):
    """One thing that can happen. `weight` is how often, beside the other steps."""

    weight = 1

    @property
    def name(self) -> str:
        return type(self).__name__

    def possible(self, world: World) -> bool:
        return True

    @abstractmethod
    def do(self, world: World) -> str:
        """Does it; returns to what."""


class OfConsul(Step):
    """A step that Consul must take part in."""

    def possible(self, world: World) -> bool:
        return world.consul_answers and bool(self.candidates(world))

    def candidates(self, world: World) -> list[Copy]:
        """The copies of which one is chosen."""
        return world.copies

    def do(self, world: World) -> str:
        copy = world.chance.choice(self.candidates(world))
        self.act(world, copy)
        return copy.id

    @abstractmethod
    def act(self, world: World, copy: Copy) -> None: ...


def _version(world: World) -> str:
    return f"1.{world.next_number()}.0"


class Arrive(Step):
    """A copy of a module comes up, with an agent of Consul beside it or on a node without one."""

    weight = 14

    def possible(self, world: World) -> bool:
        return world.consul_answers and len(world.copies) < MOST_COPIES

    def do(self, world: World) -> str:
        module = world.chance.choice(MODULES)
        node = world.chance.choice(("", "", "", *ELSEWHERE))
        taken = {(copy.id, copy.node) for copy in world.copies}
        # Two nodes may have the same id.
        id_ = next(name for n in range(1, 99) if ((name := f"{module}-{n}"), node) not in taken)
        health = world.chance.choice(("passing", "passing", "passing", "warning", "critical"))
        copy = Copy(
            module, id_, node=node, health=health, has_check=bool(node) or world.chance.random() < 0.8
        )
        if not copy.has_check:
            copy.health = "passing"
        copy.start()
        world.announce(copy)
        return f"{copy.id} {copy.health}{' on ' + node if node else ''}"


class Leave(OfConsul):
    """A copy goes, and says so."""

    weight = 5

    def act(self, world: World, copy: Copy) -> None:
        world.withdraw(copy)


class Turn(OfConsul):
    """A check turns."""

    weight = 16

    def candidates(self, world: World) -> list[Copy]:
        return [copy for copy in world.copies if copy.has_check]

    def do(self, world: World) -> str:
        copy = world.chance.choice(self.candidates(world))
        copy.health = world.chance.choice(("passing", "warning", "critical"))
        self.act(world, copy)
        return f"{copy.id} {copy.health}"

    def act(self, world: World, copy: Copy) -> None:
        world.turn(copy)


class Flap(Turn):
    """A check turns several times in a row."""

    weight = 3

    def act(self, world: World, copy: Copy) -> None:
        for health in ("critical", "passing", "warning", "passing", copy.health):
            copy.health = health
            world.turn(copy)


class Maintain(OfConsul):
    """A copy is put into maintenance, or taken out of it."""

    weight = 4

    def candidates(self, world: World) -> list[Copy]:
        return [copy for copy in world.copies if not copy.node]

    def act(self, world: World, copy: Copy) -> None:
        world.told.was(world.key_of(copy), "maintenance")
        on = copy.id not in world.maintained
        world.catalog.maintain(copy, on)
        (world.maintained.add if on else world.maintained.discard)(copy.id)


class Redefine(OfConsul):
    """A copy registers again with other tags or meta."""

    weight = 6

    def act(self, world: World, copy: Copy) -> None:
        if world.chance.random() < 0.5:
            copy.meta = {**copy.meta, "zone": f"zone-{world.next_number()}"}
        else:
            copy.tags = (MODULE_TAG, f"tag-{world.next_number()}")
        world.maintained.discard(copy.id)
        world.announce(copy)


class Announce(OfConsul):
    """A copy announces its manifest's digest, and the manifest is another one."""

    weight = 2

    def act(self, world: World, copy: Copy) -> None:
        copy.version = _version(world)
        copy.meta = {**copy.meta, "manifest_digest": copy.digest}
        world.served(copy)
        world.maintained.discard(copy.id)
        world.announce(copy)


class Untag(OfConsul):
    """A service is no module any longer."""

    weight = 1

    def act(self, world: World, copy: Copy) -> None:
        world.told.withdrawn.add(world.key_of(copy))
        copy.tags = ("retired",)
        world.catalog.register(copy)
        world.bury(copy)


class Restart(OfConsul):
    """A copy ends and comes back on another port, with another version."""

    weight = 5

    def act(self, world: World, copy: Copy) -> None:
        copy.stop()
        copy.version = _version(world)
        copy.meta.pop("manifest_digest", None)
        copy.start()
        world.served(copy)
        world.maintained.discard(copy.id)
        world.announce(copy)


class Publish(Step):
    """All copies of a module serve other content from one moment on, and announce nothing."""

    weight = 4

    def possible(self, world: World) -> bool:
        return bool(self._candidates(world))

    def _candidates(self, world: World) -> list[Copy]:
        pushed = [pusher.copy for pusher in world.pushers]
        return [copy for copy in (*world.copies, *pushed) if copy.runs]

    def do(self, world: World) -> str:
        module = world.chance.choice(self._candidates(world)).module
        title = f"title {world.next_number()}"
        for pusher in world.pushers:
            if pusher.copy.module == module:
                pusher.copy.title = title
                world.served(pusher.copy)
                pusher.register_anew()
        for copy in world.copies:
            if copy.module == module and "manifest_digest" not in copy.meta:
                copy.title = title
                world.served(copy)
        return module


class Die(OfConsul):
    """A copy's process ends without a word: it stays registered, and nobody listens."""

    weight = 2

    def candidates(self, world: World) -> list[Copy]:
        return [copy for copy in world.copies if copy.serves]

    def act(self, world: World, copy: Copy) -> None:
        copy.stop()


class Spoil(OfConsul):
    """A copy serves something else than its manifest, or nothing at all, until it publishes again."""

    weight = 3

    def candidates(self, world: World) -> list[Copy]:
        return [copy for copy in world.copies if copy.serves]

    def act(self, world: World, copy: Copy) -> None:
        copy.spoil(world.chance.choice(SPOILT))


class PushArrive(Step):
    """A module registers by push."""

    weight = 5

    def possible(self, world: World) -> bool:
        return len(world.pushers) < MOST_PUSHING

    def do(self, world: World) -> str:
        module = world.chance.choice(PUSHING)
        copy = Copy(module, f"{module}-{world.next_number()}", version=_version(world))
        copy.start()
        world.push(copy)
        return copy.id


class OfPush(Step):
    """A step of a module that pushes."""

    def possible(self, world: World) -> bool:
        return bool(world.pushers)

    def do(self, world: World) -> str:
        pusher = world.chance.choice(world.pushers)
        self.act(world, pusher.copy)
        return pusher.copy.id

    @abstractmethod
    def act(self, world: World, copy: Copy) -> None: ...


class PushTurn(OfPush):
    """A module that pushes says that it is otherwise."""

    weight = 4

    def act(self, world: World, copy: Copy) -> None:
        copy.health = world.chance.choice(("passing", "warning", "critical"))
        world.note_pushed(copy)


class PushRedefine(OfPush):
    """A module that pushes registers again with other meta."""

    weight = 2

    def act(self, world: World, copy: Copy) -> None:
        copy.meta = {"zone": f"zone-{world.next_number()}"}
        world.note_pushed(copy)
        next(one for one in world.pushers if one.copy is copy).register_anew()


class PushLeave(OfPush):
    """A module that pushes goes: mostly it says so, else its heartbeats end."""

    weight = 2

    def act(self, world: World, copy: Copy) -> None:
        pusher = next(one for one in world.pushers if one.copy is copy)
        if world.chance.random() < 0.5:
            pusher.fall_silent()
        else:
            pusher.leave()
        copy.stop()
        world.pushers.remove(pusher)


OPENING: tuple[Step, ...] = (*(Arrive() for _ in range(7)), PushArrive())
"""With whom a run begins."""


class Forget(Step):
    """An operator has a module without instances forgotten; that may be refused, if some are believed in."""

    weight = 2

    def possible(self, world: World) -> bool:
        return bool(self._candidates(world))

    def _candidates(self, world: World) -> list[str]:
        present = {copy.module for copy in world.copies}
        return [name for name in MODULES if name not in present]

    def do(self, world: World) -> str:
        name = world.chance.choice(self._candidates(world))
        # From now on readers do not count on it: it may be asked for while it goes.
        world.told.forgettable.add(name)
        done = world.processes.lictor.run("forget", name)
        assert done.returncode in (0, 1), done.stderr
        return name


class Accept(Step):
    """An operator believes whatever is doubted; mostly nothing is, and that is what the answer says then."""

    weight = 2

    def do(self, world: World) -> str:
        # Consul may keep back what it has, and then that is believed to be gone.
        world.told.all_withdrawn()
        done = world.processes.lictor.run("accept")
        assert done.returncode in (0, 1), done.stderr
        return "nothing" if done.returncode else "what was doubted"


STEPS: tuple[Step, ...] = (
    Arrive(),
    Accept(),
    Forget(),
    Leave(),
    Turn(),
    Flap(),
    Maintain(),
    Redefine(),
    Announce(),
    Untag(),
    Restart(),
    Publish(),
    Die(),
    Spoil(),
    PushArrive(),
    PushTurn(),
    PushRedefine(),
    PushLeave(),
)
