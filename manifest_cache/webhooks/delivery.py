"""Delivers events to one receiver, one signed request after the other."""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from aiohttp import ClientError, ClientResponse

from discovery import tracing
from discovery.http.address_policy import FetchAllow
from discovery.http.guarded_client import ExchangeFailed, GuardedClient
from discovery.text import quoted
from discovery.timing.backoff import Backoff
from manifest_cache.db_thread import WriterThread
from manifest_cache.metrics import WEBHOOK_DELIVERIES, WEBHOOK_LAG
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import StoreError
from manifest_cache.storage.models import EventRow, utc_now
from manifest_cache.wakeup import wait_for
from manifest_cache.webhooks import message
from manifest_cache.webhooks.config import Receiver
from manifest_cache.webhooks.positions import Backlog, Place, Positions, PositionWriter

logger = logging.getLogger(__name__)

_PAGE = 100
_CONNECT_TIMEOUT = 5.0
_FIRST_PAUSE = 1.0
# What an answer says beside its status is read no further, and not waited for longer.
_LONGEST_SAYING = 64 * 1024
_SAYING_TIME = 1.0


class NotDelivered(Exception):
    """The receiver did not take a message.

    `outcome` is a stable word, `retry_after` the pause in seconds that the receiver asked for, 0 if none.
    """

    def __init__(self, outcome: str, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.retry_after = retry_after


class WebhookSender:
    """Sends messages to one receiver, each over a connection of its own to an allowed address."""

    def __init__(self, receiver: Receiver, settings: CacheSettings, tls: ssl.SSLContext) -> None:
        self._receiver = receiver
        self._deadline = settings.webhook_deadline
        # With resolving threads of its own: a name server that hangs holds up this receiver alone.
        self._client = GuardedClient(
            FetchAllow(settings.webhook_allow, "LICTOR_WEBHOOK_ALLOW"),
            tls=tls,
            connect_timeout=min(_CONNECT_TIMEOUT, self._deadline),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def send(self, id_: str, body: bytes) -> None:
        """Returns once the receiver has taken the message. Raises NotDelivered."""
        headers = message.headers(self._receiver, id_, int(time.time()), body)
        try:
            async with asyncio.timeout(self._deadline) as within:
                request = self._client.request(
                    "POST", self._receiver.url, [*headers, *tracing.headers()], body
                )
                async with request as response:
                    # The status is known, and what else comes cannot undo it.
                    within.reschedule(None)
                    said = await _said(response)
        except ExchangeFailed as exc:
            raise NotDelivered(exc.type, exc.reason) from exc
        except TimeoutError:
            raise NotDelivered("timeout", f"no answer after {self._deadline:g} seconds") from None
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _refusal(response, self._without_path(said.decode("utf-8", "replace")))

    def _without_path(self, said: str) -> str:
        """Many servers name the path that they do not know, and some paths are secrets."""
        target = self._receiver.url.path
        for path in (target, target.partition("?")[0]):
            if path != "/":
                said = said.replace(path, "[path]")
        return said


async def _said(response: ClientResponse) -> bytes:
    """The beginning of an answer's body; the status alone decides, so this never fails."""
    said = b""
    with suppress(TimeoutError, ClientError, OSError):
        async with asyncio.timeout(_SAYING_TIME):
            async for piece in response.content.iter_any():
                said += piece
                if len(said) >= _LONGEST_SAYING:
                    break
    return said


def _refusal(answer: ClientResponse, said: str) -> NotDelivered:
    status = answer.status
    if status == HTTPStatus.GONE:
        return NotDelivered("gone", "answered 410 Gone: it wants nothing more")
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        reason = (
            f"answered {status}, a redirect, and such are not followed: write the new address into the file"
        )
        return NotDelivered("redirect", reason)
    phrase = f"{status} {http.client.responses.get(status, '')}".strip()
    words = f": {quoted(said, 200)}" if said else ""
    return NotDelivered("http-status", f"answered {phrase}{words}", _retry_after(answer.headers))


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that an answer asks to wait, 0 if it does not ask."""
    asked = headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - utc_now()).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


class DeliveryWorker:
    """Takes the events of the log to one receiver; `news` is to be set when there may be more of them."""

    def __init__(
        self,
        receiver: Receiver,
        place: Place,
        *,
        post: WebhookSender,
        positions: Positions,
        bookmarks: PositionWriter,
        thread: WriterThread,
        longest_pause: float,
    ) -> None:
        self.receiver = receiver
        self.news = asyncio.Event()
        self._series = place.series
        self._position = place.position
        self._post = post
        self._positions = positions
        self._bookmarks = bookmarks
        self._thread = thread
        self._longest_pause = longest_pause
        self._backoff = Backoff(_FIRST_PAUSE, longest_pause)
        self._waiting_since: datetime | None = None

    async def run(self) -> None:
        """Delivers until it is cancelled, or the receiver says that it is gone for good."""
        name = self.receiver.name
        WEBHOOK_LAG.labels(name).set_function(self._lag)
        try:
            while True:
                try:
                    await self._deliver_all()
                except (StoreError, NotDelivered):
                    raise
                except Exception:
                    # One odd receiver must end neither the others nor the daemon.
                    logger.exception("delivering failed unexpectedly, and goes on receiver=%s", name)
                await asyncio.sleep(self._backoff.next())
        except NotDelivered as exc:
            logger.error(
                "receiver=%s gets no more webhooks: it %s. Change the file of receivers to try again; "
                "what happens meanwhile is kept for it as long as events are",
                name,
                exc,
            )
        finally:
            await self._post.aclose()
            with suppress(KeyError):
                WEBHOOK_LAG.remove(name)

    def _lag(self) -> float:
        since = self._waiting_since
        return 0.0 if since is None else max(0.0, (utc_now() - since).total_seconds())

    async def _deliver_all(self) -> None:
        while True:
            self.news.clear()
            behind = await self._thread.run_with_retry(
                "read events for webhooks", self._positions.behind, self._position, _PAGE
            )
            self._tell_of(behind)
            for event in behind.events:
                await self._settle(event)
            if not behind.events:
                await wait_for(self.news)

    def _tell_of(self, behind: Backlog) -> None:
        if behind.missing is not None:
            logger.error(
                "receiver=%s was away for too long: the events from index=%d to index=%d are kept no longer, "
                "and it never gets those of them that were for it",
                self.receiver.name,
                *behind.missing,
            )

    async def _settle(self, event: EventRow) -> None:
        """Delivers an event if it is one for this receiver."""
        index = event.index or 0
        is_wanted = self.receiver.wants(event.type, event.module)
        if is_wanted:
            self._waiting_since = event.at
            await self._deliver(event)
            self._waiting_since = None
        self._position = index
        self._bookmarks.move(self.receiver.name, index, delivered=is_wanted)

    async def _deliver(self, event: EventRow) -> None:
        """Tries until the receiver takes it; raises NotDelivered only where that makes no sense."""
        name, index = self.receiver.name, event.index or 0
        id_, body = message.message_id(self._series, event), message.body(event)
        while True:
            # A leader that slept and was replaced must not go on where the new one is ahead.
            await self._bookmarks.make_sure()
            try:
                with tracing.span(
                    "deliver webhook", "client", {"lictor.receiver": name, "lictor.index": index}
                ):
                    await self._post.send(id_, body)
            except NotDelivered as exc:
                WEBHOOK_DELIVERIES.labels(name, exc.outcome).inc()
                if exc.outcome == "gone":
                    raise
                pause = min(max(self._backoff.next(), exc.retry_after), self._longest_pause)
                logger.warning(
                    "webhook not delivered receiver=%s index=%d retry_in=%.1fs: %s",
                    name,
                    index,
                    pause,
                    exc,
                )
                await asyncio.sleep(pause)
            else:
                break
        WEBHOOK_DELIVERIES.labels(name, "delivered").inc()
        if self._backoff.tries:
            logger.info("webhooks are delivered again receiver=%s index=%d", name, index)
            self._backoff.reset()
