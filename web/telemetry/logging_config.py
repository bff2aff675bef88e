"""Configures the logs of every process of Lictor."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from web.settings import Settings
from web.telemetry.request_id import request_id

_TEXT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s%(request)s"

# What begins another line, or means something to a terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class _OfRequest(logging.Filter):
    """Adds the id of the request that a line is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        id_ = request_id.get()
        record.request_id = id_
        record.request = f" request={id_}" if id_ else ""
        return True


class _NoDoubleClose(logging.Filter):
    """Leaves out that gunicorn found its sockets closed, which uvicorn does first when a worker ends."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Error while closing socket")


class TextFormatter(logging.Formatter):
    """One line per message, and only what can be read: what a client or a module says must not look like
    another line, nor tell the terminal what to do. An exception has lines of its own.
    """

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return super().formatMessage(record).translate(_CONTROLS)


class JSONFormatter(logging.Formatter):
    """One JSON object per line: `at`, `level`, `logger`, `process`, `message`.

    Beside them `request` where it is about one, and `exception` where there was one.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if id_ := getattr(record, "request_id", None):
            line["request"] = id_
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def logging_config(settings: Settings) -> dict[str, Any]:
    """Everything to stderr, from the settings' level on; libraries from warnings on unless debugging."""
    level = settings.log_level.upper()
    libraries = level if level == "DEBUG" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": TextFormatter},
            "json": {"()": JSONFormatter},
        },
        "filters": {"request": {"()": _OfRequest}, "no double close": {"()": _NoDoubleClose}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": _format(settings),
                "filters": ["request"],
                "stream": "ext://sys.stderr",
            },
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {
                "level": level,
                "handlers": [],
                "filters": ["no double close"],
                "propagate": True,
            },
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
            "alembic": {"level": libraries},
            "httpx": {"level": libraries},
            "httpcore": {"level": libraries},
        },
    }


def _format(settings: Settings) -> str:
    """As the settings say, and else lines for people where one may be looking."""
    if settings.log_format != "auto":
        return settings.log_format
    return "text" if sys.stderr.isatty() else "json"
