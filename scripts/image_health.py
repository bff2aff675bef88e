#!/opt/lictor/bin/python
"""The image's HEALTHCHECK: ends with 0 while what process 1 serves answers, with 1 while it does not.

`up` and `serve` are asked for /healthz at LICTOR_BIND, `sync` for its metrics at LICTOR_METRICS_BIND.
A command that serves nothing (`migrate`, `register`) is well as long as it runs.
"""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

PATIENCE = 4.0
SERVED = {
    "up": ("LICTOR_BIND", "/healthz"),
    "serve": ("LICTOR_BIND", "/healthz"),
    "sync": ("LICTOR_METRICS_BIND", "/metrics"),
}


def main() -> int:
    words = Path("/proc/1/cmdline").read_text().split("\0")
    command = next((word for word in words if word in SERVED or word in ("migrate", "register")), "")
    if command not in SERVED:
        return 0
    setting, path = SERVED[command]
    host, _, port = os.environ.get(setting, "").rpartition(":")
    if not port.isdecimal():
        # A Unix socket, or no address: nothing can be asked.
        return 0
    host = host.strip("[]")
    connection = http.client.HTTPConnection(
        host if host not in ("", "0.0.0.0", "::") else "127.0.0.1", int(port), timeout=PATIENCE
    )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
    except OSError as exc:
        print(f"{setting}={os.environ[setting]} does not answer: {exc}")
        return 1
    print(answer.status, answer.reason)
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
