"""Sends requests to allowed addresses only: the address that was judged is the one connected to."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from discovery.http.address_policy import FetchAllow, Resolve, SystemResolver
from discovery.http.session import ConnectionBroke, close_session, open_session
from discovery.http.url import HttpURL
from discovery.text import quoted

ExchangeFailure = Literal["not-allowed", "unreachable", "tls", "timeout", "bad-response"]


class ExchangeFailed(Exception):
    """There was no connection, or no answer over it; `reason` is a sentence for people."""

    def __init__(self, type: ExchangeFailure, reason: str) -> None:
        super().__init__(reason)
        self.type = type
        self.reason = reason


class GuardedClient:
    """Finds the addresses of hosts, judges them, and asks only those that are allowed.

    Each request has a connection of its own. `resolve` finds the addresses of host names; the
    system is asked where it is not given. `connect_timeout` is in seconds.
    """

    def __init__(
        self,
        allow: FetchAllow,
        *,
        tls: ssl.SSLContext,
        connect_timeout: float,
        resolve: Resolve | None = None,
    ) -> None:
        self._allow = allow
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._resolver = _JudgingResolver(allow, resolve)
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        self._resolver.give_up()
        if self._session is not None:
            await close_session(self._session)

    @asynccontextmanager
    async def request(
        self, method: str, url: HttpURL, headers: Sequence[tuple[str, str]], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends a request and yields its answer, whose body is to be read from `content`.

        Raises ExchangeFailed, also from within the block where reading fails there. Beyond
        connecting the caller bounds the time.
        """
        if url.is_ip and (refusal := self._allow.refusal(url.host)) is not None:
            raise ExchangeFailed("not-allowed", refusal)
        if self._session is None:
            self._session = open_session(tls=self._tls, resolver=self._resolver)
        with self._translated_errors():
            async with self._session.request(
                method,
                # As it stands: what was judged and signed is what is sent.
                URL(str(url), encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=self._connect_timeout),
            ) as response:
                yield response

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """The one border at which aiohttp's errors become ours."""
        try:
            yield
        except aiohttp.ServerTimeoutError as error:
            reason = f"no connection after {self._connect_timeout:g} seconds"
            raise ExchangeFailed("timeout", reason) from error
        except aiohttp.ClientConnectorCertificateError as error:
            reason = f"no TLS connection: {_said_by(error.certificate_error)}"
            raise ExchangeFailed("tls", reason) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise ExchangeFailed("tls", f"no TLS connection: {_said_by(error.os_error)}") from error
        except aiohttp.ClientConnectorError as error:
            raise ExchangeFailed("unreachable", f"no connection: {_said_by(error.os_error)}") from error
        except (ConnectionBroke, OSError) as error:
            reason = f"the connection broke before the answer was complete ({_said_by(error)})"
            raise ExchangeFailed("bad-response", reason) from error
        except (aiohttp.ClientError, ValueError) as error:
            said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
            reason = f"the answer is not complete HTTP: {quoted(' '.join(said.split()), 200)}"
            raise ExchangeFailed("bad-response", reason) from error


class _JudgingResolver(AbstractResolver):
    """Finds a host's addresses and passes on those that may be connected to."""

    def __init__(self, allow: FetchAllow, resolve: Resolve | None) -> None:
        self._allow = allow
        self._system = SystemResolver()
        self._resolve = resolve or self._system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolve(host)
        refusals = {address: self._allow.refusal(address) for address in found}
        allowed = [address for address, refusal in refusals.items() if refusal is None]
        if not found:
            raise ExchangeFailed("unreachable", "no connection: the name has no address")
        if not allowed:
            raise ExchangeFailed("not-allowed", "; ".join(filter(None, refusals.values())))
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in allowed
        ]

    def give_up(self) -> None:
        self._system.close()

    async def close(self) -> None:
        self.give_up()


def _said_by(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        # asyncio words these itself, with the address in Python's own notation.
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
