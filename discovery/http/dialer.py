"""Connects to allowed addresses only: a URL in, a connection, or the reason why there is none, out."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import h11

from discovery.http.address_policy import FetchAllow, Resolve, SystemResolver
from discovery.http.exchange import Connection, connect
from discovery.http.url import HttpURL
from discovery.text import quoted

ExchangeFailure = Literal["not-allowed", "unreachable", "tls", "timeout", "bad-response"]


class ExchangeFailed(Exception):
    """There was no connection, or no answer over it; `reason` is a sentence for people."""

    def __init__(self, type: ExchangeFailure, reason: str) -> None:
        super().__init__(reason)
        self.type = type
        self.reason = reason


class Dialer:
    """Finds the addresses of hosts, judges them, and connects to those that are allowed.

    `resolve` finds the addresses of host names; the system is asked where it is not given.
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
        self._system = SystemResolver()
        self._resolve = resolve or self._system

    def close(self) -> None:
        self._system.close()

    async def connect(self, url: HttpURL) -> Connection:
        """A connection to the first of the host's addresses that takes one. Raises ExchangeFailed."""
        tls = self._tls if url.scheme == "https" else None
        for address in (addresses := await self._addresses(url)):
            try:
                async with asyncio.timeout(self._connect_timeout):
                    return await connect(address, url.port, tls=tls, host=url.host)
            except OSError as error:
                if address == addresses[-1]:
                    raise self._not_connected(error) from error
        raise ExchangeFailed("unreachable", "no connection: the name has no address")

    async def _addresses(self, url: HttpURL) -> list[str]:
        """The host's addresses that may be connected to.

        They are asked for once, and what was judged is what is connected to: a name that leads
        elsewhere a moment later is not followed there.
        """
        try:
            found = [url.host] if url.is_ip else await self._resolve(url.host)
        except OSError as error:
            raise self._not_connected(error) from error
        refusals = {address: self._allow.refusal(address) for address in found}
        allowed = [address for address, refusal in refusals.items() if refusal is None]
        if found and not allowed:
            raise ExchangeFailed("not-allowed", "; ".join(filter(None, refusals.values())))
        return allowed

    def _not_connected(self, error: OSError) -> ExchangeFailed:
        if isinstance(error, TimeoutError):
            return ExchangeFailed("timeout", f"no connection after {self._connect_timeout:g} seconds")
        if isinstance(error, ssl.SSLError):
            return ExchangeFailed("tls", f"no TLS connection: {_said_by(error)}")
        return ExchangeFailed("unreachable", f"no connection: {_said_by(error)}")


@contextmanager
def translated_errors() -> Iterator[None]:
    """The one border at which what breaks an exchange becomes ours.

    `OSError` covers sockets and `ssl`; h11 raises what it cannot make sense of in an answer.
    """
    try:
        yield
    except OSError as error:
        reason = f"the connection broke before the answer was complete ({_said_by(error)})"
        raise ExchangeFailed("bad-response", reason) from error
    except h11.ProtocolError as error:
        reason = f"the answer is not complete HTTP: {quoted(str(error), 200)}"
        raise ExchangeFailed("bad-response", reason) from error


def _said_by(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        # asyncio words these itself, with the address in Python's own notation.
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
