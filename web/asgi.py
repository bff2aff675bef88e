"""The application as gunicorn loads it (`web.asgi:app`): the environment's settings in."""

from __future__ import annotations

from web import create_app
from web.server.front import Front

app = Front(create_app())
