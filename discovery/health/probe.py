"""Checks a module's health the way Consul's agent would."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

import httpx

from discovery.base import Health
from discovery.health.checks import HTTPCheck, PolledCheck, Target
from discovery.timing.backoff import Backoff
from discovery.timing.durations import parse_duration

logger = logging.getLogger(__name__)

_LONGEST_NOTE = 200


class Probe:
    """Runs one check at its interval; `found` holds the outcome, None before the first.

    A module that is still starting is asked again at short, growing pauses until it passes once.
    """

    def __init__(self, check: PolledCheck, target: Target) -> None:
        self.found = (Health(check.initial_status), "") if check.initial_status else None
        self._check = check
        self.target = target
        self._interval = parse_duration(check.interval)
        self._timeout = parse_duration(check.timeout)
        self._pauses = Backoff(min(0.1, self._interval), self._interval)
        self._passed_once = False
        self._passes = 0
        self._failures = 0
        self._client = httpx.AsyncClient(
            timeout=self._timeout,
            trust_env=False,
            follow_redirects=True,
            verify=_context(check),
        )

    async def run(self, on_news: Callable[[], None]) -> str:
        """Goes on until it is cancelled; calls `on_news` when the health is another than before."""
        while True:
            if await self.look():
                on_news()
            await asyncio.sleep(self._interval if self._passed_once else self._pauses.next())

    async def look(self) -> bool:
        """Asks once; whether the health is another than before."""
        before = self.found
        self.found = self._weighed(await self._ask())
        if before is not None and before[0] is self.found[0]:
            return False
        logger.info("check of %s: %s %s", self.target.url, *self.found)
        return True

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask(self) -> tuple[Health, str]:
        try:
            async with asyncio.timeout(self._timeout):
                if isinstance(self._check, HTTPCheck):
                    return await self._ask_http(self._check)
                return await self._ask_tcp(*self._check.address(self.target))
        except TimeoutError:
            return Health.CRITICAL, f"no answer within {self._timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            return Health.CRITICAL, (str(exc) or type(exc).__name__)[:_LONGEST_NOTE]

    async def _ask_http(self, check: HTTPCheck) -> tuple[Health, str]:
        url = check.url(self.target)
        # As the agent sends them, which knows no other encoding.
        headers = {name.encode(): value.encode() for name, value in check.headers.items()}
        # The body is not read: it may be long, and the status says it all.
        async with self._client.stream(check.method, url, headers=headers) as answer:
            note = f"{check.method} {url}: {answer.status_code} {answer.reason_phrase}"
            if answer.is_success:
                return Health.PASSING, note
            return (Health.WARNING if answer.status_code == 429 else Health.CRITICAL), note

    async def _ask_tcp(self, host: str, port: int) -> tuple[Health, str]:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return Health.PASSING, f"TCP connect {host}:{port}: Success"

    def _weighed(self, answer: tuple[Health, str]) -> tuple[Health, str]:
        """Applies the counts that a check may ask for before it changes its mind."""
        if answer[0] is Health.CRITICAL:
            self._passes, self._failures = 0, self._failures + 1
            enough = self._failures >= self._check.failures_before_critical
        else:
            self._passes, self._failures = self._passes + 1, 0
            enough = self._passes >= self._check.success_before_passing
            self._passed_once = self._passed_once or enough
        return answer if enough else (self.found or (Health.CRITICAL, answer[1]))


def _context(check: PolledCheck) -> ssl.SSLContext:
    """The machine's own authorities, as Consul's agent would use them, or none."""
    context = ssl.create_default_context()
    if isinstance(check, HTTPCheck) and check.tls_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
