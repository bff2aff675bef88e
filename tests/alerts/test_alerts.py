"""The alerts: that each fires when it should and else does not, and that each has its runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.alerts.promtool import ALERTS, CASES, ROOT, RUNBOOKS, alerts, case_file, run, yaml

NAMES = [alert["alert"] for alert in alerts()]


def cases(alert: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(case_file(alert).read_text())["tests"]
    return found


def test_the_rules_are_sound() -> None:
    done = run("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_an_alert_fires_when_it_should(alert: dict[str, Any]) -> None:
    done = run("test", "rules", case_file(alert))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_cases_try_series_that_fire_and_series_that_do_not(alert: dict[str, Any]) -> None:
    tried = [check for case in cases(alert) for check in case["alert_rule_test"]]
    assert {check["alertname"] for check in tried} == {alert["alert"]}
    assert {bool(check["exp_alerts"]) for check in tried} == {True, False}


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_cases_notice_an_alert_that_fires_too_early_or_never(alert: dict[str, Any], tmp_path: Path) -> None:
    """An alert that does not wait, and one that never fires, fail the cases; else they prove nothing."""
    text = ALERTS.read_text()
    begin = text.index(f"- alert: {alert['alert']}\n")
    head, own = text[:begin], text[begin:]
    if "for" in alert:
        assert not passes(head + re.sub(r"for: \w+", "for: 0s", own, count=1), alert, tmp_path)
    never = own.replace(alert["alert"], "Another", 1)
    assert not passes(head + never, alert, tmp_path)


def passes(rules: str, alert: dict[str, Any], folder: Path) -> bool:
    (folder / "alerts.yaml").write_text(rules)
    cases = case_file(alert).read_text()
    (folder / "cases.yaml").write_text(cases.replace("../../../helm/lictor/files/alerts.yaml", "alerts.yaml"))
    return run("test", "rules", folder / "cases.yaml").returncode == 0


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_an_alert_says_what_it_must(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Lictor[A-Za-z]+", alert["alert"])
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert (ROOT / alert["annotations"]["runbook_url"]).is_file()


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    pages = {page.stem: page.read_text() for page in RUNBOOKS.glob("*.md") if page.name != "README.md"}
    named = {Path(alert["annotations"]["runbook_url"]).stem: alert["alert"] for alert in alerts()}
    assert sorted(named) == sorted(pages)
    assert len(named) == len(alerts())
    assert sorted(path.stem for path in CASES.iterdir()) == sorted(named)
    for page, text in pages.items():
        assert text.splitlines()[0] == f"# {named[page]}"
        headings = re.findall(r"^## (.+)$", text, re.M)
        assert headings == ["What it means", "How to see it", "What to do"]


def test_the_index_lists_each_alert_with_its_severity() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(([\w-]+\.md)\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text(), re.M
    )
    wanted = [
        (alert["alert"], Path(alert["annotations"]["runbook_url"]).name, alert["labels"]["severity"])
        for alert in alerts()
    ]
    assert rows == wanted


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).is_file(), target
