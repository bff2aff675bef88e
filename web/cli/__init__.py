"""Defines the command `lictor`.

Exit status: 0 it worked, 1 it failed or the answer is no, 2 wrong use or wrong settings, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells give it: 128 and the number of SIGINT."""

# Each subject's file is imported only when its help is shown or it is run, and imports what is
# heavy only when it is run: `lictor --help` answers at once.
_COMMANDS = {
    "up": "web.cli.up",
    "serve": "web.cli.serve",
    "sync": "web.cli.sync",
    "register": "web.cli.register",
    "modules": "web.cli.modules",
    "show": "web.cli.modules",
    "events": "web.cli.events",
    "validate": "web.cli.validate",
    "refresh": "web.cli.refresh",
    "accept": "web.cli.accept",
    "forget": "web.cli.forget",
    "migrate": "web.cli.migrate",
    "doctor": "web.cli.doctor",
}


class _Lictor(click.Group):
    """The group of all commands, which also turns every expected failure into a message and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(_COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            # A pipe that was closed early must be noticed here, not by the interpreter at its end.
            sys.stdout.flush()
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            _discard_output()
            ctx.exit(0)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except Exception as exc:
            from web.cli.terminal.errors import as_failure

            failure = as_failure(exc)
            if failure is None:
                raise
            raise failure from exc
        return result


def _discard_output() -> None:
    """Whoever read the output has seen enough (`| head`): what is still buffered goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from discovery import __version__

        click.echo(f"lictor {__version__}")
        ctx.exit()


@click.group(
    cls=_Lictor,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from the environment (LICTOR_..., CONSUL_...). "
    "Exit status: 0 it worked, 1 it failed or the answer is no, 2 wrong use or wrong settings.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def main() -> None:
    """Which modules are here, are they well, and what does each of them offer?

    Lictor stands beside Consul: it follows the catalog, fetches each module's manifest, keeps both in a
    database and serves them. `lictor up` starts all of it; `lictor COMMAND --help` shows an example of each.
    """
    for stream in (sys.stdout, sys.stderr):
        # A module's title may hold what the terminal's encoding cannot show: that must end no command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
