"""The reporting module, an ASGI application: its manifest's version grows at each start.

Run it beside a Consul agent:  python examples/reporting/app.py --port 8002 --state /tmp/reporting
Its check is a TTL: the library says every few seconds that the module is well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from discovery import TTLCheck
from discovery.asgi import lifespan

REPORTS = ["balance-sheet", "cash-flow", "budget", "audit-trail"]


def manifest_of(start: int) -> dict[str, Any]:
    """The manifest of the n-th start: a release that offers one report more than the last."""
    reports = REPORTS[: start + 1]
    return {
        "name": "reporting",
        "version": f"1.{start}.0",
        "title": "Reports",
        "description": "Reports over the ledger, as tables and as PDF.",
        "base_path": "/reporting",
        "routes": [
            {"path": f"/{report}", "methods": ["GET"], "permissions": ["reporting.read"]}
            for report in reports
        ],
        "navigation": [
            {
                "title": "Reports",
                "path": "/reporting",
                "icon": "chart",
                "order": 20,
                "children": [{"title": _title(report), "path": f"/reporting/{report}"} for report in reports],
            }
        ],
        "permissions": [{"name": "reporting.read", "title": "Read reports"}],
        "requires": [{"name": "financial.ledger", "version": ">=2.0 <3"}],
        "provides": [{"name": "reporting.reports", "version": f"1.{start}"}],
    }


def _title(report: str) -> str:
    return report.replace("-", " ").capitalize()


def count_start(state: Path) -> int:
    """How many starts there were before this one; the file keeps the number."""
    starts = int(state.read_text()) if state.exists() else 0
    state.write_text(str(starts + 1))
    return starts


def make_app(port: int, manifest: dict[str, Any]) -> Starlette:
    async def serve_manifest(_: Request) -> JSONResponse:
        return JSONResponse(manifest)

    return Starlette(
        routes=[Route("/manifest", serve_manifest)],
        lifespan=lifespan(
            name="reporting",
            port=port,
            tags=["reports"],
            manifest=manifest,
            check=TTLCheck("10s"),
            deregister_after="1m",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The sample module `reporting`.")
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--state", type=Path, default=Path("reporting-starts"), help="counts the starts")
    options = parser.parse_args()
    app = make_app(options.port, manifest_of(count_start(options.state)))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
