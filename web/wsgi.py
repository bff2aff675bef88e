"""The application as WSGI servers load it (`web.wsgi:app`): the environment's settings in."""

from __future__ import annotations

from web import create_app

app = create_app()
