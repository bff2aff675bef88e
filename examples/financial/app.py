"""The financial module, in Flask: registers itself while it serves, and serves its manifest.

Run it beside a Consul agent:  python examples/financial/app.py --port 8001
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flask import Flask, abort
from werkzeug.serving import make_server

from discovery import HTTPCheck
from discovery.flask_extension import Lictor

BALANCES = {"1000": "18250.00", "4400": "-3120.75", "6300": "941.20"}

app = Flask(__name__)


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/financial/accounts")
def accounts() -> list[dict[str, str]]:
    return [{"number": number, "balance": balance} for number, balance in BALANCES.items()]


@app.get("/financial/accounts/<number>")
def account(number: str) -> dict[str, str]:
    if number not in BALANCES:
        abort(404)
    return {"number": number, "balance": BALANCES[number]}


def main() -> None:
    parser = argparse.ArgumentParser(description="The sample module `financial`.")
    parser.add_argument("--port", type=int, default=8001)
    port = parser.parse_args().port
    server = make_server("127.0.0.1", port, app, threaded=True)
    # Besides registering, it serves the manifest at /manifest.
    Lictor(
        app,
        name="financial",
        port=port,
        tags=["ledger"],
        manifest=json.loads(Path(__file__).with_name("manifest.json").read_text()),
        check=HTTPCheck("/health", interval="2s"),
        deregister_after="1m",
    )
    server.serve_forever()


if __name__ == "__main__":
    main()
