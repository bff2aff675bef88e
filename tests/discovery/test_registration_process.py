"""What becomes of a registration when its process ends, is killed, forks, or is not the only one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from discovery.consul.client import ConsulClient
from discovery.errors import UnknownInstance
from tests.consul_server import ConsulServer, RunningConsul, eventually
from tests.discovery.push_server import PushServer

PREAMBLE = """
    import logging, os, select, signal, sys, time
    # Whoever runs the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    import discovery
    name = sys.argv[1]
    def register(**arguments):
        return discovery.register(**{"name": name, "id": name, "port": 8001, **arguments})
    def ready(registration):
        assert registration.wait_registered(10), registration
        print("ready", flush=True)
"""

Program = subprocess.Popen[str]
Run = Callable[[str], Program]


@pytest.fixture
def name() -> str:
    return f"process-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run_at(name: str) -> Iterator[Callable[[str, str], Program]]:
    """Runs a Python program that registers at a Consul; kills it, and what it forked, after the test."""
    with ExitStack() as running:

        def run(http_addr: str, code: str) -> Program:
            program = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(code), name],
                env={**os.environ, "CONSUL_HTTP_ADDR": http_addr},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.callback(_end, program)
            return program

        yield run


@pytest.fixture
def run(run_at: Callable[[str, str], Program], consul: RunningConsul) -> Run:
    return lambda code: run_at(consul.http_addr, code)


def _end(program: Program) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


def line(program: Program) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def ended(program: Program) -> tuple[int, str]:
    """The exit status of a program and what it logged."""
    _, log = program.communicate(timeout=10)
    return program.returncode, log


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


def check_status(client: ConsulClient, name: str) -> str:
    answer = client.health_service(name).data
    return (
        next((check["Status"] for check in answer[0]["Checks"] if check["ServiceID"]), "") if answer else ""
    )


# --------------------------------------------------------------------------------------- its end


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param("ready(register().start())", 0, id="end of the program"),
        pytest.param("ready(register().start()); sys.exit(3)", 3, id="exit"),
        pytest.param("ready(register().start()); raise RuntimeError", 1, id="error"),
        pytest.param("with register() as r: ready(r)", 0, id="end of the block"),
        pytest.param(
            "with register() as r:\n    ready(r)\n    raise RuntimeError", 1, id="error in the block"
        ),
        pytest.param(
            "ready(register(id=name + '-0').start()); ready(register().start())", 0, id="two of them"
        ),
    ],
)
def test_the_normal_end_deregisters(
    run: Run, client: ConsulClient, name: str, code: str, status: int
) -> None:
    program = run(code)
    told = ended(program)
    assert told[0] == status, told
    assert not service(client, name), told
    assert not service(client, f"{name}-0"), told
    assert "deregistered" in told[1]


def test_the_end_deregisters_where_the_agents_name_has_to_be_resolved(
    run_at: Callable[[str, str], Program], consul: RunningConsul, client: ConsulClient, name: str
) -> None:
    addr = consul.http_addr.replace("127.0.0.1", "localhost")
    status, log = ended(run_at(addr, "ready(register(check=discovery.HTTPCheck()).start())"))
    assert status == 0, log
    assert not service(client, name), log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_deregisters_and_ends_the_process_as_it_would(
    run: Run, client: ConsulClient, name: str, number: signal.Signals
) -> None:
    program = run("ready(register().start())\ntime.sleep(60)")
    assert line(program) == "ready"
    assert service(client, name)
    program.send_signal(number)
    status, log = ended(program)
    assert status == -number, log
    assert not service(client, name), log


def test_an_interrupt_that_would_kill_deregisters_first(run: Run, client: ConsulClient, name: str) -> None:
    program = run("signal.signal(signal.SIGINT, signal.SIG_DFL); ready(register().start()); time.sleep(60)")
    assert line(program) == "ready"
    program.send_signal(signal.SIGINT)
    status, log = ended(program)
    assert status == -signal.SIGINT, log
    assert not service(client, name), log


def test_a_programs_own_handler_is_not_replaced(run: Run, client: ConsulClient, name: str) -> None:
    program = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        ready(register().start())
        time.sleep(60)
        """
    )
    assert line(program) == "ready"
    program.send_signal(signal.SIGTERM)
    status, log = ended(program)
    assert status == 7, log
    assert not service(client, name), log


def test_signals_are_as_before_once_it_is_stopped(run: Run) -> None:
    program = run(
        """
        with register() as registration:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        """
    )
    status, log = ended(program)
    assert status == 0, log


def test_a_hung_agent_does_not_hold_up_the_end_of_the_process(
    run_at: Callable[[str, str], Program], consul_server: Callable[..., ConsulServer]
) -> None:
    server = consul_server()
    program = run_at(server.http_addr, "ready(register().start())\ntime.sleep(60)")
    assert line(program) == "ready"
    server.pause()
    before = time.monotonic()
    program.send_signal(signal.SIGTERM)
    status, log = ended(program)
    assert status == -signal.SIGTERM, log
    assert time.monotonic() - before < 8
    assert "could not be deregistered" in log
    server.resume()


def test_a_killed_process_is_left_to_consul(run: Run, client: ConsulClient, name: str) -> None:
    program = run("ready(register(check=discovery.TTLCheck('500ms')).start())\ntime.sleep(60)")
    assert line(program) == "ready"
    eventually(lambda: check_status(client, name) == "passing")
    program.kill()
    eventually(lambda: check_status(client, name) == "critical")
    client.deregister(name)


# -------------------------------------------------------------------------------- several processes


KEEP = "ready(register(check=discovery.TTLCheck()).start())\nsys.stdin.read()"


def test_the_last_process_with_an_id_deregisters_it(run: Run, client: ConsulClient, name: str) -> None:
    first, second = run(KEEP), run(KEEP)
    assert (line(first), line(second)) == ("ready", "ready")
    for program, others_live in ((second, True), (first, False)):
        index = client.health_service(name).index
        status, log = ended(program)
        assert status == 0, log
        assert bool(service(client, name)) is others_live, log
        # Nobody saw it go, not even for a moment.
        assert client.health_service(name).index == index or not others_live
    assert "another process on this machine keeps it" not in log


def test_a_killed_process_does_not_count(run: Run, client: ConsulClient, name: str) -> None:
    first, second = run(KEEP), run(KEEP)
    assert (line(first), line(second)) == ("ready", "ready")
    second.kill()
    second.wait()
    status, log = ended(first)
    assert status == 0, log
    assert not service(client, name), log


def test_the_newest_of_several_processes_has_its_way(run: Run, client: ConsulClient, name: str) -> None:
    older = run("ready(register(version='1.0.0').start())\nsys.stdin.read()")
    assert line(older) == "ready"
    newer = run("ready(register(version='2.0.0').start())\nsys.stdin.read()")
    assert line(newer) == "ready"
    # Each of them sees every change at once; the older one leaves it as it is.
    index = client.health_service(name).index
    answer = client.health_service(name, index=index, wait=1.0)
    assert answer.data[0]["Service"]["Meta"]["version"] == "2.0.0"
    client.deregister(name)
    eventually(lambda: service(client, name).get("Meta", {}).get("version") == "2.0.0")


# ------------------------------------------------------------------------------------------- forks


def test_the_end_of_a_forked_child_changes_nothing(run: Run, client: ConsulClient, name: str) -> None:
    program = run(
        """
        registration = register().start()
        ready(registration)
        if os.fork() == 0:
            print(registration.state, flush=True)
            sys.exit()
        os.wait()
        print("alone", flush=True)
        sys.stdin.read()
        """
    )
    assert [line(program) for _ in range(3)] == ["ready", "inherited", "alone"]
    assert service(client, name)
    client.deregister(name)
    eventually(lambda: service(client, name))
    status, log = ended(program)
    assert status == 0, log
    assert not service(client, name), log


def test_a_forked_child_takes_over_when_its_parent_is_gone(run: Run, client: ConsulClient, name: str) -> None:
    program = run(
        """
        registration = register().start()
        ready(registration)
        if os.fork() == 0:
            while not registration.registered:
                time.sleep(0.05)
            ready(registration)
            sys.stdin.read()
        else:
            os._exit(0)
        """
    )
    assert line(program) == "ready"
    assert program.wait(10) == 0
    assert line(program) == "ready"
    client.deregister(name)
    eventually(lambda: service(client, name))
    _, log = program.communicate(timeout=10)
    eventually(lambda: not service(client, name))
    assert "this one keeps" in log


def test_a_forked_child_may_keep_it_on_its_own(run: Run, client: ConsulClient, name: str) -> None:
    program = run(
        """
        registration = register().start()
        ready(registration)
        if os.fork() == 0:
            try:
                registration.report("warning")
            except RuntimeError as exc:
                print("refused" if "report there" in str(exc) else exc, flush=True)
            ready(registration.start())
            # The parent says that it is well: of two that keep it the last word counts.
            while not select.select([sys.stdin], [], [], 0.05)[0]:
                registration.report("warning", "said by the child")
        else:
            os.wait()
        """
    )
    assert [line(program) for _ in range(3)] == ["ready", "refused", "ready"]
    eventually(lambda: check_status(client, name) == "warning")
    status, log = ended(program)
    assert status == 0, log
    assert not service(client, name), log


def test_the_workers_of_multiprocessing_do_not_take_over(run: Run, client: ConsulClient, name: str) -> None:
    program = run(
        """
        import multiprocessing
        def work():
            time.sleep(4)
            print("worked", flush=True)
        registration = register(check=discovery.TTLCheck("500ms")).start()
        ready(registration)
        multiprocessing.get_context("fork").Process(target=work).start()
        os._exit(0)
        """
    )
    assert line(program) == "ready"
    assert program.wait(10) == 0
    assert line(program) == "worked"
    assert check_status(client, name) == "critical"
    client.deregister(name)


def test_an_impatient_interrupt_does_not_keep_it_registered(
    run: Run, client: ConsulClient, name: str
) -> None:
    program = run(
        """
        import threading
        main = threading.main_thread().ident
        with register() as registration:
            ready(registration)
            join = threading.Thread.join
            def interrupted(*args):
                threading.Thread.join = join
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.1)
            threading.Thread.join = interrupted
        """
    )
    status, log = ended(program)
    assert status == -signal.SIGINT, log
    assert not service(client, name), log


@pytest.mark.parametrize("via", ["consul", "push"])
def test_the_thread_imports_nothing(
    run_at: Callable[[str, str], Program], consul: RunningConsul, via: str
) -> None:
    """A fork in the middle of an import would leave the child with a lock that nobody opens."""
    with PushServer() as server:
        code = f"""
            registration = register(via={via!r}, lictor_url={server.url!r}, check=discovery.HTTPCheck())
            before = set(sys.modules)
            with registration:
                ready(registration)
            print(sorted(set(sys.modules) - before), flush=True)
        """
        program = run_at(consul.http_addr.replace("127.0.0.1", "localhost"), code)
        assert (line(program), line(program)) == ("ready", "[]")
