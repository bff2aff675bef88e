"""Lictor's image, built and run as a cluster runs it: no root, a read-only root file system, few rights."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import discovery
from tests.docker.containers import RESTRICTED, Container, docker, started

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = ROOT / "examples" / "documents" / "public"
CONSUL = os.environ.get("LICTOR_CONSUL_IMAGE", "hashicorp/consul:1.20")

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def image() -> str:
    built = subprocess.run(
        [ROOT / "scripts" / "image", "lictor-test:local"], capture_output=True, text=True, timeout=360
    )
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


@pytest.fixture
def network() -> Iterator[str]:
    """The network of a Consul, with loopback alone."""
    with started(CONSUL, options=["--network", "none"]) as consul:
        yield f"container:{consul.id}"


@pytest.fixture
def start(image: str, network: str) -> Iterator[Callable[..., Container]]:
    """Starts a command of the image in that network."""
    with ExitStack() as stack:

        def run(*command: str, options: tuple[str, ...] = (), **settings: str) -> Container:
            environment = [f"--env={name}={value}" for name, value in settings.items()]
            given = [*RESTRICTED, "--network", network, *environment, *options]
            return stack.enter_context(started(image, *command, options=given))

        yield run


def is_ready(container: Container) -> bool:
    return container.get("http://127.0.0.1:8080/readyz") is not None


def module(container: Container, name: str) -> Any:
    return container.get(f"http://127.0.0.1:8080/api/v1/modules/{name}?include=manifest")


def register(start: Callable[..., Container]) -> Container:
    """A program that knows nothing of Lictor, registered by `lictor register` as process 1."""
    check = ["--check", "http:/health,interval=1s", "--manifest-path", "/manifest.json"]
    server = ["python", "-m", "http.server", "8003", "--bind", "127.0.0.1", "-d", "/module"]
    named = ["--name", "documents", "--port", "8003", "--address", "127.0.0.1"]
    return start("register", *named, *check, "--", *server, options=("--volume", f"{MODULE}:/module:ro"))


def test_a_module_registers_and_its_manifest_is_served_until_sigterm(
    start: Callable[..., Container],
) -> None:
    lictor = start("up")
    lictor.eventually(lambda: is_ready(lictor))
    program = register(start)
    found = lictor.eventually(lambda: (told := module(lictor, "documents")) and told["manifest"] and told)
    assert found["manifest"] == json.loads((MODULE / "manifest.json").read_text())
    assert found["status"] == "available"
    # The program ends by SIGTERM's default, and `lictor register` tells its status as a shell does.
    assert program.stop(10) == 143
    lictor.eventually(lambda: module(lictor, "documents")["instance_counts"]["total"] == 0)
    assert lictor.stop(10) == 0
    assert "Traceback" not in lictor.log


def test_its_parts_run_apart_from_one_another(start: Callable[..., Container], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    shared = ("--volume", f"{tmp_path}:/shared")
    database = {"LICTOR_DATABASE_URL": "sqlite:////shared/lictor.db"}
    migration = start("migrate", options=shared, **database)
    migration.eventually(lambda: migration.state["Status"] == "exited")
    assert migration.state["ExitCode"] == 0, migration.log
    synchronizer = start("sync", options=shared, **database)
    server = start("serve", options=shared, **database)
    register(start)
    server.eventually(lambda: is_ready(server))
    server.eventually(lambda: module(server, "documents"))
    assert "lictor_leader 1.0" in synchronizer.get("http://127.0.0.1:8081/metrics")
    assert server.stop(10) == 0
    assert synchronizer.stop(10) == 0


def test_it_has_few_rights_and_little_in_it(start: Callable[..., Container]) -> None:
    lictor = start("up")
    lictor.eventually(lambda: is_ready(lictor))
    assert lictor.run("id").stdout.startswith("uid=65532 gid=65532")
    written = lictor.run("sh", "-c", "echo a > /opt/lictor/a")
    assert "Read-only file system" in written.stderr
    for program in ("gcc", "cc", "make", "pip", "curl"):
        assert lictor.run("sh", "-c", f"command -v {program}").returncode != 0, program
    assert not lictor.run("sh", "-c", "ls -A /wheels /root/.cache /tmp/.cache 2>/dev/null").stdout
    assert "Control server error" not in lictor.log


def test_its_health_follows_what_it_runs(start: Callable[..., Container]) -> None:
    lictor, program = start("up"), register(start)
    for container in (lictor, program):
        container.eventually(lambda: container.run("image-health").returncode == 0)  # noqa: B023
    lictor.eventually(lambda: is_ready(lictor))
    assert "200" in lictor.run("image-health").stdout
    # Of `serve` alone nothing listens at another port.
    away = lictor.run("env", "LICTOR_BIND=0.0.0.0:1", "image-health")
    assert away.returncode == 1
    assert "LICTOR_BIND=0.0.0.0:1 does not answer" in away.stdout


def test_it_says_who_made_it(image: str) -> None:
    config = json.loads(docker("image", "inspect", "-f", "{{json .Config}}", image).stdout)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["version"] == discovery.__version__
    assert len(labels["revision"]) == 40
    assert (config["User"], config["StopSignal"]) == ("65532:65532", "SIGTERM")


def test_one_processor_and_little_memory_are_enough(start: Callable[..., Container]) -> None:
    lictor = start("up", options=("--memory", "384m", "--cpus", "1"), LICTOR_WORKERS="2")
    lictor.eventually(lambda: is_ready(lictor))
    register(start)
    lictor.eventually(lambda: module(lictor, "documents"))
    assert lictor.stop(15) == 0, lictor.log
    assert lictor.state["OOMKilled"] is False


def test_a_full_volume_is_told_of(image: str, network: str) -> None:
    small = [part if "/data" not in part else "/data:uid=65532,size=64k" for part in RESTRICTED]
    with started(image, "up", options=[*small, "--network", network]) as lictor:
        lictor.eventually(lambda: lictor.state["Status"] == "exited")
        assert lictor.state["ExitCode"] == 1
        assert "full" in lictor.log
        assert "Traceback" not in lictor.log


def test_its_packages_are_listed(image: str, tmp_path: Path) -> None:
    listed = subprocess.run(
        [ROOT / "scripts" / "sbom", tmp_path / "lictor.json"], capture_output=True, text=True, timeout=120
    )
    assert listed.returncode == 0, listed.stderr
    text = (tmp_path / "lictor.json").read_text()
    found = {part["name"]: part["version"] for part in json.loads(text)["components"]}
    seen = docker("run", "--rm", "--network=none", "--entrypoint", "python", image, "-c", _VERSIONS).stdout
    assert found == json.loads(seen)
    assert str(ROOT) not in text


_VERSIONS = (
    "import json, importlib.metadata as m; "
    "print(json.dumps({one.metadata['Name']: one.version for one in m.distributions(path=m.sys.path[-1:])}))"
)


@pytest.mark.skipif(
    docker("compose", "version", check=False).returncode != 0, reason="docker has no compose here"
)
def test_all_of_it_runs_by_compose(image: str) -> None:
    settings = {**os.environ, "LICTOR_IMAGE": image, "CONSUL_IMAGE": CONSUL}
    compose = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "--project-name", "lictor-test"]
    try:
        subprocess.run([*compose, "up", "--detach", "--wait"], env=settings, check=True, timeout=300)
        shown = [*compose, "exec", "-T", "serve", "lictor", "show", "documents"]
        done = subprocess.run(shown, env=settings, check=True, capture_output=True, text=True, timeout=60)
        assert "available" in done.stdout
    finally:
        subprocess.run([*compose, "down", "--volumes"], env=settings, check=True, timeout=120)
