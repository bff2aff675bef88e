"""Requests made up from the document of the API: no fault of ours, no answer that it does not tell of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from tests.web.filling import Cache, instance
from tests.web.gunicorn_server import running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
# Reads that wait would take up all the time, and 503 is the right answer to who bears nothing old. What
# breaks the document may be refused as too long, too, which is not among what is expected by default.
CONFIGURATION = """
[parameters]
wait = "1ms"
max_stale = "1h"

[checks]
negative_data_rejection.expected-statuses = [400, 404, 405, 406, 409, 413, 414, 415, 422, 429]
"""


def test_the_document_and_the_answers_agree(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    cache.module("financial")
    cache.push(instance("weather", node="", datacenter=""))
    cache.announce(instance("mailer"))
    cache.refuse("mailer")
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration)),
        *("run", f"http://{bind}/openapi.json", "--checks", ",".join(CHECKS), "--no-color"),
        # The same requests each time, and an end in time on a machine that is busy.
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1", "--max-time", "30"),
        *("--generation-database", "none", "--request-timeout", "30"),
    ]
    with running(tmp_path, http, database_url=database_url, bind=bind) as server:
        run = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
        assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
        assert "Traceback" not in server.log
