"""Decides who may push, and refuses everybody else with a problem."""

from __future__ import annotations

import hmac
import logging
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import Request

from web.problems import ForeignCaller, Problem, PushDisabled, TokenRequired
from web.settings import Settings, is_loopback

logger = logging.getLogger(__name__)

_LONGEST_TOKEN = 4096
_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="lictor"'}
_WRONG_TOKEN = {"WWW-Authenticate": 'Bearer realm="lictor", error="invalid_token"'}


class PushGuard:
    """Refuses pushes that the settings do not allow.

    With LICTOR_PUSH_TOKEN_FILE its token is needed, wherever the server listens. Without it the
    server must listen on loopback, and then a request must not bear marks of a web page of another
    origin, of a name that was rebound to 127.0.0.1, or of a proxy: nobody on this machine meant it.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_enabled = "push" in settings.registries
        self._is_loopback = settings.is_loopback
        self._bind = settings.bind
        self._token_file = TokenFile(settings.push_token_file) if settings.push_token_file else None

    def check(self, request: Request) -> None:
        """Raises the problem that refuses this request to push."""
        if not self._is_enabled:
            raise PushDisabled(
                "LICTOR_REGISTRIES does not name `push`: add it to take registrations by push."
            )
        self.check_caller(request)

    def check_caller(self, request: Request) -> None:
        """Raises the problem that refuses this request because of where it comes from."""
        if self._token_file is not None:
            _check_token(request, self._token_file)
        elif not self._is_loopback:
            raise PushDisabled(
                f"The server listens on {self._bind}, which others reach, and has no token: set "
                "LICTOR_PUSH_TOKEN_FILE, or let it listen on loopback (LICTOR_BIND=127.0.0.1:8080)."
            )
        else:
            _check_caller(request)

    @property
    def fault(self) -> str | None:
        """Why nobody can push although the settings ask for it, or None."""
        return self._token_file.read().fault if self._is_enabled and self._token_file else None


class TokenRead(NamedTuple):
    """What a token file held: a token, or what is wrong with the file."""

    token: str
    fault: str | None


class TokenFile:
    """A file that holds a token; it is read again whenever it changes, and its faults are logged once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: object = None
        self._last = TokenRead("", None)

    def read(self) -> TokenRead:
        with self._lock:
            stamp = self._stamp_of_file()
            if stamp != self._stamp:
                self._last = self._read_anew()
                self._stamp = stamp
                if self._last.fault:
                    logger.error("pushes are refused: %s", self._last.fault)
            return self._last

    def _stamp_of_file(self) -> object:
        try:
            status = self._path.stat()
        except OSError as exc:
            return exc.errno
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def _read_anew(self) -> TokenRead:
        try:
            with self._path.open("rb") as file:
                token = file.read(_LONGEST_TOKEN + 1).decode("ascii").strip()
        except OSError as exc:
            return self._faulty(f"cannot be read ({exc.strerror})")
        except UnicodeDecodeError:
            return self._faulty("holds other characters than ASCII")
        if not token:
            return self._faulty("is empty")
        if len(token) > _LONGEST_TOKEN:
            return self._faulty(f"holds more than {_LONGEST_TOKEN} characters")
        if not token.isprintable() or " " in token:
            return self._faulty("must hold one line without spaces")
        return TokenRead(token, None)

    def _faulty(self, what: str) -> TokenRead:
        return TokenRead("", f"LICTOR_PUSH_TOKEN_FILE: {self._path} {what}")


def _check_token(request: Request, file: TokenFile) -> None:
    token, fault = file.read()
    if fault is not None:
        raise PushDisabled("The token of this server cannot be read, so nobody can push: its log says why.")
    header = request.headers.get("Authorization")
    if header is None:
        raise TokenRequired(TokenRequired.advice, headers=_CHALLENGE)
    scheme, _, sent = header.partition(" ")
    # Compared in constant time, so that nobody learns from delays how much of a guess is right.
    if not hmac.compare_digest(sent.strip().encode(), token.encode()) or scheme.lower() != "bearer":
        raise TokenRequired(f"The token is wrong. {TokenRequired.advice}", headers=_WRONG_TOKEN)


def _check_caller(request: Request) -> None:
    if not is_loopback(_host_of(request.host)):
        raise _foreign(f"the header Host names {request.host!r}, which is no name of this machine's loopback")
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise _foreign(f"the header Origin says that a page of {origin!r} sends it")
    for header in _PROXY_HEADERS:
        if header in request.headers:
            raise _foreign(f"the header {header} says that it came through a proxy")


def _foreign(why: str) -> Problem:
    return ForeignCaller(f"Refused, since {why}. {ForeignCaller.advice}")


def _host_of(netloc: str) -> str:
    """The host of a Host header, without port and brackets; empty if it cannot be read."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
