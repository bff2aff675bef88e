"""Leaving: a module is deregistered first, goes on for its drain, and ends then; who is replaced stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import discovery
from discovery import ConfigError
from discovery.consul.client import ConsulClient
from discovery.consul.dev_agent import free_ports
from discovery.errors import UnknownInstance
from tests.consul_server import RunningConsul, eventually

FLASK = """
    import os, time
    from flask import Flask
    from discovery.flask_extension import Lictor
    time.sleep(float(os.environ.get("IMPORT_TAKES", "0")))
    app = Flask(__name__)
    app.config["LICTOR_DRAIN"] = os.environ["DRAIN"]
    name = os.environ["NAME"]
    Lictor(app, name=name, id=name, port=int(os.environ["SERVED"]))

    @app.get("/pid")
    def pid():
        return str(os.getpid())
"""
ASGI = """
    import os
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from discovery.asgi import lifespan

    async def pid(request):
        return PlainTextResponse(str(os.getpid()))

    name, port = os.environ["NAME"], int(os.environ["SERVED"])
    kept = lifespan(name=name, id=name, port=port, drain=os.environ["DRAIN"])
    app = Starlette(routes=[Route("/pid", pid)], lifespan=kept)
"""
PLAIN = """
    import os, signal, sys, time
    import discovery

    def told(number, frame):
        print("told", flush=True)
        sys.exit(7)

    signal.signal(signal.SIGTERM, told)
    name = os.environ["NAME"]
    discovery.register(name=name, id=name, port=8001, drain=os.environ["DRAIN"]).start()
    while True:
        time.sleep(60)
"""
# Longer than any test: only a second signal ends it sooner.
LONG = "10m"

Program = subprocess.Popen[str]
Run = Callable[..., Program]


@pytest.fixture
def name() -> str:
    return f"leaving-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def run(consul: RunningConsul, name: str, port: int, tmp_path: Path) -> Iterator[Run]:
    """Runs `python ARGUMENTS` beside application.py, which holds the code; kills all of it at the end."""
    with ExitStack() as running:

        def start(code: str, *arguments: str, before: tuple[str, ...] = (), **environ: str) -> Program:
            (tmp_path / "application.py").write_text(textwrap.dedent(code))
            own = {"NAME": name, "SERVED": str(port), "DRAIN": LONG, "CONSUL_HTTP_ADDR": consul.http_addr}
            program = subprocess.Popen(
                [*before, sys.executable, *arguments],
                env={**os.environ, **own, **environ},
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.callback(_end, program)
            return program

        yield start


def _end(program: Program) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert program.stdout is not None
    program.stdout.close()


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


def serving(port: int) -> int:
    """The process that answers, 0 for none."""
    try:
        return int(httpx.get(f"http://127.0.0.1:{port}/pid", trust_env=False, timeout=10).text)
    except httpx.HTTPError:
        return 0


GUNICORN = ("-m", "gunicorn", "--bind=127.0.0.1:{port}", "application:app")
SERVERS = [
    pytest.param(FLASK, (*GUNICORN, "--workers=2"), id="gunicorn"),
    pytest.param(FLASK, (*GUNICORN, "--workers=2", "--preload"), id="gunicorn --preload"),
    pytest.param(FLASK, (*GUNICORN, "--threads=4"), id="gunicorn's threads"),
    pytest.param(ASGI, (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"), id="uvicorn-worker"),
    pytest.param(ASGI, ("-m", "uvicorn", "--port={port}", "application:app"), id="uvicorn"),
    pytest.param(ASGI, ("-m", "uvicorn", "--port={port}", "--workers=2", "application:app"), id="uvicorns"),
    pytest.param(FLASK, ("-m", "flask", "--app=application", "run", "--port={port}"), id="flask run"),
]


@pytest.mark.parametrize(("code", "arguments"), SERVERS)
def test_a_server_goes_on_for_the_drain(
    run: Run, client: ConsulClient, name: str, port: int, code: str, arguments: tuple[str, ...]
) -> None:
    program = run(code, *(argument.format(port=port) for argument in arguments))
    eventually(lambda: service(client, name) and serving(port))
    program.terminate()
    eventually(lambda: not service(client, name))
    assert serving(port)
    assert program.poll() is None


@pytest.mark.parametrize(("code", "arguments"), SERVERS)
def test_a_server_ends_after_the_drain(
    run: Run, client: ConsulClient, name: str, port: int, code: str, arguments: tuple[str, ...]
) -> None:
    program = run(code, *(argument.format(port=port) for argument in arguments), DRAIN="100ms")
    eventually(lambda: service(client, name) and serving(port))
    program.terminate()
    assert program.wait(15) in (0, -signal.SIGTERM)
    assert not service(client, name)


def test_the_second_signal_reaches_the_program_at_once(run: Run, client: ConsulClient, name: str) -> None:
    program = run(PLAIN, "application.py")
    eventually(lambda: service(client, name))
    program.terminate()
    eventually(lambda: not service(client, name))
    assert program.poll() is None
    program.terminate()
    assert program.wait(10) == 7
    assert program.communicate()[0] == "told\n"


def test_a_program_is_told_once_after_the_drain(run: Run, client: ConsulClient, name: str) -> None:
    program = run(PLAIN, "application.py", DRAIN="0.1")
    eventually(lambda: service(client, name))
    program.terminate()
    assert program.wait(10) == 7
    assert program.communicate()[0] == "told\n"
    assert not service(client, name)


# --------------------------------------------------------------------------- workers that are replaced


def workers(arbiter: Program) -> set[int]:
    return set(map(int, Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a worker of its arbiter's others")
@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(FLASK, GUNICORN, id="sync"),
        pytest.param(FLASK, (*GUNICORN, "--preload"), id="preload"),
        pytest.param(ASGI, (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"), id="uvicorn-worker"),
    ],
)
def test_workers_that_gunicorn_reloads_do_not_deregister(
    run: Run, client: ConsulClient, name: str, port: int, code: str, arguments: tuple[str, ...]
) -> None:
    slow = {"IMPORT_TAKES": "1.5", "DRAIN": "0"}
    arbiter = run(code, *(argument.format(port=port) for argument in arguments), **slow)
    eventually(lambda: service(client, name) and serving(port))
    old = workers(arbiter)
    born = client.health_service(name).data[0]["Service"]["CreateIndex"]
    arbiter.send_signal(signal.SIGHUP)
    eventually(lambda: not old & workers(arbiter) and serving(port))
    # It was there all the time: otherwise it would have been born again.
    (entry,) = client.health_service(name).data
    assert entry["Service"]["CreateIndex"] == born
    arbiter.terminate()
    assert arbiter.wait(15) == 0
    assert not service(client, name)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a worker of its arbiter")
@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(FLASK, GUNICORN, id="sync"),
        pytest.param(ASGI, (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"), id="uvicorn-worker"),
    ],
)
def test_a_worker_that_has_had_its_requests_does_not_deregister(
    run: Run, client: ConsulClient, name: str, port: int, code: str, arguments: tuple[str, ...]
) -> None:
    arguments = (*(argument.format(port=port) for argument in arguments), "--max-requests=2")
    arbiter = run(code, *arguments, IMPORT_TAKES="1", DRAIN="0")
    eventually(lambda: service(client, name))
    born = client.health_service(name).data[0]["Service"]["CreateIndex"]
    (first,) = workers(arbiter)
    assert eventually(lambda: serving(port)) == first
    assert serving(port) == first
    eventually(lambda: first not in workers(arbiter) and serving(port))
    (entry,) = client.health_service(name).data
    assert entry["Service"]["CreateIndex"] == born
    arbiter.terminate()
    assert arbiter.wait(15) == 0
    assert not service(client, name)


# ------------------------------------------------------------------------------------ `lictor register`

WRAPPER = """
    import os, sys
    from discovery.announce.run_registered import registration_for_command, run_registered
    name = os.environ["NAME"]
    registration = registration_for_command(name=name, id=name, port=8001, drain=os.environ["DRAIN"])
    sys.exit(run_registered(sys.argv[1:], registration))
"""


def test_a_command_goes_on_for_the_drain(run: Run, client: ConsulClient, name: str) -> None:
    wrapper = run(WRAPPER, "application.py", "sleep", "60")
    eventually(lambda: service(client, name))
    wrapper.terminate()
    eventually(lambda: not service(client, name))
    assert wrapper.poll() is None
    wrapper.terminate()
    assert wrapper.wait(10) == 128 + signal.SIGTERM


def test_a_command_is_told_after_the_drain(run: Run, client: ConsulClient, name: str) -> None:
    wrapper = run(WRAPPER, "application.py", "sleep", "60", DRAIN="100ms")
    eventually(lambda: service(client, name))
    wrapper.terminate()
    assert wrapper.wait(10) == 128 + signal.SIGTERM
    assert not service(client, name)


# ------------------------------------------------------------------------ the first process of a container

FIRST_PROCESS = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def first_process(namespace: Program) -> int:
    return eventually(lambda: next(iter(workers(namespace)), 0))


@pytest.fixture
def container() -> tuple[str, ...]:
    """What makes a program the first process of a process namespace."""
    tried = subprocess.run([*FIRST_PROCESS, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system allows no process namespace: {tried.stderr.strip()}")
    return FIRST_PROCESS


def test_the_first_process_ends_of_a_signal(
    run: Run, client: ConsulClient, name: str, container: tuple[str, ...]
) -> None:
    code = PLAIN.replace("signal.signal(signal.SIGTERM, told)", "")
    namespace = run(code, "application.py", before=container, DRAIN="0")
    eventually(lambda: service(client, name))
    os.kill(first_process(namespace), signal.SIGTERM)
    assert namespace.wait(10) == 128 + signal.SIGTERM
    assert not service(client, name)


def test_a_wrapper_that_is_the_first_process_ends_and_leaves_no_zombies(
    run: Run, client: ConsulClient, name: str, container: tuple[str, ...]
) -> None:
    # Two orphans that have ended, and a command that says when neither is in the list of processes.
    command = """
        (sleep 0.1 &) ; (sleep 0.2 &)
        while grep -qs sleep /proc/[0-9]*/comm; do read -t 0.05 _ < /dev/zero; done
        echo none left; exec sleep 60
    """
    wrapper = run(WRAPPER, "application.py", "bash", "-c", command, before=container, DRAIN="0")
    assert wrapper.stdout is not None
    assert wrapper.stdout.readline() == "none left\n"
    eventually(lambda: service(client, name))
    os.kill(first_process(wrapper), signal.SIGTERM)
    assert wrapper.wait(10) == 128 + signal.SIGTERM
    assert not service(client, name)


# -------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("drain", ["soon", -1, None, True])
def test_a_faulty_drain_is_refused(drain: Any) -> None:
    with pytest.raises(ConfigError, match=r"drain: .* is not a duration"):
        discovery.register(name="financial", port=8001, drain=drain)
