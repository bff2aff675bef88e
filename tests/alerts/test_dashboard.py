"""The dashboard: that Prometheus takes each of its queries, and that Grafana can show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.alerts.promtool import dashboard, filled, queries, run, yaml

OF_ALL = {"namespace", "job"}


def recording(*expressions: str) -> str:
    """A rule file with a recording rule for each."""
    rules = [
        {"record": f"query:number_{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    text: str = yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]})
    return text


def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    found = queries()
    file = tmp_path / "queries.yaml"
    file.write_text(recording(*(filled(expression) for _, expression in found)))
    done = run("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(found)} rules found" in done.stdout


def test_a_query_that_is_none_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "queries.yaml"
    file.write_text(recording(filled('sum(lictor_leader{job=~"$job"}')))
    assert run("check", "rules", file).returncode == 1


def test_every_query_keeps_to_the_chosen_namespace_and_job() -> None:
    for place, expression in queries():
        asked = expression.count("lictor_")
        for variable in OF_ALL:
            assert expression.count(f'{variable}=~"${variable}"') == asked, place
        # All variables are filled in: nothing of Grafana's is left.
        assert "$" not in filled(expression), place


def test_what_is_chosen_is_read_from_the_chosen_source() -> None:
    variables = {one["name"]: one for one in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job"]
    assert variables["datasource"]["query"] == "prometheus"
    for name in OF_ALL:
        # Everything, where a scrape sets no such label too.
        assert variables[name]["allValue"] == ".*"
        assert uid(variables[name]) == "${datasource}"
    for panel in dashboard()["panels"]:
        assert panel["type"] == "row" or uid(panel) == "${datasource}"
        assert all(uid(target) == "${datasource}" for target in panel.get("targets", ()))


def uid(of: dict[str, Any]) -> Any:
    return of["datasource"]["uid"]


def test_grafana_10_and_newer_can_load_it() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 38
    assert (board["uid"], board["id"]) == ("lictor", None)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_panel_stands_on_another_or_beside_the_board() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
