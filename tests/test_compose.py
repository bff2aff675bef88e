"""compose.yaml, as far as it can be looked at without the program that reads it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from click import Context

import discovery
from web.cli import main
from web.settings import Settings

# Imported so because it has no types, and may get some.
yaml: Any = importlib.import_module("yaml")
ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
OURS = {
    name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("${LICTOR")
}


def test_it_holds_each_part_of_lictor() -> None:
    assert set(OURS) == {"migrate", "sync", "serve", "documents"}
    assert OURS["sync"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", OURS)
def test_each_part_runs_a_command_with_settings_that_there_are(name: str) -> None:
    service = OURS[name]
    assert main.get_command(Context(main), service["command"][0]) is not None
    known = {f"LICTOR_{field.upper()}" for field in Settings.model_fields}
    assert {one for one in service["environment"] if one.startswith("LICTOR_")} <= known
    assert service["image"].endswith(f"lictor:{discovery.__version__}}}")
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_each_part_waits_for_what_it_needs() -> None:
    for service in COMPOSE["services"].values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][name]
