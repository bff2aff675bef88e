"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from flask import Blueprint

from web import problems
from web.api.endpoint import plain
from web.backend import backend
from web.schemas.responses import Alive, Check, Ready

bp = Blueprint("health", __name__)


@bp.get("/healthz")
@plain(
    summary="Whether the process lives",
    tag="health",
    description="Looks at nothing else: a process whose database is away is not helped by being killed.",
    answer=Alive,
)
def healthz() -> Alive:
    return Alive(status="ok")


@bp.get("/readyz")
@plain(
    summary="Whether the process can serve",
    tag="health",
    description="The database can be read and has the right schema. A check that warns does not keep reads "
    "from being answered, and neither does a registry that is away.",
    answer=Ready,
    problems=(problems.DatabaseUnavailable, problems.WrongSchema),
)
def readyz() -> Ready:
    backend().check()
    return Ready(
        status="ready",
        checks=[
            Check(name="database", status="pass", detail="can be read, and has the right schema"),
            _push_check(),
        ],
    )


def _push_check() -> Check:
    fault = backend().push_guard.fault
    if fault is not None:
        return Check(name="push", status="warn", detail=f"nobody can push: {fault}")
    return Check(name="push", status="pass", detail="as the settings say")
