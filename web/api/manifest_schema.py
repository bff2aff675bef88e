"""What describes the API and its documents: the JSON Schema of a manifest."""

from __future__ import annotations

import functools
import json

from flask import Blueprint

from manifest_cache.manifest import manifest_json_schema
from web.api.endpoint import plain

bp = Blueprint("meta", __name__)


@bp.get("/schemas/manifest")
@plain(
    summary="The JSON Schema of a manifest",
    tag="meta",
    schema={"type": "object", "description": "JSON Schema 2020-12."},
    answer_description="The schema.",
)
def show_manifest_schema() -> bytes:
    return _manifest_schema()


@functools.cache
def _manifest_schema() -> bytes:
    return json.dumps(manifest_json_schema(), indent=2).encode() + b"\n"
