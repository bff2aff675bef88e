"""The chart, rendered by a real Helm: values in; documents, or what Helm says against them, out."""

from __future__ import annotations

import importlib
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "lictor"
# Imported so because it has no types, and may get some.
yaml: Any = importlib.import_module("yaml")

HA = {"mode": "ha", "database.urlSecret": "db"}
Document = dict[str, Any]


@cache
def helm() -> Path:
    """Where it is, fetched where it was missing; fails with word on how to get it."""
    found = subprocess.run([ROOT / "scripts" / "get-helm"], capture_output=True, text=True, timeout=320)
    assert found.returncode == 0, found.stderr
    return Path(found.stdout.strip())


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, timeout=60)


def template(values: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = [f"--set-json={name}={_json(value)}" for name, value in values.items()]
    return run("template", "lictor", CHART, "--namespace", "platform", *settings, *arguments)


def rendered(values: dict[str, Any], *arguments: str) -> list[Document]:
    done = template(values, *arguments)
    assert done.returncode == 0, done.stderr
    # The loader in C: there is much to read.
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def refusal(values: dict[str, Any]) -> str:
    done = template(values)
    assert done.returncode != 0, done.stdout
    return done.stderr


def of_kind(documents: list[Document], kind: str, part: str = "") -> Document:
    (found,) = [one for one in documents if one["kind"] == kind and one["metadata"]["name"].endswith(part)]
    return found


def pods(documents: list[Document]) -> list[Document]:
    """The specification of each pod."""
    return [
        one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]
        for one in documents
        if one["kind"] in ("Pod", "Deployment", "StatefulSet", "Job")
    ]


def settings(pod: Document) -> dict[str, Any]:
    """The environment of its container; where a value comes from stands for one that is not written."""
    (container,) = pod["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def _json(value: Any) -> str:
    return json.dumps(value)
