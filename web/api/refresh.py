"""Has a module's manifests fetched again at once."""

from __future__ import annotations

from flask import Blueprint

from discovery.text import shortened
from manifest_cache.ingest.store import Store
from web.api.endpoint import command
from web.problems import UnknownModule
from web.schemas.refresh_text import told
from web.schemas.requests import ModulePath
from web.schemas.responses import RefreshAsked

bp = Blueprint("refresh", __name__)


@bp.post("/modules/<name>/refresh")
@command(
    summary="Have a module's manifests fetched now",
    tag="manifests",
    description="The synchronizer does it, as soon as one runs; what it brings shows as any change does. "
    "Nothing need be sent.",
    path=ModulePath,
    answer=RefreshAsked,
    answer_description="Asked for, as far as it can be.",
    status=202,
    problems=(UnknownModule,),
)
def refresh(store: Store, name: str) -> tuple[RefreshAsked, int]:
    done = store.request_refresh(name)
    if done is None:
        raise UnknownModule(f"There is no module {shortened(name)}.", near=[])
    refresh, index = done
    answer = RefreshAsked(
        module=name,
        asked=refresh.asked,
        pushed=refresh.pushed,
        not_well=refresh.not_well,
        detail=told(refresh),
        index=index,
    )
    return answer, index
