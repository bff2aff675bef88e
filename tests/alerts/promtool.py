"""Prometheus' own promtool, and what the rule file, the dashboard and the runbooks say, for their tests."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS = ROOT / "helm" / "lictor" / "files" / "alerts.yaml"
DASHBOARD = ROOT / "helm" / "lictor" / "files" / "dashboard.json"
RUNBOOKS = ROOT / "docs" / "runbooks"
CASES = Path(__file__).with_name("cases")
# Imported so because it has no types, and may get some.
yaml: Any = importlib.import_module("yaml")

_LIMIT = 60
# What Grafana puts into an expression: a length of time, or a pattern.
_INTERVALS = re.compile(r"\$__(?:rate_interval|interval|range)\b")
_VARIABLES = re.compile(r"\$\{?(?:namespace|job)\}?")


@cache
def promtool() -> Path:
    """Where it is, fetched where it was missing; fails with word on how to get it."""
    found = subprocess.run(
        [ROOT / "scripts" / "get-promtool"], capture_output=True, text=True, timeout=4 * _LIMIT
    )
    assert found.returncode == 0, found.stderr
    return Path(found.stdout.strip())


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool(), *arguments], capture_output=True, text=True, timeout=_LIMIT)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def case_file(alert: dict[str, Any]) -> Path:
    """Where the cases of an alert are: under the name of its page."""
    return CASES / f"{Path(alert['annotations']['runbook_url']).stem}.yaml"


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return board


def queries() -> list[tuple[str, str]]:
    """Each expression of the dashboard, with the place where it stands."""
    board = dashboard()
    found = [
        (f"{panel['title']}: {target['refId']}", target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [(mark["name"], mark["expr"]) for mark in board["annotations"]["list"]]


def filled(expression: str) -> str:
    """What Prometheus gets once Grafana has filled in its variables."""
    return _VARIABLES.sub(".*", _INTERVALS.sub("5m", expression))


def names(text: str) -> set[str]:
    """The metrics that a text names, without what is added to the name of a histogram."""
    return {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in re.findall(r"\blictor_[a-z_]+\b", text)}


def texts() -> Iterator[tuple[str, str]]:
    """All that names metrics to an operator."""
    for file in (ALERTS, DASHBOARD, *sorted(RUNBOOKS.glob("*.md"))):
        yield file.name, file.read_text()
