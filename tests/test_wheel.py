"""The wheel in an environment that holds nothing else: what a user gets from `pip install lictor`."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from discovery.consul.dev_agent import free_ports

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(280)]


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel in it, and an empty folder to work in, far from the checkout."""

    wheel: Path
    lictor: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return kept | {
            "PATH": f"{self.lictor.parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LICTOR_DATABASE_URL": f"sqlite:///{self.folder}/lictor.db",
            "LICTOR_REGISTRIES": "push",
            **more,
        }

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.lictor, *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    work = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(work)
    environment = work / "environment"
    run(sys.executable, "-m", "venv", str(environment))
    pip_install = (str(environment / "bin" / "python"), "-m", "pip", "install", "-qq")
    run(*pip_install, "-c", str(ROOT / "constraints.txt"), str(wheel), cwd=work)
    folder = work / "folder"
    folder.mkdir()
    return Installation(wheel, environment / "bin" / "lictor", folder)


def build_wheel(work: Path) -> Path:
    # From a copy: a build leaves files in its source tree, and takes those of the last one into the wheel.
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "lictor.db*")
    shutil.copytree(ROOT, work / "source", ignore=left_out)
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation")
    run(*pip_wheel, "-w", str(work / "dist"), str(work / "source"), cwd=work)
    (wheel,) = (work / "dist").glob("lictor-*.whl")
    return wheel


def run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@contextmanager
def serving(installation: Installation) -> Iterator[httpx.Client]:
    (port,) = free_ports(1)
    log = installation.folder / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [installation.lictor, "serve"],
            cwd=installation.folder,
            env=installation.environment(LICTOR_BIND=f"127.0.0.1:{port}"),
            stdout=output,
            stderr=output,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            deadline = time.monotonic() + 30
            while not answers(client):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield client
    finally:
        server.terminate()
        server.wait(20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_wheel_holds_the_three_packages_and_their_data(installation: Installation) -> None:
    names = zipfile.ZipFile(installation.wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {
        "discovery",
        "manifest_cache",
        "web",
    }
    for needed in (
        r"web/pages/templates/.+\.html",
        r"web/pages/static/.+",
        r"manifest_cache/storage/migrations/versions/.+\.py",
    ):
        assert any(re.fullmatch(needed, name) for name in names), f"{needed} is missing"


def test_the_command_runs(installation: Installation) -> None:
    help_page = installation.run("--help")
    for command in ("up", "serve", "sync", "register", "modules", "validate", "migrate", "doctor"):
        assert command in help_page


def test_it_migrates_and_serves(installation: Installation) -> None:
    installation.run("migrate")
    with closing(sqlite3.connect(installation.folder / "lictor.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "alembic_version" in tables

    with serving(installation) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        linked = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
        assert linked, "the page at / links no static file"
        for address in linked:
            assert client.get(address).status_code == 200, address
        assert client.get("/api/v1/modules").json()["items"] == []
        assert client.get("/openapi.json").status_code == 200
