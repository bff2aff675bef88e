"""Explains why a connection to Consul failed, and what to do about it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import cast

import aiohttp


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
