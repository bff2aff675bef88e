"""What all commands have in common: help, quick answers, wrong use, wrong settings, expected failures."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.cli.command import LICTOR, Lictor
from web.cli import main

COMMANDS = [
    *("up", "serve", "sync", "register", "modules", "show"),
    *("events", "validate", "refresh", "accept", "forget", "migrate", "doctor"),
]
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="lictor")
    assert result.exit_code == 0
    return result.output


def options_of(command: str) -> list[str]:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    return [option for part in found.params if isinstance(part, click.Option) for option in part.opts]


def test_help_lists_every_command_with_a_whole_sentence() -> None:
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", help_of().partition("Commands:")[2], re.MULTILINE))
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert all(listed[name].endswith(".") and not listed[name].endswith("...") for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(command: str) -> None:
    assert re.search(rf"Examples?:\n +.*lictor {command}", help_of(command))


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        before = _time_of_children()
        subprocess.run([LICTOR, "--help"], check=True, capture_output=True)
        times.append(_time_of_children() - before)
    assert min(times) < 0.3


def _time_of_children() -> float:
    """A processor's time, which others who are busy do not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, web.cli; print(sorted({'flask', 'pydantic', 'sqlalchemy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_version(lictor: Lictor) -> None:
    assert re.fullmatch(r"lictor \d+\.\d+\.\d+\n", lictor.run("--version").stdout)


def test_python_m_web_cli_is_the_command(lictor: Lictor) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "web.cli", "migrat"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Usage: lictor [OPTIONS]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["migrat"], "No such command 'migrat'. Did you mean 'migrate'?"),
        (["xyzzy"], "No such command 'xyzzy'. There are up, serve,"),
        (["modules", "--colour"], "No such option"),
        (["modules", "--status", "fine"], "'fine' is not one of 'available', 'degraded', 'unavailable'"),
        (["modules", "--limit", "0"], "--limit"),
        (["events", "--type", "module.vanished"], "'module.vanished' is none of module.registered,"),
        (["events", "--after", "-1"], "--after"),
        (["show"], "Missing argument 'NAME'"),
        (["register", "--name", "a"], "Missing option '--port'"),
        (["up", "--consul", "prod"], "'prod' is not one of 'dev', 'none'"),
        (["up", "--dns-port", "8601"], "--consul dev"),
    ],
)
def test_wrong_use_is_told_with_status_2(lictor: Lictor, arguments: list[str], told: str) -> None:
    done = lictor.run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command", [["sync"], ["serve"], ["up"], ["modules"], ["migrate"], ["validate", "-"]]
)
def test_wrong_settings_are_told_together_with_status_2(lictor: Lictor, command: list[str]) -> None:
    done = lictor.run(*command, LICTOR_DATABASE_URL="mysql://here", LICTOR_FETCH_CONCURRENCY="many")
    assert done.returncode == 2
    assert "Error: wrong settings:\n" in done.stderr
    assert "\n  LICTOR_DATABASE_URL: must begin with sqlite:/// or postgresql://" in done.stderr
    assert "\n  LICTOR_FETCH_CONCURRENCY: " in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_of_consul_are_told_with_the_others(lictor: Lictor) -> None:
    done = lictor.run("sync", LICTOR_REVALIDATE="soon", CONSUL_HTTP_SSL="maybe", CONSUL_CACERT="/none.pem")
    assert done.returncode == 2
    for name in ("LICTOR_REVALIDATE", "CONSUL_HTTP_SSL", "CONSUL_CACERT"):
        assert f"\n  {name}: " in done.stderr


@pytest.mark.parametrize(
    "command", [["modules"], ["show", "a"], ["events"], ["events", "--follow"], ["serve"], ["sync"]]
)
def test_a_database_that_is_not_there_is_told_and_not_made(lictor: Lictor, command: list[str]) -> None:
    done = lictor.run(*command)
    assert done.returncode == 1
    assert f"there is no database {lictor.database}" in done.stderr
    assert not lictor.database.exists()


@pytest.mark.parametrize("command", [["modules"], ["migrate"], ["serve"], ["up", "--consul", "none"]])
def test_a_file_that_is_no_database_is_told(lictor: Lictor, command: list[str]) -> None:
    lictor.database.write_text("this is no database, but a text that is long enough to look like one" * 9)
    done = lictor.run(*command)
    assert done.returncode == 1
    assert "sqlite:///lictor.db cannot be used: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_server_that_is_away_is_told_without_its_password(lictor: Lictor) -> None:
    port = lictor.settings["CONSUL_HTTP_ADDR"].rpartition(":")[2]
    done = lictor.run("modules", LICTOR_DATABASE_URL=f"postgresql://lictor:secret@127.0.0.1:{port}/lictor")
    assert done.returncode == 1
    assert f"lictor:***@127.0.0.1:{port}/lictor cannot be used" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_output_into_a_closed_pipe_is_no_failure(lictor: Lictor) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([LICTOR, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 1)


def test_the_page_names_every_command_and_option_and_no_other() -> None:
    page = PAGE.read_text()
    sections = dict(re.findall(r"^## `lictor (\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == COMMANDS
    for command, text in sections.items():
        told = set(re.findall(r"^\| `(--[\w-]+)", text, re.MULTILINE))
        assert told == {option for option in options_of(command) if option.startswith("--")}, command
        assert re.search(rf"^\s+(\S+ .*)?lictor {command}\b|^\$ .*lictor {command}\b", text, re.MULTILINE), (
            command
        )
        assert "Exit status" in text, command
