"""The API, a blueprint per subject: `BLUEPRINTS` are all that lie under `/api/v1`."""

from __future__ import annotations

from web.api import events, manifest_schema, modules, push, refresh

PREFIX = "/api/v1"
BLUEPRINTS = (modules.bp, events.bp, push.bp, refresh.bp, manifest_schema.bp)
