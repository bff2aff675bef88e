"""Explains why a connection to Consul failed, and what to do about it."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import cast

import aiohttp
import httpx

from discovery.http.connection_slots import NoneFree


def network_fault(error: BaseException) -> str:
    """What a failed connection died of, and the mend where that is clear."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return _tls_fault(cause)
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused: is a Consul agent running there? CONSUL_HTTP_ADDR says where to look"
        if isinstance(cause, FileNotFoundError):
            return "there is no such socket: is a Consul agent running? CONSUL_HTTP_ADDR says where to look"
        if isinstance(cause, PermissionError):
            return "this user may not open the socket: mend its mode, or Consul's setting unix_sockets"
        if isinstance(cause, socket.gaierror):
            return f"the host's name cannot be resolved ({cause.strerror}): check CONSUL_HTTP_ADDR"
    return f"the connection failed: {str(error) or type(error).__name__}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it came from: the libraries wrap what tells most."""
    while error is not None:
        # aiohttp's own errors are kinds of ssl's and of OSError without what those tell.
        if not isinstance(error, aiohttp.ClientError):
            yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _causes(part)
        error = error.__cause__ or error.__context__


def _tls_fault(error: ssl.SSLError) -> str:
    reason = cast("str | None", error.reason) or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        mend = "check CONSUL_CACERT, and CONSUL_TLS_SERVER_NAME if the name differs"
        return f"the server's certificate is not trusted ({error.verify_message}): {mend}"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "the server does not speak TLS: write http:// into CONSUL_HTTP_ADDR, unset CONSUL_HTTP_SSL"
    if "CERTIFICATE" in reason:
        return f"the server refuses our certificate ({reason}): check CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY"
    return f"TLS failed: {reason}"


def cannot_be_sent(error: Exception) -> bool:
    """Whether it is aiohttp's word for a header or an address that has no place in HTTP."""
    # A certificate that is not trusted is a ValueError to Python, too.
    return isinstance(error, ValueError) and not isinstance(error, OSError | aiohttp.ClientOSError)


def what_is_late(error: Exception) -> str | None:
    """What took too long, in one word; None if nothing did."""
    kinds: dict[type[Exception], str] = {
        NoneFree: "free",
        httpx.PoolTimeout: "free",
        httpx.ConnectTimeout: "connect",
        aiohttp.ConnectionTimeoutError: "connect",
        httpx.TimeoutException: "answer",
        aiohttp.SocketTimeoutError: "answer",
    }
    return next((what for kind, what in kinds.items() if isinstance(error, kind)), None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that a server asks for, which it may write as a number or as a date."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
