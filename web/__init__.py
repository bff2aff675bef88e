"""Serves what the cache holds over HTTP and in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from web.settings import Settings

__all__ = ["create_app"]

_ROOM_BESIDE_THE_MANIFEST = 1024 * 1024


def create_app(settings: Settings | None = None) -> Flask:
    """The web application; its settings come from the environment where none are given.

    Nothing is opened before the first request, so that a server may fork after this. Raises
    ConfigError if the environment's settings are wrong.
    """
    # Imported here, so that the command answers without Flask where it needs none.
    from flask import Flask

    from web import api, backend, pages, problems
    from web.api import health, openapi
    from web.response_cache import read_cache
    from web.settings import Settings
    from web.telemetry import metrics_endpoint, request_metrics, tracing

    settings = settings or Settings.load()
    app = Flask(__name__, template_folder="pages/templates", static_folder="pages/static")
    app.config["MAX_CONTENT_LENGTH"] = settings.fetch_max_bytes + _ROOM_BESIDE_THE_MANIFEST
    # A path with two slashes is another path, and is not there: no redirect that guesses.
    app.url_map.merge_slashes = False
    backend.install(app, settings)
    problems.register(app)
    for bp in api.BLUEPRINTS:
        app.register_blueprint(bp, url_prefix=api.PREFIX)
    for bp in (health.bp, openapi.bp, metrics_endpoint.bp):
        app.register_blueprint(bp)
    pages.install(app)
    openapi.install(app)
    read_cache.install(app)
    request_metrics.install(app)
    tracing.install(app)
    return app
