"""How every process of Lictor logs: settings in, a configuration for `logging.config.dictConfig` out."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from web.settings import Settings

_TEXT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"


class JSONFormatter(logging.Formatter):
    """One JSON object per line: `at`, `level`, `logger`, `process`, `message`, perhaps `exception`."""

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
            "text": {"format": _TEXT},
            "json": {"()": JSONFormatter},
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": settings.log_format,
                "stream": "ext://sys.stderr",
            },
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
            "alembic": {"level": libraries},
            "httpx": {"level": libraries},
            "httpcore": {"level": libraries},
        },
    }
