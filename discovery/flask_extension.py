"""Keeps a Flask application registered while it serves."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from functools import wraps
from typing import Any
from urllib.parse import unquote

import click
from flask import Flask, Response, request
from flask.cli import ScriptInfo, run_command
from flask.helpers import get_debug_flag
from werkzeug.serving import is_running_from_reloader

from discovery.announce.definition import canonical_manifest, manifest_digest
from discovery.errors import ConfigError
from discovery.health.checks import HTTPCheck, parse_check
from discovery.registration import Registration, register

logger = logging.getLogger(__name__)

_FLASKS_PORT = 5000
_HEALTH_PATH = "/health"
_SETTINGS = {
    name: f"LICTOR_{name.upper()}" for name in inspect.signature(register).parameters if name != "lictor_url"
} | {"lictor_url": "LICTOR_URL", "token": "LICTOR_PUSH_TOKEN", "token_file": "LICTOR_PUSH_TOKEN_FILE"}


class Lictor:
    """Registers an application as a module: `Lictor(app, name="financial", port=8001)`, or `init_app` later.

    The arguments are those of `discovery.register`; one that is left out is looked up in
    `app.config`, as LICTOR_NAME, LICTOR_PORT, LICTOR_TAGS and so on. With a `manifest` the
    application serves it at its path, and with `serve_health` it answers the HTTP check, unless it
    has a route there already. The Registration is `app.extensions["lictor"]`.

    It is started at once, but not while TESTING is set or LICTOR_REGISTER is false, not for
    commands of `flask` other than `run`, and not in the process that only watches over the
    development server's reloader.
    """

    def __init__(self, app: Flask | None = None, *, serve_health: bool = False, **arguments: Any) -> None:
        unknown = set(arguments) - set(_SETTINGS)
        if unknown:
            raise TypeError(f"Lictor() has no argument {', '.join(sorted(unknown))}")
        self._serve_health = serve_health
        self._arguments = arguments
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Adds the routes and starts the registration; raises ConfigError with every fault."""
        registration = register(**self._complete(app.config))
        app.extensions["lictor"] = registration
        _serve_manifest(app, registration)
        if self._serve_health:
            _serve_health(app, registration)
        if not _serves(app):
            logger.debug("%s does not serve in this process, and is not registered", registration.name)
            return
        registration.start()
        _end_in_reloaders_parent(app, registration)

    def _complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, those that were left out taken from the configuration and from Flask's command."""
        found = {name: config[setting] for name, setting in _SETTINGS.items() if setting in config}
        arguments = found | self._arguments
        context = _flask_command()
        if context is not None:
            arguments.setdefault("port", context.params.get("port") or _FLASKS_PORT)
        if isinstance(arguments.get("check"), str):
            arguments["check"] = parse_check(arguments["check"])
        if self._serve_health and not arguments.get("check") and not arguments.get("checks"):
            arguments["check"] = HTTPCheck(_HEALTH_PATH)
        missing = [name for name in ("name", "port") if name not in arguments]
        if missing:
            raise ConfigError([f"{_SETTINGS[name]}: set it, or give {name}= to Lictor()" for name in missing])
        return arguments


def _serve_manifest(app: Flask, registration: Registration) -> None:
    manifest = registration.announcement.manifest
    if manifest is None:
        return
    body, digest = canonical_manifest(manifest), manifest_digest(manifest)

    def serve() -> Response:
        response = Response(body, mimetype="application/json")
        response.set_etag(digest)
        response.make_conditional(request)
        return response

    _add_route(app, registration.announcement.manifest_path, "lictor_manifest", serve)


def _serve_health(app: Flask, registration: Registration) -> None:
    checks = registration.announcement.checks
    paths = [check.path for check in checks if isinstance(check, HTTPCheck) and check.path.startswith("/")]

    def serve() -> dict[str, str]:
        return {"status": "passing"}

    for number, path in enumerate(paths or [_HEALTH_PATH]):
        _add_route(app, path, f"lictor_health_{number}", serve)


def _add_route(app: Flask, asked: str, endpoint: str, view: Any) -> None:
    # As the application sees it: without the query, and with what is quoted in a URL as it is.
    path = unquote(asked.partition("?")[0])
    if not any(rule.rule == path for rule in app.url_map.iter_rules()):
        app.add_url_rule(path, endpoint, view)


def _flask_command() -> click.Context | None:
    """The command of `flask` that loads the application, if one does."""
    context = click.get_current_context(silent=True)
    return context if context is not None and context.find_object(ScriptInfo) is not None else None


def _serves(app: Flask) -> bool:
    """Whether this process will serve the application, as far as that can be known by now."""
    if app.testing or not app.config.get("LICTOR_REGISTER", True):
        return False
    context = _flask_command()
    if context is None:
        return True
    if context.command is not run_command:
        return False
    reload = context.params.get("reload")
    return is_running_from_reloader() or not (get_debug_flag() if reload is None else reload)


def _end_in_reloaders_parent(app: Flask, registration: Registration) -> None:
    """Lets `app.run` end the registration where it turns out that another process will serve.

    With its reloader, app.run starts the program a second time and only watches over that.
    """
    run = app.run
    signature = inspect.signature(run)

    @wraps(run)
    def guarded(*args: Any, **options: Any) -> None:
        given = signature.bind(*args, **options).arguments
        debug = given.get("debug")
        if debug is None:
            debug = get_debug_flag() if "FLASK_DEBUG" in os.environ else app.debug
        if given.get("options", {}).get("use_reloader", debug) and not is_running_from_reloader():
            # The other process takes over; nothing here waits for the registry.
            registration.stop(timeout=0)
        run(*args, **options)

    app.run = guarded  # type: ignore[method-assign]
