"""scripts/get-promtool: where it looks, and what it says where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.alerts.promtool import ROOT

# What the script calls; a PATH with these alone has no promtool, no Prometheus and no apt.
TOOLS = ("bash", "dirname", "find", "flock", "mkdir", "sort", "tail")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"this machine has no {tool}"
        (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    copy = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    return copy / "scripts" / "get-promtool"


def run(script: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": str(path.parent)}
    return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=30)


def promtool_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    promtool = folder / "promtool"
    promtool.write_text("#!/bin/sh\n")
    promtool.chmod(0o755)
    return promtool


def test_it_is_looked_for_on_path_and_in_tools(script: Path, path: Path) -> None:
    in_tools = promtool_in(script.parents[1] / ".tools" / "prometheus" / "usr" / "bin")
    assert run(script, path).stdout.strip() == str(in_tools)
    on_path = promtool_in(path)
    assert run(script, path).stdout.strip() == str(on_path)


def test_where_there_is_none_it_says_how_to_get_it(script: Path, path: Path) -> None:
    done = run(script, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "put `promtool` on PATH (Debian: package prometheus)" in done.stderr


def test_it_can_be_run() -> None:
    assert os.access(ROOT / "scripts" / "get-promtool", os.X_OK)
