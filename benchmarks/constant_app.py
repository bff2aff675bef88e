"""The floor of a benchmark: a bare Flask application whose view answers `/bytes/N` with N constant bytes."""

from __future__ import annotations

import functools

from flask import Flask, Response

app = Flask(__name__)


@app.get("/bytes/<int:size>")
def constant(size: int) -> Response:
    return Response(_bytes(size), content_type="application/json")


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@functools.cache
def _bytes(size: int) -> bytes:
    return b'"' + b"x" * (size - 2) + b'"'
