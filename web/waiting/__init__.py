"""Lets requests wait for the next change without a thread each: blocking queries, long polls, event streams.

`middleware` sees that a request has to wait, and hands it over; `hub` holds all who wait on one
thread (`connections`, `timers`), and is woken by the commits of any process. `waiters` are those
who wait for one answer: a `question` is asked anew when the change has come. `streams` are those
that want each event, from the `tail` of the log.
"""

from __future__ import annotations

from flask import Flask

from web import backend
from web.waiting.hub import Hub
from web.waiting.middleware import Waiting


def install(app: Flask) -> None:
    """Puts it before everything else that the application has: what it asks later is asked of all that."""
    behind = backend.of(app)
    hub = Hub(behind)
    behind.before_close(hub.end)
    # Where the server cannot let go of connections, half of its threads are left for other requests.
    threads = max(1, behind.settings.threads // 2)
    app.wsgi_app = Waiting(app.wsgi_app, hub, threads)  # type: ignore[method-assign]
