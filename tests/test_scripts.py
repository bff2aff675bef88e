"""The scripts behind `make`: how they are found, what they say when something is missing."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH_SCRIPTS = sorted(
    file
    for file in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run")
    if file.is_file() and file.suffix == ""
)
# What the scripts call besides bash itself; a PATH with these alone has no Consul, promtool, Docker or apt.
TOOLS = ("bash", "cat", "cksum", "dirname", "find", "flock", "id", "mkdir", "sort", "tail", "timeout")


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for PATH on which there is nothing but the commonest tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"this machine has no {tool}"
        (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the scripts need, under a path with a space, without .tools and .venv."""
    copy = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments],
        env={"HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=lambda script: script.name)
def test_script_is_sound(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# "), "the second line says what goes in and what comes out"
    assert any(line.startswith("#   usage: ") for line in lines)
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_make_alone_lists_every_target_in_a_line() -> None:
    listed = subprocess.run(["make", "-C", ROOT], check=True, capture_output=True, text=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    assert {"setup", "demo", "test", "check", "lint", "types", "format"} <= targets
    lines = [line for line in listed.splitlines() if line.startswith("  make ")]
    assert {line.split()[1] for line in lines} == targets
    assert all(len(line.split(maxsplit=2)) == 3 for line in lines), "each line says what the target does"


def test_constraints_pin_all_that_lictor_needs_and_name_no_place() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", pin) for pin in pins), pins
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split("\n")
    for extra in setup["options.extras_require"].values():
        wanted += extra.split("\n")
    names = {_normal(re.split(r"[\s\[<>=!~]", line)[0]) for line in wanted if line} - {"lictor"}
    assert names <= {_normal(pin.partition("==")[0]) for pin in pins}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def program_in(folder: Path, name: str = "consul") -> Path:
    """Something that answers to `consul version`, as a stand-in for where it is found."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\necho Consul v1\n")
    program.chmod(0o755)
    return program


def test_consul_is_looked_for_in_order(checkout: Path, bare_path: Path, tmp_path: Path) -> None:
    get_consul = checkout / "scripts" / "get-consul"
    in_tools = program_in(checkout / ".tools" / "consul" / "usr" / "bin")
    assert run(get_consul, PATH=str(bare_path)).stdout.strip() == str(in_tools)
    on_path = program_in(tmp_path / "elsewhere")
    path = f"{bare_path}:{on_path.parent}"
    assert run(get_consul, PATH=path).stdout.strip() == str(on_path)
    named = program_in(tmp_path / "named by the user")
    assert run(get_consul, PATH=path, CONSUL_BIN=str(named)).stdout.strip() == str(named)


def test_a_consul_bin_that_does_not_run_is_not_passed_over(checkout: Path, bare_path: Path) -> None:
    done = run(checkout / "scripts" / "get-consul", PATH=str(bare_path), CONSUL_BIN="/no/such/consul")
    assert done.returncode == 1
    assert "CONSUL_BIN=/no/such/consul" in done.stderr


def test_where_no_consul_is_to_be_had_every_way_is_named(checkout: Path, bare_path: Path) -> None:
    done = run(checkout / "scripts" / "get-consul", PATH=str(bare_path))
    assert (done.returncode, done.stdout) == (1, "")
    for way in ("CONSUL_BIN=", "PATH", "/.tools/consul/usr/bin/", "Docker", "LICTOR_CONSUL_IMAGE=", "apt"):
        assert way in done.stderr


def test_an_interpreter_that_is_too_old_is_refused(checkout: Path, bare_path: Path) -> None:
    done = run(checkout / "scripts" / "venv", PATH=str(bare_path), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not Python 3.11 or newer" in done.stderr
    done = run(checkout / "scripts" / "venv", PATH=str(bare_path))
    assert done.returncode == 1
    assert "make PYTHON=/path/to/python3.11" in done.stderr


def test_without_apt_the_packages_are_named(checkout: Path, bare_path: Path) -> None:
    done = run(checkout / "scripts" / "debian-packages", "postgresql", PATH=str(bare_path))
    assert done.returncode == 1
    assert "postgresql" in done.stderr


def test_promtool_is_looked_for_on_path_and_in_tools(checkout: Path, bare_path: Path) -> None:
    get_promtool = checkout / "scripts" / "get-promtool"
    in_tools = program_in(checkout / ".tools" / "prometheus" / "usr" / "bin", "promtool")
    assert run(get_promtool, PATH=str(bare_path)).stdout.strip() == str(in_tools)
    on_path = program_in(bare_path, "promtool")
    assert run(get_promtool, PATH=str(bare_path)).stdout.strip() == str(on_path)


def test_where_no_promtool_is_to_be_had_it_says_how_to_get_it(checkout: Path, bare_path: Path) -> None:
    done = run(checkout / "scripts" / "get-promtool", PATH=str(bare_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "put `promtool` on PATH (Debian: package prometheus)" in done.stderr
