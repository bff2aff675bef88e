"""Serves the pages for people, in HTML that works without JavaScript."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, render_template, request, url_for
from markupsafe import Markup
from pydantic import BeforeValidator, Field, ValidationError

from manifest_cache.manifest import Link, Manifest
from manifest_cache.storage import models
from manifest_cache.storage.reader import ModuleFilter
from web.api.modules import known_module
from web.api.read import NotModified, Read, cursor_after, page, parse_cursor
from web.backend import backend
from web.problems import PROBLEMS, UnknownPath
from web.schemas.parsing import path_of, query_of
from web.schemas.requests import Cursor, Line, ModulePath, NoParameters
from web.schemas.responses import instance_shapes
from web.schemas.types import Status, rfc3339

bp = Blueprint("pages", __name__)

_ON_A_PAGE = 100
_INSTANCES_SHOWN = 200
_HISTORY_SHOWN = 20
_TOMBSTONES_SHOWN = 20
_EVENTS_SHOWN = 25
_CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_STATUSES = ("available", "degraded", "unavailable")


def _without_empty(values: Any) -> Any:
    """A form sends the fields that were left empty, too."""
    return [value for value in values if value] if isinstance(values, list) else values


class OverviewQuery(NoParameters):
    """What the page of all modules is narrowed to."""

    q: Annotated[Line, Field(max_length=200)] = ""
    status: Annotated[list[Status], BeforeValidator(_without_empty)] = Field(default_factory=list)
    tag: Annotated[list[Annotated[Line, Field(max_length=255)]], BeforeValidator(_without_empty)] = Field(
        default_factory=list, max_length=20
    )
    cursor: Cursor = None


@bp.get("/")
def overview() -> Response:
    query = query_of(OverviewQuery, request.args)
    after = parse_cursor("modules", query.cursor, str)
    with backend().snapshot() as snapshot:
        read = Read(snapshot, backend().module_parts, request.if_none_match)
        wanted = ModuleFilter(status=query.status, tag=query.tag, q=query.q.strip())
        return _unless_known(read, lambda: _overview(read, query, wanted, after))


def _overview(read: Read, query: OverviewQuery, wanted: ModuleFilter, after: str | None) -> str:
    rows, last = page(read.snapshot.modules(wanted, limit=_ON_A_PAGE + 1, after=after), _ON_A_PAGE)
    counts = read.snapshot.status_counts()
    settings = backend().settings
    return render_template(
        "overview.html",
        lost=read.lost,
        index=read.snapshot.index,
        counts=[(status, counts.get(status, 0)) for status in _STATUSES],
        total=sum(counts.values()),
        matching=sum(read.snapshot.status_counts(wanted).values()),
        modules=rows,
        query=query,
        is_filtered=bool(query.q.strip() or query.status or query.tag),
        next_cursor=cursor_after("modules", last.name) if last else None,
        by_consul="consul" in settings.registries,
        by_push="push" in settings.registries,
        token_file=settings.push_token_file,
        module_tag=settings.module_tag,
    )


@bp.get("/modules/<path:name>")
def module_page(name: str) -> Response:
    name = path_of(ModulePath, {"name": name}).name
    query_of(NoParameters, request.args)
    with backend().snapshot() as snapshot:
        read = Read(snapshot, backend().module_parts, request.if_none_match)
        module = known_module(read, name)
        return _unless_known(read, lambda: _module_page(read, module), module=module)


def _module_page(read: Read, module: models.ModuleRow) -> str:
    snapshot = read.snapshot
    rows = snapshot.instance_page(module.name, limit=_INSTANCES_SHOWN)
    manifest = snapshot.manifest(module.name, module.digest) if module.digest else None
    return render_template(
        "module.html",
        lost=read.lost,
        index=snapshot.index,
        module=module,
        instances=instance_shapes(read.snapshot, rows),
        tombstones=snapshot.tombstones(module.name, limit=_TOMBSTONES_SHOWN),
        manifest=manifest,
        said=_typed(manifest),
        links=_links(manifest),
        pretty=json.dumps(json.loads(manifest.content), indent=2, ensure_ascii=False) if manifest else None,
        history=snapshot.manifest_history(module.name, limit=_HISTORY_SHOWN),
        events=snapshot.events(module=module.name, limit=_EVENTS_SHOWN, newest_first=True),
    )


@bp.get("/problems/<slug>")
def problem_page(slug: str) -> str:
    if slug not in PROBLEMS:
        raise UnknownPath(f"There is no such problem. {UnknownPath.advice}")
    return render_template("problem.html", kind=PROBLEMS[slug])


def _unless_known(read: Read, render: Any, *, module: models.ModuleRow | None = None) -> Response:
    """The page, or 304: its ETag also changes with this program, which made its markup."""
    try:
        read.raise_if_not_modified(
            etag=f"{read.snapshot.index}-{_build()}", modules=[module] if module else []
        )
        response = Response(render())
    except NotModified:
        response = Response(status=304)
    response = read.finish(response)
    # How long ago things were is part of the page, so that what a browser kept would be wrong.
    response.headers["Cache-Control"] = "no-store"
    return response


def install(app: Flask) -> None:
    """Registers the pages, what their templates use, and the headers that confine browsers."""
    app.register_blueprint(bp)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(ago=ago, due=due, outcome=outcome, rfc3339=rfc3339)
    app.jinja_env.globals.update(static=_static)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = timedelta(days=1)
    app.after_request(_confine)


def _confine(response: Response) -> Response:
    is_page = response.mimetype == "text/html"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault(
        "Content-Security-Policy",
        _CONTENT_SECURITY if is_page else "default-src 'none'; frame-ancestors 'none'",
    )
    return response


@functools.cache
def _build() -> str:
    """A short digest of templates and static files: changes when the pages of this program do."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*(here / "templates").glob("*.html"), *(here / "static").glob("*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _static(name: str) -> str:
    return url_for("static", filename=name, v=_build())


def _typed(manifest: models.ManifestRow | None) -> Manifest | None:
    """The manifest with its types, or None where what was stored once is none for this program."""
    try:
        return Manifest.model_validate(json.loads(manifest.content)) if manifest else None
    except ValidationError:
        return None


def _links(manifest: models.ManifestRow | None) -> list[Link]:
    """Links that lead out of the page to somewhere harmless; a module may say anything."""
    said = _typed(manifest)
    return [link for link in (said.links or ()) if _is_harmless(link.url)] if said else []


def _is_harmless(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return (parts.scheme in ("http", "https") and bool(parts.netloc)) or parts.scheme == "mailto"


def ago(at: datetime | None) -> Markup:
    """A moment as how long ago (or ahead) it is, with the moment itself in its title."""
    if at is None:
        return Markup("<span class=muted>never</span>")
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        rfc3339(at), f"{at:%Y-%m-%d %H:%M:%S} UTC", in_words(datetime.now(UTC) - at)
    )


def due(at: datetime) -> Markup:
    """When something will be done; what is late is done any moment."""
    if at > datetime.now(UTC):
        return Markup(str(ago(at)).replace("<time", "<time data-due", 1))  # noqa: S704 - escaped by ago
    return Markup("any moment")


def in_words(passed: timedelta) -> str:
    """A span of time in its largest unit.

    >>> in_words(timedelta(seconds=2)), in_words(timedelta(hours=-30)), in_words(timedelta(minutes=1))
    ('just now', 'in 30 hours', '1 minute ago')
    """
    seconds = int(abs(passed.total_seconds()))
    if seconds < _A_MOMENT:
        return "just now"
    unit, length = next((unit, length) for unit, length in _UNITS if seconds >= length * _FROM[unit])
    number = seconds // length
    words = f"{number} {unit}{'' if number == 1 else 's'}"
    return f"{words} ago" if passed > timedelta() else f"in {words}"


_A_MOMENT = 5
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
_FROM = {"day": 2, "hour": 1, "minute": 1, "second": 1}


def outcome(event: models.EventRow) -> str:
    """What an event changed, in a line: `passing → critical`, or the names of what changed.

    >>> outcome(models.EventRow(type="x", at=datetime.now(UTC), data={"was": {"a": 1}, "is": {"a": 2}}))
    '1 → 2'
    """
    was, is_ = (event.data.get(key) or {} for key in ("was", "is"))
    if event.type in ("instance.added", "instance.removed"):
        there: Mapping[str, Any] = is_ or was
        return f"{there.get('address', '')}:{there.get('port', '')}"
    if event.type == "module.manifest_changed":
        was, is_ = ({"version": data.get("version")} for data in (was, is_))
    if "manifest_error" in is_:
        return str((is_["manifest_error"] or {}).get("detail", "its manifest is good again"))
    if len(is_) == 1:
        (name,) = is_
        return _change(was.get(name), is_[name])
    return ", ".join(
        f"{name} {_change(was.get(name), is_[name])}" if _is_short(is_[name]) else name
        for name in sorted(is_)
    )


_SHORT = 40


def _is_short(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= _SHORT)


def _change(was: Any, now: Any) -> str:
    return f"{was} → {now}" if _is_short(was) else str(now)
