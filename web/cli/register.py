"""`lictor register`: keeps a module registered while a command runs."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from discovery.errors import ConfigError
from discovery.registries import ROADS
from web.cli.terminal.errors import WrongSettings
from web.cli.terminal.help_text import epilog

if TYPE_CHECKING:
    from discovery.registration import Registration

_NEVER = ("never", "none")
# Where nothing is started, whoever answers on the port is the module.
_CHECK_WITHOUT_COMMAND = "tcp:"
# The library's names of what the command line names otherwise.
_OPTIONS = {
    "deregister_after": "--deregister-after",
    "drain": "--drain",
    "manifest_path": "--manifest-path",
    "manifest_port": "--manifest-port",
    "tags": "--tag",
    "version": "--module-version",
    "lictor_url": "--url",
    "token_file": "--token-file",
    "via": "--via",
    "check": "--check",
    "meta": "--meta",
    "manifest": "--manifest",
    "name": "--name",
    "port": "--port",
    "id": "--id",
    "address": "--address",
    "scheme": "--scheme",
}


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=epilog(
        "lictor register --name financial --port 8001 --check http:/health,interval=5s -- ./server",
        "lictor register --name billing --port 8002 --via push --manifest manifest.json -- ./billing",
        status="that of COMMAND; as in a shell 126 or 127 if it cannot be started, and 128 and the signal's "
        "number if a signal ended it. Without COMMAND 0 after a signal. 2 wrong use or wrong settings.",
    ),
)
@click.option("--name", required=True, help="The module's name, a DNS label.")
@click.option("--port", required=True, type=int, help="The port on which it serves.")
@click.option(
    "--id", "id_", metavar="ID", help="What tells the instance from others; default NAME-HOST-PORT."
)
@click.option("--address", default="", help="Where others reach it; default that of the agent's node.")
@click.option("--scheme", type=click.Choice(["http", "https"]), default="http", show_default=True)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    help="A tag; may be given several times. `module` is added.",
)
@click.option(
    "--meta", multiple=True, metavar="KEY=VALUE", help="A pair of meta; may be given several times."
)
@click.option(
    "--check",
    "checks",
    multiple=True,
    metavar="CHECK",
    help="How its health is found: http:/PATH, tcp: or ttl:30s, with options such as ,interval=5s,timeout=2s "
    "behind it; may be given several times. Default: it is well while COMMAND runs; without COMMAND tcp:.",
)
@click.option(
    "--deregister-after",
    metavar="DURATION",
    default="10m",
    show_default=True,
    help="How long it may be critical before it is removed (Consul: 1m at least), or `never`.",
)
@click.option(
    "--drain",
    metavar="DURATION",
    default="0s",
    show_default=True,
    help="How long COMMAND goes on, deregistered, before SIGTERM or SIGINT reaches it.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Its manifest: version and digest go into the meta, and with --via push the manifest is sent along.",
)
@click.option("--manifest-path", metavar="/PATH", help="Where it serves its manifest; default /manifest.")
@click.option(
    "--manifest-port", type=int, metavar="PORT", help="Another port at which it serves its manifest."
)
@click.option(
    "--module-version", metavar="VERSION", help="Its version, for the meta; a manifest says it itself."
)
@click.option("--via", type=click.Choice(ROADS), help="Where to register; default LICTOR_VIA, else consul.")
@click.option(
    "--url",
    metavar="URL",
    help="With --via push: Lictor's address; default LICTOR_URL, else http://127.0.0.1:8080.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --via push: holds the bearer token; default LICTOR_PUSH_TOKEN_FILE.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def register(
    ctx: click.Context,
    /,
    id_: str | None,
    checks: Sequence[str],
    deregister_after: str,
    manifest: Path | None,
    url: str | None,
    command: Sequence[str],
    **options: Any,
) -> None:
    """Run a program as a registered module.

    Starts COMMAND, or where there is none takes a module that runs already. It is registered as
    soon as the registry can be reached, registered again whenever the registry forgets it, and
    deregistered when COMMAND ends, or a signal tells it to. Signals are passed on to COMMAND, which
    finds LICTOR_SERVICE_ID, LICTOR_SERVICE_NAME and LICTOR_SERVICE_PORT in its environment. Without
    COMMAND the module stays registered until a signal (Ctrl-C) comes.

    Consul is found by the consul command's own variables: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN ...
    """
    from discovery.announce.run_registered import registration_for_command, run_registered

    logging.basicConfig(level=logging.INFO, format="lictor: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        registration = registration_for_command(
            id=id_,
            checks=checks or (() if command else (_CHECK_WITHOUT_COMMAND,)),
            deregister_after=None if deregister_after.lower() in _NEVER else deregister_after,
            manifest_file=manifest,
            version=options.pop("module_version"),
            lictor_url=url,
            **options,
        )
    except ConfigError as exc:
        raise WrongSettings(ConfigError([_with_option(fault) for fault in exc.faults])) from exc
    if command:
        ctx.exit(run_registered(command, registration))
    _stay_registered(registration)


def _with_option(fault: str) -> str:
    """The fault, headed by the option in place of the library's argument."""
    match = re.match(r"(\w+)(?=:| \(LICTOR_)", fault)
    return _OPTIONS[match[1]] + fault[match.end() :] if match and match[1] in _OPTIONS else fault


def _stay_registered(registration: Registration) -> None:
    # Under nohup a hangup is ignored on purpose; one that is waited for would be taken all the same.
    ending = {
        number
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    # Before the registration's thread is there, which inherits it: the signals are to wait for us.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    with registration:
        signal.sigwait(ending)
