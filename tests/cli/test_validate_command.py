"""`lictor validate`: each fault with its place, the line itself and a caret; or name, version and digest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cli.command import LICTOR, Lictor
from web.cli import main

GOOD = '{"version": "1.0.0", "name": "financial", "title": "Größe"}'


def validate(*arguments: str, document: str | bytes = "", **settings: str) -> Result:
    return CliRunner(env=settings).invoke(main, ["validate", *arguments], input=document, prog_name="lictor")


def test_a_good_manifest() -> None:
    result = validate("-", document=GOOD)
    canonical = '{"name":"financial","title":"Größe","version":"1.0.0"}'
    assert result.exit_code == 0
    assert "is a good manifest: financial 1.0.0" in result.stdout
    assert f"digest {hashlib.sha256(canonical.encode()).hexdigest()}" in result.stdout


def test_a_good_manifest_as_json() -> None:
    found = json.loads(validate("-", "--json", document=GOOD).stdout)
    assert found["valid"] is True
    assert (found["name"], found["version"]) == ("financial", "1.0.0")
    assert found["manifest"] == json.loads(GOOD)


def test_each_fault_is_pointed_at(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text('{\n  "name": "a b",\n\t"version": "one"\n}\n')
    result = validate(str(file))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines.pop(0).startswith(f"{file}:2:11: /name: must not ")
    assert lines.pop(2).startswith(f"{file}:3:13: /version: must be a semantic version")
    assert lines == [
        '     2 |   "name": "a b",',
        "       |           ^",
        '     3 |  "version": "one"',
        "       |             ^",
        f"{file}: 2 faults",
    ]


def test_faults_as_json() -> None:
    result = validate("-", "--json", document='{"name": "financial",\n "version": 1}')
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found == {
        "valid": False,
        "type": "invalid",
        "faults": [
            {
                "type": "invalid",
                "path": "/version",
                "message": "must be a string, not the number 1",
                "line": 2,
                "column": 13,
            }
        ],
    }


def test_the_caret_stands_right_in_a_long_line_with_wide_letters() -> None:
    document = (
        '{"name": "financial", "title": "' + "日本" * 50 + '", "version": one, "more": "' + "x" * 99 + '"}'
    )
    _, line, caret, _ = validate("-", document=document).stdout.splitlines()
    # Each of these letters takes two columns of a terminal.
    before = line.partition("one")[0]
    assert caret.index("^") == sum(2 if letter in "日本" else 1 for letter in before)
    assert line.startswith("     1 | …")
    assert line.endswith("…")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("", "the document is empty"),
        ("<html>", "the document is HTML or XML"),
        ("[]", "the document must be a JSON object, not a list"),
        ("{}", "/name: is missing"),
        ('{"name": "a", "version": "1.0.0", "x": NaN}', "/x: NaN is not JSON"),
        ('{"name": "a", "name": "b", "version": "1.0.0"}', 'the key "name" stands twice'),
        ("[" * 100_000, "nested deeper than"),
        (b'{"name": "\xff\x1b[2J"}', r"\x1b[2J"),
        ("x" * 2000, "is larger than 1024 bytes, the limit that LICTOR_FETCH_MAX_BYTES sets"),
    ],
    ids=["empty", "html", "list", "missing", "nan", "twice", "deep", "not utf-8", "large"],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_all_that_is_no_manifest(document: str | bytes, told: str, as_json: bool) -> None:
    limit = {"LICTOR_FETCH_MAX_BYTES": "1024"} if len(document) == 2000 else {}
    result = validate("-", *(["--json"] if as_json else []), document=document, **limit)
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    if as_json:
        assert json.loads(result.stdout)["valid"] is False
    else:
        assert told in result.stdout


def test_the_name_of_another_module() -> None:
    result = validate("-", "--module", "billing", document=GOOD)
    assert result.exit_code == 1
    assert 'must be "billing", the name of the module that serves it, not "financial"' in result.stdout
    assert validate("-", "--module", "financial", document=GOOD).exit_code == 0


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_what_cannot_be_read_is_wrong_use(name: str) -> None:
    result = validate(name)
    assert result.exit_code == 2
    assert name in result.stderr


def test_it_reads_no_more_than_it_may(lictor: Lictor) -> None:
    """An endless document ends the command, not the machine's memory."""
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            [LICTOR, "validate", "-"],
            stdin=endless,
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=20,
        )
    assert done.returncode == 1
    assert "is larger than 1048576 bytes" in done.stdout
