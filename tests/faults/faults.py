"""What goes wrong, a class each: faults that are over within a step, and faults that last over some."""

from __future__ import annotations

import os
import signal
from abc import abstractmethod
from typing import cast

from tests.faults.proxy import Trouble
from tests.faults.registry import NO_SERVICES, RULES, SingleAgent
from tests.faults.servers import Agent, ThreeServers
from tests.faults.steps import Step
from tests.faults.world import World


class Passing(Step):
    """A fault that is over when the step is."""

    weight = 2


class Lasting(Step):
    """A fault that lasts over some steps. Those of one `place` do not come together."""

    weight = 3
    place = "consul"

    def do(self, world: World) -> str:
        return self.begin(world)

    @abstractmethod
    def begin(self, world: World) -> str: ...

    @abstractmethod
    def end(self, world: World) -> None: ...


# The web server


class WorkerKilled(Passing):
    """`kill -9` of a process that serves."""

    def do(self, world: World) -> str:
        number = world.chance.randrange(2)
        world.processes.kill_worker(world.processes.workers()[number])
        return str(number)


class WorkerPaused(Passing):
    """A process that serves is stopped for a while, and goes on."""

    def do(self, world: World) -> str:
        number, seconds = world.chance.randrange(2), world.chance.uniform(0.1, 0.6)
        pid = world.processes.workers()[number]
        world.processes.pause(pid)
        world.pass_time(seconds)
        world.processes.resume_all()
        return f"{number} for {seconds:.1f} s"


class ServerKilled(Passing):
    """`kill -9` of the web server's main process; it is started again."""

    weight = 1

    def do(self, world: World) -> str:
        world.processes.kill_server()
        return ""


# The synchronizer


class SynchronizerRestarted(Passing):
    """A synchronizer is ended, by `kill -9` or in peace, and started again."""

    weight = 3

    def do(self, world: World) -> str:
        how = world.chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        number = world.chance.randrange(world.processes.count)
        world.processes.end_synchronizer(number, how)
        world.processes.fill_up()
        return f"{number} {how.name}"


class SynchronizerAway(Lasting):
    """No synchronizer runs for some time."""

    place = "synchronizer"

    def begin(self, world: World) -> str:
        how = world.chance.choice((signal.SIGKILL, signal.SIGTERM))
        while world.processes.synchronizers:
            world.processes.end_synchronizer(0, how)
        return how.name

    def end(self, world: World) -> None:
        world.processes.fill_up()


class SynchronizerPaused(Lasting):
    """A synchronizer is stopped, and goes on as if no time had passed; another may lead by then."""

    place = "synchronizer"

    def begin(self, world: World) -> str:
        number = world.chance.randrange(world.processes.count)
        world.processes.pause(world.processes.synchronizers[number].process.pid)
        return str(number)

    def end(self, world: World) -> None:
        world.processes.resume_all()


# The way to Consul


class WayTroubled(Lasting):
    """Something between Lictor and Consul spoils what passes."""

    place = "way"

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    @property
    def name(self) -> str:
        return f"Way {self.trouble}"

    def begin(self, world: World) -> str:
        if self.trouble is Trouble.CORRUPT:
            # A head of an answer without its end is waited for as long as Consul may hold a query.
            world.invariants.repairs_are_expected = True
        world.proxy.make(self.trouble)
        return ""

    def end(self, world: World) -> None:
        world.proxy.make(Trouble.NONE)


# Consul


class OfSingleAgent(Lasting):
    """A fault of a Consul that is one agent."""

    def possible(self, world: World) -> bool:
        return isinstance(world.registry, SingleAgent)

    def agent(self, world: World) -> SingleAgent:
        return cast(SingleAgent, world.registry)


class ConsulPaused(OfSingleAgent):
    """Consul takes connections, and answers nothing."""

    def begin(self, world: World) -> str:
        world.consul_answers = False
        self.agent(world).server.pause()
        return ""

    def end(self, world: World) -> None:
        self.agent(world).server.resume()
        world.consul_answers = True


class ConsulWiped(OfSingleAgent):
    """Consul ends, and comes back with nothing of what it knew.

    Not with ACLs: an agent that is asked for a token before it was told of it may refuse it ever after.
    """

    def possible(self, world: World) -> bool:
        return super().possible(world) and not self.agent(world).has_acl

    def begin(self, world: World) -> str:
        world.consul_answers = False
        world.forget_consul()
        self.agent(world).server.kill()
        return ""

    def end(self, world: World) -> None:
        self.agent(world).server.start()
        world.consul_answers = True


class RightsTaken(OfSingleAgent):
    """Lictor's token may read nothing: Consul answers with empty lists, as if all were gone."""

    weight = 8

    def possible(self, world: World) -> bool:
        return world.scenery.consul == "acl"

    def begin(self, world: World) -> str:
        world.told.all_withdrawn()
        world.invariants.repairs_are_expected = True
        self.agent(world).allow(NO_SERVICES)
        return ""

    def end(self, world: World) -> None:
        self.agent(world).allow(RULES)


class TokenRevoked(OfSingleAgent):
    """Lictor's token is no token any longer, and later is one again."""

    weight = 8

    def possible(self, world: World) -> bool:
        return world.scenery.consul == "acl"

    def begin(self, world: World) -> str:
        self.agent(world).revoke()
        return ""

    def end(self, world: World) -> None:
        self.agent(world).give_back()


class OfServers(Lasting):
    """A fault of three servers."""

    weight = 6

    def possible(self, world: World) -> bool:
        return isinstance(world.registry, ThreeServers)

    def servers(self, world: World) -> ThreeServers:
        return cast(ThreeServers, world.registry)

    def end(self, world: World) -> None:
        self.restore(world)
        self.servers(world).await_leader()
        world.consul_answers = True

    @abstractmethod
    def restore(self, world: World) -> None: ...


class LeaderKilled(OfServers):
    """`kill -9` of the server that leads: the two others elect another one."""

    def begin(self, world: World) -> str:
        world.consul_answers = False
        self._killed = self.servers(world).leader()
        self._killed.kill()
        return ""

    def restore(self, world: World) -> None:
        self._killed.start()


class LeaderPaused(OfServers):
    """The server that leads is stopped; when it goes on, it may think for a moment that it leads still."""

    def begin(self, world: World) -> str:
        world.consul_answers = False
        self._paused = self.servers(world).leader()
        self._paused.signal(signal.SIGSTOP)
        return ""

    def restore(self, world: World) -> None:
        self._paused.signal(signal.SIGCONT)


class QuorumLost(OfServers):
    """Two of three servers are stopped: nobody can lead."""

    weight = 3

    def begin(self, world: World) -> str:
        world.consul_answers = False
        self._paused: list[Agent] = self.servers(world).servers[:2]
        for server in self._paused:
            server.signal(signal.SIGSTOP)
        return ""

    def restore(self, world: World) -> None:
        for server in self._paused:
            server.signal(signal.SIGCONT)


class AgentKilled(OfServers):
    """`kill -9` of the agent that Lictor speaks to; it comes back with what it knew."""

    def begin(self, world: World) -> str:
        world.consul_answers = False
        self.servers(world).client.kill()
        return ""

    def restore(self, world: World) -> None:
        self.servers(world).client.start()


# The database


class DatabaseRestarted(Passing):
    """PostgreSQL ends, in peace or as by a crash, and comes back."""

    weight = 6

    def possible(self, world: World) -> bool:
        return world.postgres is not None

    def do(self, world: World) -> str:
        assert world.postgres is not None
        crash = world.chance.random() < 0.5
        with world.processes.excuses.excused():
            (world.postgres.kill if crash else world.postgres.stop)()
            world.pass_time(world.chance.uniform(0.1, 0.5))
            world.postgres.start()
            world.processes.await_ready()
        return "crash" if crash else "clean"


class DatabasePaused(Passing):
    """The databases's main process takes no connections for a moment."""

    weight = 2

    def possible(self, world: World) -> bool:
        return world.postgres is not None

    def do(self, world: World) -> str:
        assert world.postgres is not None
        os.kill(world.postgres.pid, signal.SIGSTOP)
        world.pass_time(world.chance.uniform(0.1, 0.5))
        os.kill(world.postgres.pid, signal.SIGCONT)
        return ""


class DiskFull(Lasting):
    """Nothing more can be written where the database is."""

    place = "disk"

    def possible(self, world: World) -> bool:
        return world.disk is not None

    def begin(self, world: World) -> str:
        assert world.disk is not None
        world.disk.fill()
        return ""

    def end(self, world: World) -> None:
        assert world.disk is not None
        world.disk.free()


FAULTS: tuple[Step, ...] = (
    WorkerKilled(),
    WorkerPaused(),
    ServerKilled(),
    SynchronizerRestarted(),
    SynchronizerAway(),
    SynchronizerPaused(),
    *(WayTroubled(trouble) for trouble in Trouble if trouble is not Trouble.NONE),
    ConsulPaused(),
    ConsulWiped(),
    RightsTaken(),
    TokenRevoked(),
    LeaderKilled(),
    LeaderPaused(),
    QuorumLost(),
    AgentKilled(),
    DatabaseRestarted(),
    DatabasePaused(),
    DiskFull(),
)
