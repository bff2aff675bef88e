"""A Flask application as a module: which processes register it, and the routes that it is given."""

from __future__ import annotations

import hashlib
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

import pytest
from flask import Flask

from discovery import ConfigError, HTTPCheck, Registration, TTLCheck
from discovery.announce.keepalive import State
from discovery.consul.client import ConsulClient
from discovery.consul.dev_agent import free_ports
from discovery.errors import UnknownInstance
from discovery.flask_extension import Lictor
from tests.consul_server import RunningConsul, eventually

MANIFEST = {"version": "1.2.0", "name": "financial", "title": "Größe"}

APPLICATION = """
    import logging, os, signal, sys
    from flask import Flask
    from discovery.flask_extension import Lictor
    # Whoever runs the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
    app = Flask(__name__)
    app.config["LICTOR_CHECK"] = "http:/health,interval=100ms"
    name, port = os.environ["NAME"], int(os.environ["SERVED"])
    Lictor(app, name=name, id=name, port=port, serve_health=True)
"""

Program = subprocess.Popen[bytes]


@pytest.fixture
def name() -> str:
    return f"flask-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def run(consul: RunningConsul, name: str, port: int, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Runs `python ARGUMENTS` beside the application's file, application.py; kills all of it at the end."""
    with ExitStack() as running:

        def start(*arguments: str, code: str = "", **environ: str) -> Program:
            application = textwrap.dedent(APPLICATION) + textwrap.dedent(code)
            (tmp_path / "application.py").write_text(application)
            program = subprocess.Popen(
                [sys.executable, *arguments],
                env={
                    **os.environ,
                    "CONSUL_HTTP_ADDR": consul.http_addr,
                    "NAME": name,
                    "SERVED": str(port),
                    "HOME": str(tmp_path),
                    **environ,
                },
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=(log := (tmp_path / "log").open("wb")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            log.close()
            running.callback(_end, program)
            return program

        yield start


def _end(program: Program) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def service(client: ConsulClient, id: str) -> dict[str, Any]:
    try:
        return client.agent_service(id)[0]
    except UnknownInstance:
        return {}


def passes(client: ConsulClient, name: str) -> bool:
    return bool(client.health_service(name, params={"passing": 1}).data)


# ----------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize("preload", [False, True], ids=["each worker registers", "the master registers"])
def test_gunicorn(
    run: Callable[..., Program], client: ConsulClient, name: str, port: int, tmp_path: Path, preload: bool
) -> None:
    pids = tmp_path / "pids"
    master = run(
        *("-m", "gunicorn", "--workers=2", f"--bind=127.0.0.1:{port}", "application:app"),
        *(["--preload"] if preload else []),
        code=f"""
        os.register_at_fork(after_in_child=lambda: open({str(pids)!r}, "a").write(f"{{os.getpid()}}\\n"))
        if {not preload}:
            open({str(pids)!r}, "a").write(f"{{os.getpid()}}\\n")
        """,
    )
    log = tmp_path / "log"

    def registrations() -> int:
        return log.read_text().count(" registered ")

    eventually(lambda: registrations() == (1 if preload else 2))
    eventually(lambda: passes(client, name))
    eventually(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
    index = client.health_service(name).index
    os.kill(int(pids.read_text().split()[0]), signal.SIGTERM)
    eventually(lambda: len(pids.read_text().splitlines()) == 3)
    eventually(lambda: registrations() == (1 if preload else 3))
    eventually(lambda: passes(client, name))
    if preload:
        assert client.health_service(name).index == index
    assert "deregistered" not in log.read_text()
    assert "HTTP Request" not in log.read_text()
    master.terminate()
    assert master.wait(10) == 0
    assert log.read_text().count("deregistered") == 1
    assert not service(client, name)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["application.py"], id="app.run"),
        pytest.param(["-m", "flask", "--app=application", "run", "--debug", "--port={port}"], id="flask run"),
    ],
)
def test_only_the_process_that_serves_registers_under_the_reloader(
    run: Callable[..., Program],
    client: ConsulClient,
    name: str,
    port: int,
    tmp_path: Path,
    arguments: list[str],
) -> None:
    program = run(
        *(argument.format(port=port) for argument in arguments),
        code=f"""
        if __name__ == "__main__":
            app.run(port={port}, debug=True)
        """,
    )
    eventually(lambda: passes(client, name))
    log = tmp_path / "log"

    def registered() -> list[int]:
        """The processes that registered, once each time, but for the one that was started, which watches."""
        lines = [line.split() for line in log.read_text().splitlines() if " registered " in line]
        return [int(line[0]) for line in lines if int(line[0]) != program.pid]

    assert len(registered()) == 1
    with (tmp_path / "application.py").open("a") as file:
        file.write("# altered\n")
    eventually(lambda: len(registered()) == 2)
    eventually(lambda: passes(client, name))
    assert log.read_text().count(f"{program.pid} registered") <= 1
    os.killpg(program.pid, signal.SIGINT)
    program.wait(10)
    eventually(lambda: not service(client, name))


def test_flask_run_without_the_reloader_gives_the_port(
    run: Callable[..., Program], client: ConsulClient, name: str, port: int, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(
        "import os\nfrom flask import Flask\nfrom discovery.flask_extension import Lictor\n"
        "app = Flask(__name__)\n"
        "app.config.update(LICTOR_NAME=os.environ['NAME'], LICTOR_ID=os.environ['NAME'])\n"
        "Lictor(serve_health=True).init_app(app)\n"
    )
    program = run("-m", "flask", "--app=other", "run", f"--port={port}")
    assert eventually(lambda: service(client, name))["Port"] == port
    program.terminate()
    program.wait(10)
    assert not service(client, name)


def test_other_commands_of_flask_register_nothing(
    run: Callable[..., Program], client: ConsulClient, name: str, tmp_path: Path
) -> None:
    assert run("-m", "flask", "--app=application", "routes").wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "/health" in log
    assert "registered" not in log


# ------------------------------------------------------------------------------------------- routes


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.testing = True
    return app


def test_a_test_registers_nothing(app: Flask) -> None:
    Lictor(app, name="financial", port=8001)
    registration = app.extensions["lictor"]
    assert isinstance(registration, Registration)
    assert registration.state is State.STOPPED


def test_registering_can_be_switched_off() -> None:
    app = Flask(__name__)
    app.config["LICTOR_REGISTER"] = False
    Lictor(app, name="financial", port=8001)
    assert app.extensions["lictor"].state is State.STOPPED


def test_the_manifest_is_served_as_its_digest_says(app: Flask) -> None:
    Lictor(app, name="financial", port=8001, manifest=MANIFEST, manifest_path="/about")
    answer = app.test_client().get("/about")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json == MANIFEST
    digest = hashlib.sha256(answer.data).hexdigest()
    assert app.extensions["lictor"].announcement.meta["manifest_digest"] == digest
    again = app.test_client().get("/about", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_what_is_asked_with_a_query_or_in_quotes_is_served(app: Flask) -> None:
    place, check = "/about%20us?v=1", HTTPCheck("/health?full=1")
    Lictor(
        app,
        name="financial",
        port=8001,
        manifest=MANIFEST,
        manifest_path=place,
        check=check,
        serve_health=True,
    )
    assert app.test_client().get(place).json == MANIFEST
    assert app.test_client().get(check.path).json == {"status": "passing"}


def test_the_health_path_is_served_where_that_is_asked_for(app: Flask) -> None:
    Lictor(app, name="financial", port=8001, serve_health=True)
    assert app.test_client().get("/health").json == {"status": "passing"}
    assert app.extensions["lictor"].announcement.checks == (HTTPCheck("/health"),)


def test_the_applications_own_routes_stay(app: Flask) -> None:
    app.add_url_rule("/up", "up", lambda: "mine")
    app.add_url_rule("/manifest", "about", lambda: "mine too")
    Lictor(app, name="financial", port=8001, manifest=MANIFEST, check=HTTPCheck("/up"), serve_health=True)
    assert app.test_client().get("/up").text == "mine"
    assert app.test_client().get("/manifest").text == "mine too"


def test_the_configuration_says_what_the_arguments_do_not(app: Flask) -> None:
    app.config.update(LICTOR_NAME="billing", LICTOR_PORT=8001, LICTOR_TAGS=["a"], LICTOR_CHECK="ttl:1m")
    app.config.update(LICTOR_VIA="push", LICTOR_URL="http://lictor:8080")
    Lictor(name="financial").init_app(app)
    announced = app.extensions["lictor"].announcement
    assert (announced.name, announced.port, announced.tags) == ("financial", 8001, ("module", "a"))
    assert announced.checks == (TTLCheck("1m"),)


def test_what_is_missing_is_told(app: Flask) -> None:
    with pytest.raises(ConfigError) as caught:
        Lictor(app)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["LICTOR_NAME", "LICTOR_PORT"]
    with pytest.raises(TypeError, match="no argument prot"):
        Lictor(app, prot=1)
