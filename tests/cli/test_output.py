"""Tables and texts: nothing lost in a pipe, nothing of a module's that acts on a terminal."""

from __future__ import annotations

import doctest
import os
import pty
import re
import subprocess
from pathlib import Path

from discovery.base import Health
from tests.cli.command import LICTOR, Lictor
from tests.web.filling import Cache, instance
from web.cli.terminal import output

LONG = "tag-" + "x" * 150


def on_terminal(lictor: Lictor, *arguments: str, columns: int = 60, **settings: str) -> str:
    """What a command writes to a terminal of that width."""
    master, slave = pty.openpty()
    environment = {
        "HOME": "/",
        "TERM": "xterm-256color",
        "COLUMNS": str(columns),
        **lictor.settings,
        **settings,
    }
    process = subprocess.Popen(
        [LICTOR, *arguments], cwd=lictor.folder, env=environment, stdout=slave, stderr=slave
    )
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        written += part
    os.close(master)
    process.wait(30)
    return written.decode()


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(output).failed == 0


def test_a_piped_table_is_neither_wrapped_nor_cut(lictor: Lictor, cache: Cache) -> None:
    cache.announce(instance("financial", tags=(LONG, "module")))
    lines = lictor.run("modules").stdout.splitlines()
    assert len(lines) == 2
    assert LONG in lines[1]
    assert "\x1b" not in lines[1]


def test_a_table_on_a_terminal_fits_it_and_loses_nothing(lictor: Lictor, cache: Cache) -> None:
    cache.announce(instance("financial", tags=(LONG, "module")))
    written = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(lictor, "modules"))
    assert max(map(len, written.splitlines())) <= 60
    assert written.count("x") >= 150


def test_colours_are_for_terminals_that_want_them(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial", Health.CRITICAL)
    red = "\x1b[31m"
    assert red in on_terminal(lictor, "modules")
    assert red not in on_terminal(lictor, "modules", NO_COLOR="1")
    assert red not in lictor.run("modules").stdout


def test_what_a_module_says_does_not_act_on_the_terminal(lictor: Lictor, cache: Cache) -> None:
    evil = "\x1b[2J\x07\x9b31m[red]\u202e"
    cache.announce(instance("financial", tags=(evil,), meta={"a": evil}, node=evil))
    cache.announce(instance("financial", tags=(evil, "b"), node=evil))
    for command in (["modules"], ["show", "financial"], ["events"]):
        said = lictor.run(*command).stdout
        assert not re.search(r"[^\n\x20-\x7e]", said), command
    assert r"\x1b[2J\x07\x9b31m[red]\u202e" in lictor.run("modules").stdout


def test_text_that_the_encoding_lacks_ends_no_command(lictor: Lictor, cache: Cache) -> None:
    cache.module("financial", title="Größe 日本")
    cache.announce(instance("financial", 2, tags=("größe",)))
    for command in (["modules"], ["show", "financial"], ["events"], ["show", "financial", "--json"]):
        said = lictor.run(*command, PYTHONIOENCODING="ascii")
        assert said.returncode == 0
        assert said.stderr == ""
    assert r"gr\xf6\xdfe" in lictor.run("modules", PYTHONIOENCODING="ascii").stdout
    assert "Größe 日本" in lictor.run("show", "financial", PYTHONIOENCODING="utf-8").stdout


def test_plain_keeps_letters_of_all_kinds(tmp_path: Path) -> None:
    assert output.plain("Größe 日本 é") == "Größe 日本 é"
