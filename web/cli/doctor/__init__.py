"""`lictor doctor`: settings in; for each thing that Lictor depends on how it is and what mends it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from discovery.errors import ConfigError
from web.cli.doctor.check_result import Finding, fail, ok
from web.cli.terminal.help_text import epilog
from web.cli.terminal.output import COLOURS, console, counted, plain, show_json
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
    findings: list[Finding] = []
    for finding in _look():
        findings.append(finding)
        if not as_json:
            _show(finding)
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        show_json({"ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        _show_sum(findings)
    ctx.exit(1 if failed else 0)


def _look() -> Iterator[Finding]:
    from web.cli.doctor.database import look_at_database
    from web.cli.doctor.machine import look_at_machine

    try:
        settings, consul = load_all()
    except ConfigError as exc:
        for fault in exc.faults:
            yield fail("settings", fault, "mend the variable, or unset it for its default")
        return
    yield ok("settings", f"the registries are {', '.join(settings.registries)}")
    if consul is not None:
        from web.cli.doctor.consul import look_at_consul

        yield from look_at_consul(consul, settings)
    yield from look_at_database(settings.database_url)
    yield from look_at_machine(settings)
    if settings.webhooks is not None:
        from web.cli.doctor.webhooks import look_at_webhooks

        yield from look_at_webhooks(settings.webhooks, settings.database_url)


def _show(finding: Finding) -> None:
    from rich.text import Text

    text = Text(f"{finding.status:<5}", COLOURS[finding.status])
    text.append(f" {finding.check:<17} {plain(finding.detail)}")
    if finding.mend:
        text.append(f"\n{'':24}-> {plain(finding.mend)}", "bold")
    console().print(text, soft_wrap=True)


def _show_sum(findings: Sequence[Finding]) -> None:
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    click.echo(f"\n{counted(len(findings), 'check')}: {failed} failed, {warned} with a warning.")
