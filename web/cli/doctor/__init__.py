"""`lictor doctor`: checks each thing that Lictor depends on and says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from discovery.errors import ConfigError
from discovery.registry.check_result import CheckResult, fail, ok
from discovery.text import counted
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import COLOURS, console, plain, show_json
from web.cli.terminal.settings import load_all


@click.command(
    epilog=epilog(
        "lictor doctor",
        "lictor doctor --json",
        status="0 nothing fails (warnings are no failures), 1 something fails, 2 wrong use.",
    )
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what Lictor depends on, and say how to mend it.

    Settings, Consul and the rights of its token, database and disk, clocks, limits, push, webhooks.
    """
    results: list[CheckResult] = []
    for result in _look():
        results.append(result)
        if not as_json:
            _show(result)
    failed = [result for result in results if result.status == "fail"]
    if as_json:
        show_json({"ok": not failed, "checks": [asdict(result) for result in results]})
    else:
        _show_sum(results)
    ctx.exit(1 if failed else 0)


def _look() -> Iterator[CheckResult]:
    from web.cli.doctor.database import check_database
    from web.cli.doctor.machine import check_machine

    try:
        settings, registries = load_all()
    except ConfigError as exc:
        for fault in exc.faults:
            yield fail("settings", fault, "mend the variable, or unset it for its default")
        return
    yield ok("settings", f"the registries are {', '.join(settings.registries)}")
    for registry in registries:
        yield from registry.check()
    yield from check_database(settings.database_url)
    yield from check_machine(settings)
    if settings.webhooks is not None:
        from web.cli.doctor.webhooks import check_webhooks

        yield from check_webhooks(settings.webhooks, settings.database_url)


def _show(result: CheckResult) -> None:
    from rich.text import Text

    text = Text(f"{result.status:<5}", COLOURS[result.status])
    text.append(f" {result.check:<17} {plain(result.detail)}")
    if result.mend:
        text.append(f"\n{'':24}-> {plain(result.mend)}", "bold")
    console().print(text, soft_wrap=True)


def _show_sum(results: Sequence[CheckResult]) -> None:
    failed = sum(result.status == "fail" for result in results)
    warned = sum(result.status == "warn" for result in results)
    click.echo(f"\n{counted(len(results), 'check')}: {failed} failed, {warned} with a warning.")
