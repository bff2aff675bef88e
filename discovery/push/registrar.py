"""Registers a module with Lictor itself and sends its heartbeats."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from discovery.announce.definition import ServiceDefinition
from discovery.announce.own_address import own_address_towards
from discovery.announce.registrar import MayRestore, first_of, fitting
from discovery.announce.road import FAR_PAUSE, NEAR_PAUSE, Road, RoadOptions
from discovery.base import Health
from discovery.errors import (
    ConfigError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.health.checks import Target, TTLCheck
from discovery.health.probe import Probe
from discovery.http.lictor_url import DEFAULT_LICTOR_URL
from discovery.timing.durations import format_duration
from discovery.validation import asking_fault

logger = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(5.0)
_LONGEST_CALL = 10.0
_EARLIEST = 0.8
"""A beat comes after this part of the interval at the earliest, the whole of it at the latest."""
_LONGEST_EXCERPT = 200
_LONGEST_ID = 255
_DEREGISTER_AFTER = (1.0, 31 * 86400.0)
_HEARTBEAT = (0.1, 86400.0)
_NO_HEADER = "holds a character that no HTTP header can carry"
_WORST_FIRST = (Health.CRITICAL, Health.WARNING, Health.PASSING)


class PushAnnouncer:
    """A Registrar: registers over HTTP and sends heartbeats, with the outcome of the module's own checks."""

    def __init__(
        self, announcement: ServiceDefinition, url: str, *, token: str = "", token_file: Path | None = None
    ) -> None:
        self._announcement = announcement
        self._url = url.rstrip("/")
        self._token = token
        self._token_file = token_file
        # The machine's own authorities, which SSL_CERT_FILE may name; proxies are for the outer world.
        self._client = httpx.AsyncClient(
            base_url=self._url, timeout=_TIMEOUT, trust_env=False, verify=ssl.create_default_context()
        )
        self._interval = announcement.heartbeat
        self._said = (Health.PASSING, "")
        self._news = asyncio.Event()
        self._probes: list[Probe] = []

    async def register(self) -> None:
        address = await self._address()
        await self._aim_probes(
            Target(scheme=self._announcement.scheme, host=address, port=self._announcement.port)
        )
        # The registry takes a new instance for well until it hears otherwise: that is to be soon.
        await asyncio.gather(*(probe.look() for probe in self._probes))
        answer = await self._call("POST", "/api/v1/modules/register", json=self._body(address))
        interval = answer.get("heartbeat_interval")
        if isinstance(interval, int | float) and interval > 0:
            self._interval = float(interval)

    async def _aim_probes(self, target: Target) -> None:
        """Has the checks ask at this place: the machine may have another address than the last time."""
        if self._probes and self._probes[0].target == target:
            return
        before, self._probes = (
            self._probes,
            [Probe(check, target) for check in self._announcement.checks if not isinstance(check, TTLCheck)],
        )
        for probe in before:
            await probe.aclose()

    async def is_announced(self, may_restore: MayRestore) -> bool:
        """Speaks a heartbeat: the one question that the registry has."""
        try:
            await self._beat_once()
        except UnknownInstance:
            return False
        return True

    async def keep_alive(self, may_restore: MayRestore) -> str:
        return await first_of(self._beat(), *(probe.run(self._news.set) for probe in self._probes))

    async def deregister(self) -> None:
        try:
            await self._call("DELETE", f"{self._module}/instances/{_quoted(self._announcement.id)}")
        except UnknownInstance:
            logger.debug("%s did not know %s any more", self._url, self._announcement.id)

    def report(self, health: Health, note: str) -> None:
        self._said = health, note
        self._news.set()

    async def aclose(self) -> None:
        await self._client.aclose()
        for probe in self._probes:
            await probe.aclose()

    @property
    def _module(self) -> str:
        return f"/api/v1/modules/{_quoted(self._announcement.name)}"

    async def _address(self) -> str:
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        if self._announcement.address:
            return self._announcement.address
        if host == "localhost":
            return "127.0.0.1"
        return await own_address_towards(host, parts.port or (443 if parts.scheme == "https" else 80))

    def _body(self, address: str) -> dict[str, Any]:
        own = self._announcement
        body: dict[str, Any] = {
            "name": own.name,
            "id": own.id,
            "address": address,
            "port": own.port,
            "scheme": own.scheme,
            "tags": list(own.tags),
            "meta": dict(own.meta),
            "heartbeat_interval": own.heartbeat,
        }
        if own.deregister_after is not None:
            body["deregister_after"] = own.deregister_after
        if own.manifest is not None:
            return body | {"manifest": dict(own.manifest)}
        # The path is either a field of its own or in the meta, where Lictor itself then puts it.
        del body["meta"]["manifest_path"]
        return body | {"manifest_path": own.manifest_path}

    async def _beat(self) -> str:
        """Speaks up in time, and whenever there is news of the module's health."""
        while True:
            await self._beat_once()
            try:
                async with asyncio.timeout(self._interval * random.uniform(_EARLIEST, 1.0)):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _beat_once(self) -> None:
        self._news.clear()
        health, note = self._health()
        body = {"id": self._announcement.id, "health": health.value, "note": fitting(note)}
        await self._call("POST", f"{self._module}/heartbeat", json=body)

    def _health(self) -> tuple[Health, str]:
        """The worst of what the module says of itself and of what its checks found."""
        found = [self._said, *(probe.found for probe in self._probes if probe.found is not None)]
        return min(found, key=lambda one: _WORST_FIRST.index(one[0]))

    async def _call(self, method: str, path: str, *, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call; what httpx raises and what the answer's status means becomes this package's errors."""
        try:
            async with asyncio.timeout(_LONGEST_CALL):
                answer = await self._client.request(method, path, json=json, headers=self._headers())
        except TimeoutError as exc:
            told = f"{method} {self._url}{path}: no answer within {_LONGEST_CALL:g} s"
            raise RegistryUnavailable(told) from exc
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            raise RegistryUnavailable(
                f"{method} {self._url}{path}: {str(exc) or type(exc).__name__}"
            ) from exc
        told = f"{method} {self._url}{path}: Lictor answered {answer.status_code}{_explained(answer)}"
        if answer.is_success:
            return _object(answer)
        if answer.status_code in (401, 403):
            raise PermissionDenied(
                f"{told.rstrip('.')}; check the token (LICTOR_PUSH_TOKEN_FILE)", status=answer.status_code
            )
        if answer.status_code == 404 and path != "/api/v1/modules/register":
            raise UnknownInstance(told, status=404)
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise RegistryUnavailable(told, retry_after=_retry_after(answer))
        raise RegistryRejected(told, status=answer.status_code)

    def _headers(self) -> dict[str, str]:
        token = self._token
        if self._token_file is not None:
            # Read again each time, so that a token can be replaced while the module runs.
            try:
                token = _token_in(self._token_file)
            except ValueError as exc:
                raise PermissionDenied(str(exc)) from exc
        return {"Authorization": f"Bearer {token}"} if token else {}


def faults(announcement: ServiceDefinition) -> list[str]:
    """What Lictor would not take."""
    found = []
    if "/" in announcement.id or len(announcement.id) > _LONGEST_ID:
        rule = f"via push it has at most {_LONGEST_ID} characters, none of them a slash"
        found.append(f"id: {rule} (got {announcement.id!r})")
    elif fault := asking_fault(announcement.id):
        found.append(f"id: {fault}")
    after = announcement.deregister_after
    if after is not None and not _DEREGISTER_AFTER[0] <= after <= _DEREGISTER_AFTER[1]:
        found.append(f"deregister_after: via push it is 1s to 31d (got {format_duration(after)})")
    if not _HEARTBEAT[0] <= announcement.heartbeat <= _HEARTBEAT[1]:
        ttl = format_duration(announcement.heartbeat * 3)
        found.append(f"check: via push a TTL, the time of three beats, is 300ms to 72h (got {ttl})")
    return found


def url_faults(url: str) -> list[str]:
    """Why this is no address of Lictor."""
    try:
        parts = urlsplit(url)
        if parts.username or parts.password:
            # The text is not quoted: it holds a secret.
            return ["lictor_url (LICTOR_URL): must be an address without a user and a password"]
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(url)
        # What no name server can be asked for fails in ways of its own.
        (parts.hostname or "").encode("idna")
    except (ValueError, AttributeError, httpx.InvalidURL):
        good = False
    if good and not (parts.query or parts.fragment):
        return []
    return [f'lictor_url (LICTOR_URL): must be an address such as "http://127.0.0.1:8080" (got {url!r})']


def token_faults(token: str, file: Path | None) -> list[str]:
    """Why these are no token, or no file with one. The token itself is not quoted: this goes to logs."""
    if not _fits_header(token):
        return [f"token: {_NO_HEADER}"]
    try:
        if file is not None:
            _token_in(file)
    except ValueError as exc:
        return [str(exc)]
    return []


def _token_in(file: Path) -> str:
    """The token that a file holds. Raises ValueError, which says why that is none."""
    where = "token_file (LICTOR_PUSH_TOKEN_FILE):"
    try:
        # Once: another may be put into its place at any time.
        held = file.read_text().strip()
    except OSError as exc:
        raise ValueError(f"{where} {file} cannot be read: {exc.strerror or exc}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where} {file} does not hold text: put the token alone into it") from None
    if not held:
        raise ValueError(f"{where} {file} is empty")
    if not _fits_header(held):
        raise ValueError(f"{where} the token in {file} {_NO_HEADER}")
    return held


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable()


def is_local(url: str) -> bool:
    """Whether Lictor is on this very machine, as far as the address tells."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = answer.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _explained(answer: httpx.Response) -> str:
    """What a problem document says: each faulty field, or else its detail."""
    problem = _object(answer)
    errors = problem.get("errors")
    if isinstance(errors, list) and errors:
        told = [f"{one.get('field')}: {one.get('message')}" for one in errors if isinstance(one, Mapping)]
        return ": " + "; ".join(told)
    detail = problem.get("detail") or problem.get("title") or answer.text[:_LONGEST_EXCERPT]
    return f": {' '.join(str(detail).split())}" if detail else ""


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def push_road(options: RoadOptions) -> Road:
    """Registers with Lictor itself, by default that of LICTOR_URL."""
    from discovery.announce import preload  # noqa: F401

    url = options.lictor_url or options.environ.get("LICTOR_URL") or DEFAULT_LICTOR_URL
    named = options.token_file or (
        options.environ.get("LICTOR_PUSH_TOKEN_FILE") if not options.token else None
    )
    file = Path(named) if named else None
    wrong = url_faults(url) + token_faults(options.token, file)
    if wrong:
        raise ConfigError(wrong)
    return Road(
        name=f"Lictor at {url}",
        scope=lambda own: f"push {url} {own.name} {own.id}",
        faults=faults,
        connect=lambda own: PushAnnouncer(own, url, token=options.token, token_file=file),
        longest_pause=NEAR_PAUSE if is_local(url) else FAR_PAUSE,
        takes_reports=lambda own: True,
    )
